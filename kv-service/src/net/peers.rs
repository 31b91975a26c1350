//! The peers of a node, for networks that have to be told about them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use raft_core::types::NodeId;

use crate::members::ClusterUid;

/// A network whose peers come and go with the members of the cluster.
///
/// The network of a caller's own backends ([`Backends::peer_book`](crate::Backends::peer_book))
/// needs it if it must be told where new members are.
#[async_trait]
pub trait PeerBook: Send + Sync + 'static {
    /// The members other than this node, each with the addresses to try; none for a node that has
    /// not announced one yet. Nodes that are not named have left. A node that is not named and has
    /// an id below `next_id` was removed from the cluster.
    fn set_peers(&self, peers: &BTreeMap<NodeId, Vec<String>>, next_id: NodeId);

    /// Notes the random id of the cluster, once it is known. A network that connects nodes by name
    /// can refuse those of another cluster with the same name.
    fn set_cluster_uid(&self, uid: u128) {
        let _ = uid;
    }

    /// Waits until the other members have refused this node because it was removed from the
    /// cluster. The node then stops for good, so one peer's refusal must not be enough.
    async fn removed(&self);
}

/// Numbers that distinguish this node's process, or its data directory, from an earlier one.
#[allow(dead_code, reason = "nodes in one process know each other without it")]
pub(crate) struct NodeIdentity {
    pub(crate) incarnation: u64,
    pub(crate) reset_key: [u8; 64],
    /// The node was made to found a cluster, and has its first disk. Otherwise the cluster may have
    /// other members by now than the node's file lists.
    pub(crate) is_founder: bool,
    /// As far as the node knows it.
    pub(crate) cluster_uid: Option<ClusterUid>,
}
