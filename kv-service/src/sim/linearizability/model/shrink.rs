//! Makes a history without an order shorter, until no call and no two calls can be left out.
//!
//! First the end is cut: the calls that had begun by some time, with the responses received by
//! then, are a history of their own, and later responses repair nothing. The shortest such part
//! without an order ends with one response, the *culprit*. Then runs of calls are left out (ddmin:
//! halves, quarters, ...), single calls, and pairs of calls.
//!
//! Leaving out a write whose effect was observed would make up another violation: a value that no
//! call wrote. So calls may be left out only if
//!
//! * the rest has no order,
//! * nor has the whole history without the outputs of the calls that are left out: the outputs
//!   that are left are the proof,
//! * without the culprit's response the rest has an order, so that each other response is
//!   explained,
//! * if the culprit would have been right at an earlier time, it still would,
//! * and, if there is a *rival*, another call without whose response there is an order, it is kept,
//!   and without its response the rest has an order, so that the culprit's response is explained.
//!
//! So a write and the reads that observed it are left out together or not at all. A search that
//! runs out of steps counts against leaving out, except under the second condition.
//!
//! The second condition doubts a refusal (an answer that a call was not executed) only if no call
//! that was executed contradicts the culprit. Every refused call that could explain the culprit as
//! well would otherwise stay in the report.

use super::history::{Call, Outcome};
use super::search::{Found, Item, search};
use super::specification::Model;

/// Most searches for a shorter history; it is then as short as it has become.
const TRIALS_MAX: usize = 4_000;
/// Most steps of a search that decides if calls are left out.
const TRIAL_STEPS_MAX: u64 = 5_000;
/// Most calls of a history of which pairs are tried.
const PAIRED_CALLS_MAX: usize = 80;

type CallOf<M> = Call<<M as Model>::Operation, <M as Model>::Output>;

/// `calls` have no order that a search of so many steps can find. Returns the shortest part found
/// that has none, in the order in which the calls began.
pub(super) fn shortest<M: Model>(model: &M, calls: &[CallOf<M>], steps: u64) -> Vec<CallOf<M>> {
    let (calls, culprit) = cut_end::<M>(model, calls, steps);
    let trial_steps = steps.min(TRIAL_STEPS_MAX);
    let mut shrink = Shrink {
        model,
        culprit,
        rival: None,
        kept: vec![true; calls.len()],
        calls,
        trial_steps,
        trials_left: TRIALS_MAX,
        others_were_explained: true,
        is_stale: true,
    };
    shrink.others_were_explained = shrink.others_are_explained();
    shrink.is_stale = shrink.culprit_was_right_once();
    shrink.rival = shrink.find_rival();
    shrink.leave_out_runs();
    while shrink.leave_out_pair() {
        shrink.leave_out_each();
    }
    shrink.rest().map(|(_, call)| call.clone()).collect()
}

/// Finds the shortest part up to a return that has no order. Returns its calls in the order in
/// which they began, and the place of the call that returns last.
fn cut_end<M: Model>(model: &M, calls: &[CallOf<M>], steps: u64) -> (Vec<CallOf<M>>, usize) {
    let is_answered = |call: &&CallOf<M>| call.outcome != Outcome::Unknown;
    let mut ends: Vec<u64> =
        calls.iter().filter(is_answered).map(|call| call.returned_at).collect();
    ends.sort_unstable();
    let has_order = |end: &u64| {
        let known = known_at::<M>(calls, *end);
        let items = known.iter().enumerate().filter_map(|(at, call)| Item::known(at, call));
        !matches!(search(model, items.collect(), steps), Found::NoOrder(_))
    };
    let first = ends.partition_point(has_order).min(ends.len() - 1);
    let known = known_at::<M>(calls, ends[first]);
    let ends_here =
        |call: &CallOf<M>| call.outcome != Outcome::Unknown && call.returned_at == ends[first];
    let culprit = known.iter().position(ends_here).expect("a call ends there");
    (known, culprit)
}

/// The calls that had begun by `time`, with the outcomes known by then.
fn known_at<M: Model>(calls: &[CallOf<M>], time: u64) -> Vec<CallOf<M>> {
    let mut known: Vec<CallOf<M>> =
        calls.iter().filter(|call| call.called_at <= time).cloned().collect();
    for call in &mut known {
        if call.returned_at > time {
            call.outcome = Outcome::Unknown;
        }
    }
    known.sort_by_key(|call| call.called_at);
    known
}

fn is_returned<O, R>(call: &Call<O, R>) -> bool {
    matches!(call.outcome, Outcome::Returned(_))
}

