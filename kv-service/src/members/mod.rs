//! The members of a cluster as operators see and change them.
//!
//! [`Cluster`](crate::Cluster) asks for a [`ClusterReport`] and orders changes. Any client's
//! certificate may do so. The leader checks each change ([`raft_core::consensus::Change`]) and the
//! cluster carries it through by itself, also under a later leader.

mod context;
mod info;
mod report;
mod settings;
mod uid;

use raft_core::types::{Index, NodeId};
use serde::{Deserialize, Serialize};

pub use self::info::{Invalid, MemberInfo};
pub use self::report::{ClusterReport, MemberProgress, MemberReport, MemberRole};
pub(crate) use self::settings::ClusterRecord;
pub use self::settings::ClusterSettings;
pub use self::uid::ClusterUid;

/// A change of the members that an operator orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum MembersChange {
    /// Adds a learner, which gets all data and is not counted.
    Add {
        /// The id that is given out next ([`ClusterReport::next_id`]).
        id: NodeId,
        /// Its name, address and zone.
        info: MemberInfo,
        /// It becomes a voter by itself once it has kept up for a while.
        wants_vote: bool,
    },
    /// Makes a voter of a learner once it has kept up for a while.
    Promote {
        /// The member.
        id: NodeId,
    },
    /// Makes a learner of a voter.
    Demote {
        /// The member.
        id: NodeId,
    },
    /// Removes a member for good; its id is never used again.
    Remove {
        /// The member.
        id: NodeId,
    },
    /// Makes a voter of a learner and removes a voter, in one step.
    Replace {
        /// The voter that leaves.
        old: NodeId,
        /// The learner that takes its place.
        new: NodeId,
    },
    /// Records the disk of a learner that was added before it had one. Nodes order this themselves.
    Bind {
        /// The member.
        id: NodeId,
        /// Identity of its disk; not 0.
        incarnation: u64,
    },
    /// Records a description. Nodes order this themselves when their files have changed.
    Describe {
        /// The member.
        id: NodeId,
        /// The new description.
        info: MemberInfo,
    },
    /// Changes the rules by which the leader changes the members without an operator.
    Configure {
        /// The new settings.
        settings: ClusterSettings,
    },
}

/// A change and the conditions under which it is wanted.
///
/// ```
/// use kv_service::members::{MembersChange, MembersOrder};
///
/// let mut order = MembersOrder::new(MembersChange::Remove { id: 3 });
/// // The node runs, and is meant to be removed nevertheless.
/// order.live = true;
/// assert!(!order.dry_run && order.expected.is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MembersOrder {
    /// The change.
    pub change: MembersChange,
    /// [`ClusterReport::digest`] of the members that the operator has seen. If others are in force,
    /// the order is refused.
    pub expected: Option<u32>,
    /// The change may leave a cluster that tolerates fewer failures than before.
    pub less_redundancy: bool,
    /// The change may remove a voter that is running.
    pub live: bool,
    /// The leader checks the change and changes nothing.
    pub dry_run: bool,
}

impl MembersOrder {
    /// The change with all checks and without conditions.
    pub fn new(change: MembersChange) -> Self {
        Self { change, expected: None, less_redundancy: false, live: false, dry_run: false }
    }
}

/// Ids and addresses of all members: what a client needs to reach them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberList {
    /// Place in the log. Of two lists, the one with the larger index is at least as new.
    pub index: Index,
    /// In ascending order of ids. Empty while the node knows no members.
    pub members: Vec<MemberAddress>,
}

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberAddress {
    /// The member.
    pub id: NodeId,
    /// `host:port`; empty if it is not recorded.
    pub address: String,
}
