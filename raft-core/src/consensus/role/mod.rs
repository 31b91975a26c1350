//! The roles, each holding just the data that exists in it (3.3).
//!
//! A handler takes the shared state, and returns the transition it wants; only `raft` changes the
//! role.

pub(super) mod candidate;
pub(super) mod follower;
pub(super) mod leader;

use candidate::Candidate;
use follower::Follower;
use leader::Leader;

use crate::types::NodeId;

#[derive(Clone, Debug, Hash)]
pub(super) enum Role {
    Follower(Follower),
    /// Asks for pre-votes (9.6); its term is unchanged.
    PreCandidate(Candidate),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// A role by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoleKind {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for pre-votes (9.6).
    PreCandidate,
    /// Asks for votes in its term (3.4).
    Candidate,
    /// Leads its term.
    Leader,
}

impl RoleKind {
    /// Returns the name, for texts and labels.
    pub fn name(self) -> &'static str {
        match self {
            RoleKind::Follower => "follower",
            RoleKind::PreCandidate => "pre-candidate",
            RoleKind::Candidate => "candidate",
            RoleKind::Leader => "leader",
        }
    }
}

/// The role change that a handler asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Transition {
    Stay,
    /// Follow in the current term, without a known leader.
    Follow,
    /// Ask for pre-votes.
    PreCampaign,
    /// Ask for votes in the next term. `transfer`: on request of the leader.
    Campaign {
        transfer: bool,
    },
    Lead,
}

impl Role {
    pub(super) fn kind(&self) -> RoleKind {
        match self {
            Role::Follower(_) => RoleKind::Follower,
            Role::PreCandidate(_) => RoleKind::PreCandidate,
            Role::Candidate(_) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    pub(super) fn leader(&self, own_id: NodeId) -> Option<NodeId> {
        match self {
            Role::Follower(follower) => follower.leader,
            Role::PreCandidate(_) | Role::Candidate(_) => None,
            Role::Leader(_) => Some(own_id),
        }
    }
}
