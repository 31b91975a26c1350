//! The first failure, remembered: nothing is written after it.

use std::path::Path;
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

    /// Remembers a failure, and returns the result.
    pub(crate) fn note<T>(&self, result: StorageResult<T>) -> StorageResult<T> {
        if let Err(error) = &result {
            self.set(error.to_string());
        }
        result
    }

    /// Remembers a failure of work that no caller waits for.
    pub(crate) fn note_unattended(&self, path: &Path, reason: &str) {
        self.set(format!("work in the background on {}: {reason}", path.display()));
    }

    fn set(&self, reason: String) {
        // Only the first failure is the cause.
        if self.0.set(reason.clone()).is_ok() {
            tracing::error!(reason, "storage failed; nothing more will be written");
        }
    }
}
