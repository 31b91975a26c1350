//! Handles for the caller: a writer and a reader whose work is done on the snapshots' thread.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use raft_core::storage::{SnapshotReader, SnapshotWriter, StorageResult};
use raft_core::types::{SnapshotContent, SnapshotMeta};

use super::super::worker::Worker;
use super::published::OpenSnapshot;
use super::store::Store;

pub(crate) async fn open_writer(
    worker: &Arc<Worker<Store>>,
    meta: SnapshotMeta,
    expected: Option<SnapshotContent>,
) -> StorageResult<FileSnapshotWriter> {
    let (serial, offset) = worker.run(move |store| store.begin(meta, expected)).await?;
    Ok(FileSnapshotWriter { worker: Arc::clone(worker), serial, offset })
}

pub(crate) async fn open_reader(
    worker: &Arc<Worker<Store>>,
) -> StorageResult<Option<FileSnapshotReader>> {
    let opened = worker.run(|store| store.open_published()).await?;
    Ok(opened.map(|snapshot| FileSnapshotReader {
        worker: Arc::clone(worker),
        meta: snapshot.meta.clone(),
        content: snapshot.content,
        snapshot: Arc::new(Mutex::new(snapshot)),
    }))
}

pub(crate) struct FileSnapshotWriter {
    worker: Arc<Worker<Store>>,
    serial: u64,
    offset: u64,
}

#[async_trait]
impl SnapshotWriter for FileSnapshotWriter {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, chunk: Bytes) -> StorageResult<()> {
        let serial = self.serial;
        self.offset = self.worker.run(move |store| store.write(serial, &chunk)).await?;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> StorageResult<SnapshotContent> {
        let serial = self.serial;
        self.worker.run(move |store| store.finish(serial)).await
    }
}

pub(crate) struct FileSnapshotReader {
    worker: Arc<Worker<Store>>,
    meta: SnapshotMeta,
    content: SnapshotContent,
    /// Locked on the snapshots' thread only, one job at a time.
    snapshot: Arc<Mutex<OpenSnapshot>>,
}

#[async_trait]
impl SnapshotReader for FileSnapshotReader {
    fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn content(&self) -> SnapshotContent {
        self.content
    }

    async fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        let snapshot = Arc::clone(&self.snapshot);
        self.worker
            .run(move |_| {
                let mut snapshot = snapshot.lock().unwrap_or_else(PoisonError::into_inner);
                snapshot.read(offset, bytes_max)
            })
            .await
    }
}
