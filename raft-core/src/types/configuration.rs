//! The members of the cluster: voters, learners, and the records kept about them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::NodeId;

/// One member, beyond its id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Identifies the member's disk; 0 while none is recorded.
    pub incarnation: u64,
    /// A learner with `true` is on its way to become a voter; a voter with `false` leaves with the
    /// next change of the voters.
    pub wants_vote: bool,
    /// Opaque to Raft; for the service: name, addresses, zone, priority.
    pub context: Bytes,
}

/// Largest charge of a configuration ([`Configuration::size_bytes`]), in bytes. A storage keeps one
/// in the header of each snapshot.
pub const CONFIGURATION_BYTES_MAX: u64 = 256 << 10;

/// The members of the cluster, and what all members have agreed on about the cluster. While
/// `outgoing` is not empty the configuration is joint (4.3): every decision needs a majority of
/// `voters` *and* of `outgoing`.
///
/// ```
/// use raft_core::types::Configuration;
///
/// let mut configuration = Configuration::of_voters([1, 2, 3]);
/// configuration.learners.insert(4);
/// assert!(configuration.is_member(4) && !configuration.is_voter(4));
/// assert_eq!(configuration.member_count(), 4);
/// assert!(!configuration.is_joint());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The (incoming) voters.
    #[serde(deserialize_with = "in_order")]
    pub voters: BTreeSet<NodeId>,
    /// The voters of the configuration that is being left; empty unless joint.
    #[serde(deserialize_with = "in_order")]
    pub outgoing: BTreeSet<NodeId>,
    /// The learners: replicated to, not counted.
    #[serde(deserialize_with = "in_order")]
    pub learners: BTreeSet<NodeId>,
    /// Records of members, by id. A member without one has no incarnation and no context, and wants
    /// to be what it is; a node in none of the three sets has no record.
    pub members: BTreeMap<NodeId, Member>,
    /// Ids below this one were given out and are never given out again; 0 while the ids come from
    /// the operators' files.
    pub next_id: NodeId,
    /// The first leader has taken office: the cluster exists.
    pub founded: bool,
    /// Counts restores and recoveries of the cluster.
    pub generation: u32,
    /// The newest version whose formats the members may use; 0 before founding.
    pub cluster_version: u32,
    /// Opaque to Raft; for the service: settings of the whole cluster.
    #[serde(default, skip_serializing_if = "Bytes::is_empty")]
    pub context: Bytes,
}

/// Decodes a set of node ids from its one valid form: each id once, from 1 on, in ascending order.
fn in_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<NodeId>, D::Error> {
    struct InOrder;

    impl<'de> Visitor<'de> for InOrder {
        type Value = BTreeSet<NodeId>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("node ids from 1 on, in ascending order")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            // The set grows with the ids that are there, whatever length the input claims.
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

    /// Returns true if there are no voters: the node has not been told its cluster.
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// Returns true while two sets of voters must agree (4.3).
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Returns true for an incoming or an outgoing voter.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Returns true for a voter or a learner.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Returns every member once, in ascending order.
    pub fn members(&self) -> BTreeSet<NodeId> {
        let mut members = self.voters.clone();
        members.extend(&self.outgoing);
        members.extend(&self.learners);
        members
    }

    /// Number of members; a node in two sets counts once.
    pub fn member_count(&self) -> usize {
        let leaves = self.outgoing.iter().filter(|id| !self.voters.contains(id)).count();
        let learns = self.learners.iter().filter(|id| !self.is_voter(**id)).count();
        self.voters.len() + leaves + learns
    }

    /// Returns true if voters, outgoing voters and learners are the same as in `other`.
    pub fn has_members_of(&self, other: &Self) -> bool {
        (&self.voters, &self.outgoing, &self.learners)
            == (&other.voters, &other.outgoing, &other.learners)
    }

    /// Returns true if the member is, or is to become, a voter.
    pub fn wants_vote(&self, node: NodeId) -> bool {
        self.members.get(&node).map_or(self.voters.contains(&node), |member| member.wants_vote)
    }

    /// Returns the recorded incarnation of a member's disk; 0 if there is none.
    pub fn incarnation(&self, node: NodeId) -> u64 {
        self.members.get(&node).map_or(0, |member| member.incarnation)
    }

    /// Returns the id that is given out next. It is above the id of every member, also of those
    /// that the operators' files named.
    pub fn fresh_id(&self) -> NodeId {
        let largest = self.members().last().copied().unwrap_or(0);
        self.next_id.max(largest.saturating_add(1))
    }

    /// Returns true if the sets fit together: there are voters, a learner is no voter to come, and
    /// no id was given out beyond `next_id`.
    pub fn is_consistent(&self) -> bool {
        let largest = self.members().last().copied().unwrap_or(0);
        !self.voters.is_empty()
            && self.voters.is_disjoint(&self.learners)
            && (self.next_id == 0 || largest < self.next_id)
    }

    /// The record of a member, which gets one that says what it is if it had none.
    pub(crate) fn record(&mut self, node: NodeId) -> &mut Member {
        let wants_vote = self.wants_vote(node);
        self.members.entry(node).or_insert(Member { wants_vote, ..Member::default() })
    }

    /// Records an intention. A member without a record gets one only if it changes something.
    pub(crate) fn set_wants_vote(&mut self, node: NodeId, wants_vote: bool) {
        if self.wants_vote(node) != wants_vote {
            self.record(node).wants_vote = wants_vote;
        }
    }

    /// Returns true if it can be stored and read again: each record is of a member, and all of it
    /// is charged at most [`CONFIGURATION_BYTES_MAX`].
    pub fn is_storable(&self) -> bool {
        self.members.keys().all(|id| self.is_member(*id))
            && self.size_bytes() <= CONFIGURATION_BYTES_MAX
    }

    /// Bytes that a configuration is charged in every budget: each member's id and record, and the
    /// context.
    pub fn size_bytes(&self) -> u64 {
        let contexts = self.members.values().map(|member| 32 + member.context.len() as u64);
        8 * self.member_count() as u64 + contexts.sum::<u64>() + self.context.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A voter that stays is in both sets of a joint configuration, and an outgoing voter may
    /// remain as a learner.
    #[test]
    fn each_member_counts_once() {
        let joint = Configuration {
            outgoing: [2, 3, 4].into(),
            learners: [4, 5].into(),
            ..Configuration::of_voters([1, 2, 3])
        };
        assert_eq!(joint.members(), [1, 2, 3, 4, 5].into());
        assert_eq!(joint.member_count(), 5);
        assert_eq!(joint.size_bytes(), 40);
        let context = Bytes::from_static(b"settings");
        assert_eq!(Configuration { context, ..joint }.size_bytes(), 48);
        assert_eq!(Configuration::default().member_count(), 0);
    }
}
