//! The entries of the log in memory, and a start that moves forward over them.
//!
//! ```text
//!   let go │ 4 5 6 7 │ 8 9 10 │ 11 12 13 14
//!                  old┘   start┘            └ last_index
//! ```
//!
//! Entries before the start stay at first: a loss of power brings them back as long as the
//! compaction is not synced (`old`). After that each batch drops a few of them, because dropping a
//! million at once would delay every batch that arrives meanwhile.

use std::collections::VecDeque;

use raft_core::types::{Entry, Index, Position, SnapshotMeta};

/// A batch drops this many entries, and twice as many as it appends: entries before the start are
/// dropped faster than new ones arrive, and no batch is delayed for long.
const DROPPED_AT_ONCE: usize = 512;

#[derive(Debug)]
struct Kept {
    entry: Entry,
    /// Bytes of all entries through this one, counted from the first that was ever appended.
    bytes_through: u64,
}

/// Where the log starts.
#[derive(Clone, Debug, Default)]
struct Start {
    meta: SnapshotMeta,
    /// Number of kept entries before the start.
    left_count: usize,
    /// Bytes of all entries before the start, kept or dropped.
    bytes_through: u64,
}

#[derive(Debug, Default)]
pub(super) struct MemoryLog {
    start: Start,
    /// The start before the compactions that are not synced.
    old: Option<Start>,
    entries: VecDeque<Kept>,
}

impl MemoryLog {
    pub(super) fn start(&self) -> &SnapshotMeta {
        &self.start.meta
    }

    pub(super) fn last_index(&self) -> Index {
        self.start.meta.index() + self.len() as u64
    }

    /// Bytes of the entries after the start.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_through() - self.start.bytes_through
    }

    /// The entries after the start.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.range(self.start.left_count..).map(|kept| &kept.entry)
    }

    /// Drops the entries after `index`, which is not before the start.
    pub(super) fn truncate_after(&mut self, index: Index) {
        assert!(index >= self.start.meta.index(), "the start is never truncated");
        while self.last_index() > index {
            self.entries.pop_back();
        }
    }

    /// Appends entries that follow the last one.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let mut bytes_through = self.bytes_through();
        for (index, entry) in (self.last_index() + 1..).zip(entries) {
            assert_eq!(entry.index, index, "entries follow each other");
            bytes_through += entry.size_bytes();
            self.entries.push_back(Kept { entry, bytes_through });
        }
    }

    /// Empties the log, and starts it at `meta`.
    pub(super) fn replace(&mut self, meta: SnapshotMeta) {
        let bytes_through = self.bytes_through();
        self.start = Start { meta, left_count: self.entries.len(), bytes_through };
    }

    /// Moves the start to `meta`. Until a sync, a loss of power undoes that.
    pub(super) fn compact(&mut self, meta: SnapshotMeta) {
        // An empty log takes its configuration at the position before the first entry; a loss of
        // power does not undo that.
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
        assert!(left_count >= self.start.left_count && left_count <= self.entries.len());
        assert!(bytes_through >= self.start.bytes_through, "the start never falls");
        let start = Start { meta, left_count, bytes_through };
        let old = std::mem::replace(&mut self.start, start);
        self.old.get_or_insert(old);
    }

    /// Makes everything so far survive a loss of power.
    pub(super) fn sync(&mut self) {
        self.old = None;
    }

    pub(super) fn lose_power(&mut self) {
        if let Some(old) = self.old.take() {
            assert!(old.left_count <= self.start.left_count, "no entry between them is dropped");
            self.start = old;
        }
    }

    /// Drops some of the entries that nothing can bring back, after a batch has appended
    /// `come_count` entries.
    pub(super) fn drop_some(&mut self, come_count: usize) {
        if self.old.is_none() {
            let count = self.start.left_count.min(2 * come_count + DROPPED_AT_ONCE);
            self.entries.drain(..count);
            self.start.left_count -= count;
            assert!(
                self.start.left_count <= self.entries.len(),
                "only entries before the start go"
            );
        }
    }

    /// Number of entries after the start.
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

    /// The indexes after the start, the last index, and the number of kept entries.
    fn held(log: &MemoryLog) -> (Vec<Index>, u64, usize) {
        let indexes = log.iter().map(|entry| entry.index).collect();
        let bytes = log.iter().map(Entry::size_bytes).sum();
        assert_eq!(log.bytes(), bytes);
        (indexes, log.last_index(), log.entries.len())
    }

    #[test]
    fn what_is_left_behind_goes_once_it_cannot_come_back_and_never_much_at_once() {
        const COUNT: Index = 10_000;
        let mut log = MemoryLog::default();
        log.append(entries(1..=COUNT));
        log.compact(meta(COUNT - 2));
        assert_eq!(held(&log), (vec![COUNT - 1, COUNT], COUNT, 10_000));
        // Compacted twice without a sync: all of it may come back.
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
        let mut log = MemoryLog::default();
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
