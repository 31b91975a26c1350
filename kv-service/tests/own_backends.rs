//! A server on backends that the caller supplies.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use kv_service::protocol::{Greeting, push_frame};
use kv_service::{
    Backends, Client, ConnectError, Connector, Expect, Outcome, Server, ServerConfig, ServerError,
    Stream,
};
use raft_core::transport::channel::ChannelNetwork;
use raft_storage::memory::MemoryDisk;
use tokio::io::AsyncWriteExt;

/// Connects to no other node: the only node is reached in process.
struct Alone;

#[async_trait]
impl Connector for Alone {
    fn nodes(&self) -> Vec<u64> {
        vec![1]
    }

    async fn connect(&self, _: u64) -> Result<Stream, ConnectError> {
        Err(ConnectError::UnknownNode)
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

/// Three nodes of one process, each with the newest cluster version that its program supports.
#[derive(Clone)]
struct Doors {
    network: ChannelNetwork,
    servers: Arc<Mutex<BTreeMap<u64, Server>>>,
}

#[async_trait]
impl Connector for Doors {
    fn nodes(&self) -> Vec<u64> {
        vec![1, 2, 3]
    }

    async fn connect(&self, node: u64) -> Result<Stream, ConnectError> {
        let servers = self.servers.lock().unwrap();
        let server = servers.get(&node).ok_or(ConnectError::NotRunning)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(theirs);
        server.serve(Stream::new(reader, writer, ()));
        let (reader, writer) = tokio::io::split(ours);
        Ok(Stream::new(reader, writer, ()))
    }

    async fn close(&self) {}
}

impl Doors {
    async fn start(&self, id: u64, disk: &MemoryDisk, newest: u32) -> Result<(), ServerError> {
        let (storage, connector) = (Arc::new(disk.storage()), Arc::new(self.clone()));
        let mut backends = Backends::new(storage, self.network.transport(id), connector).unwrap();
        backends.versions.1 = newest;
        let mut config = ServerConfig::in_process(id, 1..=3);
        config.upgrade_delay = Duration::from_secs(60);
        let server = Server::start_on(config, backends).await?;
        self.servers.lock().unwrap().insert(id, server);
        Ok(())
    }

    async fn stop(&self, id: u64) {
        let server = self.servers.lock().unwrap().remove(&id).unwrap();
        server.shutdown().await;
    }

    fn versions(&self) -> Vec<u32> {
        let servers = self.servers.lock().unwrap();
        servers.values().map(|server| server.status().versions.in_force).collect()
    }
}

/// S15. Nodes get the newer program one by one, and one of them goes back. While one is old,
/// nothing of the newer version is proposed; after the delay the version comes into force by
/// itself, and the older program refuses to start.
#[tokio::test(start_paused = true)]
async fn a_cluster_is_upgraded_node_by_node() {
    let doors = Doors { network: ChannelNetwork::new(1), servers: Arc::default() };
    let disks: BTreeMap<u64, MemoryDisk> =
        (1..=3).map(|id| (id, MemoryDisk::of_new_member())).collect();
    for (id, disk) in &disks {
        doors.start(*id, disk, 1).await.unwrap();
    }
    let client = Client::new(Arc::new(doors.clone()), Duration::from_secs(30));
    let revision = client.put("k", "v").await.unwrap().revision;
    let swap = |value: &'static str, revision| {
        let client = client.clone();
        async move { client.compare_and_swap("k", Expect::Revision(revision), value).await }
    };
    for (id, newest) in [(1, 2), (2, 2), (2, 1), (2, 2)] {
        doors.stop(id).await;
        doors.start(id, &disks[&id], newest).await.unwrap();
        let refused = swap("w", revision).await.unwrap_err();
        assert_eq!(refused.outcome, Outcome::NotExecuted, "{refused}");
        assert!(refused.to_string().contains("kv upgrade status"), "{refused}");
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(doors.versions().iter().all(|version| *version <= 1), "{:?}", doors.versions());
    }
    doors.stop(3).await;
    doors.start(3, &disks[&3], 2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(swap("w", revision).await.is_err(), "it can still go back");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(doors.versions(), [2, 2, 2]);
    assert!(swap("w", revision).await.unwrap().changed);
    doors.stop(1).await;
    let refused = doors.start(1, &disks[&1], 1).await.unwrap_err().to_string();
    assert!(refused.contains("install a newer program"), "{refused}");
    doors.start(1, &disks[&1], 2).await.unwrap();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "w");
}

/// The public constructor, with its defaults, through a restart.
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

/// S21. A node with little room refuses writes and says why; reads and deletes go on, and make
/// room.
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

/// S11. The network is told of each stream that the node ends for a fault of the client, and of no
/// other.
#[tokio::test(start_paused = true)]
async fn a_client_at_fault_is_slowed_down() {
    let disk = MemoryDisk::of_new_member();
    let server = start(&disk, &Arc::default()).await;
    let mut greeting = BytesMut::new();
    push_frame(&mut greeting, &Greeting::new("by hand".to_owned()));
    let half = [&greeting[..], &100u32.to_be_bytes(), b"half"].concat();
    let nonsense = [&greeting[..], &5u32.to_be_bytes(), b"hello"].concat();
    let no_greeting = &greeting[..greeting.len() - 1];
    for (what, said, leaves, is_fault) in [
        ("greets and leaves", &greeting[..], true, false),
        ("leaves before it has greeted", no_greeting, true, false),
        ("does not greet", no_greeting, false, true),
        ("stops within a request", &half, false, true),
        ("says nonsense", &nonsense, false, true),
    ] {
        let (mut ours, theirs) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(theirs);
        let (told, is_told) = tokio::sync::oneshot::channel();
        let mut stream = Stream::new(reader, writer, ());
        stream.slow_down_source = Some(Box::new(move || told.send(()).expect("told once")));
        server.serve(stream);
        ours.write_all(said).await.unwrap();
        if leaves {
            drop(ours);
        }
        // The sender is dropped when the stream ends otherwise.
        let minute = Duration::from_secs(60);
        let told = tokio::time::timeout(minute, is_told).await.expect("the stream ends");
        assert_eq!(told.is_ok(), is_fault, "a client that {what}");
    }
    server.shutdown().await;
}
