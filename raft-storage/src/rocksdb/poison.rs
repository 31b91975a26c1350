//! The first failure, remembered: nothing is written after it.

use std::sync::{Arc, OnceLock};

use raft_core::storage::{StorageError, StorageResult};

/// Shared by everything that writes for one storage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Poison(Arc<OnceLock<String>>);

impl Poison {
    /// Fails if anything has failed before.
    pub(crate) fn check(&self) -> StorageResult<()> {
        match self.0.get() {
            Some(reason) => Err(StorageError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Remembers a failure, and hands it on.
    pub(crate) fn note<T>(&self, result: StorageResult<T>) -> StorageResult<T> {
        if let Err(error) = &result {
            // Only the first one tells the cause.
            if self.0.set(error.to_string()).is_ok() {
                tracing::error!(%error, "storage failed; nothing more will be written");
            }
        }
        result
    }
}
