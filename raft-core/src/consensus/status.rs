//! The state of the core, for status pages and metrics.

use super::progress::ProgressState;
use crate::types::{Index, Memory, NodeId, RoleKind, Term};

/// One node's state at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// The present role.
    pub role: RoleKind,
    /// The current term.
    pub term: Term,
    /// The leader of this term, if known.
    pub leader: Option<NodeId>,
    /// Its votes and acknowledgements are not counted; `memory` says why.
    pub is_recovering: bool,
    /// How much its disk remembers of the promises it gave.
    pub memory: Memory,
    /// While a cluster is being founded: the voters that this node waits for.
    pub waits_for: Vec<NodeId>,
    /// So many voters are on empty disks that the others are no majority: no leader can be elected.
    pub is_majority_lost: bool,
    /// The first leader's configuration is committed: the cluster exists.
    pub founded: bool,
    /// Committed: all members may use what this version has brought.
    pub cluster_version: u32,
    /// The index before the log's first entry.
    pub log_start_index: Index,
    /// State through here survives a crash without the log.
    pub snapshot_index: Index,
    /// The state machine has applied the entries through here.
    pub last_applied: Index,
    /// Known committed through here.
    pub commit_index: Index,
    /// On this node's disk through here.
    pub durable_index: Index,
    /// The last entry, durable or not.
    pub last_index: Index,
    /// Bytes of the log's entries in memory.
    pub log_bytes: u64,
    /// The leader's knowledge of each peer; empty on other nodes.
    pub peers: Vec<PeerStatus>,
}

/// A leader's knowledge of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// The peer has on disk, and equal to the leader's, all entries through here.
    pub match_index: Index,
    /// The next entry to send.
    pub next_index: Index,
    /// The mode in which entries are sent.
    pub state: ProgressState,
    /// Appends sent and not yet acknowledged.
    pub inflight_count: usize,
    /// Its votes and acknowledgements are not counted.
    pub is_recovering: bool,
    /// The newest cluster version that the peer supports; 0 before its first response.
    pub version_max: u32,
}
