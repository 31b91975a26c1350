//! Invariants of one node after each of its steps, compared with its state before, with its disk,
//! and with the other nodes. The cost of each check depends on the size of the change.

use std::time::Duration;

use raft_core::consensus::invariants::Marks;
use raft_core::consensus::{Raft, RoleKind, Status, invariants};
use raft_core::types::{Index, Memory, Message, MessageBody, NodeId, Position, Time};

use crate::coverage::What;
use crate::fault::{Fault, Kind};
use crate::members::heard_by_quorum;
use crate::node::{Node, View};
use crate::oracle::{Holders, Voter, must};
use crate::resends::Repeated;
use crate::simulation::Simulation;

const STUCK_DISK: &str = "its disk hangs";

/// Messages that leaders have sent, for bounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub messages: u64,
    pub heartbeats: u64,
    pub appends: u64,
    pub entries: u64,
    pub repeated: Repeated,
}

pub fn view(status: &Status) -> View {
    View {
        role: status.role,
        term: status.term,
        commit_index: status.commit_index,
        last_applied: status.last_applied,
        last_index: status.last_index,
        durable_index: status.durable_index,
        log_bytes: status.log_bytes,
        is_recovering: status.is_recovering,
        marks: Marks::from(status),
    }
}

fn position_at(raft: &Raft, index: Index) -> Option<Position> {
    raft.snapshot_meta(index).map(|meta| meta.position)
}

/// Returns true if the log holds this position, or has compacted beyond it.
fn holds(raft: &Raft, position: Position) -> bool {
    position.index < raft.log_start_index() || position_at(raft, position.index) == Some(position)
}

impl Simulation {
    /// Checks a node that has just changed.
    pub fn look(&mut self, id: NodeId) {
        let Some(life) = self.node(id).life.as_ref() else { return };
        let status = life.raft.status();
        // This check reads the whole log, so a long log is checked only now and then.
        if status.last_index - status.log_start_index < 64 || self.steps.is_multiple_of(16) {
            invariants::check(&life.raft);
        }
        let (before, now) = (life.view, view(&status));
        self.trace.note(now.term << 32 | now.commit_index << 8 | now.role as u64);
        self.trace.note(now.last_index << 32 | now.durable_index);
        must("V2", id, invariants::term_never_falls(&before.marks, &now.marks));
        must("V7", id, invariants::applied_never_falls(&before.marks, &now.marks));
        must("V8", id, invariants::commit_never_shrinks(&before.marks, &now.marks));
        must("V8", id, invariants::marks_are_in_order(&now.marks));
        must("V3", id, invariants::leader_append_only(&before.marks, &now.marks));
        self.check_members(id, before, &status);
        let is_leader = now.role == RoleKind::Leader;
        let is_new = is_leader && (before.role != now.role || before.term != now.term);
        if is_new {
            self.see_leader(id, now);
        } else if !is_leader && before.role == RoleKind::Leader {
            self.coverage.count(What::StepDown);
            let life = self.life(id);
            if !life.raft.committed_configuration().is_voter(id) {
                self.coverage.count(What::LeaderLeft);
            }
        }
        if now.commit_index > before.commit_index {
            self.see_commit(id, now);
            self.check_committed_configuration(id, now.commit_index);
        }
        if is_leader {
            self.check_progress(id, &status);
        }
        if now.durable_index != before.durable_index {
            self.check_durable(id, now.durable_index);
        }
        self.check_bounds(id, &now);
        let own_time = self.own_time(id);
        let life = self.life(id);
        life.view = now;
        if life.applying.is_empty() {
            life.applying_since = None;
        } else if life.applying_since.is_none() || now.last_applied != before.last_applied {
            life.applying_since = Some(own_time);
        }
        self.check_leader_may_lead(id);
        if before.role == RoleKind::Follower && now.role != before.role {
            assert!(!self.disk_hangs(id), "V25 node {id} campaigns with a hung disk");
        }
        self.stop_if_superseded(id, status.memory);
        let node = self.node_mut(id);
        if !status.is_recovering && !node.is_old && node.lost.take().is_some() {
            self.coverage.count(What::Recovered);
            let is_hostile = !self.network.calm;
            if is_hostile && self.node(id).earlier.is_some() && self.disks.percent(80) {
                self.node_mut(id).crashes_in = Some(self.disks.below(60) as u64);
            }
        }
    }

