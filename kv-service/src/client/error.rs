//! What a client hears when an operation did not succeed.

use raft_core::types::NodeId;

/// What is known about the effect of an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had no effect and never will.
    NotExecuted,
    /// It may have taken effect, once, or may still do so shortly.
    Unknown,
}

/// A failed operation: whether it may have happened, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", match .outcome { Outcome::NotExecuted => "not executed", Outcome::Unknown => "outcome unknown" })]
pub struct ClientError {
    pub outcome: Outcome,
    pub reason: Reason,
}

/// Why; the texts say what can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The deadline passed. What was last heard from a node tells why it took so long.
    #[error("no answer before the deadline; the last attempt: {last}")]
    Deadline { last: String },
    /// Key, value or another argument is outside the cluster's limits.
    #[error("{0}")]
    Invalid(String),
    /// The cluster forgot this client's session, or refused to go on with it, while the operation was under way, so whether an
    /// earlier attempt was executed can no longer be told.
    #[error("the session expired while the operation was being retried")]
    SessionExpired,
    #[error("node {node} cannot be reached: {why}")]
    Unreachable { node: NodeId, why: String },
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    pub(super) fn not_executed(reason: Reason) -> Self {
        Self { outcome: Outcome::NotExecuted, reason }
    }

    pub(super) fn unknown(reason: Reason) -> Self {
        Self { outcome: Outcome::Unknown, reason }
    }
}
