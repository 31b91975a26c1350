//! A disk in memory whose operations can be slowed down, hung and counted. An acknowledged write
//! survives.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use raft_core::checksum::crc32c;
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageError, StorageResult};
use raft_core::types::{
    Batch, Entry, HardState, Loaded, PublishSnapshot, SnapshotContent, SnapshotMeta,
};

/// Delays and failures that a test imposes on the disk; the default is none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hindrance {
    /// `persist` never returns.
    pub(crate) hangs: bool,
    pub(crate) persist: Duration,
    /// Delay of each chunk of a snapshot.
    pub(crate) write_chunk: Duration,
    pub(crate) read_chunk: Duration,
    /// The published snapshot cannot be read.
    pub(crate) bad_snapshot: bool,
}

type Snapshot = (SnapshotMeta, Bytes);

#[derive(Default)]
struct Image {
    hard_state: HardState,
    log_start: SnapshotMeta,
    entries: Vec<Entry>,
    published: Option<Snapshot>,
    finished: Option<Snapshot>,
    /// The unfinished snapshot: its number, metadata, expected content and bytes so far.
    unfinished: Option<(u64, SnapshotMeta, Option<SnapshotContent>, BytesMut)>,
    last_writer: u64,
    /// Number of the running process. A crash increments it, which ends all earlier processes.
    process: u64,
    poisoned: bool,
    hindrance: Hindrance,
    published_count: u64,
    withdrawn_count: u64,
    readers_count: u64,
}

/// The disk, which outlives the processes that use it.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Image>>);

impl Disk {
    /// The disk of a member that has made no promise yet.
    pub(crate) fn of_member() -> Self {
        let disk = Self::default();
        disk.image().hard_state = HardState::INITIAL;
        disk
    }

    /// The disk of a member of a new cluster, as the operator initialises it.
    pub(crate) fn of_new_member() -> Self {
        let disk = Self::default();
        disk.image().hard_state = HardState::FOUNDING;
        disk
    }

    /// Opens the disk for a new process, which ends all earlier ones.
    pub(crate) fn open(&self) -> Arc<Store> {
        self.crash();
        let process = self.image().process;
        Arc::new(Store { disk: self.clone(), process })
    }

    pub(crate) fn crash(&self) {
        let mut image = self.image();
        image.process += 1;
        image.poisoned = false;
        image.finished = None;
    }

    pub(crate) fn hinder(&self, change: impl FnOnce(&mut Hindrance)) {
        change(&mut self.image().hindrance);
    }

    pub(crate) fn published(&self) -> Option<SnapshotMeta> {
        self.image().published.as_ref().map(|(meta, _)| meta.clone())
    }

    /// Numbers of publications and of withdrawals so far.
    pub(crate) fn publications(&self) -> (u64, u64) {
        let image = self.image();
        (image.published_count, image.withdrawn_count)
    }

    pub(crate) fn readers_count(&self) -> u64 {
        self.image().readers_count
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.0.lock().expect("no panic under the lock")
    }
}

impl Image {
    fn last_index(&self) -> u64 {
        self.log_start.index() + self.entries.len() as u64
    }

    fn persist(&mut self, batch: Batch) -> StorageResult<()> {
        let Batch { publish, withdraw_snapshot, truncate_from, entries, hard_state } = batch;
        assert!(publish.is_none() || !withdraw_snapshot, "one or the other");
        if withdraw_snapshot && self.published.take().is_some() {
            self.withdrawn_count += 1;
        }
        if let Some(PublishSnapshot { meta, replaces_log }) = publish {
            let finished = self.finished.take().filter(|(finished, _)| *finished == meta);
            let Some(finished) = finished else {
                self.poisoned = true;
                return Err(StorageError::Refused("no such snapshot is finished".into()));
            };
            self.published = Some(finished);
            self.published_count += 1;
            if replaces_log {
                self.entries.clear();
                self.log_start = meta;
            }
        }
        if let Some(from) = truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        for entry in entries {
            assert_eq!(entry.index, self.last_index() + 1, "the log has no gaps");
            self.entries.push(entry);
        }
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        Ok(())
    }

    fn writer(&mut self, number: u64) -> StorageResult<&mut BytesMut> {
        match &mut self.unfinished {
            Some((of, _, _, bytes)) if *of == number => Ok(bytes),
            _ => Err(StorageError::Refused("another snapshot was begun".into())),
        }
    }
}

