//! Requests to one node of the caller's choice: its status, and an operator's orders.

use raft_core::types::NodeId;
use tokio::time::{Instant, timeout_at};

use super::Client;
use super::connection::CallError;
use super::error::{ClientError, Reason, unexpected};
use crate::protocol::{NodeStatus, Reply, RequestKind, UpgradeOrder};

impl Client {
    /// Gives one node an order about the cluster version, and returns its text for the operator.
    ///
    /// # Errors
    /// The node cannot be reached, did not answer in time, or refuses. After a lost response the
    /// order may have been carried out.
    pub async fn upgrade(&self, node: NodeId, order: UpgradeOrder) -> Result<String, ClientError> {
        let unreachable = |why| Reason::Unreachable { node, why };
        let asked = async {
            let reached = self.shared.links.reach(node).await;
            let reached = reached.map_err(|why| ClientError::not_executed(unreachable(why)))?;
            match reached.connection.call(RequestKind::Upgrade(order)).await {
                Ok(Reply::Done(told)) => Ok(told),
                Ok(Reply::Rejected(rejection)) => {
                    Err(ClientError::not_executed(Reason::Invalid(rejection.to_string())))
                }
                Ok(other) => Err(ClientError::unknown(unexpected(&other).reason)),
                Err(CallError::NotSent(why)) => Err(ClientError::not_executed(unreachable(why))),
                Err(CallError::Lost(why)) => Err(ClientError::unknown(unreachable(why))),
            }
        };
        let late = || format!("no answer within {:?}", self.deadline);
        timeout_at(Instant::now() + self.deadline, asked)
            .await
            .unwrap_or_else(|_| Err(ClientError::unknown(unreachable(late()))))
    }

    /// Returns the status of this one node.
    ///
    /// # Errors
    /// The node cannot be reached, or did not answer in time.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, ClientError> {
        let asked = async {
            let reached = self.shared.links.reach(node).await?;
            match reached.connection.call(RequestKind::Status).await {
                Ok(Reply::Status(status)) => Ok(*status),
                Ok(other) => Err(unexpected(&other).reason.to_string()),
                Err(CallError::NotSent(why) | CallError::Lost(why)) => Err(why),
            }
        };
        let answer = timeout_at(Instant::now() + self.deadline, asked).await;
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.deadline)));
        answer.map_err(|why| ClientError::not_executed(Reason::Unreachable { node, why }))
    }
}
