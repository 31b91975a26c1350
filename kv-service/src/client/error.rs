//! Errors of a client's operations.

use raft_core::types::NodeId;

/// Knowledge about the effect of a failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had no effect and never will.
    NotExecuted,
    /// It may have taken effect, once, or may still do so shortly.
    Unknown,
}

/// A failed operation: whether it may have happened, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{}: {reason}", match .outcome { Outcome::NotExecuted => "not executed", Outcome::Unknown => "outcome unknown" })]
pub struct ClientError {
    /// Not executed, or possibly executed.
    pub outcome: Outcome,
    /// Why the operation failed.
    pub reason: Reason,
}

/// The reason of a failure; its text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The deadline passed. `last` describes the last attempt, which tells why it took so long.
    #[error("no answer before the deadline; the last attempt: {last}")]
    Deadline {
        /// Description of the last attempt.
        last: String,
    },
    /// Key, value or another argument is outside the cluster's limits.
    #[error("{0}")]
    Invalid(String),
    /// The cluster forgot this client's session, or refused to go on with it, while the operation
    /// was being retried. It is no longer known if an earlier attempt was executed.
    #[error("the session expired while the operation was being retried")]
    SessionExpired,
    /// The one node that was asked cannot be reached, or did not answer in time.
    #[error("node {node} cannot be reached: {why}")]
    Unreachable {
        /// The node that was asked.
        node: NodeId,
        /// The error of the connection, or of the wait.
        why: String,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// The error of an operation, for a caller that tests its own handling.
    pub fn new(outcome: Outcome, reason: Reason) -> Self {
        Self { outcome, reason }
    }

    pub(super) fn not_executed(reason: Reason) -> Self {
        Self { outcome: Outcome::NotExecuted, reason }
    }

    pub(super) fn unknown(reason: Reason) -> Self {
        Self { outcome: Outcome::Unknown, reason }
    }
}
