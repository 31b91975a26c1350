//! A node that asks for votes (3.4) or pre-votes (9.6).
//!
//! Both count responses and give up after a timeout; `raft` decides what follows a majority. A
//! candidate's own vote arrives like those of other voters, once it is durable.

use std::collections::{BTreeMap, BTreeSet};

use super::follower::campaign;
use super::transition::Transition;
use crate::consensus::node_state::NodeState;
use crate::consensus::quorum::{VoteResult, vote_result};
use crate::types::{NodeId, Time};

#[derive(Clone, Debug)]
pub(in crate::consensus) struct Candidate {
    pub(in crate::consensus) votes: BTreeMap<NodeId, bool>,
    /// Voters that have responded while they recover: their grants are not counted.
    pub(in crate::consensus) uncounted: BTreeSet<NodeId>,
    pub(in crate::consensus) deadline: Time,
    /// When the voters that have not responded are asked again: a request or its response may be
    /// lost.
    pub(in crate::consensus) ask_again_at: Time,
}

/// A response to a request for a vote or pre-vote.
#[derive(Clone, Copy, Debug)]
pub(in crate::consensus) struct Answer {
    pub(in crate::consensus) granted: bool,
    /// The voter may have forgotten an earlier vote (`recovery`).
    pub(in crate::consensus) recovering: bool,
}

impl Candidate {
    pub(in crate::consensus) fn new(node: &NodeState, now: Time, deadline: Time) -> Self {
        let ask_again_at = now + node.config.heartbeat_interval;
        Self { votes: BTreeMap::new(), uncounted: BTreeSet::new(), deadline, ask_again_at }
    }

    pub(in crate::consensus) fn next_deadline(&self) -> Time {
        self.deadline.min(self.ask_again_at)
    }

    /// Returns the other voters that have not responded, if it is time to ask them again.
    pub(in crate::consensus) fn take_silent_voters(
        &mut self,
        node: &NodeState,
        now: Time,
    ) -> Vec<NodeId> {
        if now < self.ask_again_at {
            return Vec::new();
        }
        self.ask_again_at = now + node.config.heartbeat_interval;
        // Before its own vote arrives, the first requests are still held with it, waiting for the
        // disk.
        let has_asked = self.votes.contains_key(&node.id());
        if !has_asked || now >= self.deadline {
            return Vec::new();
        }
        let mut silent = node.voting_peers();
        silent.retain(|id| !self.votes.contains_key(id) && !self.uncounted.contains(id));
        silent
    }

    /// Counts the response to a request for a pre-vote (9.6).
    pub(in crate::consensus) fn on_pre_vote_answer(
        &mut self,
        node: &mut NodeState,
        from: NodeId,
        answer: Answer,
    ) -> Transition {
        self.on_answer(node, from, answer, Transition::Campaign { transfer: false })
    }

    /// Counts the response to a request for a vote (3.4).
    pub(in crate::consensus) fn on_vote_answer(
        &mut self,
        node: &mut NodeState,
        now: Time,
        from: NodeId,
        answer: Answer,
    ) -> Transition {
        if !answer.granted {
            self.on_refusal(node, now);
        }
        self.on_answer(node, from, answer, Transition::Lead)
    }

    /// Counts a response: only the first of each node, and no grant of a recovering node. Returns
    /// `won` once a majority has granted.
    fn on_answer(
        &mut self,
        node: &mut NodeState,
        from: NodeId,
        answer: Answer,
        won: Transition,
    ) -> Transition {
        let Answer { granted, recovering } = answer;
        if recovering {
            // A recovering voter that refuses, because its log was caught up beyond this one, can
            // elect no leader either.
            self.uncounted.insert(from);
            self.report_lost_majority(node);
            if granted {
                return Transition::Stay;
            }
        }
        self.votes.entry(from).or_insert(granted);
        match vote_result(node.configuration(), &self.votes) {
            VoteResult::Won => won,
            VoteResult::Lost => Transition::Follow,
            VoteResult::Pending => Transition::Stay,
        }
    }

    /// Alarms the operator once if the voters that do not recover are no majority: until one of the
    /// lost disks is back, no leader can be elected.
    fn report_lost_majority(&self, node: &mut NodeState) {
        if node.term == 0 {
            // A new member that has not yet met all others has lost nothing.
            return;
        }
        let is_counted = |id: &NodeId| (*id, !self.uncounted.contains(id));
        let configuration = node.configuration();
        let voters = configuration.voters.union(&configuration.outgoing);
        let votes: BTreeMap<NodeId, bool> = voters.map(is_counted).collect();
        let can_win = vote_result(configuration, &votes) == VoteResult::Won;
        if can_win || std::mem::replace(&mut node.told_majority_lost, true) {
            return;
        }
        node.ready.alarms.push(format!(
            "no leader can be elected: the disks of nodes {:?} are empty, and the other voters are no \
             majority. Entries that only the lost disks held would be gone. Bring back one of these \
             disks, or restore the cluster from a backup",
            self.uncounted
        ));
    }

    /// Retries early after the first refusal. A majority had granted pre-votes, so the votes may be
    /// split, and the missing voters may be down; after a full timeout this node would wait for a
    /// leader that no voter has observed. Only with pre-votes, which disturb no node, may a
    /// candidate hurry.
    fn on_refusal(&mut self, node: &mut NodeState, now: Time) {
        let is_first = self.votes.values().all(|granted| *granted);
        if is_first && node.config.pre_vote {
            self.deadline = self.deadline.min(node.draw_retry_deadline(now));
        }
    }

    /// No candidate won: starts again, with pre-votes if they are enabled. A node that may no
    /// longer campaign follows: its repeated requests would keep the voters from campaigning.
    pub(in crate::consensus) fn on_timeout(
        &mut self,
        node: &mut NodeState,
        now: Time,
    ) -> Transition {
        if now < self.deadline {
            return Transition::Stay;
        }
        match campaign(node, now, &mut self.deadline) {
            Transition::Stay => Transition::Follow,
            other => other,
        }
    }
}
