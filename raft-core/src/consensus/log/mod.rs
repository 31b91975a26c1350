//! The entries after the last compaction, and the indexes that move over them.
//!
//! ```text
//!   compacted │ 4 5 6 7 8 9 10 11 12 13 14 15
//!         start         │     │     │        └ last_index
//!                applied┘     │     └ durable_index (on this node's disk)
//!                       commit┘
//!
//!   first_index - 1 <= snapshot_index <= last_applied <= commit_index <= last_index
//!   last_applied <= durable_index <= last_index
//! ```
//!
//! The log promises that a committed entry is never truncated, and that `durable_index` never
//! covers an entry of which the disk holds another version. That holds even if the same indexes are
//! overwritten while earlier writes are still in flight (the ABA case): a truncation shortens what
//! the batches in flight may claim.
//!
//! Sections 3.5, 5.1, 10.2.1.

use std::collections::{BTreeSet, VecDeque};

use super::configurations::Configurations;
use crate::types::{Configuration, Entry, Index, NodeId, Payload, PersistId, Position, Term};

/// The reason why an append was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AppendRefusal {
    /// The append's previous position is not in this log. Carries the last position that could
    /// agree with the sender's log.
    Conflict(Position),
    /// It conflicts with this committed index: a disk was rolled back, or two nodes share an
    /// identity.
    ConflictsWithCommitted(Index),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) id: PersistId,
    /// The batch, once written, makes the log durable through here.
    pub(super) through: Index,
}

#[derive(Clone, Debug, Hash)]
pub(super) struct Log {
    start: Position,
    entries: VecDeque<Entry>,
    configurations: Configurations,
    bytes: u64,
    uncommitted_bytes: u64,
    snapshot_index: Index,
    last_applied: Index,
    /// Entries through here were handed out to be applied; not before `last_applied`.
    handed_index: Index,
    handed_bytes: u64,
    commit_index: Index,
    durable_index: Index,
    /// Entries after this one have been in no batch yet.
    taken_index: Index,
    /// The next batch must truncate from here first.
    truncate_from: Option<Index>,
    in_flight: VecDeque<InFlight>,
}

impl Log {
    /// A log as it was loaded; everything in it is durable.
    pub(super) fn new(
        start: Position,
        configuration: Configuration,
        entries: Vec<Entry>,
        snapshot_index: Index,
        commit_index: Index,
        last_applied: Index,
    ) -> Self {
        let last_index = start.index + entries.len() as u64;
        assert!(entries.iter().zip(start.index + 1..).all(|(entry, index)| entry.index == index));
        assert!(last_applied <= commit_index && commit_index <= last_index);
        assert!(start.index <= last_applied);
        let mut configurations = Configurations::new(configuration);
        for entry in &entries {
            if let Payload::Configuration(configuration) = &entry.payload {
                configurations.push(entry.position(), Configuration::clone(configuration));
            }
        }
        let mut log = Self {
            start,
            configurations,
            bytes: entries.iter().map(Entry::size_bytes).sum(),
            entries: entries.into(),
            uncommitted_bytes: 0,
            snapshot_index,
            last_applied,
            handed_index: last_applied,
            handed_bytes: 0,
            commit_index,
            durable_index: last_index,
            taken_index: last_index,
            truncate_from: None,
            in_flight: VecDeque::new(),
        };
        log.uncommitted_bytes = log.count_uncommitted();
        log
    }

    pub(super) fn start(&self) -> Position {
        self.start
    }

    pub(super) fn first_index(&self) -> Index {
        self.start.index + 1
    }

    pub(super) fn last_index(&self) -> Index {
        self.start.index + self.entries.len() as u64
    }

    pub(super) fn last_position(&self) -> Position {
        self.entries.back().map_or(self.start, Entry::position)
    }

    pub(super) fn commit_index(&self) -> Index {
        self.commit_index
    }

    pub(super) fn last_applied(&self) -> Index {
        self.last_applied
    }

    pub(super) fn durable_index(&self) -> Index {
        self.durable_index
    }

