//! The facade: one node's Raft as a value.
//!
//! Things are told to it by `step`, `on_timeout`, `propose`, `read_index`, and the `on_*` reports of
//! what was done; [`Raft::ready`] gives what is to be done next. This is the one place that changes
//! role and term, and the one match over (role, message), written out in full.

use std::cmp::Ordering;

use bytes::Bytes;

use super::common::Common;
use super::log::Log;
use super::ready::{PersistId, Ready, RoleChange};
use super::role::candidate::Candidate;
use super::role::follower::Follower;
use super::role::leader::Leader;
use super::role::{Role, RoleKind, Transition};
use super::{Config, ConfigError, Status};
use crate::error::Rejected;
use crate::types::{
    Body, Configuration, Index, Loaded, Message, NodeId, Position, PublishSnapshot, SnapshotMeta,
    Term, Time,
};

/// What a node starts from.
#[derive(Clone, Debug)]
pub struct Boot {
    pub loaded: Loaded,
    /// What the state machine holds, after restoring the snapshot if it held less than the log's
    /// start.
    pub last_applied: Position,
    /// Who the members are, if the log was never told.
    pub bootstrap: Configuration,
}

/// What a follower says to a snapshot that its leader offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferAnswer {
    Wanted,
    /// The log is committed beyond it.
    NotNeeded,
    /// The sender does not lead any more.
    Stale {
        term: Term,
    },
}

/// Two nodes that hash alike do the same when the same happens to them, but for what depends on time
/// and chance: those are left out, so that the states of a node can be told apart and counted.
#[derive(Clone, Debug, Hash)]
pub struct Raft {
    common: Common,
    role: Role,
    /// What was last reported of role, term and leader.
    reported: RoleChange,
}

impl Raft {
    /// # Errors
    /// If the configuration contradicts itself, or state machine and log do not belong together.
    pub fn new(config: Config, boot: Boot, now: Time) -> Result<Self, ConfigError> {
        config.validate()?;
        let Boot { loaded, last_applied, bootstrap } = boot;
        let Loaded { hard_state, log_start, snapshot, entries } = loaded;
        let start = log_start.position;
        let last_index = start.index + entries.len() as u64;
        if last_applied.index < start.index || last_applied.index > last_index {
            return Err(ConfigError(format!(
                "the state machine is at index {}, the log holds {} to {last_index}: they do not \
                 belong together. Restore both from the same node, or neither",
                last_applied.index, start.index
            )));
        }
        let snapshot_index = snapshot.map_or(0, |meta| meta.index()).min(last_applied.index);
        let commit_index = hard_state.commit_index.min(last_index).max(last_applied.index);
        let snapshot_index = snapshot_index.max(start.index);
        let log = Log::new(start, entries, snapshot_index, commit_index, last_applied.index);
        if log.term_at(last_applied.index) != Some(last_applied.term) {
            return Err(ConfigError(format!(
                "the state machine applied {last_applied}, the log holds another entry there: they \
                 do not belong together. Restore both from the same node, or neither"
            )));
        }
        let configuration = match log_start.configuration.is_empty() {
            true => bootstrap,
            false => log_start.configuration,
        };
        let mut common = Common::new(config, hard_state, configuration, log);
        let deadline = common.draw_election_deadline(now);
        let role = Role::Follower(Follower::new(None, now, deadline));
        let reported = RoleChange { role: RoleKind::Follower, term: hard_state.term, leader: None };
        Ok(Self { common, role, reported })
    }

    /// A message came from an authenticated peer.
    pub fn step(&mut self, now: Time, from: NodeId, message: Message) {
        assert!(from != self.common.id() || matches!(message.body, Body::VoteAnswer { .. }));
        let Message { term, body } = message;
        if let Body::PreVote { last } = body {
            // Nobody adopts a term from a question.
            return self.on_pre_vote(now, from, term, last);
        }
        match term.cmp(&self.common.term) {
            Ordering::Less => return self.answer_stale(from, &body),
            Ordering::Equal => {}
            Ordering::Greater => {
                if !self.adopt_term_of(now, from, term, &body) {
                    return;
                }
            }
        }
        self.dispatch(now, from, body);
    }