    /// A driver stops the node once it is committed that another disk of it is recorded.
    fn stop_if_superseded(&mut self, id: NodeId, memory: Memory) {
        let node = self.node_mut(id);
        let raft = node.raft().expect("it was looked at");
        let stage = raft.configuration_stage();
        if memory != Memory::Intact || !raft.is_superseded() || !stage.is_committed {
            return;
        }
        assert!(raft.is_recovering(), "V29 node {id} counts on an old disk, and knows it");
        assert!(node.is_old || node.may_be_void, "V29 the only disk of node {id} is void");
        node.is_old = true;
        node.crashes_in = Some(0);
    }

    fn see_leader(&mut self, id: NodeId, now: View) {
        let node = &self.nodes[id as usize - 1];
        let raft = node.raft().expect("it was looked at");
        let voter = Voter::new(node, raft.is_recovering());
        let configuration = self.configuration_on_log(id).clone();
        self.oracle.on_vote(id, id, now.term, &voter);
        self.oracle
            .on_leader(id, now.term, &voter, &configuration, |position| holds(raft, position));
        assert!(!node.is_old, "V29 node {id} is elected on an old disk");
        self.coverage.count(What::Election);
        if node.life.as_ref().is_some_and(|life| life.was_told) {
            self.coverage.count(What::ElectionByTransfer);
        }
        let own_time = self.own_time(id);
        let life = self.life(id);
        life.leads_since = own_time;
        life.heard.fill(own_time);
        life.matches.fill(0);
    }

    fn see_commit(&mut self, id: NodeId, now: View) {
        let nodes = &self.nodes;
        let raft = nodes[id as usize - 1].raft().expect("it was looked at");
        let position = position_at(raft, now.commit_index);
        let position = position.expect("V8 the log holds what is committed, or starts there");
        let leads = (now.role == RoleKind::Leader).then_some(now.term);
        let committed_before = self.oracle.committed_index();
        let in_force = raft.configuration().clone();
        let news = self.oracle.on_commit(id, leads, position, &in_force, |stamp| Holders {
            counting: nodes
                .iter()
                .filter(|node| node.has_promised(stamp))
                .map(|node| node.id)
                .collect(),
        });
        if news == 0 {
            return;
        }
        self.coverage.add(What::Commit, news as u64);
        self.count_changes(committed_before);
        let nodes = &self.nodes;
        // A leader of a later term must already have the entry, too.
        for other in nodes {
            let Some(raft) = other.raft().filter(|raft| raft.role() == RoleKind::Leader) else {
                continue;
            };
            assert!(
                raft.term() <= now.term || holds(raft, position),
                "V5 leader {} of term {} lacks {position}, which {id} commits in term {}",
                other.id,
                raft.term(),
                now.term
            );
        }
    }

