//! The port to the disk.
//!
//! A backend keeps one node's log, hard state and snapshot. It is written while the node runs and
//! read only at boot and for snapshots: the core holds the entries after the snapshot in memory.
//!
//! The contract, checked by [`crate::testing::storage`]:
//!
//! * [`Storage::persist`] is atomic and durable: after a crash at any point the disk holds all of a
//!   batch or nothing of it, and all of it once `persist` has returned. Batches come one at a time,
//!   in order.
//! * After a failed write the storage is poisoned: every later write fails too, and the node stops.
//!   A failed sync is never retried, because the kernel may have dropped the dirty pages. Reads
//!   poison nothing. Neither do `finish` of a snapshot whose bytes differ from the expected ones,
//!   and `write` or `finish` of a writer that a later one has replaced: a peer may cause those.
//! * [`Storage::load`] returns exactly what was persisted, or an error that says what is damaged
//!   and what to do. It cuts a torn tail that no `persist` ever acknowledged; it never treats
//!   damage elsewhere as a torn tail.
//!
//! The suite cannot check two more rules:
//!
//! * Methods may wait, and must not block the runtime's thread: a sync belongs on a thread of the
//!   storage's own, or into `spawn_blocking`.
//! * The storage of a new cluster's member begins with one batch that holds nothing but
//!   [`HardState::FOUNDING`](crate::types::HardState::FOUNDING), persisted before the node's first
//!   start by the program that initialises the directory.

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{Batch, Loaded, SnapshotContent, SnapshotMeta};

/// A failed storage operation. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused: disk full, I/O error, permission.
    #[error("{operation}: {source}")]
    Io {
        /// The operation that failed, and the file.
        operation: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The data read differs from the data written.
    #[error("{0}")]
    Corrupt(String),
    /// The directory belongs to another node or cluster, to a newer version, or to a running
    /// process.
    #[error("{0}")]
    Refused(String),
    /// An earlier operation failed; this one was not tried.
    #[error("storage has failed before: {0}")]
    Poisoned(String),
    /// The engine underneath failed in another way.
    #[error("{operation}: {message}")]
    Engine {
        /// The operation that failed.
        operation: String,
        /// The text of the engine.
        message: String,
    },
}

/// The result of a storage operation.
pub type StorageResult<T> = Result<T, StorageError>;

