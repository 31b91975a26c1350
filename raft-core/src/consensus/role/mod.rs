//! The roles, each holding just the data that exists in it (3.3).
//!
//! A handler takes the shared state, and returns the transition it wants; only `raft` changes the
//! role.

pub(super) mod candidate;
pub(super) mod follower;
pub(super) mod leader;
mod transition;

use candidate::Candidate;
use follower::Follower;
use leader::Leader;
pub(super) use transition::Transition;

use crate::types::{NodeId, RoleKind};

#[derive(Clone, Debug, Hash)]
pub(super) enum Role {
    Follower(Follower),
    /// Asks for pre-votes (9.6); its term is unchanged.
    PreCandidate(Candidate),
    Candidate(Candidate),
    Leader(Box<Leader>),
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