    /// A leader's knowledge of its peers' disks is true.
    fn check_progress(&mut self, id: NodeId, status: &Status) {
        let inflight_max = self.plan.mix.config(id, 0).inflight_count_max;
        for peer in &status.peers {
            assert!(
                peer.inflight_count <= inflight_max,
                "V24 leader {id} has {} appends in flight to {}",
                peer.inflight_count,
                peer.id
            );
            let number = peer.id as usize - 1;
            let nodes = &self.nodes;
            let life = nodes[id as usize - 1].life.as_ref().expect("it was looked at");
            if peer.match_index <= life.matches[number] {
                if peer.is_recovering {
                    self.life(id).matches[number] = peer.match_index;
                    continue;
                }
                assert_eq!(
                    peer.match_index, life.matches[number],
                    "V3 what leader {id} knows of {} moves backwards",
                    peer.id
                );
                continue;
            }
            let position = position_at(&life.raft, peer.match_index);
            let is_blank = nodes[number].is_blank();
            if nodes[number].lost.is_some() && (!peer.is_recovering || is_blank) {
                // The peer acknowledged this before it lost its disk.
                self.life(id).matches[number] = peer.match_index;
                continue;
            }
            let disk = &nodes[number].disk;
            assert!(disk.hard_state.term >= status.term, "V11 {} answered too early", peer.id);
            // In a later term the entry may have been overwritten since.
            if let Some(position) = position
                && disk.hard_state.term == status.term
                && disk.log.start.index() <= position.index
            {
                let on_disk = disk.log.at(position.index).map(|stamp| stamp.position);
                assert_eq!(
                    on_disk,
                    Some(position),
                    "V11 leader {id} believes that {} has {position} on disk",
                    peer.id
                );
            }
            self.life(id).matches[number] = peer.match_index;
        }
    }

    /// The entry at the durable index is on the node's disk, and equals the one in memory.
    fn check_durable(&self, id: NodeId, durable_index: Index) {
        let Node { disk, life, .. } = self.node(id);
        let raft = &life.as_ref().expect("it was looked at").raft;
        let Some(position) = position_at(raft, durable_index) else { return };
        if disk.log.start.index() <= durable_index {
            let on_disk = disk.log.at(durable_index).map(|stamp| stamp.position);
            assert_eq!(on_disk, Some(position), "V11 node {id} is wrong about its own disk");
        }
    }

    fn check_bounds(&self, id: NodeId, now: &View) {
        let log_bytes_max = self.plan.mix.log_bytes_max();
        if log_bytes_max != u64::MAX {
            // A full follower still accepts entries that could not be committed otherwise.
            let bound = 3 * log_bytes_max + 10_000;
            assert!(now.log_bytes <= bound, "V24 the log of {id} has {} bytes", now.log_bytes);
        }
        let life = self.node(id).life.as_ref().expect("it was looked at");
        assert!(life.applying.len() <= 10_000, "V24 node {id} hands out without end");
    }

    /// A message is sent: its promises are on disk.
    pub fn check_promise(&mut self, id: NodeId, to: NodeId, message: &Message) {
        let term = message.term;
        let hard_state = self.node(id).disk.hard_state;
        let voter = Voter::new(&self.nodes[id as usize - 1], message.recovering.is_some());
        let is_refusal = |body: &MessageBody| match body {
            MessageBody::VoteResponse { granted } | MessageBody::PreVoteResponse { granted } => {
                !granted
            }
            _ => false,
        };
        self.life(id).has_refused |= is_refusal(&message.body);
        match message.body {
            MessageBody::RequestVote { .. } => self.oracle.on_vote(id, id, term, &voter),
            MessageBody::VoteResponse { granted: true } => {
                self.oracle.on_vote(id, to, term, &voter)
            }
            MessageBody::AppendAccepted { match_index } => {
                let last = self.node(id).disk.log.last_index();
                let is_durable = invariants::acknowledgement_is_durable;
                must("V11", id, is_durable(id, term, match_index, &hard_state, last));
                if hard_state.term == term {
                    self.check_accepted(id, to, message.term, match_index);
                }
            }
            MessageBody::VoteResponse { granted: false } => assert_ne!(
                self.life(id).winds_up_for,
                Some((to, term)),
                "V25 node {id} refuses {to} its vote and waits for it to win"
            ),
            MessageBody::AppendRejected { .. } => self.coverage.count(What::Rejection),
            MessageBody::Recovered { .. } => self.check_readmission(id, to, term),
            _ => {}
        }
    }