/// One process's view of a [`Disk`].
pub(crate) struct Store {
    disk: Disk,
    process: u64,
}

impl Store {
    fn image(&self) -> StorageResult<MutexGuard<'_, Image>> {
        let image = self.disk.image();
        if image.process != self.process || image.poisoned {
            return Err(StorageError::Poisoned("the process has ended or failed".into()));
        }
        Ok(image)
    }

    fn hindrance(&self) -> Hindrance {
        self.disk.image().hindrance.clone()
    }
}

async fn wait(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

#[async_trait]
impl Storage for Store {
    async fn load(&self) -> StorageResult<Loaded> {
        let image = self.image()?;
        Ok(Loaded {
            hard_state: image.hard_state,
            log_start: image.log_start.clone(),
            snapshot: image.published.as_ref().map(|(meta, _)| meta.clone()),
            entries: image.entries.clone(),
        })
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        let hindrance = self.hindrance();
        if hindrance.hangs {
            std::future::pending::<()>().await;
        }
        wait(hindrance.persist).await;
        self.image()?.persist(batch)
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        let mut image = self.image()?;
        let is_first = image.log_start == SnapshotMeta::default();
        let founds = is_first && through.index() == 0 && image.last_index() == 0;
        if through.index() > image.log_start.index() || founds {
            image.entries.retain(|entry| entry.index > through.index());
            image.log_start = through;
        }
        Ok(())
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        let mut image = self.image()?;
        image.last_writer += 1;
        let number = image.last_writer;
        let resumed = image.unfinished.take().filter(|(_, of, content, _)| {
            expected.is_some() && (of, content) == (&meta, &expected)
        });
        let bytes = resumed.map_or_else(BytesMut::new, |(.., bytes)| bytes);
        let offset = bytes.len() as u64;
        image.unfinished = Some((number, meta, expected, bytes));
        let store = Self { disk: self.disk.clone(), process: self.process };
        Ok(Box::new(Writer { store, number, offset }))
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        let mut image = self.image()?;
        image.readers_count += 1;
        let Some((meta, bytes)) = image.published.clone() else { return Ok(None) };
        if image.hindrance.bad_snapshot {
            return Err(StorageError::Corrupt("as the test wants it".into()));
        }
        Ok(Some(Box::new(Reader { disk: self.disk.clone(), meta, bytes })))
    }

    fn log_bytes(&self) -> u64 {
        self.disk.image().entries.iter().map(Entry::size_bytes).sum()
    }
}

struct Writer {
    store: Store,
    number: u64,
    offset: u64,
}

#[async_trait]
impl SnapshotWriter for Writer {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, chunk: Bytes) -> StorageResult<()> {
        wait(self.store.hindrance().write_chunk).await;
        self.store.image()?.writer(self.number)?.extend_from_slice(&chunk);
        self.offset += chunk.len() as u64;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> StorageResult<SnapshotContent> {
        let mut image = self.store.image()?;
        image.writer(self.number)?;
        let (_, meta, expected, bytes) = image.unfinished.take().expect("just seen");
        let content = SnapshotContent { size_bytes: bytes.len() as u64, checksum: crc32c(&bytes) };
        if expected.is_some_and(|expected| expected != content) {
            return Err(StorageError::Corrupt("the snapshot is not what was announced".into()));
        }
        image.finished = Some((meta, bytes.freeze()));
        Ok(content)
    }
}

struct Reader {
    disk: Disk,
    meta: SnapshotMeta,
    bytes: Bytes,
}

#[async_trait]
impl SnapshotReader for Reader {
    fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn content(&self) -> SnapshotContent {
        SnapshotContent { size_bytes: self.bytes.len() as u64, checksum: crc32c(&self.bytes) }
    }

    async fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        let delay = self.disk.image().hindrance.read_chunk;
        wait(delay).await;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(bytes_max).min(self.bytes.len());
        Ok(self.bytes.slice(start..end))
    }
}

#[async_trait]
impl raft_core::testing::storage::Disk for Disk {
    async fn open(&self) -> StorageResult<Arc<dyn Storage>> {
        Ok(Disk::open(self))
    }

    async fn crash(&self) {
        Disk::crash(self);
    }
}

/// The tests of this crate rely on a disk that keeps the storage contract.
#[tokio::test(start_paused = true)]
async fn the_disk_of_these_tests_keeps_the_contract() {
    raft_core::testing::storage::all(Disk::default).await;
}
