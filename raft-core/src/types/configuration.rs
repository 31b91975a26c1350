//! Who votes and who learns.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::NodeId;

/// The members of the cluster. While `outgoing` is not empty the configuration is joint (4.3):
/// every decision needs a majority of `voters` *and* of `outgoing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Configuration {
    /// The (incoming) voters.
    pub voters: BTreeSet<NodeId>,
    /// The voters of the configuration that is being left; empty unless joint.
    pub outgoing: BTreeSet<NodeId>,
    /// Replicated to, not counted.
    pub learners: BTreeSet<NodeId>,
}

impl Configuration {
    /// A simple configuration of these voters.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Nobody votes: a node that has not been told its cluster.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    pub fn is_member(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Every member once, in ascending order.
    pub fn members(&self) -> BTreeSet<NodeId> {
        let mut members = self.voters.clone();
        members.extend(&self.outgoing);
        members.extend(&self.learners);
        members
    }

    pub fn member_count(&self) -> usize {
        self.voters.len() + self.outgoing.len() + self.learners.len()
    }
}
