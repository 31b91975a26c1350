//! Message dispatch: the term rules, then one exhaustive match over (role, message).

use std::cmp::Ordering;

use super::Raft;
use crate::consensus::founding::Word;
use crate::consensus::node_state::NodeState;
use crate::consensus::role::Role;
use crate::consensus::role::candidate::Answer;
use crate::consensus::role::follower::Follower;
use crate::types::{
    Entry, Index, Message, MessageBody, NodeId, Position, ReadOutcome, TERM_MAX, Term, Time,
};

impl Raft {
    /// Handles a message of an authenticated peer.
    pub fn step(&mut self, now: Time, from: NodeId, message: Message) {
        let Message { term, mut recovering, body } = message;
        // Only what would be counted, or observed by a leader. A request may come from a node whose
        // record is not in this log yet, and the log of a node that must not be elected lacks it.
        if body.is_answer() || matches!(self.role, Role::Leader(_)) {
            recovering = recovering.or_else(|| self.node.superseded_disk(from));
        }
        let is_out_of_range = term > TERM_MAX || (term == 0 && speaks_of_a_term(&body));
        if is_out_of_range || self.is_impostor(from, &body) {
            return;
        }
        if let MessageBody::RequestPreVote { last } = body {
            // No node adopts a term from a pre-vote request.
            return self.on_pre_vote(now, from, recovering.is_some(), term, last);
        }
        match term.cmp(&self.node.term) {
            Ordering::Less => return self.answer_stale(from, &body),
            Ordering::Equal => {}
            Ordering::Greater => {
                if !self.adopt_term_of(now, from, term, &body) {
                    return;
                }
            }
        }
        self.dispatch(now, from, recovering, body);
    }

    /// Returns true for a message that only an impostor sends. This node sends itself its own vote
    /// and nothing else, so any other message in its name is dropped; a claim to lead also raises
    /// an alarm.
    fn is_impostor(&mut self, from: NodeId, body: &MessageBody) -> bool {
        if from != self.node.id() || matches!(body, MessageBody::VoteResponse { .. }) {
            return false;
        }
        if matches!(body, MessageBody::AppendEntries { .. } | MessageBody::Heartbeat { .. }) {
            let alarm = "a peer that claims this node's own id wants to lead it; ignored. Two \
                         nodes share an identity";
            self.node.ready.alarms.push(alarm.to_owned());
        }
        true
    }

    /// The one match over (role, message), written out in full. An arm is one call; a message that
    /// the role does not await is ignored.
    fn dispatch(&mut self, now: Time, from: NodeId, recovering: Option<u64>, body: MessageBody) {
        use MessageBody as Body;
        use Role::{Candidate, Follower, Leader, PreCandidate};
        let node = &mut self.node;
        if let Leader(leader) = &mut self.role {
            leader.observe_peer(node, now, from, recovering);
        }
        let recovers = recovering.is_some();
        let transition = match (&mut self.role, body) {
            (_, Body::RequestPreVote { .. }) => {
                unreachable!("answered before the terms are compared")
            }
            (_, Body::RequestVote { last, .. }) => return self.on_vote(now, from, recovers, last),
            (_, Body::AppendEntries { previous, entries, commit_index }) => {
                return self.on_append(now, from, previous, entries, commit_index);
            }
            (_, Body::Heartbeat { round, commit_index }) => {
                return self.on_heartbeat(now, from, round, commit_index);
            }
            (_, Body::Founding { number, heard, met, version_max }) => {
                return self.on_founding(now, from, Word { number, heard, met, version_max });
            }

            (PreCandidate(candidate), Body::PreVoteResponse { granted }) => {
                candidate.on_pre_vote_answer(node, from, Answer { granted, recovering: recovers })
            }
            (Candidate(candidate), Body::VoteResponse { granted }) => {
                candidate.on_vote_answer(node, now, from, Answer { granted, recovering: recovers })
            }
            (Follower(_) | Candidate(_) | Leader(_), Body::PreVoteResponse { .. })
            | (Follower(_) | PreCandidate(_) | Leader(_), Body::VoteResponse { .. }) => return,

            (Leader(leader), Body::AppendAccepted { match_index }) => {
                return leader.on_accepted(node, now, from, match_index);
            }
            (Leader(leader), Body::AppendRejected { previous_index, hint }) => {
                return leader.on_rejected(node, from, previous_index, hint);
            }
            (Leader(leader), Body::HeartbeatResponse { round, version_max }) => {
                return leader.on_heartbeat_answer(node, now, from, round, version_max);
            }
            (
                Follower(_) | PreCandidate(_) | Candidate(_),
                Body::AppendAccepted { .. }
                | Body::AppendRejected { .. }
                | Body::HeartbeatResponse { .. },
            ) => return,

            (Leader(leader), Body::ReadIndex { id }) => {
                return leader.on_read_index(node, from, id);
            }
            (Follower(_) | PreCandidate(_) | Candidate(_), Body::ReadIndex { id }) => {
                return node.send(from, read_refusal(id));
            }
            (Follower(follower), Body::ReadIndexResponse { id, outcome }) => {
                return follower.on_read_index_answer(node, now, id, outcome);
            }
            (Follower(follower), Body::TimeoutNow { last }) => {
                follower.on_timeout_now(node, now, from, last)
            }
            (Follower(follower), Body::Recovered { number }) => {
                return follower.on_recovered(node, from, number);
            }
            (
                PreCandidate(_) | Candidate(_) | Leader(_),
                Body::ReadIndexResponse { .. } | Body::TimeoutNow { .. } | Body::Recovered { .. },
            ) => return,
        };
        self.change(now, transition);
    }

