//! One key's calls, made ready to be searched: what each does to the little that matters of the key.
//!
//! The reductions, each of which keeps the answer as it is:
//!
//! - What was not executed, and reads of unknown outcome, are left out. Writes of unknown outcome may
//!   come at any time after their call, or never.
//! - Values are [`Live`] or dead. Versions and revisions are kept only if somebody was told of them.
//! - A *spoiler* is a write after which the value is dead, whatever it was before. Where nobody could
//!   tell (no delete, no swap, no version), one of unknown outcome is left out.
//! - A read that fits is next: later it could only get in the way. So is an answered spoiler of a value
//!   that is dead, where nobody could tell.
//! - Writes of unknown outcome that do the same, such as deletes or spoilers, are used in the order of
//!   their calls: the one that was called first can stand wherever the other could.
//! - A write that was seen (see [`Chains`]) must make the value that was seen, and a value that was
//!   seen is not left before all its readers have read it, but by the write that was seen to follow.
//! - Without deletes a version does not come again either, and is left in the same way.
//! - Writes with revisions come in that order, and reads between those that their revisions tell.

use std::collections::HashMap;

use bytes::Bytes;
use kv_service::operation::{Expect, Operation};

use super::chains::{Chains, seen_value};
use super::history::{Call, Request, Seen};
use super::live::{Live, Value};

/// Index of an item.
pub(super) type ItemId = usize;

/// What matters of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) value: Value,
    /// 0 if missing, or if nobody was told.
    pub(super) version: u64,
    /// Revision of the last change; 0 if missing, if its writer did not hear it, or if nobody was
    /// told.
    modified: u64,
}

impl State {
    pub(super) const MISSING: State = State { value: Value::Missing, version: 0, modified: 0 };
}

pub(super) enum Effect {
    Get { value: Value, version: Option<u64>, modified: Option<u64> },
    Put(Value),
    Append(Bytes),
    Delete,
    SwapValue { expected: Value, new: Value },
    SwapVersion { expected: u64, new: Value },
    SwapRevision { expected: u64, new: Value },
}

pub(super) struct Item<'a> {
    pub(super) call: &'a Call,
    pub(super) effect: Effect,
    told_changed: Option<bool>,
    told_version: Option<u64>,
    revision: Option<u64>,
    /// The value that somebody saw it make.
    made: Option<Value>,
    /// How many writes with revisions must have come before: at least, and at most.
    pub(super) window: (usize, usize),
    /// Of unknown outcome: does the same as this one, and comes after it.
    pub(super) after: Option<ItemId>,
    /// It can make another value of a dead one.
    pub(super) resets: bool,
    /// It has an answer that a dead value does not give.
    pub(super) needs_life: bool,
    idles: Idles,
}

/// Where an item may be next without a choice, as it changes nothing there and is not needed later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idles {
    Never,
    /// It never changes anything.
    Always,
    /// A dead value stays dead, and the item could do nothing but spoil another one.
    Dead,
}

impl Item<'_> {
    pub(super) fn is_ranked(&self) -> bool {
        self.revision.is_some()
    }
}

/// What must have happened before a value or a version is left that was seen and never comes again.
#[derive(Default)]
pub(super) struct Station {
    pub(super) readers: u32,
    pub(super) successor: Option<ItemId>,
}

pub(super) struct Problem<'a> {
    /// First those that were answered, then those of unknown outcome; each by the time of the call.
    pub(super) items: Vec<Item<'a>>,
    pub(super) answered: usize,
    pub(super) live: Live,
    pub(super) stations: Vec<Station>,
    pub(super) station_of: HashMap<Value, usize>,
    /// For each item the stations at which it reads: of a value, and of a version.
    pub(super) reads_at: Vec<[Option<usize>; 2]>,
    /// The stations of versions, on a key that nobody deletes.
    pub(super) station_of_version: HashMap<u64, usize>,
    versions_told: bool,
    modified_told: bool,
    /// Revisions that writers heard, in order.
    ranks: Vec<u64>,
}

