//! The view of a node from outside.

use crate::consensus::{PeerStatus, Raft, RoleKind};
use crate::types::{Index, Memory, NodeId, Term};

/// The leader, as this node believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: Term,
    pub leader: Option<NodeId>,
    pub is_leader: bool,
}

/// A node's state, for a status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub role: RoleKind,
    pub term: Term,
    pub leader_id: Option<NodeId>,
    /// The disk was empty when this node started, and no leader has filled it yet: its votes and
    /// acknowledgements are not counted.
    pub is_recovering: bool,
    /// How much of the promises of this node its disk holds.
    pub memory: Memory,
    /// While a cluster is being founded: the voters that this node waits for.
    pub waits_for: Vec<NodeId>,
    /// So many voters are on empty disks that the others are no majority: no leader can be elected.
    pub is_majority_lost: bool,
    /// The first leader's configuration is committed: the cluster exists.
    pub founded: bool,
    /// Committed: all members may use what this version has brought.
    pub cluster_version: u32,
    pub commit_index: Index,
    pub last_applied: Index,
    pub last_index: Index,
    /// Bytes of the persisted log behind its start; compared with `max_raft_state_bytes`.
    pub log_bytes: u64,
    pub snapshot_index: Index,
    /// Replies of callers that panicked since the node started.
    pub reply_panics_count: u64,
    /// Only on a leader.
    pub peers: Vec<PeerStatus>,
    /// Only on a leader: the peers that lag behind the log, and how they are filled.
    pub transfers: Vec<SnapshotTransfer>,
}

/// How a leader fills a peer that lags behind the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTransfer {
    pub peer: NodeId,
    /// A snapshot is being sent now.
    pub is_sending: bool,
    /// How far the current or last transfer is: bytes that were sent, and bytes of the snapshot. A
    /// transfer that was resumed begins where the last one ended.
    pub sent_bytes: u64,
    pub size_bytes: u64,
    /// Transfers that failed since the last one that succeeded.
    pub failures_in_a_row: u32,
    /// Snapshots that reached the peer since it last had all entries of the log. More than one: the
    /// log is compacted before the peer catches up.
    pub rounds: u32,
}

impl Status {
    pub(super) fn of(
        raft: &Raft,
        log_bytes: u64,
        reply_panics_count: u64,
        transfers: Vec<SnapshotTransfer>,
    ) -> Self {
        let status = raft.status();
        Self {
            id: status.id,
            role: status.role,
            term: status.term,
            leader_id: status.leader,
            is_recovering: status.is_recovering,
            memory: status.memory,
            waits_for: status.waits_for,
            is_majority_lost: status.is_majority_lost,
            founded: status.founded,
            cluster_version: status.cluster_version,
            commit_index: status.commit_index,
            last_applied: status.last_applied,
            last_index: status.last_index,
            log_bytes,
            snapshot_index: status.snapshot_index,
            reply_panics_count,
            peers: status.peers,
            transfers,
        }
    }

    /// A node that has stopped leads nothing, and follows no leader.
    pub(super) fn on_stopped(&mut self) {
        self.role = RoleKind::Follower;
        self.leader_id = None;
        self.peers.clear();
        self.transfers.clear();
    }
}