/// Log, hard state and snapshot of one node. See the module for the contract.
///
/// A storage in memory, for a log that is never compacted:
///
/// ```
/// use std::sync::Mutex;
/// use async_trait::async_trait;
/// use raft_core::storage::{
///     SnapshotReader, SnapshotWriter, Storage, StorageError, StorageResult,
/// };
/// use raft_core::types::{
///     Batch, Entry, HardState, Loaded, Payload, SnapshotContent, SnapshotMeta,
/// };
///
/// #[derive(Default)]
/// struct InMemory(Mutex<Loaded>);
///
/// #[async_trait]
/// impl Storage for InMemory {
///     async fn load(&self) -> StorageResult<Loaded> {
///         Ok(self.0.lock().expect("no panic").clone())
///     }
///
///     async fn persist(&self, batch: Batch) -> StorageResult<()> {
///         let mut disk = self.0.lock().expect("no panic");
///         // The parts take effect in this order.
///         if let Some(from) = batch.truncate_from {
///             disk.entries.retain(|entry| entry.index < from);
///         }
///         disk.entries.extend(batch.entries);
///         disk.hard_state = batch.hard_state.unwrap_or(disk.hard_state);
///         Ok(())
///     }
///
///     async fn compact(&self, _: SnapshotMeta) -> StorageResult<()> {
///         Ok(())
///     }
///
///     async fn snapshot_writer(
///         &self,
///         _: SnapshotMeta,
///         _: Option<SnapshotContent>,
///     ) -> StorageResult<Box<dyn SnapshotWriter>> {
///         Err(StorageError::Refused("this storage keeps no snapshots".to_owned()))
///     }
///
///     async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
///         Ok(None)
///     }
///
///     fn log_bytes(&self) -> u64 {
///         let disk = self.0.lock().expect("no panic");
///         disk.entries.iter().map(Entry::size_bytes).sum()
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> StorageResult<()> {
/// let storage = InMemory::default();
/// let entry = |index, term| Entry { index, term, payload: Payload::Noop };
/// let hard_state = HardState { term: 1, ..HardState::INITIAL };
/// let entries = vec![entry(1, 1), entry(2, 1)];
/// storage.persist(Batch { entries, hard_state: Some(hard_state), ..Batch::default() }).await?;
/// // A later leader replaces the tail.
/// let (truncate_from, entries) = (Some(2), vec![entry(2, 3)]);
/// storage.persist(Batch { truncate_from, entries, ..Batch::default() }).await?;
/// let loaded = storage.load().await?;
/// assert_eq!(loaded.entries, [entry(1, 1), entry(2, 3)]);
/// assert_eq!(loaded.hard_state, hard_state);
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Returns everything that survived. Called once, before anything else.
    ///
    /// # Errors
    /// The data is damaged, or not for this node; nothing is repaired beyond a torn tail.
    async fn load(&self) -> StorageResult<Loaded>;

    /// Writes the batch as one atomic unit; it is on disk when this returns. A batch whose only
    /// content is a hard state that differs in `commit_index` alone needs no sync.
    ///
    /// # Errors
    /// The batch may be on disk or not, and the storage is poisoned: the node stops and
    /// acknowledges nothing that rests on the batch.
    async fn persist(&self, batch: Batch) -> StorageResult<()>;

    /// Forgets the entries through `through.position`, and remembers `through` as the position and
    /// configuration before the log's first entry. May be lazy about space, must be cheap, may run
    /// beside `persist`. A compaction that does not lead further than an earlier one, or than a
    /// snapshot that replaced the log, does nothing. The caller guarantees that a published
    /// snapshot or the state machine itself is durable through there.
    ///
    /// At [`Position::ZERO`](crate::types::Position::ZERO) an empty log takes the configuration
    /// with which its cluster is founded. A compaction is durable at the latest with the next batch
    /// that is synced.
    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()>;

    /// Starts writing a snapshot. With `expected`, the bytes come from a peer: an unfinished
    /// snapshot of equal meta and content is resumed, and [`SnapshotWriter::finish`] verifies.
    /// Without, they come from this node's state machine and start at 0. An unfinished snapshot of
    /// another meta is dropped; the published one stays whole until a batch publishes the new one.
    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>>;

    /// Opens the published snapshot, if there is one. The reader stays usable when the snapshot is
    /// withdrawn or another is published meanwhile. Fails if the snapshot is damaged;
    /// [`Storage::load`] does not, because a state machine that is durable itself may not need it.
    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>>;

    /// Bytes of the log's entries, as [`crate::types::Entry::size_bytes`] counts them; compared
    /// with `max_raft_state`. A running count, O(1).
    fn log_bytes(&self) -> u64;
}

/// Takes the bytes of one snapshot in order.
#[async_trait]
pub trait SnapshotWriter: Send {
    /// Offset of the next byte: 0, or the end of the bytes that an interrupted transfer left.
    fn offset(&self) -> u64;

    /// Writes the next bytes.
    ///
    /// # Errors
    /// The storage is poisoned, unless a later writer has replaced this one
    /// ([`StorageError::Refused`]). The snapshot is not finished.
    async fn write(&mut self, chunk: Bytes) -> StorageResult<()>;

    /// Makes the bytes durable and ready to be published by a [`Batch`]. Fails with
    /// [`StorageError::Corrupt`], and drops the bytes, if they are not the expected ones.
    async fn finish(self: Box<Self>) -> StorageResult<SnapshotContent>;
}

/// Reads one published snapshot at any offset; every read is verified against the stored checksums.
#[async_trait]
pub trait SnapshotReader: Send {
    /// The position and the configuration of the snapshot.
    fn meta(&self) -> &SnapshotMeta;

    /// Size and checksum of all its bytes.
    fn content(&self) -> SnapshotContent;

    /// Reads at most `bytes_max` bytes from `offset`; empty at the end.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if a stored checksum does not match.
    async fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes>;
}
