//! Nothing is sent again without a reason (V24): a refusal, a lost connection, a snapshot's fate, or an
//! election timeout without an answer. What leaves anyway is a storm.

use raft_core::types::{Index, NodeId, Term, Time};

use crate::simulation::Simulation;

/// From one leader to one peer.
#[derive(Clone, Debug, Default)]
pub struct Resends {
    term: Term,
    /// By index: sent in this term.
    sent: Vec<bool>,
    /// On the leader's clock; counts start anew after each election timeout.
    since: Time,
    appends: u64,
    reasons: u64,
}

impl Simulation {
    fn resends(&mut self, from: NodeId, to: NodeId) -> &mut Resends {
        let count = self.nodes.len();
        &mut self.resends[(from as usize - 1) * count + to as usize - 1]
    }

    /// Something happened at a leader after which it may send to a peer again.
    pub fn note_reason(&mut self, from: NodeId, to: NodeId) {
        self.resends(from, to).reasons += 1;
    }

    pub fn check_resends(
        &mut self,
        from: NodeId,
        to: NodeId,
        term: Term,
        first: Index,
        last: Index,
    ) {
        let own_time = self.own_time(from);
        let config = self.plan.mix.config(from, 0);
        let resends = self.resends(from, to);
        if resends.term != term {
            *resends = Resends { term, since: own_time, ..Resends::default() };
        }
        if own_time.since(resends.since) >= config.election_timeout {
            // What was a reason a moment ago still takes effect.
            resends.reasons = resends.reasons.min(2);
            (resends.since, resends.appends) = (own_time, 0);
        }
        let (first, end) = (first as usize, last as usize + 1);
        if resends.sent.len() < end {
            resends.sent.resize(end, false);
        }
        if resends.sent[first] {
            resends.appends += 1;
        }
        resends.sent[first..end].fill(true);
        // A reason brings a probe and, once that is answered, a window; without answers there is a
        // probe in each heartbeat interval.
        let window = config.inflight_count_max as u64 + 2;
        let bound = (resends.reasons + 2) * window + 8;
        assert!(
            resends.appends <= bound,
            "V24 leader {from} sends the same to {to} again and again: {} appends, {} reasons",
            resends.appends,
            resends.reasons
        );
    }
}
