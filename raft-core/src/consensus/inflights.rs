//! Appends sent to one peer and not yet acknowledged: a window bounded in count and in bytes.

use std::collections::VecDeque;

use crate::types::{Index, Time};

#[derive(Clone, Copy, Debug)]
pub(super) struct Inflight {
    pub(super) last_index: Index,
    pub(super) bytes: u64,
    pub(super) sent_at: Time,
}

/// The sender's window. The bytes bound is soft by one append: a window that is not full takes the
/// next append whatever its size, so that an entry larger than the window still travels.
#[derive(Clone, Debug, Hash)]
pub(super) struct Inflights {
    count_max: usize,
    bytes_max: u64,
    bytes: u64,
    appends: VecDeque<Inflight>,
}

impl Inflights {
    pub(super) fn new(count_max: usize, bytes_max: u64) -> Self {
        Self { count_max, bytes_max, bytes: 0, appends: VecDeque::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.appends.len() >= self.count_max || self.bytes >= self.bytes_max
    }

    pub(super) fn is_empty(&self) -> bool {
        self.appends.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.appends.len()
    }

    pub(super) fn push(&mut self, last_index: Index, bytes: u64, sent_at: Time) {
        assert!(!self.is_full(), "the window is checked before sending");
        assert!(self.appends.back().is_none_or(|last| last.last_index < last_index));
        self.bytes += bytes;
        self.appends.push_back(Inflight { last_index, bytes, sent_at });
    }

    /// Frees every append whose entries are all acknowledged, and returns when the first of them
    /// was sent. A stale acknowledgement frees none.
    pub(super) fn free_through(&mut self, match_index: Index) -> Option<Time> {
        let mut sent_at = None;
        while let Some(first) = self.appends.front()
            && first.last_index <= match_index
        {
            self.bytes -= first.bytes;
            sent_at = sent_at.or(Some(first.sent_at));
            self.appends.pop_front();
        }
        sent_at
    }

    /// Returns when the oldest unacknowledged append was sent.
    pub(super) fn oldest_sent_at(&self) -> Option<Time> {
        self.appends.front().map(|append| append.sent_at)
    }

    pub(super) fn clear(&mut self) {
        self.appends.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_by_count_or_bytes_and_freed_in_order() {
        let mut window = Inflights::new(3, 100);
        window.push(5, 10, Time::ZERO);
        window.push(6, 10, Time::ZERO);
        assert!(!window.is_full());
        window.push(9, 500, Time::ZERO);
        assert!(window.is_full());
        assert_eq!(window.free_through(4), None);
        assert_eq!(window.count(), 3);
        assert_eq!(window.free_through(8), Some(Time::ZERO));
        assert_eq!(window.count(), 1);
        assert!(window.is_full(), "by bytes");
        window.free_through(9);
        assert!(window.is_empty() && !window.is_full());
    }
}
