//! A proposal under way, as its caller sees it.

use tokio::sync::oneshot;

use crate::error::ProposeError;
use crate::types::Position;

/// Handle of a command that was proposed: tells first its position in the log, then its outcome.
/// Dropping the handle does not withdraw the command.
#[derive(Debug)]
pub struct Proposal<T> {
    position: PositionOf,
    outcome: oneshot::Receiver<Result<T, ProposeError>>,
}

#[derive(Debug)]
enum PositionOf {
    Pending(oneshot::Receiver<Position>),
    Known(Option<Position>),
}

impl<T> Proposal<T> {
    pub(super) fn new(
        position: oneshot::Receiver<Position>,
        outcome: oneshot::Receiver<Result<T, ProposeError>>,
    ) -> Self {
        Self { position: PositionOf::Pending(position), outcome }
    }

    /// The term and index that the leader gave to the command, once it is appended to the leader's
    /// log; `None` if it was rejected before. The entry that is committed at this index is this
    /// command if, and only if, its term is the same.
    pub async fn position(&mut self) -> Option<Position> {
        let position = match &mut self.position {
            PositionOf::Known(position) => return *position,
            PositionOf::Pending(position) => position.await.ok(),
        };
        self.position = PositionOf::Known(position);
        position
    }

    /// Waits for the outcome.
    ///
    /// # Errors
    /// The command was not executed, or its outcome is unknown; the error tells which.
    pub async fn outcome(self) -> Result<T, ProposeError> {
        let Self { position: _, outcome } = self;
        outcome.await.unwrap_or(Err(ProposeError::Unknown("the node stopped")))
    }
}
