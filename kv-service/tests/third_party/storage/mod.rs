//! A storage in plain files of one directory: `log` and `snapshot-<number>`.
//!
//! The log is the truth: it names the published snapshot, and other snapshot files are removed. One
//! lock guards the files, and work that blocks runs on a thread of its own. A failure is recorded
//! under that lock, so that nothing is ever written behind a write that failed.
//!
//! Left out: snapshots larger than memory, resuming a transfer after a restart, and a lock against
//! a second process.

mod disk;
mod journal;
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageError, StorageResult};
use raft_core::types::{Batch, HardState, Loaded, SnapshotContent, SnapshotMeta};
use tokio::task::spawn_blocking;

use disk::Disk;
use journal::{Finished, State};

/// The storage of one process in its directory.
pub(crate) struct FileStorage(Arc<Shared>);

struct Shared {
    disk: Mutex<Disk>,
    /// The reason why nothing is written after a failure.
    failure: OnceLock<String>,
    log_bytes: AtomicU64,
}

impl FileStorage {
    /// Makes the directory of a member of a new cluster, once.
    pub(crate) async fn init(dir: &Path) -> StorageResult<()> {
        std::fs::create_dir_all(dir).map_err(io("create directory"))?;
        let storage = Self::open(dir)?;
        if storage.load().await? != Loaded::default() {
            return Err(StorageError::Refused("the directory is in use: start the node".into()));
        }
        let hard_state = Some(HardState::FOUNDING);
        storage.persist(Batch { hard_state, ..Batch::default() }).await
    }

    /// Opens a directory. An empty one is that of a node whose past is unknown.
    pub(crate) fn open(dir: &Path) -> StorageResult<Self> {
        let disk = Disk::open(dir)?;
        let log_bytes = AtomicU64::new(disk.journal.state.log_bytes);
        let (disk, failure) = (Mutex::new(disk), OnceLock::new());
        Ok(Self(Arc::new(Shared { disk, failure, log_bytes })))
    }
}

impl Shared {
    /// Runs the work under the lock. An error that was caused neither by a peer nor by a stale
    /// writer ends all writing.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Disk) -> StorageResult<T> + Send + 'static,
    ) -> StorageResult<T> {
        let shared = Arc::clone(self);
        let work = move || {
            let mut disk = shared.disk.lock().expect("no panic under the lock");
            if let Some(reason) = shared.failure.get() {
                return Err(StorageError::Poisoned(reason.clone()));
            }
            let result = work(&mut disk);
            if let Err(error @ (StorageError::Io { .. } | StorageError::Engine { .. })) = &result {
                shared.failure.get_or_init(|| error.to_string());
            }
            shared.log_bytes.store(disk.journal.state.log_bytes, Ordering::Relaxed);
            result
        };
        spawn_blocking(work).await.unwrap_or_else(|error| Err(io("run")(error.into())))
    }
}

#[async_trait]
impl Storage for FileStorage {
    async fn load(&self) -> StorageResult<Loaded> {
        let state = self.0.run(|disk| Ok(disk.journal.state.clone())).await?;
        let State { published, log_start, entries, hard_state, .. } = state;
        let snapshot = published.map(|published| published.meta);
        Ok(Loaded { hard_state, log_start, snapshot, entries })
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        self.0.run(|disk| disk.persist(batch)).await
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        self.0.run(|disk| disk.compact(through)).await
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        let begin = move |disk: &mut Disk| Ok(disk.begin_draft(meta, expected));
        let (number, offset) = self.0.run(begin).await?;
        Ok(Box::new(Writer { shared: Arc::clone(&self.0), number, offset }))
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        let published = self.0.run(|disk| disk.published()).await?;
        let reader = |(snapshot, bytes)| Box::new(Reader { snapshot, bytes }) as _;
        Ok(published.map(reader))
    }

    fn log_bytes(&self) -> u64 {
        self.0.log_bytes.load(Ordering::Relaxed)
    }
}

struct Writer {
    shared: Arc<Shared>,
    number: u64,
    offset: u64,
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, chunk: Bytes) -> StorageResult<()> {
        let number = self.number;
        let append = move |disk: &mut Disk| {
            let draft = disk.draft(number)?;
            draft.bytes.extend_from_slice(&chunk);
            Ok(draft.bytes.len() as u64)
        };
        self.offset = self.shared.run(append).await?;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> StorageResult<SnapshotContent> {
        let number = self.number;
        self.shared.run(move |disk| disk.finish_draft(number)).await
    }
}

/// The bytes of a snapshot, verified when they were read.
struct Reader {
    snapshot: Finished,
    bytes: Bytes,
}

#[async_trait]
impl SnapshotReader for Reader {
    fn meta(&self) -> &SnapshotMeta {
        &self.snapshot.meta
    }

    fn content(&self) -> SnapshotContent {
        self.snapshot.content
    }

    async fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        let start = self.bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let end = self.bytes.len().min(start.saturating_add(bytes_max));
        Ok(self.bytes.slice(start..end))
    }
}

fn io(operation: &str) -> impl FnOnce(std::io::Error) -> StorageError {
    let operation = operation.to_owned();
    |source| StorageError::Io { operation, source }
}

fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt(what.into())
}