    /// The deadline of [`Raft::next_deadline`] has passed.
    pub fn on_timeout(&mut self, now: Time) {
        let transition = match &mut self.role {
            Role::Follower(follower) => follower.on_timeout(&mut self.common, now),
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => {
                candidate.on_timeout(&mut self.common, now)
            }
            Role::Leader(leader) => leader.on_timeout(&mut self.common, now),
        };
        self.change(now, transition);
    }

    /// Appends commands to the leader's log; returns the position of the first, the others follow.
    ///
    /// # Errors
    /// Nothing was appended: this node does not lead, or a byte budget is used up.
    pub fn propose(&mut self, commands: Vec<Bytes>) -> Result<Position, Rejected> {
        match &mut self.role {
            Role::Leader(leader) => leader.propose(&mut self.common, commands),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Asks for an index that, once applied here, makes a read linearizable. The answer comes as a
    /// `ReadState` with this id, which must be unique.
    ///
    /// # Errors
    /// No leader is known, or too many reads wait.
    pub fn read_index(&mut self, now: Time, id: u64) -> Result<(), Rejected> {
        let common = &mut self.common;
        match &mut self.role {
            Role::Leader(leader) => leader.read_index(common, id),
            Role::Follower(follower) if follower.leader.is_some() => {
                if follower.reads_count() >= common.config.reads_waiting_max {
                    return Err(Rejected::Busy("too many reads wait for the leader"));
                }
                follower.read_index(common, now, id);
                Ok(())
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: None })
            }
        }
    }

    /// Hands leadership to `to`, or to the voter whose log is furthest (3.10).
    ///
    /// # Errors
    /// This node does not lead, or `to` is not another voter.
    pub fn transfer_leadership(&mut self, now: Time, to: Option<NodeId>) -> Result<(), Rejected> {
        match &mut self.role {
            Role::Leader(leader) => leader.transfer(&self.common, now, to),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// All batches through `id` are on disk.
    pub fn on_persisted(&mut self, now: Time, id: PersistId) {
        for PublishSnapshot { meta, replaces_log } in self.common.on_persisted(id) {
            if !replaces_log {
                self.common.log.on_state_durable(meta.index().min(self.common.log.last_applied()));
                self.common.published.push(meta);
            } else if self.common.restoring.as_ref() == Some(&meta) {
                self.common.restore = Some(meta);
            }
        }
        self.release_gate(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.advance_commit(&mut self.common);
        }
    }

    /// The state machine has applied everything through `index`, or restored the snapshot at it.
    pub fn on_applied(&mut self, index: Index) {
        match &self.common.restoring {
            Some(meta) if meta.index() == index => {
                self.common.log.on_restored(index);
                self.common.restoring = None;
            }
            // Entries from before the snapshot that replaced them.
            Some(_) => {}
            None => self.common.log.on_applied(index),
        }
    }

    /// A local snapshot at an applied index is finished: publish it with the next batch. Returns
    /// false if it has been overtaken by a snapshot from the leader.
    pub fn publish_snapshot(&mut self, meta: SnapshotMeta) -> bool {
        let log = &self.common.log;
        if self.common.restoring.is_some()
            || self.common.publish.is_some()
            || !log.contains(meta.position)
        {
            return false;
        }
        assert!(meta.index() <= log.last_applied());
        self.common.publish = Some(PublishSnapshot { meta, replaces_log: false });
        true
    }

    /// The state machine itself is durable through an applied index.
    pub fn on_state_durable(&mut self, index: Index) {
        if self.common.restoring.is_none() {
            // The machine may be ahead of its own report of what it applied.
            self.common.log.on_state_durable(index.min(self.common.log.last_applied()));
        }
    }

    /// Forgets the entries through `index`, which a durable state must cover. Returns what storage is
    /// to remember as the log's start, or `None` if nothing changes.
    pub fn compact(&mut self, index: Index) -> Option<SnapshotMeta> {
        if self.common.restoring.is_some() {
            return None;
        }
        let position = self.common.log.compact(index)?;
        Some(SnapshotMeta { position, configuration: self.common.configuration.clone() })
    }

    /// The last index such that the entries behind it take at most `bytes`: where to compact so that
    /// a peer that lags a little still finds its entries.
    pub fn index_leaving_bytes(&self, bytes: u64) -> Index {
        self.common.log.index_leaving_bytes(bytes)
    }

    /// What a snapshot at an index of this log is.
    pub fn snapshot_meta(&self, index: Index) -> Option<SnapshotMeta> {
        let term = self.common.log.term_at(index)?;
        let configuration = self.common.configuration.clone();
        Some(SnapshotMeta { position: Position::new(term, index), configuration })
    }

    /// A leader offers a snapshot.
    pub fn on_snapshot_offer(
        &mut self,
        now: Time,
        from: NodeId,
        term: Term,
        meta: &SnapshotMeta,
    ) -> OfferAnswer {
        if term < self.common.term || !self.hear_leader(now, from, term) {
            return OfferAnswer::Stale { term: self.common.term };
        }
        match meta.index() <= self.common.log.commit_index() {
            true => OfferAnswer::NotNeeded,
            false => OfferAnswer::Wanted,
        }
    }

    /// A snapshot from a leader of `term` is complete and verified. What it contains is committed, so
    /// it is taken whatever has become of the leader. Returns whether it will be published.
    pub fn on_snapshot_received(
        &mut self,
        now: Time,
        from: NodeId,
        term: Term,
        meta: SnapshotMeta,
    ) -> bool {
        let position = meta.position;
        let leads = term >= self.common.term && self.hear_leader(now, from, term);
        let common = &mut self.common;
        let needed = position.index > common.log.commit_index();
        if needed && common.log.contains(position) {
            // The log agrees with it: what it replaces can simply be applied.
            common.log.commit_to(position.index);
        } else if needed {
            common.gate.withdraw_accepted_from(0);
            common.log.replace_by_snapshot(position);
            common.configuration = meta.configuration.clone();
            common.restore = None;
            common.restoring = Some(meta.clone());
            assert!(common.publish.is_none(), "no snapshot is received beside another one's batch");
            common.publish = Some(PublishSnapshot { meta, replaces_log: true });
        }
        if leads {
            let match_index = position.index.min(common.log.commit_index());
            common.send_when_durable(from, Body::AppendAccepted { match_index });
        }
        common.publish.as_ref().is_some_and(|publish| publish.meta.position == position)
    }

    /// A snapshot was sent to a peer, through `sent`, or failed.
    pub fn on_snapshot_sent(&mut self, now: Time, peer: NodeId, sent: Option<Index>) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_snapshot_sent(&self.common, now, peer, sent);
        }
    }