    fn on_append(
        &mut self,
        now: Time,
        from: NodeId,
        previous: Position,
        entries: Vec<Entry>,
        commit_index: Index,
    ) {
        if self.observe_leader(now, from, self.node.term) {
            let (node, follower) = self.following();
            follower.on_append(node, previous, entries, commit_index);
        }
    }

    fn on_heartbeat(&mut self, now: Time, from: NodeId, round: u64, commit_index: Index) {
        if self.observe_leader(now, from, self.node.term) {
            let (node, follower) = self.following();
            follower.on_heartbeat(node, now, round, commit_index);
        }
    }

    /// Responds to a message of an older term. A leader or candidate that has been overtaken learns
    /// the newer term from the response and steps down, so that the cluster can again include a
    /// node whose term ran ahead while it was partitioned.
    fn answer_stale(&mut self, from: NodeId, body: &MessageBody) {
        let answer = match body {
            // Only the term of this response matters. A vote response that refuses would be taken
            // for the response to a newer request, if the candidate has one outstanding in the
            // current term. A new node that learns of a term was wiped (`founding`, rule 4).
            MessageBody::AppendEntries { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::Founding { .. } => MessageBody::HeartbeatResponse {
                round: 0,
                version_max: self.node.config.version_max,
            },
            MessageBody::ReadIndex { id } => read_refusal(*id),
            MessageBody::RequestPreVote { .. }
            | MessageBody::PreVoteResponse { .. }
            | MessageBody::VoteResponse { .. }
            | MessageBody::AppendAccepted { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::HeartbeatResponse { .. }
            | MessageBody::ReadIndexResponse { .. }
            | MessageBody::TimeoutNow { .. }
            | MessageBody::Recovered { .. } => return,
        };
        self.node.send(from, answer);
    }

    /// Adopts the newer term of a message. Returns false if the message is to be ignored: a vote
    /// request while this node sticks to its leader.
    fn adopt_term_of(&mut self, now: Time, from: NodeId, term: Term, body: &MessageBody) -> bool {
        let leader = match body {
            MessageBody::RequestVote { transfer, .. }
                if !transfer && self.sticks_to_leader(now) =>
            {
                return false;
            }
            MessageBody::AppendEntries { .. } | MessageBody::Heartbeat { .. } => Some(from),
            MessageBody::RequestPreVote { .. }
            | MessageBody::PreVoteResponse { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::VoteResponse { .. }
            | MessageBody::AppendAccepted { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::HeartbeatResponse { .. }
            | MessageBody::ReadIndex { .. }
            | MessageBody::ReadIndexResponse { .. }
            | MessageBody::TimeoutNow { .. }
            | MessageBody::Recovered { .. }
            | MessageBody::Founding { .. } => None,
        };
        self.node.adopt_term(term);
        self.become_follower(now, leader);
        true
    }

    /// Returns true while this node observes a leader and so refuses candidates: a candidate that
    /// cannot reach the leader must not disturb the nodes that can (4.2.3).
    fn sticks_to_leader(&self, now: Time) -> bool {
        self.node.config.check_quorum
            && match &self.role {
                Role::Follower(follower) => follower.is_loyal(&self.node, now),
                Role::Leader(_) => true,
                Role::PreCandidate(_) | Role::Candidate(_) => false,
            }
    }

    /// Handles the announcement of another member of a cluster that is being founded.
    fn on_founding(&mut self, now: Time, from: NodeId, word: Word) {
        let node = &mut self.node;
        let Some(founding) = &mut node.founding else { return };
        let waited = !founding.all_have_met();
        founding.on_message(now, from, word);
        let all_have_met = founding.all_have_met();
        node.meet_all(now);
        if waited
            && all_have_met
            && let Role::Follower(follower) = &mut self.role
        {
            // There is no leader to wait for.
            let soon = node.draw_retry_deadline(now);
            follower.election_deadline = follower.election_deadline.min(soon);
        }
    }

    fn on_pre_vote(&mut self, now: Time, from: NodeId, recovers: bool, term: Term, last: Position) {
        self.node.observe_candidate(now, last);
        let granted = term >= self.node.term
            && last >= self.node.log.last_position()
            && !self.sticks_to_leader(now)
            && !matches!(self.role, Role::Leader(_))
            && !recovers
            // C16. The vote that would follow could not be written.
            && !self.node.disk_is_stuck(now);
        let answer_term = if granted { term } else { self.node.term };
        self.node.send_at_term(from, answer_term, MessageBody::PreVoteResponse { granted });
    }

    /// Handles a vote request of the current term (3.4, 3.6.1). A repeated request is granted
    /// again, but not to a recovering node: the vote may have been given to an earlier incarnation
    /// of that node, which led this term with other entries.
    fn on_vote(&mut self, now: Time, from: NodeId, recovers: bool, last: Position) {
        let node = &mut self.node;
        node.observe_candidate(now, last);
        let free = match &self.role {
            Role::Follower(follower) => follower.leader.is_none(),
            Role::PreCandidate(_) => true,
            Role::Candidate(_) | Role::Leader(_) => false,
        };
        let granted = last >= node.log.last_position()
            && match node.voted_for {
                Some(candidate) => candidate == from && !recovers,
                None => free,
            };
        if !granted {
            return node.send(from, MessageBody::VoteResponse { granted });
        }
        node.vote_for(from);
        node.send_when_durable(from, MessageBody::VoteResponse { granted });
        // A node that granted waits for the winner before it campaigns itself.
        let deadline = node.draw_election_deadline(now);
        match &mut self.role {
            Role::Follower(follower) => follower.election_deadline = deadline,
            Role::PreCandidate(_) => self.become_follower_until(now, None, deadline),
            Role::Candidate(_) | Role::Leader(_) => {}
        }
    }

    /// Follows `from`, which sent a leader's message of `term`. Returns false, and the message is
    /// ignored, if another node is known to lead that term: then a disk was rolled back, or two
    /// nodes share an identity.
    pub(super) fn observe_leader(&mut self, now: Time, from: NodeId, term: Term) -> bool {
        assert!(term >= self.node.term);
        if term > self.node.term {
            self.node.adopt_term(term);
            self.become_follower(now, Some(from));
        }
        self.node.told_majority_lost = false;
        match self.role.leader(self.node.id()) {
            Some(leader) if leader != from => {
                self.node.ready.alarms.push(format!(
                    "nodes {leader} and {from} both claim to lead term {term}; the latter is \
                     ignored. A disk was rolled back, or two nodes share an identity"
                ));
                return false;
            }
            // A candidate that observes a leader of an *equal* term follows it.
            None if !matches!(self.role, Role::Follower(_)) => {
                self.become_follower(now, Some(from));
            }
            Some(_) | None => {}
        }
        let (node, follower) = self.following();
        follower.observe_leader(node, now, from);
        true
    }

    fn following(&mut self) -> (&mut NodeState, &mut Follower) {
        match &mut self.role {
            Role::Follower(follower) => (&mut self.node, follower),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) => {
                unreachable!("a node that observed a leader follows it")
            }
        }
    }
}

/// The response to a request for a read index, of a node that does not lead.
fn read_refusal(id: u64) -> MessageBody {
    MessageBody::ReadIndexResponse { id, outcome: ReadOutcome::NotLeader }
}

/// Returns true for messages that no correct node sends in term 0, where no node campaigns, leads
/// or follows.
fn speaks_of_a_term(body: &MessageBody) -> bool {
    match body {
        MessageBody::RequestVote { .. }
        | MessageBody::VoteResponse { .. }
        | MessageBody::AppendEntries { .. }
        | MessageBody::AppendAccepted { .. }
        | MessageBody::AppendRejected { .. }
        | MessageBody::Heartbeat { .. }
        | MessageBody::TimeoutNow { .. }
        | MessageBody::Recovered { .. } => true,
        MessageBody::RequestPreVote { .. }
        | MessageBody::PreVoteResponse { .. }
        | MessageBody::HeartbeatResponse { .. }
        | MessageBody::ReadIndex { .. }
        | MessageBody::ReadIndexResponse { .. }
        | MessageBody::Founding { .. } => false,
    }
}
