//! Errors returned to callers, and the reasons why a node stops.

use crate::state_machine::MachineError;
use crate::storage::StorageError;
use crate::types::NodeId;

/// The request was not executed and never will be.
///
/// ```
/// use raft_core::error::Rejected;
///
/// /// The node to which node `asked`'s client sends the request next, if it is any use.
/// fn next_target(asked: u64, rejected: &Rejected) -> Option<u64> {
///     match rejected {
///         Rejected::NotLeader { leader } => Some(leader.unwrap_or(asked)),
///         Rejected::Busy(_) => Some(asked),
///         // Sending it again to this node cannot help.
///         _ => None,
///     }
/// }
/// let rejected = Rejected::NotLeader { leader: Some(2) };
/// assert_eq!(next_target(1, &rejected), Some(2));
/// assert_eq!(rejected.to_string(), "this node does not lead; node 2 does");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Another node leads, or no leader is known: send the request to `leader`, or try again later.
    #[error("this node does not lead{}", hint(.leader))]
    NotLeader {
        /// The leader, if this node knows it.
        leader: Option<NodeId>,
    },
    /// A budget is used up, or the leader cannot do this at the moment; try again a little later.
    #[error("busy: {0}; try again later")]
    Busy(&'static str),
    /// The command exceeds the limit of this node. Sending it again cannot help.
    #[error("the command has {size_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Size of the command.
        size_bytes: u64,
        /// Largest size that this node accepts.
        limit_bytes: u64,
    },
    /// The cluster cannot do this now; the text says why.
    #[error("{0}")]
    Refused(String),
    /// Another leader's entry replaced this one before it was committed.
    #[error("replaced by another leader's entry before it was committed")]
    Replaced,
    /// The node stops and takes no more requests.
    #[error("the node is shutting down")]
    ShuttingDown,
}

fn hint(leader: &Option<NodeId>) -> String {
    match leader {
        Some(leader) => format!("; node {leader} does"),
        None => "; no leader is known".to_owned(),
    }
}

/// A proposal that has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not executed, and never will be.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// May have been executed, or may yet be.
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
}

/// The reason why a node stopped for good. It has acknowledged nothing that rests on what failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// A write or read of the storage failed; it is never retried.
    #[error("storage failed: {0}")]
    Storage(#[from] StorageError),
    /// The state machine cannot continue.
    #[error("the state machine failed: {0}")]
    Machine(#[from] MachineError),
    /// The node's settings contradict each other or its data.
    #[error("configuration: {0}")]
    Config(String),
    /// A task of the node panicked or ended unexpectedly: a defect of this library.
    #[error("internal: {0}")]
    Internal(String),
}
