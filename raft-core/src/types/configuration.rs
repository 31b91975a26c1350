//! Who votes and who learns.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::NodeId;

/// One member, beyond its id. The core reads `incarnation` and `wants_vote` only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Identifies the member's disk; 0 while none is recorded.
    pub incarnation: u64,
    /// A learner on its way to become a voter.
    pub wants_vote: bool,
    /// Opaque to Raft; for the service: name, addresses, zone, priority.
    pub context: Bytes,
}

/// The members of the cluster, and what all members have agreed on about the cluster. While `outgoing` is not empty the configuration is joint (4.3):
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
    /// Records of members; a member without one has the default record. Never of a node that is not
    /// in one of the three sets.
    pub members: BTreeMap<NodeId, Member>,
    /// Ids below it were given out and are never given out again; 0 while the ids come from the
    /// operators' files.
    pub next_id: NodeId,
    /// The first leader has taken office: the cluster exists.
    pub founded: bool,
    /// Counts restores and recoveries of the cluster.
    pub generation: u32,
    /// Members use only formats that this version, or an earlier one, has brought; 0 before founding.
    pub cluster_version: u32,
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

    /// Voters, outgoing voters and learners are the same as in `other`.
    pub fn has_members_of(&self, other: &Self) -> bool {
        (&self.voters, &self.outgoing, &self.learners)
            == (&other.voters, &other.outgoing, &other.learners)
    }

    /// The charge of a configuration in every byte budget: an id each, and what is recorded of members.
    pub fn size_bytes(&self) -> u64 {
        let contexts = self.members.values().map(|member| 32 + member.context.len() as u64);
        8 * self.member_count() as u64 + contexts.sum::<u64>()
    }
}