struct Shrink<'a, M: Model> {
    model: &'a M,
    calls: Vec<CallOf<M>>,
    /// Place of the call without whose response there is an order.
    culprit: usize,
    /// Place of another such call, if there is one.
    rival: Option<usize>,
    kept: Vec<bool>,
    trial_steps: u64,
    trials_left: usize,
    /// True if the third condition held at first.
    others_were_explained: bool,
    /// True if the fourth condition held at first.
    is_stale: bool,
}

impl<M: Model> Shrink<'_, M> {
    /// The calls that are kept, with their places.
    fn rest(&self) -> impl Iterator<Item = (usize, &CallOf<M>)> {
        self.calls.iter().enumerate().filter(|(at, _)| self.kept[*at])
    }

    fn search(&self, items: Vec<Item<'_, M>>) -> Found<M::State> {
        search(self.model, items, self.trial_steps)
    }

    fn has_no_order(&self) -> bool {
        let items = self.rest().filter_map(|(at, call)| Item::known(at, call)).collect();
        matches!(self.search(items), Found::NoOrder(_))
    }

    fn is_proved_by_its_outputs(&self) -> bool {
        let trusts_refusals =
            self.is_stale || self.rival.is_some_and(|rival| is_returned(&self.calls[rival]));
        let items = self.calls.iter().enumerate().filter_map(|(at, call)| {
            let trusted = trusts_refusals && call.outcome == Outcome::NotExecuted;
            match self.kept[at] || trusted {
                true => Item::known(at, call),
                false => Some(Item::without_output(at, call)),
            }
        });
        !matches!(self.search(items.collect()), Found::Order)
    }

    fn others_are_explained(&self) -> bool {
        self.has_order_unless_answered(self.culprit)
    }

    /// Returns true if the rest has an order once the response of this call is lost.
    fn has_order_unless_answered(&self, lost: usize) -> bool {
        let items = self.rest().filter_map(|(at, call)| match at == lost {
            true => Some(Item::unanswered(at, call)),
            false => Item::known(at, call),
        });
        matches!(self.search(items.collect()), Found::Order)
    }

    /// The latest call besides the culprit without whose response there is an order. A call that
    /// was refused is the rival only if no other call is.
    fn find_rival(&self) -> Option<usize> {
        let is_rival = |at: &usize| self.has_order_unless_answered(*at);
        let places = |returned: bool| {
            let answered = move |at: &usize| match &self.calls[*at].outcome {
                Outcome::Unknown => false,
                _ => is_returned(&self.calls[*at]) == returned,
            };
            self.places().into_iter().filter(answered).rev()
        };
        places(true).find(is_rival).or_else(|| places(false).find(is_rival))
    }

    fn culprit_was_right_once(&self) -> bool {
        let items = self.rest().filter_map(|(at, call)| match at == self.culprit {
            true => Item::from_the_start(at, call),
            false => Item::known(at, call),
        });
        matches!(self.search(items.collect()), Found::Order)
    }

    /// Leaves these calls out, if all conditions allow it.
    fn leave_out(&mut self, places: &[usize]) -> bool {
        let is_pinned = |at: &usize| *at == self.culprit || Some(*at) == self.rival;
        if self.trials_left == 0 || places.is_empty() || places.iter().any(is_pinned) {
            return false;
        }
        self.trials_left -= 1;
        places.iter().for_each(|at| self.kept[*at] = false);
        let may = self.has_no_order()
            && (!self.others_were_explained || self.others_are_explained())
            && (!self.is_stale || self.culprit_was_right_once())
            && self.rival.is_none_or(|rival| self.has_order_unless_answered(rival))
            && self.is_proved_by_its_outputs();
        if !may {
            places.iter().for_each(|at| self.kept[*at] = true);
        }
        may
    }

    fn places(&self) -> Vec<usize> {
        let is_free = |at: &usize| *at != self.culprit && Some(*at) != self.rival;
        self.rest().map(|(at, _)| at).filter(is_free).collect()
    }

    fn leave_out_runs(&mut self) {
        let mut len = self.calls.len();
        while len > 1 {
            for run in self.places().chunks(len) {
                self.leave_out(run);
            }
            len = len.div_ceil(2);
        }
        self.leave_out_each();
    }

    /// Leaves out single calls, the latest first, until none can be left out.
    fn leave_out_each(&mut self) {
        loop {
            let places = self.places();
            let before = places.len();
            for at in places.into_iter().rev() {
                self.leave_out(&[at]);
            }
            if self.places().len() == before {
                return;
            }
        }
    }

    /// Leaves out two calls that can only be left out together, if there are such.
    fn leave_out_pair(&mut self) -> bool {
        let places = self.places();
        if places.len() > PAIRED_CALLS_MAX {
            return false;
        }
        places.iter().enumerate().any(|(from, one)| {
            places[from + 1..].iter().any(|other| self.leave_out(&[*one, *other]))
        })
    }
}
