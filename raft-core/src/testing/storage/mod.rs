//! The contract of [`Storage`] as a suite: one function per claim, for any backend.
//!
//! A backend brings a [`Disk`], and its test calls [`all`] with a function that makes empty ones:
//!
//! ```
//! # use raft_core::testing::storage::{Disk, all};
//! async fn my_disk_keeps_the_contract<MyDisk: Disk>(empty: fn() -> MyDisk) {
//!     all(empty).await;
//! }
//! ```
//!
//! A claim that does not hold panics with a text that names it. The state that survives a crash is
//! compared with a [`Model`], the contract in thirty lines of state; [`random_operations`] walks
//! both through the same operations from a seed, so that a failure can be repeated.
//!
//! Not covered: damage to the bytes on the disk (only a backend knows its format), a crash at each
//! step inside an operation (only a backend knows its steps), and speed.

mod claims;
mod model;
mod random;
mod snapshots;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::storage::{Storage, StorageResult};
use crate::types::{Entry, Index, Loaded, Payload, Position, SnapshotMeta, Term};

pub use self::claims::{
    a_batch_is_whole_or_absent, a_commit_index_alone_may_lag, a_failed_storage_writes_no_more,
    acknowledged_batches_survive_a_crash, an_empty_disk_loads_the_default,
    an_empty_log_takes_its_configuration, compaction_forgets_a_prefix,
    compaction_survives_later_writes, log_bytes_count_as_entries_do, what_is_persisted_is_loaded,
};
pub use self::model::{Model, Operation};
pub use self::random::{Random, random_operations};
pub use self::snapshots::{
    a_reader_outlives_a_later_publication, a_received_snapshot_is_verified,
    a_snapshot_is_published_by_a_batch, a_snapshot_may_replace_the_log,
    a_transfer_is_resumed_where_meta_and_content_agree, a_withdrawn_snapshot_is_gone,
    another_snapshot_drops_the_unfinished_one,
};

/// A disk that outlives the processes that use it, and the means to end them.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Starts a process on this disk. The suite drops the storage, readers and writers of an
    /// earlier process before.
    async fn open(&self) -> StorageResult<Arc<dyn Storage>>;

    /// Kills the process at this moment, without a chance to close anything. Bytes that it had not
    /// synced may be lost. Bytes that it still tries to write afterwards do not reach this disk.
    async fn crash(&self);
}

/// Seeds of the random walks of [`all`].
const SEEDS: [u64; 6] = [1, 2, 3, 4, 5, 6];

/// Operations of one random walk of [`all`].
const OPERATION_COUNT: usize = 120;

/// Checks every claim, each on an empty disk of its own.
///
/// # Panics
///
/// If a claim does not hold; the text names it.
pub async fn all<D: Disk>(empty: impl Fn() -> D) {
    an_empty_disk_loads_the_default(&empty()).await;
    what_is_persisted_is_loaded(&empty()).await;
    a_batch_is_whole_or_absent(&empty()).await;
    acknowledged_batches_survive_a_crash(&empty()).await;
    a_commit_index_alone_may_lag(&empty()).await;
    compaction_forgets_a_prefix(&empty()).await;
    compaction_survives_later_writes(&empty()).await;
    log_bytes_count_as_entries_do(&empty()).await;
    a_failed_storage_writes_no_more(&empty()).await;
    a_snapshot_is_published_by_a_batch(&empty()).await;
    a_snapshot_may_replace_the_log(&empty()).await;
    a_transfer_is_resumed_where_meta_and_content_agree(&empty()).await;
    another_snapshot_drops_the_unfinished_one(&empty()).await;
    a_received_snapshot_is_verified(&empty()).await;
    a_reader_outlives_a_later_publication(&empty()).await;
    a_withdrawn_snapshot_is_gone(&empty()).await;
    an_empty_log_takes_its_configuration(&empty()).await;
    for seed in SEEDS {
        random_operations(&empty(), seed, OPERATION_COUNT).await;
    }
}

/// Opens and loads; both must succeed.
async fn start(disk: &impl Disk) -> (Arc<dyn Storage>, Loaded) {
    let storage = must("open", disk.open().await);
    let loaded = must("load", storage.load().await);
    (storage, loaded)
}

/// The process dies, and another one takes over.
async fn crash(disk: &impl Disk, storage: Arc<dyn Storage>) -> (Arc<dyn Storage>, Loaded) {
    disk.crash().await;
    drop(storage);
    start(disk).await
}

/// The process ends in good order, and another one takes over.
async fn restart(disk: &impl Disk, storage: Arc<dyn Storage>) -> (Arc<dyn Storage>, Loaded) {
    drop(storage);
    start(disk).await
}

fn must<T>(operation: &str, result: StorageResult<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{operation} must succeed: {error}"),
    }
}

/// A command of `size` bytes that tells its position.
fn entry(index: Index, term: Term, size: usize) -> Entry {
    let text = format!("entry {index} of term {term}. ");
    let command: Vec<u8> = text.bytes().cycle().take(size).collect();
    Entry { index, term, payload: Payload::Command(Bytes::from(command)) }
}

/// Commands of 100 bytes at `from..=through`.
fn entries(from: Index, through: Index, term: Term) -> Vec<Entry> {
    (from..=through).map(|index| entry(index, term, 100)).collect()
}

fn meta(term: Term, index: Index) -> SnapshotMeta {
    let configuration = crate::types::Configuration::of_voters([1, 2, 3]);
    SnapshotMeta::new(Position::new(term, index), configuration)
}

/// Pseudo-random bytes, which do not repeat with the period of any block size.
fn content_bytes(seed: u64, len: usize) -> Bytes {
    let mut random = Random::new(seed);
    (0..len).map(|_| random.below(251) as u8).collect()
}
