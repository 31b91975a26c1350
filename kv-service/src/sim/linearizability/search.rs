//! Searches for an order of one key's calls that explains all responses: Wing and Gong's search
//! with Lowe's memory of visited states, without recursion.
//!
//! A call is *liftable* if it comes before the first return among the [`Pending`] ones: it may be
//! the next in the order. Writes of unknown outcome are tried last, as they need not be used at
//! all.
//!
//! An idle call that may be next, such as a read that fits, is placed next: it can only get in the
//! way later. So the choice is only between changes. A visited state is the set of lifted calls
//! together with the state of the key.

use std::collections::HashSet;

use super::live::Value;
use super::pending::{Event, Pending, is_call, owner};
use super::problem::{ItemId, Problem, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Order,
    NoOrder,
    OutOfSteps,
}

/// The furthest point that the search reached.
#[derive(Clone, Debug)]
pub(super) struct Furthest {
    pub(super) order: Vec<ItemId>,
    pub(super) state: State,
}

/// The next candidate: an event of the list, or an item of unknown outcome.
#[derive(Clone, Copy, Debug)]
enum Cursor {
    Event(Event),
    Open(ItemId),
}

/// A choice that was made, and how to take it back.
struct Frame {
    /// Length of the order before the choice.
    order_len: usize,
    state: State,
    /// The next candidate to try instead.
    next: Cursor,
}

pub(super) struct Search<'a> {
    problem: &'a Problem<'a>,
    steps_left: u64,
    pending: Pending,
    state: State,
    order: Vec<ItemId>,
    frames: Vec<Frame>,
    tried: HashSet<(Box<[u64]>, State)>,
    ranked_lifted: usize,
    resets_left: usize,
    needing_life_left: usize,
    readers_left: Vec<u32>,
    furthest: Option<Furthest>,
}

impl<'a> Search<'a> {
    pub(super) fn new(problem: &'a Problem<'a>, budget_steps: u64) -> Self {
        let times: Vec<(u64, u64)> = problem.items[..problem.answered]
            .iter()
            .map(|item| (item.call.called_at, item.call.returned_at))
            .collect();
        let open_count = problem.items.len() - times.len();
        Self {
            problem,
            steps_left: budget_steps,
            pending: Pending::new(&times, open_count),
            state: State::MISSING,
            order: Vec::new(),
            frames: Vec::new(),
            tried: HashSet::new(),
            ranked_lifted: 0,
            resets_left: problem.items.iter().filter(|item| item.resets).count(),
            needing_life_left: problem.items.iter().filter(|item| item.needs_life).count(),
            readers_left: problem.stations.iter().map(|station| station.readers).collect(),
            furthest: None,
        }
    }

    pub(super) fn run(mut self) -> Found {
        self.search()
    }

    /// Runs the search like [`Search::run`], and returns how far it came.
    pub(super) fn run_and_tell(mut self) -> (Found, Furthest) {
        self.furthest = Some(Furthest { order: Vec::new(), state: self.state });
        let found = self.search();
        (found, self.furthest.expect("it was asked for"))
    }

    fn search(&mut self) -> Found {
        loop {
            self.settle();
            self.note_furthest();
            if self.pending.all_answered_lifted() {
                return Found::Order;
            }
            let promising = !self.is_hopeless() && self.is_new();
            let goes_on = promising && self.choose(Cursor::Event(self.pending.first()));
            if !goes_on && !self.go_back() {
                return match self.steps_left {
                    0 => Found::OutOfSteps,
                    _ => Found::NoOrder,
                };
            }
        }
    }

    /// Lifts every idle item that may be next.
    fn settle(&mut self) {
        let mut event = self.pending.first();
        while is_call(event) && self.take_step() {
            let id = owner(event);
            if self.is_in_window(id) && self.problem.is_idle(self.state, id) {
                self.lift(id);
            }
            event = self.pending.after(event);
        }
    }