    pub(super) fn snapshot_index(&self) -> Index {
        self.snapshot_index
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the size of the first append that holds the entry to be committed next.
    pub(super) fn next_append_bytes(&self, append_bytes_max: u64) -> u64 {
        let next = self.entry(self.commit_index + 1).map_or(0, Entry::size_bytes);
        next.max(self.uncommitted_bytes.min(append_bytes_max))
    }

    pub(super) fn uncommitted_bytes(&self) -> u64 {
        self.uncommitted_bytes
    }

    pub(super) fn entry(&self, index: Index) -> Option<&Entry> {
        let offset = index.checked_sub(self.first_index())?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// Returns the term at an index of this log or at its start; `None` beyond either end.
    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// Returns the configuration in force now: the latest one appended.
    pub(super) fn configuration(&self) -> &Configuration {
        self.configurations.latest()
    }

    /// Returns the configuration in force at an index of this log.
    pub(super) fn configuration_at(&self, index: Index) -> &Configuration {
        self.configurations.at(index)
    }

    /// Returns the position of the entry that brought the latest configuration, or the log's start
    /// if it came before.
    pub(super) fn configuration_position(&self) -> Position {
        self.configurations.latest_position().unwrap_or(self.start)
    }

    /// Returns the index of [`Log::configuration_position`].
    pub(super) fn configuration_index(&self) -> Index {
        self.configuration_position().index
    }

    /// Returns the members of every configuration that no committed one supersedes.
    pub(super) fn active_members(&self) -> BTreeSet<NodeId> {
        let active = self.configurations.active(self.commit_index);
        active.flat_map(|configuration| configuration.members()).collect()
    }

    /// Returns the voters of every configuration that no committed one supersedes.
    pub(super) fn active_voters(&self) -> BTreeSet<NodeId> {
        let active = self.configurations.active(self.commit_index);
        active.flat_map(|one| one.voters.iter().chain(&one.outgoing).copied()).collect()
    }

    /// Returns true if the latest configuration is committed.
    pub(super) fn configuration_is_committed(&self) -> bool {
        self.configurations.latest_index().is_none_or(|index| index <= self.commit_index)
    }

    /// Returns true if entries were handed out to be applied, and were not reported applied.
    pub(super) fn has_work_at_machine(&self) -> bool {
        self.handed_index > self.last_applied
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.term_at(position.index) == Some(position.term)
    }

    /// Returns the size of the entries after `after` through `through`, as far as they are in this
    /// log.
    fn bytes_between(&self, after: Index, through: Index) -> u64 {
        let place = |index: Index| {
            let place = usize::try_from(index.saturating_sub(self.start.index));
            place.expect("a log fits into memory").min(self.entries.len())
        };
        self.entries.range(place(after)..place(through)).map(Entry::size_bytes).sum()
    }

    /// Returns entries from an index on, as many as `bytes_max` allows but at least one if there is
    /// one.
    pub(super) fn slice(&self, from: Index, through: Index, bytes_max: u64) -> Vec<Entry> {
        assert!(from >= self.first_index() && through <= self.last_index());
        let skip = usize::try_from(from - self.first_index()).expect("a log fits into memory");
        let count = (through + 1).saturating_sub(from);
        let count = usize::try_from(count).expect("a log fits into memory");
        // Counted first, because a slice that grows is copied again and again.
        let (mut bytes, mut taken) = (0, 0);
        for entry in self.entries.range(skip..skip + count) {
            bytes += entry.size_bytes();
            if bytes > bytes_max && taken > 0 {
                break;
            }
            taken += 1;
        }
        self.entries.range(skip..skip + taken).cloned().collect()
    }

    /// Returns the largest position at or before `index_max` whose term is at most `term_max`:
    /// where two logs could agree, skipping a whole diverging term at a time (3.5, last
    /// paragraphs). Nothing is known before the start. Entries through the start are committed, so
    /// the start is the last resort.
    pub(super) fn last_possible_match(&self, index_max: Index, term_max: Term) -> Position {
        let mut index = index_max.min(self.last_index());
        while let Some(entry) = self.entry(index) {
            if entry.term <= term_max {
                return entry.position();
            }
            index -= 1;
        }
        self.start
    }

    /// Appends a leader's own new entries.
    pub(super) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            assert_eq!(entry.index, self.last_index() + 1, "entries are contiguous");
            assert!(entry.term >= self.last_position().term, "terms do not fall");
            self.bytes += entry.size_bytes();
            self.uncommitted_bytes += entry.size_bytes();
            if let Payload::Configuration(configuration) = &entry.payload {
                self.configurations.push(entry.position(), Configuration::clone(configuration));
            }
            self.entries.push_back(entry);
        }
    }

