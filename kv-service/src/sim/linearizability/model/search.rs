//! Searches for an order of the calls that the model allows: Wing and Gong's search with Lowe's
//! memory of visited states, without recursion.
//!
//! A call may be the next in the order if it began before the first return among those that are
//! left. Calls of unknown outcome are tried last, as they need not be used at all. Several of them
//! that ask for the same are used in the order in which they began: the first can stand wherever
//! another could.

use std::collections::HashSet;

use super::history::{Call, Outcome};
use super::specification::Model;
use crate::sim::linearizability::pending::{CallId, Event, Pending, is_call, owner};

/// A call as the search takes it. `at` is its place in the caller's list.
pub(super) struct Item<'a, M: Model> {
    at: usize,
    operation: &'a M::Operation,
    output: Option<&'a M::Output>,
    called_at: u64,
    /// `None`: the call may take effect at any time after it began, or never.
    returned_at: Option<u64>,
}

impl<'a, M: Model> Item<'a, M> {
    /// The call with all that its client knows; `None` if it was not executed.
    pub(super) fn known(at: usize, call: &'a Call<M::Operation, M::Output>) -> Option<Self> {
        let Call { operation, called_at, returned_at, outcome, .. } = call;
        let (output, returned_at) = match outcome {
            Outcome::Returned(output) => (Some(output), Some(*returned_at)),
            Outcome::NotExecuted => return None,
            Outcome::Unknown => (None, None),
        };
        Some(Self { at, operation, output, called_at: *called_at, returned_at })
    }

    /// The call as if its response had been lost.
    pub(super) fn unanswered(at: usize, call: &'a Call<M::Operation, M::Output>) -> Self {
        let Call { operation, called_at, .. } = call;
        Self { at, operation, output: None, called_at: *called_at, returned_at: None }
    }

    /// The call without its output: executed between its call and its return, if it returned.
    pub(super) fn without_output(at: usize, call: &'a Call<M::Operation, M::Output>) -> Self {
        let is_returned = matches!(call.outcome, Outcome::Returned(_));
        let returned_at = is_returned.then_some(call.returned_at);
        Self { returned_at, ..Self::unanswered(at, call) }
    }

    /// The call as if it had begun with the run.
    pub(super) fn from_the_start(
        at: usize,
        call: &'a Call<M::Operation, M::Output>,
    ) -> Option<Self> {
        Some(Self { called_at: 0, ..Self::known(at, call)? })
    }
}

/// The result of a search.
pub(super) enum Found<S> {
    Order,
    NoOrder(Furthest<S>),
    OutOfSteps,
}

/// The longest order that the search found.
pub(super) struct Furthest<S> {
    /// Places of the calls in the caller's list.
    pub(super) order: Vec<usize>,
    pub(super) state: S,
    /// Calls that may be next by time. None of them fits the state.
    pub(super) stuck: Vec<usize>,
    answered_count: usize,
}

/// The next candidate: an event of the list, or a call of unknown outcome.
#[derive(Clone, Copy)]
enum Cursor {
    Event(Event),
    Open(CallId),
}

/// A choice that was made, and how to take it back.
struct Frame<S> {
    id: CallId,
    state: S,
    next: Cursor,
}

struct Search<'a, M: Model> {
    model: &'a M,
    /// The answered calls, then the others; each group in the order in which they began.
    items: Vec<Item<'a, M>>,
    answered: usize,
    /// For a call of unknown outcome: the one that asks for the same and has to be used first.
    before: Vec<Option<CallId>>,
    steps_left: u64,
    pending: Pending,
    state: M::State,
    frames: Vec<Frame<M::State>>,
    tried: HashSet<(Box<[u64]>, M::State)>,
    answered_count: usize,
    furthest: Furthest<M::State>,
}

