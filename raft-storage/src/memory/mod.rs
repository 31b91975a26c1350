//! The reference backend: a disk in memory that can be made to fail, to be slow, and to lose power.
//!
//! A [`MemoryDisk`] survives crashes; a [`MemoryStorage`] is a process that uses it. A restart is a
//! new storage of the same disk, and a crash is [`MemoryDisk::crash`]: writes that were not synced
//! are gone, and every older storage is dead. There are no threads and no clock but tokio's, so a
//! run on a paused single-threaded runtime is deterministic.
//!
//! It keeps values, not bytes, so there is nothing to corrupt: damage is tested with the backends
//! that have a format.

mod disk;
mod image;
mod log;
mod pieces;
mod snapshot;

use async_trait::async_trait;
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageResult};
use raft_core::types::{Batch, Loaded, SnapshotContent, SnapshotMeta};

pub use self::disk::{Latency, MemoryDisk, Operation};

use crate::step::Step;

/// One process's view of a [`MemoryDisk`]. Clones are the same process.
#[derive(Clone, Debug)]
pub struct MemoryStorage {
    disk: MemoryDisk,
    /// Number of this process; a crash ends all earlier ones.
    process: u64,
}

#[async_trait]
impl Storage for MemoryStorage {
    async fn load(&self) -> StorageResult<Loaded> {
        self.disk.begin(self.process, Operation::Load).await?;
        self.disk.with_image(self.process, |image| Ok(image.load()))
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        let publishes = batch.publish.is_some();
        self.disk.begin(self.process, Operation::Persist).await?;
        self.disk.pass(self.process, Step::PersistBefore)?;
        if publishes {
            self.disk.pass(self.process, Step::PublishBefore)?;
        }
        self.disk.with_image(self.process, |image| image.persist(batch))?;
        self.disk.pass(self.process, Step::PersistAfter)?;
        if publishes {
            self.disk.pass(self.process, Step::PublishAfter)?;
        }
        self.disk.end(self.process, Operation::Persist).await
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        self.disk.begin(self.process, Operation::Compact).await?;
        self.disk.pass(self.process, Step::CompactBefore)?;
        self.disk.with_image(self.process, |image| {
            image.compact(through);
            Ok(())
        })?;
        self.disk.pass(self.process, Step::CompactAfter)?;
        self.disk.end(self.process, Operation::Compact).await
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        let begun =
            self.disk.with_image(self.process, |image| Ok(image.begin_snapshot(meta, expected)))?;
        self.disk.pass(self.process, Step::SnapshotCreated)?;
        let disk = self.disk.clone();
        Ok(Box::new(snapshot::MemorySnapshotWriter {
            disk,
            process: self.process,
            id: begun.0,
            offset: begun.1,
        }))
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        let published =
            self.disk.with_image(self.process, |image| Ok(image.published_snapshot()))?;
        Ok(published.map(|snapshot| {
            let disk = self.disk.clone();
            Box::new(snapshot::MemorySnapshotReader { disk, process: self.process, snapshot })
                as Box<dyn SnapshotReader>
        }))
    }

    fn log_bytes(&self) -> u64 {
        self.disk.log_bytes()
    }
}
