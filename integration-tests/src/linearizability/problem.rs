//! The calls of one key, prepared for the search: the effect of each on the few properties of the
//! key that matter.
//!
//! The reductions, none of which changes the verdict:
//!
//! - Calls that were not executed, and reads of unknown outcome, are left out. Writes of unknown
//!   outcome may take effect at any time after their call, or never.
//! - Values are [`Live`] or dead. Versions and revisions are kept only if a call depends on them.
//! - A *spoiler* is a write after which the value is dead, whatever it was before. A spoiler of
//!   unknown outcome is left out where no call could notice it (no delete, no swap, no version).
//! - A read that fits is placed next: later it could only get in the way. So is an answered spoiler
//!   while the value is dead, where no call could notice it.
//! - Writes of unknown outcome that do the same, such as deletes or spoilers, are used in the order
//!   of their calls: the one that was called first can stand wherever another could.
//! - A write whose value was observed (see [`Chains`]) must make that value. An observed value is
//!   left only after all its readers have read it, and only by the write that was observed to
//!   follow it.
//! - Without deletes a version does not come again either, and is left under the same conditions.
//! - Writes with revisions come in that order, and reads between the writes that their revisions
//!   name.

use std::collections::HashMap;

use bytes::Bytes;
use kv_service::{Expect, Operation};

use super::chains::{Chains, seen_value};
use super::history::{Call, Request, Seen};
use super::live::{Live, Value};

/// Index in [`Problem::items`].
pub(super) type ItemId = usize;

/// The properties of a key that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) value: Value,
    /// 0 if the key is missing, or if no call depends on versions.
    pub(super) version: u64,
    /// Revision of the last change. 0 if the key is missing, if the writer did not receive the
    /// revision, or if no call depends on revisions.
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
    /// The value that the item made, if a call observed it.
    made: Option<Value>,
    /// How many writes with revisions must have come before: at least, and at most.
    pub(super) window: (usize, usize),
    /// For an item of unknown outcome: the item with the same effect that has to be used first.
    pub(super) after: Option<ItemId>,
    /// True if the item can turn a dead value into another one.
    pub(super) resets: bool,
    /// True if the response of the item is impossible while the value is dead.
    pub(super) needs_life: bool,
    idles: Idles,
}

/// When an item may be placed next without a choice: it changes nothing there, and is not needed
/// later.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idles {
    Never,
    /// Always: the item never changes anything.
    Always,
    /// While the value is dead: it stays dead, and the item could only spoil a live value.
    Dead,
}

impl Item<'_> {
    pub(super) fn is_ranked(&self) -> bool {
        self.revision.is_some()
    }
}

/// Conditions for leaving a value or a version that was observed and never comes again.
#[derive(Default)]
pub(super) struct Station {
    pub(super) readers: u32,
    pub(super) successor: Option<ItemId>,
}

pub(super) struct Problem<'a> {
    /// The answered items, then those of unknown outcome; each group in the order of the calls.
    pub(super) items: Vec<Item<'a>>,
    pub(super) answered: usize,
    pub(super) live: Live,
    pub(super) stations: Vec<Station>,
    pub(super) station_of: HashMap<Value, usize>,
    /// For each item, the stations at which it reads: one of a value, and one of a version.
    pub(super) reads_at: Vec<[Option<usize>; 2]>,
    /// The stations of versions. Empty if the key may have been deleted.
    pub(super) station_of_version: HashMap<u64, usize>,
    versions_told: bool,
    modified_told: bool,
    /// Revisions that writers received, in order.
    ranks: Vec<u64>,
}

impl<'a> Problem<'a> {
    /// `calls` are those of one key, in the order in which they were called; `chains` was made from
    /// them.
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
        // Only a read can tell a spoiled value from another.
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

    /// Returns true if nothing is lost by placing the item next: it fits, changes nothing, and
    /// could do no good later.
    pub(super) fn is_idle(&self, state: State, id: ItemId) -> bool {
        let item = &self.items[id];
        let idles = match item.idles {
            Idles::Never => false,
            Idles::Always => true,
            Idles::Dead => state.value == Value::Dead,
        };
        idles && !item.is_ranked() && self.step(state, id) == Some(state)
    }

    /// Returns the state after the item took effect, or `None` if its response would have been
    /// different.
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

    /// Where the writer of the state did not receive its revision, a swap has the effect that its
    /// response reports. A swap without a response that changes nothing need not be placed at all.
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

    /// Marks the writes after which the value is dead, whatever it was before. Answered writes are
    /// marked only where the chains prove it.
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
        // For each rank, the first rank from there on whose write surely changed the key.
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

    /// Links each item of unknown outcome to the one with the same effect that was called before
    /// it.
    fn find_equals(&mut self, order: &[usize], spoilers: &[bool]) {
        let mut last: HashMap<Option<&Request>, ItemId> = HashMap::new();
        for id in self.answered..self.items.len() {
            let request = (!spoilers[order[id]]).then_some(&self.items[id].call.request);
            self.items[id].after = last.insert(request, id);
        }
    }

    /// Adds the constraints that the chains prove.
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
                // The call observed the value and replaced it. If another write follows the value
                // as well, the search cannot pass this station, whichever of the two is noted.
                _ => self.stations[station].successor = Some(id),
            }
        }
    }

    /// Without deletes each version exists once, and the change that reported the next version ends
    /// it.
    fn bind_versions(&mut self) {
        for (id, item) in self.items.iter().enumerate() {
            let (version, changes) = match item.effect {
                Effect::Get { version, .. } => (version, false),
                _ if item.told_changed == Some(false) => (item.told_version, false),
                _ => (item.told_version, true),
            };
            // The first change leaves version 0, a missing key. A change that reported 0 fits
            // nowhere.
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

/// The value that the call observed or was to compare with.
fn compared(call: &Call) -> Option<Bytes> {
    match &call.request {
        Request::Write(Operation::CompareAndSwap { expect: Expect::Value(expected), .. }) => {
            Some(expected.clone())
        }
        _ => seen_value(call).cloned(),
    }
}

/// Returns true if the version matters for the response of the call.
fn tells_version(call: &Call) -> bool {
    let by_version = matches!(
        call.request,
        Request::Write(Operation::CompareAndSwap { expect: Expect::Version(_), .. })
    );
    by_version
        || call.seen().is_some_and(|seen| seen.version.is_some())
        || call.written().is_some_and(|written| written.version.is_some())
}
