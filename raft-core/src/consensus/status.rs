//! What a status page shows of the core.

use super::progress::ProgressState;
use super::role::RoleKind;
use crate::types::{Index, NodeId, Term};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: NodeId,
    pub role: RoleKind,
    pub term: Term,
    pub leader: Option<NodeId>,
    /// Its disk was empty when it started, and no leader has filled it up yet.
    pub is_recovering: bool,
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
}
