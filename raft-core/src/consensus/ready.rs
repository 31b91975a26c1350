//! The work that the core wants done, and the gate that holds promises back until they are durable
//! (3.8).

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use crate::types::{
    Batch, Entry, Index, Message, MessageBody, NodeId, PersistId, ReadOutcome, RoleKind,
    SnapshotMeta, Term,
};

/// Everything in here may be done at once, in any order, except that batches are written in order.
/// Destructure it by naming every field, so that a new one cannot be forgotten.
#[derive(Debug, Default)]
pub struct Ready {
    /// To be written as one atomic unit; report by `Raft::on_persisted`.
    pub persist: Option<Persist>,
    /// To be sent, each to its node. They may be lost.
    pub messages: Vec<(NodeId, Message)>,
    /// Committed and on this node's disk: to be applied in order; report by `Raft::on_applied`.
    pub committed: Vec<Entry>,
    /// Replace the state machine's state by that of the published snapshot; report by
    /// `Raft::on_applied` with its index. Nothing is `committed` until then.
    pub restore: Option<SnapshotMeta>,
    /// Reads whose index is known, or that failed.
    pub read_states: Vec<ReadState>,
    /// Peers that need a snapshot; report by `Raft::on_snapshot_sent`.
    pub snapshot_requests: Vec<NodeId>,
    /// A snapshot of this node's own state that is now published.
    pub snapshot_published: Option<SnapshotMeta>,
    /// The present role, term, leader and standing of this node, if one of them changed.
    pub role_change: Option<RoleChange>,
    /// Events that are possible only if a disk was rolled back, two nodes share an identity, or
    /// this library has a defect. The node refused them; an operator should look.
    pub alarms: Vec<String>,
}

impl Ready {
    /// Returns true if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.persist.is_none()
            && self.messages.is_empty()
            && self.committed.is_empty()
            && self.restore.is_none()
            && self.read_states.is_empty()
            && self.snapshot_requests.is_empty()
            && self.snapshot_published.is_none()
            && self.role_change.is_none()
            && self.alarms.is_empty()
    }
}

/// A batch to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Its number, for `Raft::on_persisted`.
    pub id: PersistId,
    /// Its content.
    pub batch: Batch,
}

/// The outcome of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadState {
    /// The id that the caller of `Raft::read_index` gave it.
    pub id: u64,
    /// The index to wait for, or why there is none.
    pub outcome: ReadOutcome,
}

/// This node's view of its role and leader, and of its own standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoleChange {
    /// The present role.
    pub role: RoleKind,
    /// The current term.
    pub term: Term,
    /// The leader of this term, if known.
    pub leader: Option<NodeId>,
    /// This node's votes and acknowledgements are not counted.
    pub is_recovering: bool,
}

/// Messages that promise durability, each with the batch that it rests on.
///
/// A message rests on nothing later than the next batch, and batches complete in order. So it waits
/// for the next batch if there is something to write, else for the newest batch in flight (a
/// repeated vote with nothing to write rides on that one), else for nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct DurabilityGate {
    held: VecDeque<(PersistId, NodeId, Message)>,
}

impl DurabilityGate {
    pub(super) fn hold(&mut self, until: PersistId, to: NodeId, message: Message) {
        assert!(self.held.back().is_none_or(|(last, ..)| *last <= until), "batches are in order");
        if let Some((last, last_to, last_message)) = self.held.back_mut()
            && (*last, *last_to, last_message.term) == (until, to, message.term)
            && let MessageBody::AppendAccepted { match_index } = &mut last_message.body
            && let MessageBody::AppendAccepted { match_index: newer } = message.body
        {
            // One acknowledgement covers all earlier ones.
            *match_index = newer.max(*match_index);
            return;
        }
        self.held.push_back((until, to, message));
    }

    /// Returns the messages that rest on batches through `persisted`.
    pub(super) fn release(&mut self, persisted: PersistId) -> Vec<(NodeId, Message)> {
        let count = self.held.partition_point(|(until, ..)| *until <= persisted);
        self.held.drain(..count).map(|(_, to, message)| (to, message)).collect()
    }

    /// Drops acknowledgements of entries from `index` on: an acknowledgement must not claim entries
    /// that were since replaced.
    pub(super) fn withdraw_accepted_from(&mut self, index: Index) {
        self.held.retain(|(_, _, message)| match message.body {
            MessageBody::AppendAccepted { match_index } => match_index < index,
            _ => true,
        });
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Hashes each message, and how many batches from now it waits for.
    pub(super) fn hash_after(&self, last_persist_id: PersistId, state: &mut impl Hasher) {
        self.held.len().hash(state);
        for (until, to, message) in &self.held {
            (until.wrapping_sub(last_persist_id), to, message).hash(state);
        }
    }
}