impl<'a> Problem<'a> {
    /// `calls` are those of one key, by the time of the call, and `chains` is of them.
    pub(super) fn new(calls: &[&'a Call], chains: Option<&Chains>) -> Self {
        let taken_up: Vec<usize> = (0..calls.len())
            .filter(|at| calls[*at].is_ok() || calls[*at].is_open_write())
            .collect();
        let live = Live::new(taken_up.iter().filter_map(|at| compared(calls[*at])).collect());
        let mut problem = Self {
            items: Vec::new(),
            answered: 0,
            live,
            stations: Vec::new(),
            station_of: HashMap::new(),
            reads_at: Vec::new(),
            station_of_version: HashMap::new(),
            versions_told: taken_up.iter().any(|at| tells_version(calls[*at])),
            modified_told: calls.iter().any(|call| {
                let by_revision = matches!(
                    call.request,
                    Request::Write(Operation::CompareAndSwap { expect: Expect::Revision(_), .. })
                );
                by_revision || call.seen().is_some_and(|seen| seen.modify_revision.is_some())
            }),
            ranks: Vec::new(),
        };
        // Nobody can tell a value that was spoiled from one that was not, but by reading it.
        let dull = !problem.versions_told
            && taken_up.iter().all(|at| match &calls[*at].request {
                Request::Get { .. } => true,
                Request::Write(operation) => {
                    matches!(operation, Operation::Put { .. } | Operation::Append { .. })
                }
            });
        let spoilers = problem.spoilers(calls, &taken_up, chains.filter(|_| dull));
        let mut order: Vec<usize> = taken_up
            .into_iter()
            .filter(|at| !(dull && spoilers[*at] && !calls[*at].is_ok()))
            .collect();
        order.sort_by_key(|at| !calls[*at].is_ok());
        problem.answered = order.iter().filter(|at| calls[**at].is_ok()).count();
        problem.items = order.iter().map(|at| problem.item(calls[*at])).collect();
        for (item, at) in problem.items.iter_mut().zip(&order) {
            if dull && spoilers[*at] {
                item.idles = Idles::Dead;
            }
        }
        problem.reads_at = vec![[None; 2]; problem.items.len()];
        problem.rank();
        problem.find_equals(&order, &spoilers);
        if let Some(chains) = chains {
            problem.bind(&order, chains, calls.len());
        }
        if !problem.items.iter().any(|item| matches!(item.effect, Effect::Delete)) {
            problem.bind_versions();
        }
        problem
    }

    /// Nothing is lost if the item is next: it fits, changes nothing, and could do no good later.
    pub(super) fn is_idle(&self, state: State, id: ItemId) -> bool {
        let item = &self.items[id];
        let idles = match item.idles {
            Idles::Never => false,
            Idles::Always => true,
            Idles::Dead => state.value == Value::Dead,
        };
        idles && !item.is_ranked() && self.step(state, id) == Some(state)
    }

    /// The state after the item took effect; `None` if its answer would have been another one.
    pub(super) fn step(&self, state: State, id: ItemId) -> Option<State> {
        let item = &self.items[id];
        let (changed, value) = match &item.effect {
            Effect::Get { value, version, modified } => {
                let fits = state.value == *value
                    && version.is_none_or(|version| version == state.version)
                    && modified.is_none_or(|modified| self.modified_fits(state, modified));
                return fits.then_some(state);
            }
            Effect::Put(new) => (true, *new),
            Effect::Append(tail) => (true, self.live.extend(state.value, tail)),
            Effect::Delete => (state.value != Value::Missing, Value::Missing),
            Effect::SwapValue { expected, new } => match state.value == *expected {
                true => (true, *new),
                false => (false, state.value),
            },
            Effect::SwapVersion { expected, new } => match state.version == *expected {
                true => (true, *new),
                false => (false, state.value),
            },
            Effect::SwapRevision { expected, new } => {
                match self.revision_matches(state, *expected, item.told_changed) {
                    true => (true, *new),
                    false => (false, state.value),
                }
            }
        };
        let after = match (changed, value) {
            (false, _) => state,
            (true, Value::Missing) => State::MISSING,
            (true, value) => State {
                value,
                version: if self.versions_told { state.version + 1 } else { 0 },
                modified: if self.modified_told { item.revision.unwrap_or(0) } else { 0 },
            },
        };
        let fits = item.told_changed.is_none_or(|told| told == changed)
            && item.told_version.is_none_or(|told| told == after.version)
            && item.made.is_none_or(|made| !changed || made == after.value);
        fits.then_some(after)
    }

    /// Where the writer of the state did not hear its revision, a swap does what it was answered; one
    /// that was not answered need not be placed at all if it changes nothing.
    fn revision_matches(&self, state: State, expected: u64, told_changed: Option<bool>) -> bool {
        match (state.value == Value::Missing, state.modified) {
            (true, _) => expected == 0,
            (false, 0) => {
                expected != 0
                    && self.ranks.binary_search(&expected).is_err()
                    && told_changed.unwrap_or(true)
            }
            (false, modified) => modified == expected,
        }
    }

    fn modified_fits(&self, state: State, modified: u64) -> bool {
        let told_to_its_writer = self.ranks.binary_search(&modified).is_ok();
        state.modified == modified || (state.modified == 0 && !told_to_its_writer)
    }

    /// Writes after which the value is dead, whatever it was before; of the answered ones only where
    /// the chains tell.
    fn spoilers(&self, calls: &[&Call], taken_up: &[usize], chains: Option<&Chains>) -> Vec<bool> {
        let mut spoilers = vec![false; calls.len()];
        if let Some(chains) = chains {
            for writer in &chains.writers {
                spoilers[writer.at] = writer.link.is_none();
            }
            return spoilers;
        }
        for at in taken_up {
            spoilers[*at] = calls[*at].is_open_write()
                && match &calls[*at].request {
                    Request::Write(Operation::Put { value, .. }) => {
                        self.live.place(value) == Value::Dead
                    }
                    Request::Write(Operation::Append { value, .. }) => !self.live.contains(value),
                    _ => false,
                };
        }
        spoilers
    }

    fn item(&self, call: &'a Call) -> Item<'a> {
        let effect = match &call.request {
            Request::Get { .. } => {
                let seen = call.seen().expect("only reads that were answered are taken up");
                let value =
                    seen.value.as_ref().map_or(Value::Missing, |value| self.live.place(value));
                let Seen { version, modify_revision: modified, .. } = *seen;
                Effect::Get { value, version, modified }
            }
            Request::Write(Operation::Put { value, .. }) => Effect::Put(self.live.place(value)),
            Request::Write(Operation::Append { value, .. }) => Effect::Append(value.clone()),
            Request::Write(Operation::Delete { .. }) => Effect::Delete,
            Request::Write(Operation::CompareAndSwap { expect, value, .. }) => {
                let new = self.live.place(value);
                match expect {
                    Expect::Value(expected) => {
                        Effect::SwapValue { expected: self.live.place(expected), new }
                    }
                    Expect::Version(expected) => Effect::SwapVersion { expected: *expected, new },
                    Expect::Revision(expected) => Effect::SwapRevision { expected: *expected, new },
                }
            }
        };
        let told_changed = call.written().and_then(|written| written.changed);
        let resets = match effect {
            Effect::Put(new)
            | Effect::SwapVersion { new, .. }
            | Effect::SwapRevision { new, .. } => new != Value::Dead,
            Effect::Delete => true,
            Effect::Get { .. } | Effect::Append(_) | Effect::SwapValue { .. } => false,
        };
        let needs_life = match effect {
            Effect::Get { .. } => true,
            Effect::SwapValue { .. } => told_changed == Some(true),
            Effect::Delete => told_changed == Some(false),
            Effect::Put(_)
            | Effect::Append(_)
            | Effect::SwapVersion { .. }
            | Effect::SwapRevision { .. } => false,
        };
        let idles = match (&effect, told_changed) {
            (Effect::Get { .. }, _) | (_, Some(false)) => Idles::Always,
            _ => Idles::Never,
        };
        Item {
            call,
            effect,
            told_changed,
            told_version: call.written().and_then(|written| written.version),
            revision: call.written().and_then(|written| written.revision),
            made: None,
            window: (0, usize::MAX),
            after: None,
            resets,
            needs_life,
            idles,
        }
    }

    /// Finds the window of each item.
    fn rank(&mut self) {
        let mut ranked: Vec<(u64, ItemId)> =
            (0..self.items.len()).filter_map(|id| Some((self.items[id].revision?, id))).collect();
        ranked.sort_unstable();
        for (rank, (_, id)) in ranked.iter().enumerate() {
            self.items[*id].window = (rank, rank);
        }
        self.ranks = ranked.iter().map(|(revision, _)| *revision).collect();
        // For each rank, the first from there on that surely changed the key.
        let mut next_change = vec![usize::MAX; ranked.len() + 1];
        for (rank, (_, id)) in ranked.iter().enumerate().rev() {
            let changed = self.items[*id].call.surely_changed();
            next_change[rank] = if changed { rank } else { next_change[rank + 1] };
        }
        for item in &mut self.items {
            let Some(seen) = item.call.seen() else { continue };
            if let Some(modified) = seen.modify_revision {
                let before = self.ranks.partition_point(|revision| *revision <= modified);
                item.window = (before, next_change[before]);
            }
            if let Some(served_at) = seen.served_at {
                let before = self.ranks.partition_point(|revision| *revision <= served_at);
                item.window = (item.window.0.max(before), item.window.1.min(before));
            }
        }
    }

    /// Chains the items of unknown outcome that do the same.
    fn find_equals(&mut self, order: &[usize], spoilers: &[bool]) {
        let mut last: HashMap<Option<&Request>, ItemId> = HashMap::new();
        for id in self.answered..self.items.len() {
            let request = (!spoilers[order[id]]).then_some(&self.items[id].call.request);
            self.items[id].after = last.insert(request, id);
        }
    }

    /// Takes over what the chains tell.
    fn bind(&mut self, order: &[usize], chains: &Chains, call_count: usize) {
        let mut item_of: Vec<Option<ItemId>> = vec![None; call_count];
        order.iter().enumerate().for_each(|(id, at)| item_of[*at] = Some(id));
        let mut values: Vec<Value> = vec![Value::Missing; chains.writers.len()];
        for writer in &chains.linked {
            let link = chains.writers[*writer].link.expect("it is linked");
            let from = link.parent.map_or(Value::Missing, |parent| values[parent]);
            let id = item_of[chains.writers[*writer].at].expect("what was seen is taken up");
            let tail = self.items[id].call.request.new_value().expect("a writer has a value");
            let made = self.live.extend(from, tail);
            debug_assert_ne!(made, Value::Dead, "it was seen");
            values[*writer] = made;
            self.items[id].made = Some(made);
            self.station_of.insert(made, self.stations.len());
            self.stations.push(Station::default());
            if link.parent.is_some() {
                self.stations[self.station_of[&from]].successor = Some(id);
            }
        }
        for (at, seen) in chains.seen.iter().enumerate() {
            let Some(writer) = seen else { continue };
            let id = item_of[at].expect("who saw something is taken up");
            let station = self.station_of[&values[*writer]];
            match self.items[id].effect {
                Effect::Get { .. } => {
                    self.stations[station].readers += 1;
                    self.reads_at[id][0] = Some(station);
                }
                // It saw the value and took it away. If another one follows as well, then the search
                // will not get past here, whoever is noted.
                _ => self.stations[station].successor = Some(id),
            }
        }
    }

    /// Without deletes each version is there once, and the change that told the next one ends it.
    fn bind_versions(&mut self) {
        for (id, item) in self.items.iter().enumerate() {
            let (version, changes) = match item.effect {
                Effect::Get { version, .. } => (version, false),
                _ if item.told_changed == Some(false) => (item.told_version, false),
                _ => (item.told_version, true),
            };
            // The first version is made of none, and a change that told 0 fits nowhere.
            let Some(version) = version.and_then(|told| told.checked_sub(u64::from(changes)))
            else {
                continue;
            };
            let station = *self.station_of_version.entry(version).or_insert_with(|| {
                self.stations.push(Station::default());
                self.stations.len() - 1
            });
            if changes {
                self.stations[station].successor = Some(id);
            } else {
                self.stations[station].readers += 1;
                self.reads_at[id][1] = Some(station);
            }
        }
    }
}

/// The value that the call saw or was to compare with.
fn compared(call: &Call) -> Option<Bytes> {
    match &call.request {
        Request::Write(Operation::CompareAndSwap { expect: Expect::Value(expected), .. }) => {
            Some(expected.clone())
        }
        _ => seen_value(call).cloned(),
    }
}

/// Whether the version matters for the answer of the call.
fn tells_version(call: &Call) -> bool {
    let by_version = matches!(
        call.request,
        Request::Write(Operation::CompareAndSwap { expect: Expect::Version(_), .. })
    );
    by_version
        || call.seen().is_some_and(|seen| seen.version.is_some())
        || call.written().is_some_and(|written| written.version.is_some())
}
