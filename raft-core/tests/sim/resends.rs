//! Nothing is sent again without a reason (V24): a refusal, a lost connection, a snapshot's fate, or an
//! election timeout without an answer. What leaves anyway is a storm.

use raft_core::types::{Index, NodeId, Term, Time};

use crate::simulation::Simulation;

/// From one leader to one peer.
#[derive(Clone, Debug, Default)]
pub struct Resends {
    term: Term,
    /// By index: when it was last sent in this term, on the leader's clock.
    sent_at: Vec<Option<Time>>,
    /// When there last was a reason, on that clock.
    reason_at: Time,
    /// On the leader's clock; counts start anew after each election timeout.
    since: Time,
    appends: u64,
    reasons: u64,
}

/// Entries that a peer was sent again: after a reason or an election timeout, or earlier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repeated {
    pub due: u64,
    pub early: u64,
}

impl Simulation {
    /// Whatever was sent to a node whose disk is lost has to be sent again.
    pub fn forget_what_was_sent_to(&mut self, to: NodeId) {
        for from in self.ids() {
            *self.resends(from, to) = Resends::default();
        }
    }

    fn resends(&mut self, from: NodeId, to: NodeId) -> &mut Resends {
        let count = self.nodes.len();
        &mut self.resends[(from as usize - 1) * count + to as usize - 1]
    }

    /// Something happened at a leader after which it may send to a peer again.
    pub fn note_reason(&mut self, from: NodeId, to: NodeId) {
        let own_time = self.own_time(from);
        let resends = self.resends(from, to);
        resends.reasons += 1;
        resends.reason_at = own_time;
    }

    pub fn check_resends(
        &mut self,
        from: NodeId,
        to: NodeId,
        term: Term,
        first: Index,
        last: Index,
    ) -> Repeated {
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
        if resends.sent_at.len() < end {
            resends.sent_at.resize(end, None);
        }
        let mut repeated = Repeated::default();
        // A peer that is set back, by one reason, is sent all that it has not acknowledged, once: with a
        // window of one entry these are as many appends as entries.
        let is_due =
            |at: Time| own_time.since(at) >= config.election_timeout || resends.reason_at >= at;
        if resends.sent_at[first].is_some_and(|at| !is_due(at)) {
            resends.appends += 1;
        }
        for sent_at in &mut resends.sent_at[first..end] {
            if let Some(at) = sent_at.replace(own_time) {
                let is_late = own_time.since(at) >= config.election_timeout;
                let is_due = is_late || resends.reason_at >= at;
                *if is_due { &mut repeated.due } else { &mut repeated.early } += 1;
            }
        }
        // A reason brings a probe and, once that is answered, a window.
        let window = config.inflight_count_max as u64 + 2;
        let bound = (resends.reasons + 2) * window + 8;
        assert!(
            resends.appends <= bound,
            "V24 leader {from} sends the same to {to} again and again: {} appends, {} reasons",
            resends.appends,
            resends.reasons
        );
        repeated
    }
}
