//! The leader: takes office, accepts proposals, sends heartbeats, and steps down when it cannot
//! lead.
//!
//! Its other duties live beside this file: `replication`, `configuration`, `members`, `reads`,
//! `recovery`, `slow_disk`, `transfer`.
//! Sections 3.4 to 3.6, 6.2.

mod configuration;
mod members;
mod reads;
mod recovery;
mod replication;
mod slow_disk;
mod transfer;

use std::collections::BTreeMap;

use super::transition::Transition;
use crate::consensus::inflights::Inflights;
use crate::consensus::node_state::{NodeState, time_for};
use crate::consensus::progress::Progress;
use crate::consensus::read_index::ReadQueue;
use crate::consensus::status::PeerStatus;
use crate::error::Rejected;
use crate::types::{Entry, Index, MessageBody, NodeId, Payload, Position, Time};
use bytes::Bytes;

#[derive(Clone, Debug)]
pub(in crate::consensus) struct Leader {
    pub(in crate::consensus) progress: BTreeMap<NodeId, Progress>,
    /// The number of the last heartbeat round.
    pub(in crate::consensus) round: u64,
    /// The first round that started after the last recovering peer was first observed.
    pub(in crate::consensus) recovery_round: u64,
    pub(in crate::consensus) next_heartbeat: Time,
    /// When this leader next checks that it can still lead. Only that check moves it: a round for
    /// reads must not postpone it (C9).
    pub(in crate::consensus) next_check: Time,
    /// The commit index, and the time when it last moved or nothing was left to commit.
    pub(in crate::consensus) committed_at: (Index, Time),
    pub(in crate::consensus) reads: ReadQueue,
    pub(in crate::consensus) transfer: Option<Transfer>,
    /// When a leader that is avoided next tries to hand over.
    pub(in crate::consensus) leave_again_at: Time,
    pub(in crate::consensus) stage: Stage,
    /// This leader's removal is settled, as last looked at.
    pub(in crate::consensus) is_leaving: bool,
}

/// Leadership that is being handed over.
#[derive(Clone, Debug)]
pub(in crate::consensus) struct Transfer {
    pub(in crate::consensus) to: NodeId,
    pub(in crate::consensus) told: bool,
    pub(in crate::consensus) deadline: Time,
}

/// How far the latest configuration is, as last acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::consensus) struct Stage {
    /// The entry that brought it; the log's start if it came before.
    index: Index,
    /// It is committed, and so is an entry of the leader's own term.
    is_settled: bool,
}

impl Stage {
    pub(super) fn of(node: &NodeState) -> Self {
        let is_settled = node.log.configuration_is_committed() && Leader::knows_commit_index(node);
        Self { index: node.log.configuration_index(), is_settled }
    }
}

/// The progress of each other member, of which a new leader knows nothing.
pub(super) fn unknown_progress(node: &NodeState, now: Time) -> Progress {
    let config = &node.config;
    let window = Inflights::new(config.inflight_count_max, config.inflight_bytes_max);
    Progress::new(node.log.last_index() + 1, window, now)
}

impl Leader {
    /// Takes office. Nothing is known of the others, and an entry of the leader's own term is
    /// needed before anything can be committed (3.6.2) or read (6.4).
    pub(in crate::consensus) fn assume_office(node: &mut NodeState, now: Time) -> Self {
        let next_index = node.log.last_index() + 1;
        let mut members = node.log.active_members();
        members.remove(&node.id());
        let progress =
            members.into_iter().map(|peer| (peer, unknown_progress(node, now))).collect();
        let noop = Entry { index: next_index, term: node.term, payload: Payload::Noop };
        node.log.append([noop]);
        Self::found(node);
        let mut leader = Self {
            progress,
            round: 0,
            recovery_round: 1,
            next_heartbeat: now,
            next_check: now + node.config.heartbeat_interval,
            committed_at: (node.log.commit_index(), now),
            reads: ReadQueue::default(),
            transfer: None,
            leave_again_at: now,
            stage: Stage::of(node),
            is_leaving: false,
        };
        leader.start_round(node, now);
        leader
    }

