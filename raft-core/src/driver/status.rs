//! The view of a node from outside.

use crate::consensus::{PeerStatus, Raft, RoleKind};
use crate::types::{Index, Memory, NodeId, Term};

/// The leader, as far as this node knows.
///
/// ```
/// use raft_core::driver::Leadership;
///
/// // Before a node has observed a leader.
/// let leadership = Leadership::default();
/// assert_eq!((leadership.leader, leadership.is_leader), (None, false));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leadership {
    /// This node's term.
    pub term: Term,
    /// The leader of the term; `None` while it is not known.
    pub leader: Option<NodeId>,
    /// True if this node leads.
    pub is_leader: bool,
}

/// A node's state, for a status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// The role of this node in its term.
    pub role: RoleKind,
    /// This node's term.
    pub term: Term,
    /// The leader of the term; `None` while it is not known.
    pub leader_id: Option<NodeId>,
    /// True from a start on an empty disk until a leader has readmitted this node: meanwhile its
    /// votes and acknowledgements are not counted.
    pub is_recovering: bool,
    /// How many of this node's promises its disk still records.
    pub memory: Memory,
    /// While a cluster is being founded: the voters that this node waits for.
    pub waits_for: Vec<NodeId>,
    /// True if so many voters are on empty disks that the others are no majority: no leader can be
    /// elected.
    pub is_majority_lost: bool,
    /// True once the first leader's configuration is committed: the cluster exists.
    pub founded: bool,
    /// The committed cluster version: all members may use its features.
    pub cluster_version: u32,
    /// Entries through this index are known to be committed.
    pub commit_index: Index,
    /// Entries through this index are applied on this node.
    pub last_applied: Index,
    /// The index of the last entry in this node's log.
    pub last_index: Index,
    /// Bytes of the persisted log behind its start; compared with `max_raft_state_bytes`.
    pub log_bytes: u64,
    /// The log is covered through this index by the published snapshot, or by the durable state
    /// machine.
    pub snapshot_index: Index,
    /// Replies of callers that panicked since the node started.
    pub reply_panics_count: u64,
    /// The leader's knowledge of each peer; empty on other nodes.
    pub peers: Vec<PeerStatus>,
    /// Snapshots for peers that lag behind the log; empty on nodes that do not lead.
    pub transfers: Vec<SnapshotTransfer>,
}

/// How a leader brings a peer up to date that lags behind the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotTransfer {
    /// The peer that lags.
    pub peer: NodeId,
    /// True while a snapshot is being sent.
    pub is_sending: bool,
    /// Bytes sent of the current or last transfer. A transfer that was resumed begins where the
    /// last one ended.
    pub sent_bytes: u64,
    /// Bytes of the snapshot that is or was sent.
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
        peers: Vec<PeerStatus>,
    ) -> Self {
        let status = raft.status_in(peers);
        assert!(status.last_applied <= status.commit_index, "only committed entries are applied");
        assert!(status.commit_index <= status.last_index, "only entries of the log are committed");
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
