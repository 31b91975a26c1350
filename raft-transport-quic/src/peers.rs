//! The peers of a node, which come and go with the members of the cluster.
//!
//! Nodes learn of a new member one after the other, and the leader may be a node that another one
//! does not know yet. So a node that follows the log also admits a *guest*: a node with a
//! certificate of the cluster that it does not know, unless it knows that the node was removed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use raft_core::types::NodeId;

use crate::peer::Peer;

#[derive(Debug)]
pub(crate) struct PeerTable {
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// Set once the members come from the replicated log, and not from the operators' files. Nodes
    /// learn of a change one after the other, so lists that differ are then no mistake.
    follows_log: AtomicBool,
    /// An id below this one that is not in the table was removed from the cluster.
    next_id: AtomicU64,
}

impl PeerTable {
    pub(crate) fn new(follows_log: bool) -> Self {
        Self {
            peers: RwLock::default(),
            follows_log: AtomicBool::new(follows_log),
            next_id: AtomicU64::new(0),
        }
    }

    pub(crate) fn follows_log(&self) -> bool {
        self.follows_log.load(Ordering::Relaxed)
    }

    /// The members come from the log from now on.
    pub(crate) fn follow_log(&self) {
        self.follows_log.store(true, Ordering::Relaxed);
    }

    /// Ids below this one that are not in the table were removed. Called once the table has all
    /// members: before that, a member that dials would be told that it was removed.
    pub(crate) fn raise_next_id(&self, next_id: NodeId) {
        self.next_id.fetch_max(next_id, Ordering::Relaxed);
    }

    /// Returns true if the node is known to have been removed.
    pub(crate) fn is_removed(&self, id: NodeId) -> bool {
        id < self.next_id.load(Ordering::Relaxed) && !self.read().contains_key(&id)
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Peer>> {
        self.read().get(&id).cloned()
    }

    /// Calls `act` with the peer, if there is one, without another handle of it.
    pub(crate) fn with<R>(&self, id: NodeId, act: impl FnOnce(&Peer) -> R) -> Option<R> {
        self.read().get(&id).map(|peer| act(peer))
    }

    /// The peer with the lowest id for which `is_wanted` returns true.
    pub(crate) fn find(&self, is_wanted: impl Fn(&Peer) -> bool) -> Option<Arc<Peer>> {
        self.read().values().find(|peer| is_wanted(peer)).cloned()
    }

    /// Number of peers that are members.
    pub(crate) fn member_count(&self) -> usize {
        self.read().values().filter(|peer| peer.is_member()).count()
    }

    /// Adds a peer. Returns false if there is one with this id already.
    pub(crate) fn insert(&self, peer: &Arc<Peer>) -> bool {
        match self.write().entry(peer.id) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(Arc::clone(peer));
                true
            }
        }
    }

    /// Takes out the peers for which `stays` returns false.
    pub(crate) fn take_gone(&self, stays: impl Fn(NodeId) -> bool) -> Vec<Arc<Peer>> {
        let mut peers = self.write();
        let gone: Vec<NodeId> = peers.keys().copied().filter(|id| !stays(*id)).collect();
        gone.iter().filter_map(|id| peers.remove(id)).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }
}
