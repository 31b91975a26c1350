//! Linearizable queries: those that wait for a quorum, then those that wait for the state machine.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::apply::Queries;
use crate::consensus::{Raft, ReadState};
use crate::error::Rejected;
use crate::state_machine::StateMachine;
use crate::types::{Index, NodeId, ReadOutcome, Time};

pub(super) struct Reads<M: StateMachine> {
    next_id: u64,
    asked: BTreeMap<u64, Queries<M>>,
    /// By ascending `give_up_at`.
    confirmed: VecDeque<ConfirmedRead<M>>,
    patience: Duration,
}

struct ConfirmedRead<M: StateMachine> {
    /// The queries may be answered once the entry at this index is handed to the machine.
    index: Index,
    give_up_at: Time,
    queries: Queries<M>,
}

impl<M: StateMachine> Reads<M> {
    pub(super) fn new(patience: Duration) -> Self {
        Self { next_id: 1, asked: BTreeMap::new(), confirmed: VecDeque::new(), patience }
    }

    pub(super) fn next_deadline(&self) -> Time {
        self.confirmed.front().map_or(Time::NEVER, |read| read.give_up_at)
    }

    /// Begins a read for these queries.
    pub(super) fn begin(&mut self, raft: &mut Raft, now: Time, queries: Queries<M>) {
        assert!(!queries.is_empty(), "a read costs messages, so it is for some query");
        let id = self.next_id;
        self.next_id += 1;
        match raft.read_index(now, id) {
            Ok(()) => {
                let earlier = self.asked.insert(id, queries);
                assert!(earlier.is_none(), "each read has a number of its own");
            }
            Err(rejected) => reject_all::<M>(queries, &rejected),
        }
    }

    /// The core knows the outcome of a read.
    pub(super) fn on_state(&mut self, now: Time, leader: Option<NodeId>, state: ReadState) {
        let ReadState { id, outcome } = state;
        let queries = self.asked.remove(&id).expect("every read is answered once");
        match outcome {
            ReadOutcome::Confirmed(index) => {
                let give_up_at = now + self.patience;
                let last = self.confirmed.back().map(|last| last.give_up_at);
                assert!(last <= Some(give_up_at), "time does not go back");
                self.confirmed.push_back(ConfirmedRead { index, give_up_at, queries });
            }
            ReadOutcome::NotLeader => reject_all::<M>(queries, &Rejected::NotLeader { leader }),
            ReadOutcome::Busy => {
                reject_all::<M>(queries, &Rejected::Busy("too many reads wait for the leader"));
            }
        }
    }

    /// Moves the queries whose entries are handed over to `queries`. They need not wait until these
    /// are applied, because the machine does its work in order.
    pub(super) fn release(&mut self, handed_index: Index, queries: &mut Queries<M>) {
        for _ in 0..self.confirmed.len() {
            let read = self.confirmed.pop_front().expect("counted");
            if read.index <= handed_index {
                queries.extend(read.queries);
            } else {
                self.confirmed.push_back(read);
            }
        }
    }

    /// C29. Rejects the reads whose deadline has passed: this node does not catch up, and another
    /// one may be further.
    pub(super) fn give_up(&mut self, now: Time) {
        while self.next_deadline() <= now {
            let read = self.confirmed.pop_front().expect("it has a deadline");
            let behind = Rejected::Busy("this node does not catch up with the leader");
            reject_all::<M>(read.queries, &behind);
        }
    }
}

fn reject_all<M: StateMachine>(queries: Queries<M>, rejected: &Rejected) {
    for (_, reply) in queries {
        reply.send(Err(rejected.clone()));
    }
}