    /// Merges a leader's append: entries that follow `previous`. Truncates from the first that
    /// conflicts; a shorter message that agrees deletes nothing, so a late one does no harm.
    /// Returns the index through which this log now agrees with the sender's, and where it was
    /// truncated.
    pub(super) fn merge(
        &mut self,
        previous: Position,
        entries: Vec<Entry>,
    ) -> Result<(Index, Option<Index>), AppendRefusal> {
        let last_new_index = previous.index + entries.len() as u64;
        // Entries through the start are committed and thus equal: begin where this log begins.
        let skip = self.start.index.saturating_sub(previous.index);
        if skip == 0 && !self.contains(previous) {
            let before = previous.index.saturating_sub(1).min(self.last_index());
            return Err(AppendRefusal::Conflict(self.last_possible_match(before, previous.term)));
        }
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let at_start = skip.checked_sub(1).and_then(|last_skipped| entries.get(last_skipped));
        if at_start.is_some_and(|entry| entry.position() != self.start) {
            return Err(AppendRefusal::ConflictsWithCommitted(self.start.index));
        }
        let mut fresh = entries.into_iter().skip(skip).peekable();
        while fresh.peek().is_some_and(|entry| self.contains(entry.position())) {
            fresh.next();
        }
        let Some(first) = fresh.peek().map(|entry| entry.index) else {
            return Ok((last_new_index.max(self.start.index), None));
        };
        if first <= self.commit_index {
            return Err(AppendRefusal::ConflictsWithCommitted(first));
        }
        let truncated = (first <= self.last_index()).then_some(first);
        if truncated.is_some() {
            self.truncate_from(first);
        }
        self.append(fresh);
        Ok((last_new_index, truncated))
    }

    fn truncate_from(&mut self, index: Index) {
        assert!(index > self.commit_index, "a committed entry is never truncated");
        assert!(index >= self.first_index());
        while self.last_index() >= index {
            let entry = self.entries.pop_back().expect("last_index counts the entries");
            self.bytes -= entry.size_bytes();
            self.uncommitted_bytes -= entry.size_bytes();
        }
        self.configurations.truncate_from(index);
        if index <= self.taken_index {
            // Storage has been given entries from here on.
            let earlier = self.truncate_from.unwrap_or(index);
            self.truncate_from = Some(earlier.min(index));
            self.taken_index = index - 1;
        }
        for batch in &mut self.in_flight {
            batch.through = batch.through.min(index - 1);
        }
        self.durable_index = self.durable_index.min(index - 1);
    }

    /// Returns true if the commit index moved. It never falls and never passes the end of the log.
    pub(super) fn commit_to(&mut self, index: Index) -> bool {
        let index = index.min(self.last_index());
        if index <= self.commit_index {
            return false;
        }
        assert!(self.commit_index >= self.start.index, "what is committed anew is in the log");
        self.uncommitted_bytes -= self.bytes_between(self.commit_index, index);
        self.commit_index = index;
        true
    }

    /// Takes the truncation and the entries that the next batch must contain; from now on they
    /// count as taken.
    pub(super) fn take_unpersisted(&mut self) -> (Option<Index>, Vec<Entry>) {
        let truncate_from = self.truncate_from.take();
        let entries = if self.taken_index < self.last_index() {
            self.slice(self.taken_index + 1, self.last_index(), u64::MAX)
        } else {
            Vec::new()
        };
        self.taken_index = self.last_index();
        (truncate_from, entries)
    }

    pub(super) fn has_unpersisted(&self) -> bool {
        self.truncate_from.is_some() || self.taken_index < self.last_index()
    }

    pub(super) fn on_persist_started(&mut self, id: PersistId) {
        assert!(self.in_flight.back().is_none_or(|last| last.id < id));
        self.in_flight.push_back(InFlight { id, through: self.last_index() });
    }

    pub(super) fn on_persisted(&mut self, id: PersistId) {
        while let Some(batch) = self.in_flight.front().copied()
            && batch.id <= id
        {
            self.durable_index = self.durable_index.max(batch.through);
            self.in_flight.pop_front();
        }
    }

