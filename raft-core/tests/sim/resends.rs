//! Checks that a leader sends nothing again without a reason (V24). A reason is a rejection, a lost
//! connection, the outcome of a snapshot, or an election timeout without a response. Repeated sends
//! without a reason are a storm.

use raft_core::types::{Index, NodeId, Term, Time};

use crate::simulation::Simulation;

/// Appends from one leader to one peer.
#[derive(Clone, Debug, Default)]
pub struct Resends {
    term: Term,
    /// By index: the last send in this term, on the leader's clock.
    sent_at: Vec<Option<Time>>,
    /// The last reason to send again, on that clock.
    reason_at: Time,
    /// Start of the counts below, on the leader's clock; they are reset after each election
    /// timeout.
    since: Time,
    appends: u64,
    reasons: u64,
}

/// Entries that were sent to a peer again: after a reason or an election timeout, or earlier.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repeated {
    pub due: u64,
    pub early: u64,
}

impl Simulation {
    /// Forgets all sends to a node whose disk is lost: everything must be sent again.
    pub fn forget_what_was_sent_to(&mut self, to: NodeId) {
        for from in self.ids() {
            *self.resends(from, to) = Resends::default();
        }
    }

    fn resends(&mut self, from: NodeId, to: NodeId) -> &mut Resends {
        let count = self.plan.mix.nodes_max() as usize;
        &mut self.resends[(from as usize - 1) * count + to as usize - 1]
    }

    /// Records a reason for a leader to send to a peer again.
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
            // A reason from just before the reset still takes effect.
            resends.reasons = resends.reasons.min(2);
            (resends.since, resends.appends) = (own_time, 0);
        }
        let (first, end) = (first as usize, last as usize + 1);
        if resends.sent_at.len() < end {
            resends.sent_at.resize(end, None);
        }
        let mut repeated = Repeated::default();
        // After one reason a peer is sent all its unacknowledged entries again, once. With a window
        // of one entry these are as many appends as entries.
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
        // A reason causes a probe and, after the response, a window of appends.
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
