//! A server on backends that the caller supplies.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kv_service::config::ServerConfig;
use kv_service::stream::{Connector, Stream};
use kv_service::wiring::Backends;
use kv_service::{Outcome, Server};
use raft_core::transport::channel::ChannelNetwork;
use raft_storage::memory::MemoryDisk;

/// The only node is reached through its own door.
struct Alone;

#[async_trait]
impl Connector for Alone {
    fn nodes(&self) -> Vec<u64> {
        vec![1]
    }

    async fn connect(&self, _: u64) -> Result<Stream, String> {
        Err("no other node".to_owned())
    }

    async fn close(&self) {}
}

async fn start(disk: &MemoryDisk, is_low: &Arc<AtomicBool>) -> Server {
    let transport = ChannelNetwork::new(1).transport(1);
    let mut backends = Backends::new(Arc::new(disk.storage()), transport, Arc::new(Alone)).unwrap();
    let is_low = Arc::clone(is_low);
    backends.is_low = Some(Arc::new(move || is_low.load(Ordering::Relaxed)));
    Server::start_on(ServerConfig::in_process(1, 1..=1), backends).await.unwrap()
}

/// The public constructor, as it is, through a restart.
#[tokio::test]
async fn a_node_on_a_storage_and_a_transport_of_the_caller() {
    let (disk, is_low) = (MemoryDisk::of_new_member(), Arc::default());
    let server = start(&disk, &is_low).await;
    server.client().put("k", "v").await.unwrap();
    server.shutdown().await;
    let server = start(&disk, &is_low).await;
    assert_eq!(server.client().get("k").await.unwrap().unwrap().value, "v");
    server.shutdown().await;
}

/// S21. A node with little room refuses writes and says why; reads and deletes go on, and make room.
#[tokio::test]
async fn a_node_with_little_room_takes_deletes_and_reads_only() {
    let (disk, is_low) = (MemoryDisk::of_new_member(), Arc::<AtomicBool>::default());
    let server = start(&disk, &is_low).await;
    let client = server.client().with_deadline(Duration::from_secs(10));
    for key in ["a", "b"] {
        client.put(key, "v").await.unwrap();
    }
    is_low.store(true, Ordering::Relaxed);
    let patient = tokio::time::Instant::now() + Duration::from_secs(30);
    let refused = loop {
        match client.with_deadline(Duration::from_millis(200)).put("c", "w").await {
            Err(error) => break error,
            Ok(_) => assert!(tokio::time::Instant::now() < patient, "the node never looks"),
        }
    };
    assert_eq!(refused.outcome, Outcome::NotExecuted, "{refused}");
    assert!(refused.to_string().contains("nearly full"), "{refused}");
    assert_eq!(client.get("a").await.unwrap().unwrap().value, "v");
    assert!(client.delete("b").await.unwrap().changed);
    is_low.store(false, Ordering::Relaxed);
    client.put("c", "w").await.unwrap();
    server.shutdown().await;
}
