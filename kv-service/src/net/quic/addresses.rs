//! Where a client finds the nodes: the addresses of its configuration, and those of the members'
//! records. Both are hints, because a certificate proves who answers; they are tried in turn.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use raft_core::types::NodeId;

use crate::members::MemberAddress;

pub(super) struct AddressBook {
    /// The addresses of the configuration.
    configured: BTreeMap<NodeId, String>,
    /// Only the configuration counts.
    is_fixed: bool,
    nodes: RwLock<BTreeMap<NodeId, Node>>,
}

#[derive(Default)]
struct Node {
    /// The one to try next is the first.
    addresses: Vec<String>,
}

impl AddressBook {
    pub(super) fn new(configured: BTreeMap<NodeId, String>, is_fixed: bool) -> Self {
        let node =
            |(id, address): (&NodeId, &String)| (*id, Node { addresses: vec![address.clone()] });
        let nodes = RwLock::new(configured.iter().map(node).collect());
        Self { configured, is_fixed, nodes }
    }

    /// The nodes of the configuration.
    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.configured.keys().copied().collect()
    }

    /// Takes the members' addresses. Returns false if only the configuration counts.
    pub(super) fn learn(&self, members: &[MemberAddress]) -> bool {
        if self.is_fixed {
            return false;
        }
        let node = |member: &MemberAddress| {
            let recorded = Some(&member.address).filter(|address| !address.is_empty());
            let mut addresses: Vec<String> = recorded.cloned().into_iter().collect();
            addresses.extend(self.configured.get(&member.id).cloned());
            addresses.dedup();
            (member.id, Node { addresses })
        };
        let nodes = members.iter().map(node).collect();
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = nodes;
        true
    }

    /// The address to try now.
    pub(super) fn address(&self, id: NodeId) -> Option<String> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&id)?.addresses.first().cloned()
    }

    /// An attempt at this address has begun; unless it succeeds, the next one uses another address.
    pub(super) fn try_another_after(&self, id: NodeId, address: &str) {
        self.turn(id, |addresses| {
            if addresses.first().is_some_and(|first| first == address) {
                addresses.rotate_left(1);
            }
        });
    }

    /// The node was found at this address, which is tried first from now on.
    pub(super) fn found_at(&self, id: NodeId, address: &str) {
        self.turn(id, |addresses| {
            if let Some(place) = addresses.iter().position(|known| known == address) {
                addresses.swap(0, place);
            }
        });
    }

    fn turn(&self, id: NodeId, change: impl FnOnce(&mut Vec<String>)) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get_mut(&id) {
            change(&mut node.addresses);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: NodeId, address: &str) -> MemberAddress {
        MemberAddress { id, address: address.to_owned() }
    }

    fn book(is_fixed: bool) -> AddressBook {
        AddressBook::new([(1, "a:1".to_owned()), (2, "b:1".to_owned())].into(), is_fixed)
    }

    #[test]
    fn recorded_and_configured_addresses_are_tried_in_turn() {
        let book = book(false);
        assert!(book.learn(&[member(2, "c:1"), member(3, "d:1"), member(4, "")]));
        let next = |id: NodeId| {
            let address = book.address(id)?;
            book.try_another_after(id, &address);
            Some(address)
        };
        let tried = [next(2), next(2), next(2)].map(Option::unwrap);
        assert_eq!(tried, ["c:1", "b:1", "c:1"]);
        book.found_at(2, "c:1");
        assert_eq!(book.address(2).as_deref(), Some("c:1"));
        assert_eq!((next(3).as_deref(), next(4), next(1)), (Some("d:1"), None, None));
        assert_eq!(book.ids(), [1, 2]);
    }

    #[test]
    fn a_fixed_book_learns_nothing() {
        let book = book(true);
        assert!(!book.learn(&[member(2, "c:1"), member(3, "d:1")]));
        assert_eq!(book.address(2).as_deref(), Some("b:1"));
        assert_eq!(book.address(3), None);
    }
}