    /// The transport lost the connection to a peer.
    pub fn on_unreachable(&mut self, now: Time, peer: NodeId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_unreachable(&self.common, now, peer);
        }
    }

    /// What is to be done now. Call it once all events at hand are told, so that they share messages
    /// and batches; and again after each report.
    pub fn ready(&mut self, now: Time) -> Ready {
        self.release_gate(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.start_round_for_reads(&mut self.common, now);
            leader.replicate(&mut self.common, now);
        }
        let role_change = self.take_role_change();
        let common = &mut self.common;
        let persist = common.take_persist(now);
        let committed = match common.restoring {
            Some(_) => Vec::new(),
            None => common.log.take_committed(common.config.apply_bytes_max),
        };
        Ready {
            persist,
            messages: std::mem::take(&mut common.messages),
            committed,
            restore: common.restore.take(),
            read_states: std::mem::take(&mut common.read_states),
            snapshot_requests: std::mem::take(&mut common.snapshot_requests),
            snapshot_published: common.published.pop(),
            role_change,
            alarms: std::mem::take(&mut common.alarms),
        }
    }

    /// When `on_timeout` is due if nothing else happens.
    pub fn next_deadline(&self) -> Time {
        match &self.role {
            Role::Follower(follower) => follower.next_deadline(),
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => candidate.deadline,
            Role::Leader(leader) => leader.next_deadline(),
        }
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.role.leader(self.common.id())
    }

    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    pub fn term(&self) -> Term {
        self.common.term
    }

    pub fn last_applied(&self) -> Index {
        self.common.log.last_applied()
    }

    pub fn snapshot_index(&self) -> Index {
        self.common.log.snapshot_index()
    }

    pub fn log_start_index(&self) -> Index {
        self.common.log.start().index
    }

    /// Less than half of the log's byte budget is used.
    pub fn log_has_room(&self) -> bool {
        self.common.log.bytes() < self.common.config.log_bytes_max / 2
    }

    /// A snapshot has replaced the log and the state machine has not yet taken it over.
    pub fn is_restoring(&self) -> bool {
        self.common.restoring.is_some()
    }

    pub fn status(&self) -> Status {
        let log = &self.common.log;
        Status {
            id: self.common.id(),
            role: self.role.kind(),
            term: self.common.term,
            leader: self.leader(),
            log_start_index: log.start().index,
            snapshot_index: log.snapshot_index(),
            last_applied: log.last_applied(),
            commit_index: log.commit_index(),
            durable_index: log.durable_index(),
            last_index: log.last_index(),
            log_bytes: log.bytes(),
            peers: match &self.role {
                Role::Leader(leader) => leader.peer_statuses(),
                Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => Vec::new(),
            },
        }
    }

    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) fn role_data(&self) -> &Role {
        &self.role
    }

    fn dispatch(&mut self, now: Time, from: NodeId, body: Body) {
        use Role::{Candidate, Follower, Leader, PreCandidate};
        let term = self.common.term;
        let common = &mut self.common;
        if let Leader(leader) = &mut self.role {
            leader.hear(now, from);
        }
        let transition = match (&mut self.role, body) {
            (_, Body::PreVote { .. }) => unreachable!("answered before the terms are compared"),
            (_, Body::Vote { last, .. }) => return self.on_vote(now, from, last),

            (PreCandidate(candidate), Body::PreVoteAnswer { granted }) => {
                let won = Transition::Campaign { transfer: false };
                candidate.on_answer(common, from, granted, won)
            }
            (Follower(_) | Candidate(_) | Leader(_), Body::PreVoteAnswer { .. }) => return,

            (Candidate(candidate), Body::VoteAnswer { granted }) => {
                candidate.on_answer(common, from, granted, Transition::Lead)
            }
            (Follower(_) | PreCandidate(_) | Leader(_), Body::VoteAnswer { .. }) => return,

            (_, Body::Append { previous, entries, commit_index }) => {
                if self.hear_leader(now, from, term) {
                    let (common, follower) = self.following();
                    follower.on_append(common, previous, entries, commit_index);
                }
                return;
            }
            (_, Body::Heartbeat { round, commit_index }) => {
                if self.hear_leader(now, from, term) {
                    let (common, follower) = self.following();
                    follower.on_heartbeat(common, round, commit_index);
                }
                return;
            }

            (Leader(leader), Body::AppendAccepted { match_index }) => {
                leader.on_accepted(common, from, match_index);
                Transition::Stay
            }
            (Leader(leader), Body::AppendRejected { previous_index, hint }) => {
                leader.on_rejected(common, from, previous_index, hint);
                Transition::Stay
            }
            (Leader(leader), Body::HeartbeatAnswer { round }) => {
                leader.on_heartbeat_answer(common, now, from, round);
                Transition::Stay
            }
            (
                Follower(_) | PreCandidate(_) | Candidate(_),
                Body::AppendAccepted { .. }
                | Body::AppendRejected { .. }
                | Body::HeartbeatAnswer { .. },
            ) => return,

            (Leader(leader), Body::ReadIndex { id }) => {
                leader.on_read_index(common, from, id);
                Transition::Stay
            }
            (Follower(_) | PreCandidate(_) | Candidate(_), Body::ReadIndex { id }) => {
                common.send(from, Body::ReadIndexAnswer { id, read_index: None });
                Transition::Stay
            }
            (Follower(follower), Body::ReadIndexAnswer { id, read_index }) => {
                follower.on_read_index_answer(common, now, id, read_index);
                Transition::Stay
            }
            (PreCandidate(_) | Candidate(_) | Leader(_), Body::ReadIndexAnswer { .. }) => return,

            (Follower(follower), Body::TimeoutNow) => {
                match follower.leader == Some(from) && common.is_voter() {
                    true => Transition::Campaign { transfer: true },
                    false => Transition::Stay,
                }
            }
            (PreCandidate(_) | Candidate(_) | Leader(_), Body::TimeoutNow) => return,
        };
        self.change(now, transition);
    }

    /// A message of an older term. A leader or candidate that has been overtaken is told so, which
    /// also frees a node whose term ran ahead while it was cut off.
    fn answer_stale(&mut self, from: NodeId, body: &Body) {
        let answer = match body {
            // Only the term matters. A refused vote would be taken for the answer to a newer request, if the
            // candidate has one out in the current term.
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Vote { .. } => {
                Body::HeartbeatAnswer { round: 0 }
            }
            Body::ReadIndex { id } => Body::ReadIndexAnswer { id: *id, read_index: None },
            Body::PreVote { .. }
            | Body::PreVoteAnswer { .. }
            | Body::VoteAnswer { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::ReadIndexAnswer { .. }
            | Body::TimeoutNow => return,
        };
        self.common.send(from, answer);
    }

    /// A message of a newer term. Returns whether it is to be handled.
    fn adopt_term_of(&mut self, now: Time, from: NodeId, term: Term, body: &Body) -> bool {
        let leader = match body {
            Body::Vote { transfer, .. } if !transfer && self.sticks_to_leader(now) => return false,
            Body::Append { .. } | Body::Heartbeat { .. } => Some(from),
            Body::PreVote { .. }
            | Body::PreVoteAnswer { .. }
            | Body::Vote { .. }
            | Body::VoteAnswer { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexAnswer { .. }
            | Body::TimeoutNow => None,
        };
        self.common.adopt_term(term);
        self.become_follower(now, leader);
        true
    }

    /// While a leader is heard, candidates are refused: who cannot hear it must not disturb those who
    /// can (4.2.3).
    fn sticks_to_leader(&self, now: Time) -> bool {
        self.common.config.check_quorum
            && match &self.role {
                Role::Follower(follower) => follower.is_loyal(&self.common, now),
                Role::Leader(_) => true,
                Role::PreCandidate(_) | Role::Candidate(_) => false,
            }
    }

    fn on_pre_vote(&mut self, now: Time, from: NodeId, term: Term, last: Position) {
        let granted = term >= self.common.term
            && last >= self.common.log.last_position()
            && !self.sticks_to_leader(now)
            && !matches!(self.role, Role::Leader(_));
        let answer_term = if granted { term } else { self.common.term };
        self.common.send_at_term(from, answer_term, Body::PreVoteAnswer { granted });
    }

    /// A vote request of the current term (3.4, 3.6.1).
    fn on_vote(&mut self, now: Time, from: NodeId, last: Position) {
        let common = &mut self.common;
        let free = match &self.role {
            Role::Follower(follower) => follower.leader.is_none(),
            Role::PreCandidate(_) => true,
            Role::Candidate(_) | Role::Leader(_) => false,
        };
        let granted = last >= common.log.last_position()
            && (common.voted_for == Some(from) || (common.voted_for.is_none() && free));
        if !granted {
            return common.send(from, Body::VoteAnswer { granted });
        }
        common.vote_for(from);
        common.send_when_durable(from, Body::VoteAnswer { granted });
        // Whoever granted waits for the winner before it tries itself.
        let deadline = common.draw_election_deadline(now);
        match &mut self.role {
            Role::Follower(follower) => follower.election_deadline = deadline,
            Role::PreCandidate(_) => self.become_follower(now, None),
            Role::Candidate(_) | Role::Leader(_) => {}
        }
    }

    /// The leader of `term` speaks. Returns false if there is another one: then somebody's disk or
    /// identity is broken, and nothing is believed.
    fn hear_leader(&mut self, now: Time, from: NodeId, term: Term) -> bool {
        assert!(term >= self.common.term);
        if from == self.common.id() {
            let alarm = "a peer that claims this node's own id wants to lead it; ignored. Two \
                         nodes share an identity";
            self.common.alarms.push(alarm.to_owned());
            return false;
        }
        if term > self.common.term {
            self.common.adopt_term(term);
            self.become_follower(now, Some(from));
        }
        match self.role.leader(self.common.id()) {
            Some(leader) if leader != from => {
                self.common.alarms.push(format!(
                    "nodes {leader} and {from} both claim to lead term {term}; the latter is \
                     ignored. A disk was rolled back, or two nodes share an identity"
                ));
                return false;
            }
            // A candidate that hears a leader of an *equal* term follows it.
            None if !matches!(self.role, Role::Follower(_)) => {
                self.become_follower(now, Some(from));
            }
            Some(_) | None => {}
        }
        let (common, follower) = self.following();
        follower.hear_leader(common, now, from);
        true
    }

    fn following(&mut self) -> (&mut Common, &mut Follower) {
        match &mut self.role {
            Role::Follower(follower) => (&mut self.common, follower),
            Role::PreCandidate(_) | Role::Candidate(_) | Role::Leader(_) => {
                unreachable!("whoever heard a leader follows it")
            }
        }
    }

    /// Lets out what has become durable. What this node says to itself it hears at once.
    fn release_gate(&mut self, now: Time) {
        for (to, message) in self.common.gate.release(self.common.persisted_id()) {
            if to == self.common.id() {
                self.step(now, to, message);
            } else {
                self.common.messages.push((to, message));
            }
        }
    }

    fn change(&mut self, now: Time, transition: Transition) {
        match transition {
            Transition::Stay => {}
            Transition::Follow => self.become_follower(now, None),
            Transition::PreCampaign => self.become_pre_candidate(now),
            Transition::Campaign { transfer } => self.become_candidate(now, transfer),
            Transition::Lead => self.become_leader(now),
        }
    }

    fn become_follower(&mut self, now: Time, leader: Option<NodeId>) {
        // A refused request must not keep a follower from campaigning: its timer runs on.
        let deadline = match &self.role {
            Role::Follower(follower) if leader.is_none() => follower.election_deadline,
            _ => self.common.draw_election_deadline(now),
        };
        self.leave_role();
        self.role = Role::Follower(Follower::new(leader, now, deadline));
    }

    fn become_pre_candidate(&mut self, now: Time) {
        self.leave_role();
        let deadline = self.common.draw_election_deadline(now);
        self.role = Role::PreCandidate(Candidate::new(deadline));
        let last = self.common.log.last_position();
        for peer in self.common.voting_peers() {
            self.common.send(peer, Body::PreVote { last });
        }
        let (own_id, term) = (self.common.id(), self.common.term);
        let Role::PreCandidate(candidate) = &mut self.role else { unreachable!("just become one") };
        let won = Transition::Campaign { transfer: false };
        let transition = candidate.on_answer(&self.common, own_id, true, won);
        assert_eq!(term, self.common.term);
        self.change(now, transition);
    }

    /// The request and the own vote leave together with the write that they rest on.
    fn become_candidate(&mut self, now: Time, transfer: bool) {
        let Some(next_term) = self.common.term.checked_add(1) else {
            let alarm = "there is no term after this one; not campaigning. A peer made it up";
            self.common.alarms.push(alarm.to_owned());
            return self.become_follower(now, None);
        };
        self.leave_role();
        self.common.adopt_term(next_term);
        let own_id = self.common.id();
        self.common.vote_for(own_id);
        let deadline = self.common.draw_election_deadline(now);
        self.role = Role::Candidate(Candidate::new(deadline));
        let last = self.common.log.last_position();
        for peer in self.common.voting_peers() {
            self.common.send_when_durable(peer, Body::Vote { last, transfer });
        }
        self.common.send_when_durable(own_id, Body::VoteAnswer { granted: true });
    }

    fn become_leader(&mut self, now: Time) {
        assert!(matches!(self.role, Role::Candidate(_)), "only a candidate is elected");
        self.role = Role::Leader(Box::new(Leader::assume_office(&mut self.common, now)));
    }

    /// Whoever waits on the role that ends is answered.
    fn leave_role(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => follower.fail_reads(&mut self.common),
            Role::PreCandidate(_) | Role::Candidate(_) => {}
            Role::Leader(leader) => {
                leader.fail_reads(&mut self.common);
                self.common.snapshot_requests.clear();
            }
        }
    }

    fn take_role_change(&mut self) -> Option<RoleChange> {
        let now =
            RoleChange { role: self.role.kind(), term: self.common.term, leader: self.leader() };
        if now == self.reported {
            return None;
        }
        self.reported = now;
        Some(now)
    }
}
