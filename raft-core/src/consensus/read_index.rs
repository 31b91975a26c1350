//! Reads that wait for a quorum to confirm the leader (6.4).
//!
//! A read is linearizable at the leader's commit index as of any moment after it was asked, if a
//! quorum still followed that leader at some moment after that. Heartbeat rounds are numbered. A
//! read waits for the responses to a round that *started* after the read came in, so a response to
//! an older round confirms nothing. Reads that come in while a round is under way share the next
//! one.

use std::collections::VecDeque;

use crate::types::{Index, NodeId};

/// The origin of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReadRequest {
    /// This node's driver, with the driver's id for the read.
    Local(u64),
    /// A follower that forwarded reads, with its id for the attempt.
    Peer(NodeId, u64),
}

#[derive(Clone, Debug, Hash)]
struct Confirming {
    round: u64,
    read_index: Index,
    readers: Vec<ReadRequest>,
}

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct ReadQueue {
    waiting: Vec<ReadRequest>,
    confirming: VecDeque<Confirming>,
    confirming_count: usize,
}

impl ReadQueue {
    pub(super) fn push(&mut self, reader: ReadRequest) {
        self.waiting.push(reader);
    }

    pub(super) fn count(&self) -> usize {
        self.waiting.len() + self.confirming_count
    }

    /// Returns true if a round should start now: reads wait and no round is under way.
    pub(super) fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.confirming.is_empty()
    }

    /// A round starts. It will confirm all waiting reads at `read_index`, the present commit index.
    pub(super) fn on_round_started(&mut self, round: u64, read_index: Index) {
        if self.waiting.is_empty() {
            return;
        }
        assert!(self.confirming.back().is_none_or(|last| last.round < round));
        let readers = std::mem::take(&mut self.waiting);
        self.confirming_count += readers.len();
        self.confirming.push_back(Confirming { round, read_index, readers });
    }

    /// A quorum responded to `round` (or a later one). Returns the reads that this confirms.
    pub(super) fn take_confirmed(&mut self, round: u64) -> Vec<(ReadRequest, Index)> {
        let mut confirmed = Vec::new();
        while let Some(first) = self.confirming.front()
            && first.round <= round
        {
            let first = self.confirming.pop_front().expect("just seen");
            self.confirming_count -= first.readers.len();
            confirmed.extend(first.readers.into_iter().map(|reader| (reader, first.read_index)));
        }
        confirmed
    }

    /// Removes all reads, unconfirmed, because leadership ended.
    pub(super) fn drain(&mut self) -> Vec<ReadRequest> {
        let confirming = self.confirming.drain(..).flat_map(|batch| batch.readers);
        let mut readers: Vec<ReadRequest> = confirming.collect();
        readers.append(&mut self.waiting);
        self.confirming_count = 0;
        readers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I3: a response to a round from before the read does not confirm it.
    #[test]
    fn only_a_later_round_confirms() {
        let mut queue = ReadQueue::default();
        queue.push(ReadRequest::Local(1));
        queue.on_round_started(5, 10);
        queue.push(ReadRequest::Local(2));
        assert!(!queue.wants_round(), "one round at a time gathers more");
        assert!(queue.take_confirmed(4).is_empty());
        assert_eq!(queue.take_confirmed(5), [(ReadRequest::Local(1), 10)]);
        assert!(queue.wants_round());
        queue.on_round_started(6, 12);
        assert_eq!(queue.take_confirmed(9), [(ReadRequest::Local(2), 12)]);
        assert_eq!(queue.count(), 0);
    }
}