    /// Makes the first possible choice from `cursor` on; returns `false` if there is none.
    fn choose(&mut self, mut cursor: Cursor) -> bool {
        let problem = self.problem;
        let mut first_return = None;
        while self.take_step() {
            let (id, next) = match cursor {
                Cursor::Event(event) if is_call(event) => {
                    (owner(event), Cursor::Event(self.pending.after(event)))
                }
                Cursor::Event(_) => {
                    cursor = Cursor::Open(problem.answered);
                    continue;
                }
                Cursor::Open(id) if id == problem.items.len() => return false,
                Cursor::Open(id) => (id, Cursor::Open(id + 1)),
            };
            cursor = next;
            if !self.is_in_window(id) {
                continue;
            }
            if id >= problem.answered {
                let first_return = *first_return.get_or_insert_with(|| self.first_return());
                if !self.may_use_open(id, first_return) {
                    continue;
                }
            }
            let Some(after) = problem.step(self.state, id) else { continue };
            // A write of unknown outcome that changes nothing need not have happened.
            let idle = id >= problem.answered && after == self.state;
            if idle || !self.may_leave_by(id, after) {
                continue;
            }
            let frame = Frame { order_len: self.order.len(), state: self.state, next };
            self.frames.push(frame);
            self.lift(id);
            self.state = after;
            return true;
        }
        false
    }

    /// Takes choices back until another one is possible; returns `false` if there is none.
    fn go_back(&mut self) -> bool {
        while let Some(frame) = self.frames.pop() {
            if self.steps_left == 0 {
                return false;
            }
            while self.order.len() > frame.order_len {
                self.unlift();
            }
            self.state = frame.state;
            if self.choose(frame.next) {
                return true;
            }
        }
        false
    }

    fn take_step(&mut self) -> bool {
        if self.steps_left == 0 {
            return false;
        }
        self.steps_left -= 1;
        true
    }

    fn is_in_window(&self, id: ItemId) -> bool {
        let (least, most) = self.problem.items[id].window;
        (least..=most).contains(&self.ranked_lifted)
    }

    /// Time of the first return that is still in the list.
    fn first_return(&self) -> u64 {
        self.problem.items[self.pending.first_to_return()].call.returned_at
    }

    /// Returns true if the item was called by then, is not used yet, and the items with the same
    /// effect that were called before it are used up.
    fn may_use_open(&self, id: ItemId, first_return: u64) -> bool {
        let item = &self.problem.items[id];
        !self.pending.is_lifted(id)
            && item.call.called_at <= first_return
            && item.after.is_none_or(|before| self.pending.is_lifted(before))
    }

    /// Returns true if this item may end the current value and version, which do not come again.
    fn may_leave_by(&self, id: ItemId, after: State) -> bool {
        let leaves = |station: Option<&usize>| {
            let Some(station) = station else { return true };
            let successor = self.problem.stations[*station].successor;
            self.readers_left[*station] == 0 && successor.is_none_or(|successor| successor == id)
        };
        let problem = self.problem;
        (after.value == self.state.value || leaves(problem.station_of.get(&self.state.value)))
            && (after.version == self.state.version
                || leaves(problem.station_of_version.get(&self.state.version)))
    }

    /// Returns true if the value stays dead, and an item is left that needs it alive.
    fn is_hopeless(&self) -> bool {
        let dead = self.state.value == Value::Dead;
        dead && self.resets_left == 0 && self.needing_life_left > 0
    }

    /// Remembers the lifted items with the state; returns `false` if that pair was visited before.
    fn is_new(&mut self) -> bool {
        self.tried.insert((self.pending.lifted_set(), self.state))
    }

    fn lift(&mut self, id: ItemId) {
        self.pending.lift(id);
        self.order.push(id);
        let item = &self.problem.items[id];
        self.ranked_lifted += usize::from(item.is_ranked());
        self.resets_left -= usize::from(item.resets);
        self.needing_life_left -= usize::from(item.needs_life);
        for station in self.problem.reads_at[id].into_iter().flatten() {
            self.readers_left[station] -= 1;
        }
    }

    /// Takes back the last lift.
    fn unlift(&mut self) {
        let id = self.order.pop().expect("something was lifted");
        self.pending.unlift(id);
        let item = &self.problem.items[id];
        self.ranked_lifted -= usize::from(item.is_ranked());
        self.resets_left += usize::from(item.resets);
        self.needing_life_left += usize::from(item.needs_life);
        for station in self.problem.reads_at[id].into_iter().flatten() {
            self.readers_left[station] += 1;
        }
    }

    fn note_furthest(&mut self) {
        let Some(furthest) = &mut self.furthest else { return };
        if self.order.len() > furthest.order.len() || furthest.order.is_empty() {
            *furthest = Furthest { order: self.order.clone(), state: self.state };
        }
    }
}
