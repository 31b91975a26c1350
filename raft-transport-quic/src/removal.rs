//! Knowledge that this node was removed from its cluster, gathered from the refusals of its peers.
//!
//! A node that believes it stops for good, so a single peer is not believed. Guests are not counted
//! at all: any certificate of a node makes one.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use raft_core::types::NodeId;
use tokio::sync::watch;

#[derive(Debug, Default)]
pub(crate) struct Removal {
    /// Members that have refused this node because it was removed.
    told_by: Mutex<BTreeSet<NodeId>>,
    is_known: watch::Sender<bool>,
}

impl Removal {
    /// Notes that a member says so; `member_count` is the number of all other members.
    pub(crate) fn note(&self, member: NodeId, member_count: usize) {
        let mut told_by = self.told_by.lock().unwrap_or_else(PoisonError::into_inner);
        told_by.insert(member);
        if 2 * told_by.len() > member_count {
            self.is_known.send_replace(true);
        }
    }

    /// Forgets what a member has said, because it has admitted this node.
    pub(crate) fn withdraw(&self, member: NodeId) {
        let mut told_by = self.told_by.lock().unwrap_or_else(PoisonError::into_inner);
        told_by.remove(&member);
    }

    /// Waits until a majority of the members has said so.
    pub(crate) async fn known(&self) {
        // Cannot fail: the sender lives in `self`.
        let _ = self.is_known.subscribe().wait_for(|known| *known).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_the_members_is_believed() {
        let removal = Removal::default();
        let is_known = || *removal.is_known.borrow();
        removal.note(1, 3);
        removal.note(1, 3);
        assert!(!is_known(), "one member of three, twice");
        removal.withdraw(1);
        removal.note(2, 3);
        assert!(!is_known());
        removal.note(3, 3);
        assert!(is_known());
    }
}
