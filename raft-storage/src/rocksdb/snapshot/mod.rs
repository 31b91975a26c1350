//! Snapshots in files beside the log.
//!
//! ```text
//! snapshot-<term>-<index>-<serial>.part    being written; kept over a restart if it can be resumed
//! snapshot-<term>-<index>-<serial>.snap    whole and durable; published if the log names it
//! ```
//!
//! A snapshot is written as `.part`, synced, renamed, and published by a batch of the log, which
//! names it by its serial number: another snapshot of the same position never touches the file of
//! the published one. At the next start, a `.snap` that no record names and a `.part` that cannot
//! be resumed are removed.

mod handles;
mod part;
mod published;
mod store;

use std::sync::{Arc, Mutex, MutexGuard};

use raft_core::types::SnapshotMeta;

pub(crate) use self::handles::{open_reader, open_writer};
pub(crate) use self::store::Store;
use crate::format::records::Published;

/// Bytes of a chunk, the unit of checksums. After a restart a transfer resumes at a multiple of it.
const CHUNK_BYTES: u32 = 64 * 1024;

/// Most finished snapshots that wait for a batch to publish them: the node's own and one from a
/// peer.
const FINISHED_COUNT_MAX: usize = 2;

const PART: &str = "part";
const WHOLE: &str = "snap";

/// The published and the finished snapshots. The log's thread publishes what the snapshots' thread
/// has finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelf(Arc<Mutex<ShelfState>>);

#[derive(Debug, Default)]
struct ShelfState {
    published: Option<Published>,
    /// Oldest first.
    finished: Vec<Published>,
}

impl Shelf {
    fn state(&self) -> MutexGuard<'_, ShelfState> {
        // No method leaves it half changed.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The newest finished snapshot of this meta.
    pub(crate) fn finished(&self, meta: &SnapshotMeta) -> Option<Published> {
        self.state().finished.iter().rev().find(|one| one.meta == *meta).cloned()
    }

    /// Called when a batch has published this snapshot. Older finished ones will never be
    /// published.
    pub(crate) fn publish(&self, published: Published) {
        let mut state = self.state();
        state.finished.retain(|one| one.meta.index() > published.meta.index());
        state.published = Some(published);
    }

    /// Called when a batch has withdrawn the published snapshot.
    pub(crate) fn withdraw(&self) {
        self.state().published = None;
    }

    fn published(&self) -> Option<Published> {
        self.state().published.clone()
    }

    fn set_published(&self, published: Option<Published>) {
        *self.state() = ShelfState { published, finished: Vec::new() };
    }

    fn add_finished(&self, finished: Published) {
        let mut state = self.state();
        state.finished.retain(|one| one.meta != finished.meta);
        state.finished.push(finished);
        if state.finished.len() > FINISHED_COUNT_MAX {
            state.finished.remove(0);
        }
        assert!(state.finished.len() <= FINISHED_COUNT_MAX);
    }

    /// Returns true if the file of this serial number is still needed.
    fn needs(&self, serial: u64) -> bool {
        let state = self.state();
        state.published.iter().chain(&state.finished).any(|one| one.serial == serial)
    }
}