/// Searches for an order in at most so many steps of the model.
pub(super) fn search<'a, M: Model>(
    model: &'a M,
    mut items: Vec<Item<'a, M>>,
    steps: u64,
) -> Found<M::State> {
    items.sort_by_key(|item| (item.returned_at.is_none(), item.called_at));
    let times: Vec<(u64, u64)> =
        items.iter().map_while(|item| Some((item.called_at, item.returned_at?))).collect();
    let answered = times.len();
    let same = |id: CallId| {
        (answered..id).rev().find(|before| items[*before].operation == items[id].operation)
    };
    let before = (0..items.len()).map(|id| if id < answered { None } else { same(id) }).collect();
    let state = model.initial();
    let furthest =
        Furthest { order: Vec::new(), state: state.clone(), stuck: Vec::new(), answered_count: 0 };
    let mut search = Search {
        model,
        answered,
        before,
        steps_left: steps,
        pending: Pending::new(&times, items.len() - answered),
        items,
        state,
        frames: Vec::new(),
        tried: HashSet::new(),
        answered_count: 0,
        furthest,
    };
    search.run()
}

impl<M: Model> Search<'_, M> {
    fn run(&mut self) -> Found<M::State> {
        loop {
            if self.pending.all_answered_lifted() {
                return Found::Order;
            }
            self.note_furthest();
            let is_new = self.tried.insert((self.pending.lifted_set(), self.state.clone()));
            let goes_on = is_new && self.choose(Cursor::Event(self.pending.first()));
            if !goes_on && !self.go_back() {
                return match self.steps_left {
                    0 => Found::OutOfSteps,
                    _ => Found::NoOrder(self.furthest()),
                };
            }
        }
    }

    /// Makes the first possible choice from `cursor` on; returns `false` if there is none.
    fn choose(&mut self, mut cursor: Cursor) -> bool {
        let first_return = self.first_return();
        loop {
            let (id, next) = match cursor {
                Cursor::Event(event) if is_call(event) => {
                    (owner(event), Cursor::Event(self.pending.after(event)))
                }
                Cursor::Event(_) => {
                    cursor = Cursor::Open(self.answered);
                    continue;
                }
                Cursor::Open(id) if id == self.items.len() => return false,
                Cursor::Open(id) => (id, Cursor::Open(id + 1)),
            };
            cursor = next;
            let is_open = id >= self.answered;
            if is_open && !self.may_use_open(id, first_return) {
                continue;
            }
            if self.steps_left == 0 {
                return false;
            }
            self.steps_left -= 1;
            let Item { operation, output, .. } = &self.items[id];
            let Some(after) = self.model.step(&self.state, operation, *output) else { continue };
            // A call of unknown outcome that changes nothing need not have happened.
            if is_open && after == self.state {
                continue;
            }
            self.pending.lift(id);
            self.answered_count += usize::from(!is_open);
            let state = std::mem::replace(&mut self.state, after);
            self.frames.push(Frame { id, state, next });
            return true;
        }
    }

    /// Takes choices back until another one is possible; returns `false` if there is none.
    fn go_back(&mut self) -> bool {
        while let Some(Frame { id, state, next }) = self.frames.pop() {
            if self.steps_left == 0 {
                return false;
            }
            self.pending.unlift(id);
            self.answered_count -= usize::from(id < self.answered);
            self.state = state;
            if self.choose(next) {
                return true;
            }
        }
        false
    }

    fn may_use_open(&self, id: CallId, first_return: u64) -> bool {
        !self.pending.is_lifted(id)
            && self.items[id].called_at <= first_return
            && self.before[id].is_none_or(|before| self.pending.is_lifted(before))
    }

    fn first_return(&self) -> u64 {
        let first = &self.items[self.pending.first_to_return()];
        first.returned_at.expect("an answered call has returned")
    }

    fn note_furthest(&mut self) {
        if self.answered_count <= self.furthest.answered_count && !self.furthest.stuck.is_empty() {
            return;
        }
        let first_return = self.first_return();
        let is_stuck =
            |id: &CallId| !self.pending.is_lifted(*id) && self.items[*id].called_at <= first_return;
        self.furthest = Furthest {
            order: self.frames.iter().map(|frame| self.items[frame.id].at).collect(),
            state: self.state.clone(),
            stuck: (0..self.answered).filter(is_stuck).map(|id| self.items[id].at).collect(),
            answered_count: self.answered_count,
        };
    }

    fn furthest(&mut self) -> Furthest<M::State> {
        let state = self.model.initial();
        let empty = Furthest { order: Vec::new(), state, stuck: Vec::new(), answered_count: 0 };
        std::mem::replace(&mut self.furthest, empty)
    }
}
