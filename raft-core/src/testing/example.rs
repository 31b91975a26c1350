//! The smallest storage and state machine with which a node runs, for examples: both live in
//! memory, and forget everything with the process. They are toys: `raft-storage` has a storage in
//! memory that passes [`crate::testing::storage`] and can be made to fail.

use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::checksum::crc32c;
use crate::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
use crate::storage::{SnapshotReader, SnapshotWriter, Storage, StorageError, StorageResult};
use crate::types::{
    Batch, Entry, HardState, Loaded, Payload, Position, SnapshotContent, SnapshotMeta,
};

type Snapshot = (SnapshotMeta, Bytes);

/// Log, hard state and snapshot of one node, in memory.
#[derive(Clone, Debug)]
pub struct MemoryStorage(Arc<Mutex<MemoryImage>>);

#[derive(Debug)]
struct MemoryImage {
    loaded: Loaded,
    published: Option<Snapshot>,
    finished: Option<Snapshot>,
}

impl MemoryStorage {
    /// Storage of a member of a new cluster, as the operator initialises it.
    pub fn of_new_member() -> Self {
        Self::of(HardState::FOUNDING)
    }

    /// Empty storage of a node that joins a cluster.
    pub fn of_joiner() -> Self {
        Self::of(HardState::default())
    }

    fn of(hard_state: HardState) -> Self {
        let (log_start, snapshot, entries) = Default::default();
        let loaded = Loaded { hard_state, log_start, snapshot, entries };
        Self(Arc::new(Mutex::new(MemoryImage { loaded, published: None, finished: None })))
    }

    fn image(&self) -> MutexGuard<'_, MemoryImage> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn load(&self) -> StorageResult<Loaded> {
        let image = self.image();
        let snapshot = image.published.as_ref().map(|(meta, _)| meta.clone());
        Ok(Loaded { snapshot, ..image.loaded.clone() })
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        let mut image = self.image();
        let Batch { publish, withdraw_snapshot, truncate_from, entries, hard_state } = batch;
        if withdraw_snapshot {
            image.published = None;
        }
        if let Some(publish) = publish {
            image.published = image.finished.take().filter(|(meta, _)| *meta == publish.meta);
            assert!(image.published.is_some(), "a snapshot is finished before it is published");
            if publish.replaces_log {
                image.loaded.entries.clear();
                image.loaded.log_start = publish.meta;
            }
        }
        if let Some(from) = truncate_from {
            image.loaded.entries.retain(|entry| entry.index < from);
        }
        image.loaded.entries.extend(entries);
        image.loaded.hard_state = hard_state.unwrap_or(image.loaded.hard_state);
        Ok(())
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        let loaded = &mut self.image().loaded;
        let start_index = loaded.log_start.index();
        // An empty log takes the configuration with which its cluster is founded.
        let founds = through.index() == 0 && start_index == 0 && loaded.entries.is_empty();
        if through.index() > start_index || founds {
            loaded.entries.retain(|entry| entry.index > through.index());
            loaded.log_start = through;
        }
        Ok(())
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        let (storage, bytes) = (self.clone(), BytesMut::new());
        Ok(Box::new(MemoryWriter { storage, meta, expected, bytes }))
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        let published = self.image().published.clone();
        Ok(published.map(|snapshot| Box::new(MemoryReader(snapshot)) as Box<dyn SnapshotReader>))
    }

    fn log_bytes(&self) -> u64 {
        self.image().loaded.entries.iter().map(Entry::size_bytes).sum()
    }
}

fn content_of(bytes: &[u8]) -> SnapshotContent {
    SnapshotContent { size_bytes: bytes.len() as u64, checksum: crc32c(bytes) }
}

struct MemoryWriter {
    storage: MemoryStorage,
    meta: SnapshotMeta,
    expected: Option<SnapshotContent>,
    bytes: BytesMut,
}

#[async_trait]
impl SnapshotWriter for MemoryWriter {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn write(&mut self, chunk: Bytes) -> StorageResult<()> {
        self.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> StorageResult<SnapshotContent> {
        let content = content_of(&self.bytes);
        if self.expected.is_some_and(|expected| expected != content) {
            return Err(StorageError::Corrupt("the snapshot is not what was announced".into()));
        }
        self.storage.image().finished = Some((self.meta, self.bytes.freeze()));
        Ok(content)
    }
}

struct MemoryReader(Snapshot);

#[async_trait]
impl SnapshotReader for MemoryReader {
    fn meta(&self) -> &SnapshotMeta {
        &self.0.0
    }

    fn content(&self) -> SnapshotContent {
        content_of(&self.0.1)
    }

    async fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        let bytes = &self.0.1;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(bytes_max).min(bytes.len());
        Ok(bytes.slice(start..end))
    }
}

/// A state machine that adds up the lengths of its commands.
#[derive(Debug, Default)]
pub struct Adder {
    position: Position,
    sum: u64,
    restoring: BytesMut,
}

impl StateMachine for Adder {
    /// The sum after the command.
    type Output = u64;
    type Query = ();
    /// The sum of the lengths.
    type Answer = u64;

    fn last_applied(&self) -> Position {
        self.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
        for entry in entries {
            self.position = entry.position();
            if let Payload::Command(command) = &entry.payload {
                self.sum += command.len() as u64;
                outputs.push(self.sum);
            }
        }
        Ok(())
    }

    fn query(&mut self, (): ()) -> u64 {
        self.sum
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        let bytes = Bytes::copy_from_slice(&self.sum.to_be_bytes());
        Ok(Box::new(AdderView { position: self.position, bytes: Some(bytes) }))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.position = meta.position;
        self.restoring.clear();
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        self.restoring.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        let bytes = self.restoring[..].try_into();
        let bytes = bytes.map_err(|_| MachineError("the snapshot is not a number".into()))?;
        self.sum = u64::from_be_bytes(bytes);
        Ok(())
    }
}

struct AdderView {
    position: Position,
    bytes: Option<Bytes>,
}

impl SnapshotSource for AdderView {
    fn position(&self) -> Position {
        self.position
    }

    fn next_chunk(&mut self, _bytes_max: usize) -> MachineResult<Option<Bytes>> {
        Ok(self.bytes.take())
    }
}
