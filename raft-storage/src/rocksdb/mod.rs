//! The durable backend: one RocksDB instance for log, hard state and metadata, snapshots in files.
//!
//! It keeps the contract of [`raft_core::storage::Storage`]. Two threads of its own do all blocking
//! work: one writes the log, a batch at a time, each a single synced write; the other writes and
//! reads snapshot files, so that a large one never holds up the log. A damaged log is refused with
//! an error that names the directory and what to do; a torn tail that was never acknowledged is cut
//! (`format/wal` tells the two apart). After the first failure, also one of RocksDB's background
//! work, nothing is written.
//!
//! It assumes of the disk that synced data stays and that a rename is atomic. It does not assume
//! that unsynced writes reach the disk in order, or at all, or whole.
//!
//! It does not repair. A node whose log is damaged has to be re-admitted as a new one,
//! because it may have forgotten votes and acknowledged entries.

mod background_errors;
mod batch_plan;
mod entry_sizes;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod forgery_tests;
mod load;
mod log;
mod options;
mod poison;
mod run_starts;
mod snapshot;
mod warm;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageResult};
use raft_core::types::{Batch, HardState, Loaded, SnapshotContent, SnapshotMeta};

pub use self::background_errors::listen;
pub use self::options::RocksOptions;

use self::batch_plan::Mirror;
use self::log::StoredLog;
use self::poison::Poison;
use self::snapshot::{Shelf, Store};
use self::warm::Warmer;
use self::worker::Worker;
use crate::DataDir;
use crate::format::draft::Draft;

/// Advice to the operator about a damaged log.
const ADVICE_DAMAGED: &str = "Do not start this node on it. Move the data directory away and let the \
     node be re-admitted with an empty one, so that it catches up from its peers; or, if the damage \
     was done by a copy or a restore, put the intact directory back";

/// A node's log, hard state and snapshots in its [`DataDir`].
pub struct RocksStorage {
    log: Worker<StoredLog>,
    snapshots: Arc<Worker<Store>>,
    log_bytes: Arc<AtomicU64>,
    /// Holds the directory's lock until both threads have ended: fields are dropped in order.
    _data_dir: Arc<DataDir>,
}

impl RocksStorage {
    /// Opens the log in `data_dir`. Blocks while the log of the last process is replayed: tens of
    /// milliseconds, or a second after a crash under load.
    ///
    /// # Errors
    ///
    /// Those of [`Storage::load`], as far as opening can find them; no record of the log is altered
    /// then.
    pub fn open(data_dir: Arc<DataDir>, options: RocksOptions) -> StorageResult<Self> {
        let poison = Poison::default();
        let shelf = Shelf::default();
        let log_bytes = Arc::new(AtomicU64::new(0));
        let path = data_dir.log_dir();
        let db = load::open(&path, &options, &poison, data_dir.log_key())?;
        // Warm files only save time: a disk with little space gets none.
        let warm_file_count = if data_dir.is_low()? { 0 } else { options.warm_file_count };
        let step_hook = options.step_hook.clone();
        let store = Store::new(Arc::clone(&data_dir), shelf.clone(), poison.clone(), step_hook);
        let log = StoredLog {
            db,
            path,
            poison,
            shelf,
            log_bytes: Arc::clone(&log_bytes),
            mirror: Mirror::default(),
            warmer: Warmer::new(warm_file_count, options.write_buffer_bytes),
            is_loaded: false,
            unflushed_bytes: 0,
            draft: Draft::default(),
            key: data_dir.log_key().clone(),
            initial: if data_dir.was_initialised() {
                HardState::FOUNDING
            } else {
                HardState::default()
            },
            options,
        };
        Ok(Self {
            log: Worker::spawn("raft-log", log)?,
            snapshots: Arc::new(Worker::spawn("raft-snapshots", store)?),
            log_bytes,
            _data_dir: data_dir,
        })
    }
}

#[async_trait]
impl Storage for RocksStorage {
    async fn load(&self) -> StorageResult<Loaded> {
        let everything = self.log.run(StoredLog::load).await?;
        let published = everything.published;
        self.snapshots.run(move |store| store.recover(published)).await?;
        Ok(everything.loaded)
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        let replaces_snapshot = batch.publish.is_some() || batch.withdraw_snapshot;
        self.log.run(move |log| log.persist(batch)).await?;
        if replaces_snapshot {
            // If the queue is full now, the next publication or start removes them.
            self.snapshots.try_submit(Store::remove_old);
        }
        Ok(())
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        self.log.run(move |log| log.compact(through)).await
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        let writer = snapshot::open_writer(&self.snapshots, meta, expected).await?;
        Ok(Box::new(writer))
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        let reader = snapshot::open_reader(&self.snapshots).await?;
        Ok(reader.map(|reader| Box::new(reader) as Box<dyn SnapshotReader>))
    }

    fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Acquire)
    }
}
