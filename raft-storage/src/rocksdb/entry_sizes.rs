//! The size of every entry of the log, and their sum.

use std::collections::VecDeque;

use raft_core::types::Entry;

/// Eight bytes per entry, so that truncation and compaction need not read the entries that they
/// drop.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    sizes: VecDeque<u64>,
    total: u64,
}

impl Sizes {
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let sizes: VecDeque<u64> = entries.iter().map(Entry::size_bytes).collect();
        let total = sizes.iter().sum();
        Self { sizes, total }
    }

    pub(crate) fn len(&self) -> u64 {
        self.sizes.len() as u64
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn push(&mut self, size: u64) {
        assert!(size > 0, "an entry has an index and a term at least");
        self.sizes.push_back(size);
        self.total += size;
    }

    /// Keeps the first `count`.
    pub(crate) fn truncate(&mut self, count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.sizes.len());
        let dropped: u64 = self.sizes.drain(count..).sum();
        self.subtract(dropped);
    }

    /// Drops the first `count`, or all if there are fewer.
    pub(crate) fn forget(&mut self, count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.sizes.len());
        let dropped: u64 = self.sizes.drain(..count).sum();
        self.subtract(dropped);
    }

    fn subtract(&mut self, dropped: u64) {
        assert!(dropped <= self.total, "the total counts every entry");
        self.total -= dropped;
        assert_eq!(self.sizes.is_empty(), self.total == 0, "no entry is without a size");
    }

    pub(crate) fn clear(&mut self) {
        self.sizes.clear();
        self.total = 0;
    }
}
