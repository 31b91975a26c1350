//! Errors of a node.

use std::sync::Arc;

use raft_core::error::Fatal;
use raft_core::storage::StorageError;

use crate::config::ConfigError;

/// The reason why a node cannot start, or why it stopped. Each text says what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration makes no sense. Nothing was changed.
    #[error(transparent)]
    Config(Arc<ConfigError>),
    /// The data directory is refused, in use, or damaged, or the disk failed.
    #[error(transparent)]
    Storage(Arc<StorageError>),
    /// The address is taken, or a certificate cannot be read or does not fit.
    #[error("{0}")]
    Network(String),
    /// A backend is not built in, or the system has no entropy.
    #[error("{0}")]
    Unavailable(String),
    /// The node stopped by itself. It acknowledged nothing that rests on the failed part.
    #[error(transparent)]
    Fatal(Arc<Fatal>),
}

impl From<ConfigError> for ServerError {
    fn from(error: ConfigError) -> Self {
        ServerError::Config(Arc::new(error))
    }
}

impl From<StorageError> for ServerError {
    fn from(error: StorageError) -> Self {
        ServerError::Storage(Arc::new(error))
    }
}

impl From<Fatal> for ServerError {
    fn from(error: Fatal) -> Self {
        ServerError::Fatal(Arc::new(error))
    }
}