    fn check_accepted(&mut self, id: NodeId, to: NodeId, term: u64, match_index: Index) {
        let log = &self.node(id).disk.log;
        let leader = self.node(to).raft();
        let leader = leader.filter(|raft| raft.role() == RoleKind::Leader && raft.term() == term);
        if let Some(position) = leader.and_then(|raft| position_at(raft, match_index))
            && let Some(stamp) = log.at(match_index)
        {
            assert_eq!(
                stamp.position, position,
                "V11 node {id} accepts {match_index} of {to}, its disk holds another entry there"
            );
        }
        let promise = &mut self.node_mut(id).promise;
        if promise.term < term {
            *promise = crate::node::Promise { term, match_index };
        } else if promise.term == term {
            promise.match_index = promise.match_index.max(match_index);
        }
    }

    /// A batch truncates the log from here on.
    pub fn check_truncation(&self, id: NodeId, from: Index) {
        let Node { life, promise, .. } = self.node(id);
        let life = life.as_ref().expect("it was looked at");
        // The log in memory was truncated after the last batch, but maybe before the latest commit.
        assert!(from > life.batch_commit, "V10 node {id} forgets what it knows committed");
        assert_ne!(life.view.role, RoleKind::Leader, "V3 a leader forgets its own log");
        assert!(
            promise.term != life.raft.term() || from > promise.match_index,
            "V11 node {id} forgets {from}, having accepted through {} in this term",
            promise.match_index
        );
        // It was truncated in the term of the last batch or in a later one.
        if let Some(committed) = self.oracle.committed(from)
            && life.batch_term >= committed.in_term
        {
            assert_ne!(
                life.planned.at(from),
                Some(committed.stamp),
                "V10 node {id} forgets what is committed"
            );
        }
    }

    pub fn check_recovery(&self, id: NodeId) {
        let Node { disk, life, promise, .. } = self.node(id);
        let view = life.as_ref().expect("it was just started").view;
        assert_eq!(view.term, disk.hard_state.term, "V21 node {id} forgot its term");
        assert_eq!(view.last_index, disk.log.last_index(), "V21 node {id} forgot entries");
        assert!(view.term >= promise.term, "V21 node {id} forgot a term that it has promised");
        assert!(
            view.term > promise.term || view.last_index >= promise.match_index,
            "V21 node {id} forgot what it has accepted"
        );
    }

    /// After a timer: counts a step-down, and checks that a leader wakes up within a heartbeat
    /// interval.
    pub fn count_step_down(&mut self, id: NodeId, role_before: RoleKind) {
        let is_stuck = self.reason_to_step_down(id, Duration::ZERO) == Some(STUCK_DISK);
        let own_time = self.own_time(id);
        let interval = self.plan.mix.config(id, 0).heartbeat_interval;
        let life = self.life(id);
        match (role_before, life.raft.role()) {
            (RoleKind::Leader, RoleKind::Leader) => {
                let wakes_in = life.raft.next_deadline().since(own_time);
                assert!(wakes_in <= interval, "V25 leader {id} sleeps too long");
            }
            (RoleKind::Leader, _) if is_stuck => self.coverage.count(What::HungStepDown),
            (RoleKind::Leader, _) => self.coverage.count(What::SilentStepDown),
            _ => {}
        }
    }

    /// C9, T1. Checked after every step, by the clock of the simulated world and not only when the
    /// code under test looks itself: a leader that is awake does not continue with a hung disk,
    /// without a quorum, or with a state machine that applies nothing.
    fn check_leader_may_lead(&mut self, id: NodeId) {
        let own_time = self.own_time(id);
        // Time for the check that is due in every interval, and for the step that executes it.
        let grace = 2 * self.plan.mix.config(id, 0).heartbeat_interval;
        let reason = self.reason_to_step_down(id, grace);
        let life = self.life(id);
        let raft = &life.raft;
        // A node may be elected although its disk hangs already.
        let is_awake = raft.next_deadline() > own_time && own_time.since(life.leads_since) > grace;
        if is_awake && raft.role() == RoleKind::Leader {
            assert_eq!(reason, None, "V25 node {id} goes on leading");
        }
    }

