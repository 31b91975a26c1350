//! A node that asks for votes (3.4), or asks whether it would get them (9.6).
//!
//! The two are alike in counting answers and giving up after a timeout; what winning means is
//! decided in `raft`. The own vote of a real candidacy arrives like the others', once it is durable.

use std::collections::{BTreeMap, BTreeSet};

use super::Transition;
use crate::consensus::common::Common;
use crate::consensus::quorum::{VoteResult, vote_result};
use crate::types::{NodeId, Time};

#[derive(Clone, Debug)]
pub(in crate::consensus) struct Candidate {
    votes: BTreeMap<NodeId, bool>,
    /// Voters that would grant, and are not counted because they recover.
    uncounted: BTreeSet<NodeId>,
    pub(in crate::consensus) deadline: Time,
    /// When the voters that have not answered are asked again: a request or its answer may be lost.
    ask_again_at: Time,
}

hash_of!(Candidate { votes, uncounted; left out: deadline, ask_again_at });

/// An answer to the question for a vote.
#[derive(Clone, Copy, Debug)]
pub(in crate::consensus) struct Answer {
    pub(in crate::consensus) granted: bool,
    /// The voter may have voted before and forgotten it (`recovery`).
    pub(in crate::consensus) recovering: bool,
}

impl Candidate {
    pub(in crate::consensus) fn new(common: &Common, now: Time, deadline: Time) -> Self {
        let ask_again_at = now + common.config.heartbeat_interval;
        Self { votes: BTreeMap::new(), uncounted: BTreeSet::new(), deadline, ask_again_at }
    }

    pub(in crate::consensus) fn next_deadline(&self) -> Time {
        self.deadline.min(self.ask_again_at)
    }

    /// The other voters that have not answered, if it is time to ask them again.
    pub(in crate::consensus) fn take_silent_voters(
        &mut self,
        common: &Common,
        now: Time,
    ) -> Vec<NodeId> {
        if now < self.ask_again_at {
            return Vec::new();
        }
        self.ask_again_at = now + common.config.heartbeat_interval;
        // Before its own vote arrives, the first requests are held back with it, behind the disk.
        let has_asked = self.votes.contains_key(&common.id());
        if !has_asked || now >= self.deadline {
            return Vec::new();
        }
        let mut silent = common.voting_peers();
        silent.retain(|id| !self.votes.contains_key(id) && !self.uncounted.contains(id));
        silent
    }

    /// Counts one answer; the first of each node counts, and a grant of a node that recovers does not.
    /// `won` is what to become with a majority.
    pub(in crate::consensus) fn on_answer(
        &mut self,
        common: &mut Common,
        from: NodeId,
        answer: Answer,
        won: Transition,
    ) -> Transition {
        let Answer { granted, recovering } = answer;
        if recovering {
            // Also one that refuses, because its log was filled up beyond this one, can elect no leader.
            self.uncounted.insert(from);
            self.report_lost_majority(common);
            if granted {
                return Transition::Stay;
            }
        }
        self.votes.entry(from).or_insert(granted);
        match vote_result(common.configuration(), &self.votes) {
            VoteResult::Won => won,
            VoteResult::Lost => Transition::Follow,
            VoteResult::Pending => Transition::Stay,
        }
    }

    /// The voters that recover leave no majority to the others: until one of the lost disks is back,
    /// there will be no leader, and the operator must know.
    fn report_lost_majority(&self, common: &mut Common) {
        if common.term == 0 {
            // A new member that has not met all others yet is none that has lost anything.
            return;
        }
        let is_counted = |id: &NodeId| (*id, !self.uncounted.contains(id));
        let voters = common.configuration().voters.iter();
        let votes: BTreeMap<NodeId, bool> = voters.map(is_counted).collect();
        let can_win = vote_result(common.configuration(), &votes) == VoteResult::Won;
        if can_win || std::mem::replace(&mut common.told_majority_lost, true) {
            return;
        }
        common.alarms.push(format!(
            "no leader can be elected: the disks of nodes {:?} are empty, and the other voters are no \
             majority. Entries that only the lost disks held would be gone. Bring back one of these \
             disks, or restore the cluster from a backup",
            self.uncounted
        ));
    }

    /// A voter refuses, though a majority would have given it: the votes may be split, and the
    /// rest of them with nodes that are down. Another timeout would be for a leader that no voter has received.
    /// Only those may hurry who begin again with the harmless question.
    pub(in crate::consensus) fn on_refusal(&mut self, common: &mut Common, now: Time) {
        let is_first = self.votes.values().all(|granted| *granted);
        if is_first && common.config.pre_vote {
            self.deadline = self.deadline.min(common.draw_retry_deadline(now));
        }
    }

    /// Nobody won: ask again, beginning with the harmless question.
    pub(in crate::consensus) fn on_timeout(
        &mut self,
        common: &mut Common,
        now: Time,
    ) -> Transition {
        if now < self.deadline {
            return Transition::Stay;
        }
        super::follower::campaign(common, now, &mut self.deadline)
    }
}
