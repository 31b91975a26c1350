//! A cluster on a storage and a network of its own, for an application that keeps the log elsewhere
//! or has connections already.
//!
//! The storage here counts the batches that it is asked to write and passes them on; the network
//! passes streams on within the process. Real ones implement the same traits, and prove them with
//! the suites of `raft_core::testing`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use kv_service::{Backends, Client, ConnectError, Connector, Server, ServerConfig, Stream};
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageResult};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::{Batch, Loaded, NodeId, SnapshotContent, SnapshotMeta};
use raft_storage::memory::MemoryDisk;

/// Counts writes, and passes everything on.
struct CountingStorage<S> {
    inner: S,
    persist_count: Arc<AtomicUsize>,
}

#[async_trait]
impl<S: Storage> Storage for CountingStorage<S> {
    async fn load(&self) -> StorageResult<Loaded> {
        self.inner.load().await
    }

    async fn persist(&self, batch: Batch) -> StorageResult<()> {
        self.persist_count.fetch_add(1, Ordering::Relaxed);
        self.inner.persist(batch).await
    }

    async fn compact(&self, through: SnapshotMeta) -> StorageResult<()> {
        self.inner.compact(through).await
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        self.inner.snapshot_writer(meta, expected).await
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        self.inner.snapshot_reader().await
    }

    fn log_bytes(&self) -> u64 {
        self.inner.log_bytes()
    }
}

/// Connects clients to the servers of this process.
#[derive(Clone, Default)]
struct Doors(Arc<Mutex<BTreeMap<NodeId, Server>>>);

impl Doors {
    fn insert(&self, id: NodeId, server: Server) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, server);
    }
}

#[async_trait]
impl Connector for Doors {
    fn nodes(&self) -> Vec<NodeId> {
        vec![1, 2, 3]
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError> {
        let servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let server = servers.get(&node).ok_or(ConnectError::NotRunning)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(theirs);
        server.serve(Stream::new(reader, writer, ()));
        let (reader, writer) = tokio::io::split(ours);
        Ok(Stream::new(reader, writer, ()))
    }

    async fn close(&self) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let network = ChannelNetwork::new(1);
    let doors = Doors::default();
    let persist_count = Arc::new(AtomicUsize::new(0));
    let mut servers = Vec::new();
    for id in 1..=3 {
        // A storage that is made for a new member says so; on an empty one a node waits for a
        // leader that gives it all data.
        let inner = MemoryDisk::of_new_member().storage();
        let storage = CountingStorage { inner, persist_count: Arc::clone(&persist_count) };
        let connector = Arc::new(doors.clone());
        let backends = Backends::new(Arc::new(storage), network.transport(id), connector)?;
        let server = Server::start_on(ServerConfig::in_process(id, 1..=3), backends).await?;
        doors.insert(id, server.clone());
        servers.push(server);
    }

    let store = Client::new(Arc::new(doors), kv_service::config::default_deadline());
    store.put("greeting", "hello").await?;
    let record = store.get("greeting").await?.ok_or("just put")?;
    println!("{}", String::from_utf8_lossy(&record.value));
    let persist_count = persist_count.load(Ordering::Relaxed);
    println!("{persist_count} batches were persisted");
    assert!(persist_count >= 3, "each node writes at least once");

    for server in servers {
        server.shutdown().await;
    }
    Ok(())
}
