//! The entries of the log in memory, behind a start that moves over them.
//!
//! ```text
//!   let go │ 4 5 6 7 │ 8 9 10 │ 11 12 13 14
//!                  old┘   start┘            └ last_index
//! ```
//!
//! Entries that a compaction leaves behind stay at first: a loss of power brings them back as long
//! as the compaction is not synced (`old`). After that they are dropped a few with each batch,
//! because to drop a million at once would make every batch wait that comes meanwhile.

use std::collections::VecDeque;

use raft_core::types::{Entry, Index, Position, SnapshotMeta};

/// How many entries a batch drops beside twice as many as it brings: what is left behind goes
/// faster than new ones come, and no batch waits long for it.
const DROPPED_AT_ONCE: usize = 512;

#[derive(Debug)]
struct Kept {
    entry: Entry,
    /// Bytes of all entries through this one, counted from the first that ever came.
    bytes_through: u64,
}

/// Where the log starts.
#[derive(Clone, Debug, Default)]
struct Start {
    meta: SnapshotMeta,
    /// How many of the entries that are kept it has left behind.
    left_count: usize,
    /// Bytes of all entries that it has left behind, kept or not.
    bytes_through: u64,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    start: Start,
    /// Before the compactions that are not synced.
    old: Option<Start>,
    entries: VecDeque<Kept>,
}

impl Log {
    pub(super) fn start(&self) -> &SnapshotMeta {
        &self.start.meta
    }

    pub(super) fn last_index(&self) -> Index {
        self.start.meta.index() + self.len() as u64
    }

    /// Bytes of the entries behind the start.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_through() - self.start.bytes_through
    }

    /// The entries behind the start.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.start.left_count..).map(|kept| &kept.entry)
    }

    /// Drops the entries behind an index, which is not before the start.
    pub(super) fn truncate_after(&mut self, index: Index) {
        while self.last_index() > index {
            self.entries.pop_back();
        }
    }

    /// Entries that follow the last one.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let mut bytes_through = self.bytes_through();
        for entry in entries {
            bytes_through += entry.size_bytes();
            self.entries.push_back(Kept { entry, bytes_through });
        }
    }

    /// The log starts here from now on, and is empty.
    pub(super) fn replace(&mut self, meta: SnapshotMeta) {
        let bytes_through = self.bytes_through();
        self.start = Start { meta, left_count: self.entries.len(), bytes_through };
    }

    /// Forgets the entries through this one, until a loss of power or for good.
    pub(super) fn compact(&mut self, meta: SnapshotMeta) {
        // At the position before the first entry, an empty log takes its configuration for good.
        if meta.position == Position::ZERO && self.last_index() == 0 {
            self.start.meta = meta;
            return;
        }
        if meta.index() <= self.start.meta.index() {
            return;
        }
        let count = usize::try_from(meta.index() - self.start.meta.index());
        let left_count =
            self.start.left_count + count.map_or(self.len(), |count| count.min(self.len()));
        let last = left_count.checked_sub(1).map(|last| &self.entries[last]);
        let bytes_through = last.map_or(self.start.bytes_through, |last| last.bytes_through);
        let start = Start { meta, left_count, bytes_through };
        let old = std::mem::replace(&mut self.start, start);
        self.old.get_or_insert(old);
    }

    /// Everything so far survives a loss of power.
    pub(super) fn sync(&mut self) {
        self.old = None;
    }

    pub(super) fn lose_power(&mut self) {
        if let Some(old) = self.old.take() {
            self.start = old;
        }
    }

    /// Drops some of the entries that nothing can bring back, after so many new ones have come.
    pub(super) fn drop_some(&mut self, come_count: usize) {
        if self.old.is_none() {
            let count = self.start.left_count.min(2 * come_count + DROPPED_AT_ONCE);
            self.entries.drain(..count);
            self.start.left_count -= count;
        }
    }

    /// Entries behind the start.
    fn len(&self) -> usize {
        self.entries.len() - self.start.left_count
    }

    fn bytes_through(&self) -> u64 {
        self.entries.back().map_or(self.start.bytes_through, |last| last.bytes_through)
    }
}

#[cfg(test)]
mod tests {
    use raft_core::types::{Payload, Position};

    use super::*;

    fn entries(indexes: std::ops::RangeInclusive<Index>) -> Vec<Entry> {
        indexes.map(|index| Entry { index, term: 1, payload: Payload::Noop }).collect()
    }

    fn meta(index: Index) -> SnapshotMeta {
        SnapshotMeta { position: Position::new(1, index), ..SnapshotMeta::default() }
    }

    /// Indexes and bytes of what it holds, and how much it keeps.
    fn held(log: &Log) -> (Vec<Index>, u64, usize) {
        let indexes = log.iter().map(|entry| entry.index).collect();
        let bytes = log.iter().map(Entry::size_bytes).sum();
        assert_eq!(log.bytes(), bytes);
        (indexes, log.last_index(), log.entries.len())
    }

    #[test]
    fn what_is_left_behind_goes_once_it_cannot_come_back_and_never_much_at_once() {
        const COUNT: Index = 10_000;
        let mut log = Log::default();
        log.append(entries(1..=COUNT));
        log.compact(meta(COUNT - 2));
        assert_eq!(held(&log), (vec![COUNT - 1, COUNT], COUNT, 10_000));
        // Not synced: twice compacted, all of it may come back.
        log.compact(meta(COUNT - 1));
        log.drop_some(10);
        assert_eq!(held(&log), (vec![COUNT], COUNT, 10_000));
        log.lose_power();
        assert_eq!((log.start(), held(&log).0.len()), (&SnapshotMeta::default(), 10_000));

        log.compact(meta(COUNT));
        log.sync();
        log.lose_power();
        let mut kept = 10_000;
        for index in COUNT + 1.. {
            log.append(entries(index..=index));
            log.drop_some(1);
            let count = log.entries.len();
            assert!(kept - count < DROPPED_AT_ONCE + 2, "few at once");
            assert_eq!(held(&log).0, (COUNT + 1..=index).collect::<Vec<_>>());
            if log.start.left_count == 0 {
                assert_eq!(count as Index, index - COUNT, "all that was left behind is gone");
                break;
            }
            kept = count;
        }
    }

    #[test]
    fn it_may_start_anew_or_behind_its_end() {
        let mut log = Log::default();
        log.append(entries(1..=10));
        log.truncate_after(7);
        assert_eq!(held(&log), ((1..=7).collect(), 7, 7));
        log.compact(meta(3));
        log.sync();
        log.truncate_after(3);
        assert_eq!(held(&log), (vec![], 3, 3));
        log.append(entries(4..=5));
        log.replace(meta(100));
        log.sync();
        assert_eq!(held(&log), (vec![], 100, 5));
        log.append(entries(101..=102));
        log.drop_some(2);
        assert_eq!(held(&log), (vec![101, 102], 102, 2));
        log.compact(meta(200));
        assert_eq!(held(&log), (vec![], 200, 2));
    }
}