    /// Appends commands; returns the position of the first. Rejects them if a budget is used up
    /// already; they may exceed it.
    pub(in crate::consensus) fn propose(
        &mut self,
        node: &mut NodeState,
        commands: Vec<Bytes>,
    ) -> Result<Position, Rejected> {
        if self.transfer.is_some() {
            return Err(Rejected::Busy("leadership is being handed over"));
        }
        if node.log.uncommitted_bytes() >= node.config.uncommitted_bytes_max {
            return Err(Rejected::Busy("too many bytes wait to be committed"));
        }
        if node.log.bytes() >= node.config.log_bytes_max {
            return Err(Rejected::Busy("the log waits for a snapshot"));
        }
        let first_index = node.log.last_index() + 1;
        let term = node.term;
        let entries = commands.into_iter().zip(first_index..);
        node.log.append(entries.map(|(command, index)| Entry {
            index,
            term,
            payload: Payload::Command(command),
        }));
        Ok(Position::new(term, first_index))
    }

    pub(in crate::consensus) fn on_timeout(
        &mut self,
        node: &mut NodeState,
        now: Time,
    ) -> Transition {
        if self.must_step_down(node, now) {
            return Transition::Follow;
        }
        self.next_check = now + node.config.heartbeat_interval;
        self.transfer.take_if(|transfer| transfer.deadline <= now);
        if self.transfer.is_none() && self.is_leaving {
            return Transition::Follow;
        }
        self.check_members(node, now);
        self.leave_if_avoided(node, now);
        self.leave_slow_disk(node, now);
        if now >= self.next_heartbeat {
            self.start_round(node, now);
        }
        Transition::Stay
    }

    /// Returns true if this leader must fall silent, so that other nodes are free to elect one: it
    /// has had no quorum for an election timeout, its disk or state machine no longer makes
    /// progress, or a quorum that still follows acknowledges no entries.
    fn must_step_down(&mut self, node: &NodeState, now: Time) -> bool {
        if node.disk_is_stuck(now) || node.machine_is_stuck(now) {
            return true;
        }
        let last_heard = self
            .reached(node, |id| self.progress.get(&id).map_or(now, |progress| progress.last_heard));
        let has_quorum = now.since(last_heard) < node.config.election_timeout;
        let stalled = self.commit_stalls(node, now);
        if has_quorum { stalled } else { node.config.check_quorum }
    }

    /// Returns true if entries wait to be committed, and the commit index has not moved for longer
    /// than a leader may wait.
    fn commit_stalls(&mut self, node: &NodeState, now: Time) -> bool {
        let commit_index = node.log.commit_index();
        if commit_index != self.committed_at.0 || commit_index == node.log.last_index() {
            self.committed_at = (commit_index, now);
        }
        let append_bytes = node.log.next_append_bytes(node.config.append_bytes_max);
        now.since(self.committed_at.1) >= node.config.stall_patience + time_for(append_bytes)
    }

    pub(in crate::consensus) fn next_deadline(&self) -> Time {
        let transfer = self.transfer.as_ref().map_or(Time::NEVER, |transfer| transfer.deadline);
        self.next_heartbeat.min(self.next_check).min(transfer)
    }

    /// Starts a round of heartbeats. Its responses prove that a quorum followed after this moment.
    fn start_round(&mut self, node: &mut NodeState, now: Time) {
        self.round += 1;
        self.next_heartbeat = now + node.config.heartbeat_interval;
        let commit_index = node.log.commit_index();
        for (peer, progress) in &self.progress {
            // Never beyond what the peer acknowledged: after that, its log may differ.
            let commit_index = commit_index.min(progress.match_index);
            node.send(*peer, MessageBody::Heartbeat { round: self.round, commit_index });
        }
        self.on_round_started(node);
    }

    pub(in crate::consensus) fn peer_statuses(&self) -> impl Iterator<Item = PeerStatus> {
        self.progress.iter().map(|(id, progress)| status_of(*id, progress))
    }

    pub(in crate::consensus) fn peer_status(&self, id: NodeId) -> Option<PeerStatus> {
        self.progress.get(&id).map(|progress| status_of(id, progress))
    }
}

fn status_of(id: NodeId, progress: &Progress) -> PeerStatus {
    PeerStatus {
        id,
        match_index: progress.match_index,
        next_index: progress.next_index,
        state: progress.state,
        inflight_count: progress.inflights.count(),
        is_recovering: progress.recovers(),
        version_max: progress.version_max,
    }
}