    /// Takes the committed entries that are on this disk and were not handed out yet, while the
    /// credit lasts.
    pub(super) fn take_committed(&mut self, credit_bytes: u64) -> Vec<Entry> {
        let through = self.commit_index.min(self.durable_index);
        if self.handed_index >= through || self.handed_bytes >= credit_bytes {
            return Vec::new();
        }
        let room_bytes = credit_bytes - self.handed_bytes;
        let entries = self.slice(self.handed_index + 1, through, room_bytes);
        self.handed_index += entries.len() as u64;
        self.handed_bytes += entries.iter().map(Entry::size_bytes).sum::<u64>();
        entries
    }

    pub(super) fn on_applied(&mut self, index: Index) {
        assert!(index <= self.handed_index, "only what was handed out can be applied");
        if index <= self.last_applied {
            return;
        }
        // Entries that a snapshot replaced were never handed out.
        let applied_bytes = self.bytes_between(self.last_applied, index);
        self.handed_bytes = self.handed_bytes.saturating_sub(applied_bytes);
        self.last_applied = index;
        if self.last_applied == self.handed_index {
            self.handed_bytes = 0;
        }
    }

    /// Notes that the state through `index` survives a crash without the log.
    pub(super) fn on_state_durable(&mut self, index: Index) {
        assert!(index <= self.last_applied);
        self.snapshot_index = self.snapshot_index.max(index);
    }

    /// Forgets the entries through `index`; returns the new start, or `None` if nothing changes.
    pub(super) fn compact(&mut self, index: Index) -> Option<Position> {
        assert!(index <= self.snapshot_index, "never beyond the snapshot");
        if index <= self.start.index {
            return None;
        }
        while self.start.index < index {
            let entry = self.entries.pop_front().expect("the snapshot is within the log");
            self.bytes -= entry.size_bytes();
            self.start = entry.position();
        }
        self.configurations.compact(index);
        Some(self.start)
    }

    /// Returns the smallest index such that the entries after it take at most `bytes`.
    pub(super) fn index_leaving_bytes(&self, bytes: u64) -> Index {
        let mut left = 0;
        for entry in self.entries.iter().rev() {
            left += entry.size_bytes();
            if left > bytes {
                return entry.index;
            }
        }
        self.start.index
    }

    /// Starts the log anew after a snapshot whose position it does not contain. Nothing of it is
    /// durable before the batch that publishes the snapshot.
    pub(super) fn replace_by_snapshot(&mut self, position: Position, configuration: Configuration) {
        assert!(position.index > self.commit_index && !self.contains(position));
        self.entries.clear();
        self.bytes = 0;
        self.uncommitted_bytes = 0;
        self.start = position;
        self.configurations = Configurations::new(configuration);
        self.commit_index = position.index;
        self.handed_index = position.index;
        self.handed_bytes = 0;
        self.taken_index = position.index;
        self.truncate_from = None;
        self.durable_index = self.last_applied;
        for batch in &mut self.in_flight {
            batch.through = 0;
        }
    }

    /// Notes that the state machine holds the state of the snapshot that replaced the log.
    pub(super) fn on_restored(&mut self, index: Index) {
        assert!(index == self.start.index && self.last_applied < index);
        assert!(self.durable_index >= index, "restored only after it was published");
        self.last_applied = index;
        self.snapshot_index = index;
    }

    fn count_uncommitted(&self) -> u64 {
        let uncommitted = self.entries.iter().rev();
        let uncommitted = uncommitted.take_while(|entry| entry.index > self.commit_index);
        uncommitted.map(Entry::size_bytes).sum()
    }

    /// Asserts that the indexes are in order, and that the counters agree with the entries.
    pub(super) fn check(&self) {
        let restoring = self.last_applied < self.start.index;
        assert!(self.commit_index <= self.last_index());
        assert!(self.durable_index <= self.last_index());
        assert!(self.last_applied <= self.commit_index);
        assert!(self.last_applied <= self.durable_index);
        assert!(self.last_applied <= self.handed_index && self.handed_index <= self.commit_index);
        assert!(self.taken_index <= self.last_index());
        if !restoring {
            assert!(self.start.index <= self.snapshot_index);
            assert!(self.snapshot_index <= self.last_applied);
        }
        let bytes: u64 = self.entries.iter().map(Entry::size_bytes).sum();
        assert_eq!(self.bytes, bytes);
        assert_eq!(self.uncommitted_bytes, self.count_uncommitted());
        let mut previous = self.start;
        for entry in &self.entries {
            assert_eq!(entry.index, previous.index + 1);
            assert!(entry.term >= previous.term);
            previous = entry.position();
        }
    }
}

#[cfg(test)]
mod tests;
