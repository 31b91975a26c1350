//! What a caller hears, and why a node stops.

use crate::state_machine::MachineError;
use crate::storage::StorageError;
use crate::types::NodeId;

/// Surely had no effect, and never will.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("this node does not lead{}", hint(.leader))]
    NotLeader { leader: Option<NodeId> },
    /// A byte budget is used up; try again a little later.
    #[error("busy: {0}; try again later")]
    Busy(&'static str),
    #[error("the command has {size_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge { size_bytes: u64, limit_bytes: u64 },
    /// The cluster cannot do this now; the text says why.
    #[error("{0}")]
    Refused(String),
    /// Another leader's entry took the place of this one.
    #[error("replaced by another leader's entry before it was committed")]
    Replaced,
    #[error("the node is shutting down")]
    ShuttingDown,
}

fn hint(leader: &Option<NodeId>) -> String {
    match leader {
        Some(leader) => format!("; node {leader} does"),
        None => "; no leader is known".to_owned(),
    }
}

/// Why a proposal has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Surely not executed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// May have been executed, or may yet be.
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
}

/// Why a node stopped for good. Nothing was acknowledged that rests on what failed.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("storage failed: {0}")]
    Storage(#[from] StorageError),
    #[error("the state machine failed: {0}")]
    Machine(#[from] MachineError),
    #[error("configuration: {0}")]
    Config(String),
    /// A part of the node panicked or vanished; a defect of ours.
    #[error("internal: {0}")]
    Internal(String),
}
