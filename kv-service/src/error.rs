//! Errors of a node.

use std::error::Error;
use std::io;
use std::sync::Arc;

use raft_core::error::Fatal;
use raft_core::storage::StorageError;

use crate::config::ConfigError;

/// The reason why a node cannot start, or why it stopped. Each text says what to do. Only
/// [`ServerError::Fatal`], [`ServerError::Removed`] and [`ServerError::Replaced`] end a node that
/// runs; after all others nothing was started.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration makes no sense. Nothing was changed.
    #[error(transparent)]
    Config(Arc<ConfigError>),
    /// The data directory is refused, in use, or damaged, or the disk failed.
    #[error(transparent)]
    Storage(Arc<StorageError>),
    /// The address is taken, or a certificate cannot be read or does not fit. The source is the
    /// network's own error.
    #[error(transparent)]
    Network(Arc<dyn Error + Send + Sync>),
    /// A backend is not built in, or the system has no entropy.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The node was removed from the cluster, and has stopped for good. The text says what to do.
    #[error("{0}")]
    Removed(String),
    /// The cluster has recorded another data directory of this node, on which it has run since. The
    /// text says what to do.
    #[error("{0}")]
    Replaced(String),
    /// The node stopped by itself. It acknowledged nothing that rests on the failed part.
    #[error(transparent)]
    Fatal(Arc<Fatal>),
}

/// The part of a node that this program, or the system, does not have.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The program was built without this backend.
    #[error("{0} is not built in: enable that feature of kv-service")]
    NotBuiltIn(&'static str),
    /// [`Server::init`](crate::Server::init) was called for a node that keeps nothing on disk.
    #[error(
        "storage = \"memory\" keeps nothing, so there is no directory to initialise: start the node"
    )]
    NoDirectory,
    /// The system gave no random bytes.
    #[error("no random bytes: {0}")]
    Entropy(#[source] Arc<io::Error>),
    /// The runtime stopped, or a defect appeared, while the data directory was being opened.
    #[error("opening the directory: {0}")]
    Opening(#[source] Arc<tokio::task::JoinError>),
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
