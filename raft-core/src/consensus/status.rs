//! What a status page shows of the core.

use super::progress::ProgressState;
use super::role::RoleKind;
use crate::types::{Index, Memory, NodeId, Term};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub role: RoleKind,
    pub term: Term,
    pub leader: Option<NodeId>,
    /// Its votes and acknowledgements are not counted; `memory` says why.
    pub is_recovering: bool,
    pub memory: Memory,
    /// While a cluster is being founded: the voters that this node waits for.
    pub waits_for: Vec<NodeId>,
    /// So many voters are on empty disks that the others are no majority: no leader can be elected.
    pub is_majority_lost: bool,
    /// The first leader's configuration is committed: the cluster exists.
    pub founded: bool,
    /// Committed: all members may use what this version has brought.
    pub cluster_version: u32,
    pub log_start_index: Index,
    pub snapshot_index: Index,
    pub last_applied: Index,
    pub commit_index: Index,
    pub durable_index: Index,
    pub last_index: Index,
    /// Of the entries in memory.
    pub log_bytes: u64,
    /// Only on a leader.
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: NodeId,
    pub match_index: Index,
    pub next_index: Index,
    pub state: ProgressState,
    pub inflight_count: usize,
    pub is_recovering: bool,
    /// The newest cluster version that the peer supports; 0 before its first response.
    pub version_max: u32,
}
