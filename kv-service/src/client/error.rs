//! Errors of a client's operations.

use raft_core::types::NodeId;

use crate::protocol::Reply;

/// Knowledge about the effect of a failed operation.
///
/// ```
/// # use kv_service::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = Network::Channel(LocalNetwork::new(1));
/// # let store = Store::Memory(MemoryDisk::of_new_member());
/// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
/// # let client = server.client();
/// use std::time::Duration;
///
/// # server.shutdown().await;
/// # let network = LocalNetwork::new(2);
/// # let client = network.client([1]);
/// // No node of this cluster runs.
/// let client = client.with_deadline(Duration::from_millis(50));
/// match client.put("key", "value").await.expect_err("no node runs").outcome {
///     // The write never happened: it may be given up, or made again.
///     Outcome::NotExecuted => {}
///     // It may have happened, once. Read the key before writing it anew.
///     Outcome::Unknown => unreachable!("nothing was sent"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had no effect and never will.
    NotExecuted,
    /// It may have taken effect, once, or may still do so shortly.
    Unknown,
}

/// A failed operation: if it may have been executed, and why it failed.
///
/// ```
/// # use kv_service::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = Network::Channel(LocalNetwork::new(1));
/// # let store = Store::Memory(MemoryDisk::of_new_member());
/// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
/// # let client = server.client();
/// let error = client.put("", "value").await.expect_err("a key is not empty");
/// assert_eq!(error.to_string(), "not executed: the key is empty");
/// # server.shutdown().await;
/// # Ok(())
/// # }
/// ```
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

/// The error of a write that was given up because the client was closed.
pub(super) fn closed(maybe_executed: bool) -> ClientError {
    if maybe_executed {
        ClientError::unknown(Reason::Closed)
    } else {
        ClientError::not_executed(Reason::Closed)
    }
}

/// The error for a response of the wrong kind: a defect of the node.
pub(super) fn unexpected(reply: &Reply) -> ClientError {
    strange(&format!("{reply:?}"))
}

/// The error for a node that answers out of place.
pub(super) fn strange(what: &str) -> ClientError {
    ClientError::not_executed(Reason::Invalid(format!("a node answered out of place: {what}")))
}
