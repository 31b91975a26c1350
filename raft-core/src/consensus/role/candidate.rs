//! A node that asks for votes (3.4), or asks whether it would get them (9.6).
//!
//! The two are alike in counting answers and giving up after a timeout; what winning means is
//! decided in `raft`. The own vote of a real candidacy arrives like the others', once it is durable.

use std::collections::BTreeMap;

use super::Transition;
use crate::consensus::common::Common;
use crate::consensus::quorum::{VoteResult, granted_by_all, vote_result};
use crate::types::{NodeId, Time};

#[derive(Clone, Debug)]
pub(in crate::consensus) struct Candidate {
    votes: BTreeMap<NodeId, bool>,
    /// The same without what was granted by nodes that recover.
    counting: BTreeMap<NodeId, bool>,
    pub(in crate::consensus) deadline: Time,
}

hash_of!(Candidate { votes, counting; left out: deadline });

/// An answer to the question for a vote.
#[derive(Clone, Copy, Debug)]
pub(in crate::consensus) struct Answer {
    pub(in crate::consensus) granted: bool,
    /// The voter may have voted before and forgotten it (`recovery`).
    pub(in crate::consensus) recovering: bool,
}

impl Candidate {
    pub(in crate::consensus) fn new(deadline: Time) -> Self {
        Self { votes: BTreeMap::new(), counting: BTreeMap::new(), deadline }
    }

    /// Counts one answer; the first of each node counts. `won` is what to become with a majority of
    /// those whose word counts, or with the votes of all.
    pub(in crate::consensus) fn on_answer(
        &mut self,
        common: &Common,
        from: NodeId,
        answer: Answer,
        won: Transition,
    ) -> Transition {
        let Answer { granted, recovering } = answer;
        let granted = *self.votes.entry(from).or_insert(granted);
        if !(granted && recovering) {
            self.counting.entry(from).or_insert(granted);
        }
        if granted_by_all(&common.configuration, &self.votes) {
            return won;
        }
        match vote_result(&common.configuration, &self.counting) {
            VoteResult::Won => won,
            VoteResult::Lost => Transition::Follow,
            VoteResult::Pending => Transition::Stay,
        }
    }

    /// Somebody refuses its vote, though a majority would have given it: the votes may be split, and the
    /// rest of them with nodes that are down. Another timeout would be for a leader that nobody heard.
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
