//! Writer and reader of the snapshots in memory.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use raft_core::storage::{SnapshotReader, SnapshotWriter, StorageResult};
use raft_core::types::{SnapshotContent, SnapshotMeta};

use super::disk::{MemoryDisk, Operation};
use super::image::Snapshot;
use crate::step::Step;

pub(super) struct MemorySnapshotWriter {
    pub(super) disk: MemoryDisk,
    pub(super) process: u64,
    /// Id of the unfinished snapshot.
    pub(super) id: u64,
    pub(super) offset: u64,
}

#[async_trait]
impl SnapshotWriter for MemorySnapshotWriter {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, chunk: Bytes) -> StorageResult<()> {
        let operation = Operation::SnapshotWrite;
        self.disk.begin(self.process, operation).await?;
        let id = self.id;
        // A copy: the chunk may be a slice of something large.
        let piece = Bytes::copy_from_slice(&chunk);
        self.offset =
            self.disk.with_image(self.process, |image| image.write_snapshot(id, piece))?;
        self.disk.pass(self.process, Step::SnapshotWritten)?;
        self.disk.end(self.process, operation).await
    }

    async fn finish(self: Box<Self>) -> StorageResult<SnapshotContent> {
        let operation = Operation::SnapshotFinish;
        self.disk.begin(self.process, operation).await?;
        self.disk.pass(self.process, Step::SnapshotSynced)?;
        let content = self.disk.with_image(self.process, |image| image.finish_snapshot(self.id))?;
        self.disk.pass(self.process, Step::SnapshotRenamed)?;
        self.disk.end(self.process, operation).await?;
        Ok(content)
    }
}

pub(super) struct MemorySnapshotReader {
    pub(super) disk: MemoryDisk,
    pub(super) process: u64,
    pub(super) snapshot: Arc<Snapshot>,
}

#[async_trait]
impl SnapshotReader for MemorySnapshotReader {
    fn meta(&self) -> &SnapshotMeta {
        &self.snapshot.meta
    }

    fn content(&self) -> SnapshotContent {
        self.snapshot.content
    }

    async fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        self.disk.begin(self.process, Operation::SnapshotRead).await?;
        self.disk.end(self.process, Operation::SnapshotRead).await?;
        Ok(self.snapshot.pieces.read(offset, bytes_max))
    }
}
