//! Who votes and who learns.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::NodeId;

/// The members of the cluster. While `outgoing` is not empty the configuration is joint (4.3):
/// every decision needs a majority of `voters` *and* of `outgoing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The (incoming) voters.
    #[serde(deserialize_with = "in_order")]
    pub voters: BTreeSet<NodeId>,
    /// The voters of the configuration that is being left; empty unless joint.
    #[serde(deserialize_with = "in_order")]
    pub outgoing: BTreeSet<NodeId>,
    /// Replicated to, not counted.
    #[serde(deserialize_with = "in_order")]
    pub learners: BTreeSet<NodeId>,
}

/// A set has one form: each member once, in ascending order. No node has the id 0.
fn in_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<NodeId>, D::Error> {
    struct InOrder;

    impl<'de> Visitor<'de> for InOrder {
        type Value = BTreeSet<NodeId>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("node ids from 1 on, in ascending order")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            // Grows with what is there, whatever length was claimed.
            let mut set = BTreeSet::new();
            while let Some(member) = members.next_element::<NodeId>()? {
                if member <= set.last().copied().unwrap_or(0) {
                    return Err(A::Error::invalid_value(Unexpected::Unsigned(member), &self));
                }
                set.insert(member);
            }
            Ok(set)
        }
    }

    deserializer.deserialize_seq(InOrder)
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