    /// C10, C16. A node whose disk hangs could neither acknowledge an entry nor grant a vote. So it
    /// must not keep a leader in office or encourage a candidate.
    pub fn check_hung_disk_is_silent(&self, id: NodeId, message: &Message) {
        let is_support = match &message.body {
            // Round 0 means that the receiver's term is over.
            MessageBody::HeartbeatResponse { round, .. } => *round > 0,
            MessageBody::PreVoteResponse { granted } => *granted,
            _ => false,
        };
        // With these faults a message may be decided before a jump of the clock, and processed
        // after it.
        let takes_time = |fault: &Fault| matches!(fault.kind, Kind::Jump | Kind::Pause);
        if is_support && !self.plan.faults.iter().any(takes_time) {
            assert!(!self.disk_hangs(id), "V25 node {id} sends {message:?} with a hung disk");
        }
    }

    /// Returns true if a write has taken longer than a leader may wait, plus the time of a step.
    fn disk_hangs(&self, id: NodeId) -> bool {
        let config = self.plan.mix.config(id, 0);
        let life = self.node(id).life.as_ref().expect("the node is up");
        let oldest = life.writing.front().map(|write| Time::from_micros(write.since_us));
        let patience = config.disk_patience + 2 * config.heartbeat_interval;
        oldest.is_some_and(|since| self.own_time(id).since(since) >= patience)
    }

    /// The reason for which a leader should have stepped down at least `late` ago.
    fn reason_to_step_down(&mut self, id: NodeId, late: Duration) -> Option<&'static str> {
        let own_time = self.own_time(id);
        let config = self.plan.mix.config(id, 0);
        let life = self.life(id);
        let written_since = life.writing.front().map(|write| Time::from_micros(write.since_us));
        let is_stuck =
            written_since.is_some_and(|since| own_time.since(since) >= config.disk_patience + late);
        let mut heard = life.heard.clone();
        heard[id as usize - 1] = own_time;
        let quorum_heard = match life.raft.role() {
            RoleKind::Leader => heard_by_quorum(life.raft.configuration(), &heard),
            _ => own_time,
        };
        let is_alone =
            config.check_quorum && own_time.since(quorum_heard) >= config.election_timeout + late;
        let applied_since = life.applying_since;
        let is_idle = applied_since
            .is_some_and(|since| own_time.since(since) >= config.stall_patience + late);
        match (is_stuck, is_alone, is_idle) {
            (true, ..) => Some(STUCK_DISK),
            (_, true, _) => Some("it has no quorum"),
            (.., true) => Some("its state machine applies nothing"),
            (false, false, false) => None,
        }
    }

    pub fn note_heard(&mut self, from: NodeId, to: NodeId, message: &Message) {
        if matches!(message.body, MessageBody::AppendRejected { .. }) {
            self.note_reason(to, from);
        }
        let own_time = self.own_time(to);
        let life = self.life(to);
        if matches!(message.body, MessageBody::Recovered { .. }) {
            life.was_readmitted = true;
        } else if matches!(message.body, MessageBody::TimeoutNow { .. }) {
            life.was_told = true;
        } else if matches!(
            message.body,
            MessageBody::AppendEntries { .. } | MessageBody::Heartbeat { .. }
        ) {
            life.was_told = false;
        }
        if life.raft.role() == RoleKind::Leader && life.raft.term() == message.term {
            life.heard[from as usize - 1] = own_time;
        }
    }

    pub fn count_sent(&mut self, id: NodeId, to: NodeId, message: &Message) {
        self.trace.note(message.term ^ id << 40);
        self.sent.messages += 1;
        match &message.body {
            MessageBody::AppendEntries { entries, .. } => {
                let mut repeated = Repeated::default();
                if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
                    repeated = self.check_resends(id, to, message.term, first.index, last.index);
                }
                if !self.outside.contains(&to) && !self.outside.contains(&id) {
                    self.sent.appends += 1;
                    self.sent.entries += entries.len() as u64;
                    self.sent.repeated.due += repeated.due;
                    self.sent.repeated.early += repeated.early;
                }
            }
            MessageBody::Heartbeat { .. } => self.sent.heartbeats += 1,
            _ => {}
        }
    }
}
