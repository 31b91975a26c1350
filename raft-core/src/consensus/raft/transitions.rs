//! The one place where role and term change.

use super::Raft;
use crate::consensus::ready::RoleChange;
use crate::consensus::role::candidate::{Answer, Candidate};
use crate::consensus::role::follower::Follower;
use crate::consensus::role::leader::Leader;
use crate::consensus::role::{Role, Transition};
use crate::types::{MessageBody, NodeId, TERM_MAX, Time};

impl Raft {
    pub(super) fn change(&mut self, now: Time, transition: Transition) {
        match transition {
            Transition::Stay => {}
            Transition::Follow => self.become_follower(now, None),
            Transition::PreCampaign => self.become_pre_candidate(now),
            // Since this node asked for pre-votes a member may have been wiped (`founding`, rule
            // 3), or this node's disk or state machine may hang.
            Transition::Campaign { .. } if !self.node.may_campaign(now) => {
                self.become_follower(now, None);
            }
            Transition::Campaign { transfer } => self.become_candidate(now, transfer),
            Transition::Lead => self.become_leader(now),
        }
    }

    pub(super) fn become_follower(&mut self, now: Time, leader: Option<NodeId>) {
        // A request that this node refuses must not postpone its own campaign: the timer runs on.
        let deadline = match &self.role {
            Role::Follower(follower) if leader.is_none() => follower.election_deadline,
            Role::PreCandidate(candidate) | Role::Candidate(candidate) if leader.is_none() => {
                candidate.deadline
            }
            _ => self.node.draw_election_deadline(now),
        };
        self.become_follower_until(now, leader, deadline);
    }

    /// Follows, and campaigns at `deadline` unless a leader or candidate makes itself known before.
    pub(super) fn become_follower_until(
        &mut self,
        now: Time,
        leader: Option<NodeId>,
        deadline: Time,
    ) {
        self.leave_role();
        self.role = Role::Follower(Follower::new(leader, now, deadline));
    }

    fn become_pre_candidate(&mut self, now: Time) {
        self.leave_role();
        let deadline = self.node.draw_election_deadline(now);
        self.role = Role::PreCandidate(Candidate::new(&self.node, now, deadline));
        let last = self.node.log.last_position();
        for peer in self.node.voting_peers() {
            self.node.send(peer, MessageBody::RequestPreVote { last });
        }
        let (own_id, term) = (self.node.id(), self.node.term);
        let Role::PreCandidate(candidate) = &mut self.role else { unreachable!("just become one") };
        let answer = Answer { granted: true, recovering: false };
        let transition = candidate.on_pre_vote_answer(&mut self.node, own_id, answer);
        assert_eq!(term, self.node.term);
        self.change(now, transition);
    }

    /// Campaigns in the next term. The vote requests and this node's own vote are held until the
    /// write that they rest on is durable.
    fn become_candidate(&mut self, now: Time, transfer: bool) {
        assert!(self.node.counts(), "a node that recovers does not campaign");
        // C22. Every decoder, including that of this node's disk, rejects a later term.
        let Some(next_term) = Some(self.node.term + 1).filter(|term| *term <= TERM_MAX) else {
            let alarm = "there is no term after this one; not campaigning. A peer made it up";
            self.node.ready.alarms.push(alarm.to_owned());
            return self.become_follower(now, None);
        };
        self.leave_role();
        self.node.adopt_term(next_term);
        let own_id = self.node.id();
        self.node.vote_for(own_id);
        let deadline = self.node.draw_election_deadline(now);
        self.role = Role::Candidate(Candidate::new(&self.node, now, deadline));
        let last = self.node.log.last_position();
        for peer in self.node.voting_peers() {
            self.node.send_when_durable(peer, MessageBody::RequestVote { last, transfer });
        }
        self.node.send_when_durable(own_id, MessageBody::VoteResponse { granted: true });
    }

    /// Repeats a candidate's request, after a while, to the voters that have not responded.
    pub(super) fn ask_voters_again(&mut self, now: Time) {
        let (Role::PreCandidate(candidate) | Role::Candidate(candidate)) = &mut self.role else {
            return;
        };
        let silent = candidate.take_silent_voters(&self.node, now);
        let last = self.node.log.last_position();
        for peer in silent {
            match &self.role {
                Role::PreCandidate(_) => self.node.send(peer, MessageBody::RequestPreVote { last }),
                // If a leader asked for this election, it has been silent since, and voters no
                // longer stick to it: a request without `transfer` does as well.
                _ => {
                    self.node.send_when_durable(
                        peer,
                        MessageBody::RequestVote { last, transfer: false },
                    );
                }
            }
        }
    }

    fn become_leader(&mut self, now: Time) {
        assert!(matches!(self.role, Role::Candidate(_)), "only a candidate is elected");
        self.node.told_majority_lost = false;
        self.role = Role::Leader(Box::new(Leader::assume_office(&mut self.node, now)));
    }

    /// Fails the reads that wait on the role that ends, and drops a leader's snapshot requests.
    fn leave_role(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => follower.fail_reads(&mut self.node),
            Role::PreCandidate(_) | Role::Candidate(_) => {}
            Role::Leader(leader) => {
                leader.fail_reads(&mut self.node);
                self.node.ready.snapshot_requests.clear();
            }
        }
    }

    pub(super) fn take_role_change(&mut self) -> Option<RoleChange> {
        let now = RoleChange {
            role: self.role.kind(),
            term: self.node.term,
            leader: self.leader(),
            is_recovering: self.is_recovering(),
        };
        if now == self.reported {
            return None;
        }
        self.reported = now;
        Some(now)
    }
}
