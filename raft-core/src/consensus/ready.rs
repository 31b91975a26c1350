//! The work that the core wants done.

use crate::types::{
    Batch, Entry, Message, NodeId, PersistId, ReadOutcome, RoleKind, SnapshotMeta, Term,
};

/// Everything in here may be done at once, in any order, except that batches are written in order.
/// Destructure it by naming every field, so that a new one cannot be forgotten.
#[derive(Clone, Debug, Default)]
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
    /// The newest snapshot of this node's own state that was published since the last `Ready`.
    pub snapshot_published: Option<SnapshotMeta>,
    /// The present role, term, leader and standing of this node, if one of them changed.
    pub role_change: Option<RoleChange>,
    /// Events that are possible only if a disk was rolled back, two nodes share an identity, or
    /// this library has a defect. The node refused them; an operator should look.
    pub alarms: Vec<String>,
    /// Decisions of this node on its own that an operator may wonder about.
    pub notices: Vec<String>,
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
            && self.notices.is_empty()
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
