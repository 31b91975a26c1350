//! A user's own backends, from the public API alone: a storage in plain files (420 lines of code)
//! and a transport over TCP (450). Both pass the contract suites of `raft_core::testing`, and three
//! servers run on them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod storage;
mod transport;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kv_service::config::ByteSize;
use kv_service::{Backends, Client, ConnectError, Connector, Server, ServerConfig, Stream};
use raft_core::testing::free_ports;
use raft_core::types::NodeId;
use storage::FileStorage;
use tempfile::TempDir;
use transport::TcpTransport;

/// Addresses on loopback for nodes 1, 2 and 3, which they keep when they restart.
fn addresses() -> BTreeMap<NodeId, SocketAddr> {
    let rows = std::iter::repeat_with(|| free_ports(3));
    let rows = rows.map(|row| row.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    // `free_ports` finds ports that are free for UDP.
    let is_free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    let mut free = rows.filter(|row| row.clone().all(|address| is_free(&address)));
    (1..).zip(free.next().unwrap()).collect()
}

/// Connects clients to the running servers of a cluster.
#[derive(Clone, Default)]
struct Doors {
    servers: Arc<Mutex<BTreeMap<NodeId, Server>>>,
    /// The nodes that a client may use.
    nodes: Vec<NodeId>,
}

#[async_trait]
impl Connector for Doors {
    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.clone()
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError> {
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

/// Three nodes, each with a directory and an address.
struct Cluster {
    root: TempDir,
    addresses: BTreeMap<NodeId, SocketAddr>,
    doors: Doors,
}

impl Cluster {
    async fn found() -> Self {
        let (root, addresses) = (TempDir::new().unwrap(), addresses());
        let doors = Doors { nodes: vec![1, 2, 3], ..Doors::default() };
        let cluster = Self { root, addresses, doors };
        for node in 1..=3 {
            FileStorage::init(&cluster.dir(node)).await.unwrap();
            cluster.start(node).await;
        }
        cluster
    }

    fn dir(&self, node: NodeId) -> PathBuf {
        self.root.path().join(format!("node-{node}"))
    }

    /// Nodes 1 and 2 soon compact their logs; node 3 never takes a snapshot of its own.
    async fn start(&self, node: NodeId) {
        let storage = Arc::new(FileStorage::open(&self.dir(node)).unwrap());
        let transport = TcpTransport::bind(node, &self.addresses).await.unwrap();
        let backends = Backends::new(storage, transport, Arc::new(self.doors.clone())).unwrap();
        let mut config = ServerConfig::in_process(node, 1..=3);
        config.max_raft_state = ByteSize(if node == 3 { 0 } else { 64 << 10 });
        let server = Server::start_on(config, backends).await.unwrap();
        self.doors.servers.lock().unwrap().insert(node, server);
    }

    async fn stop(&self, node: NodeId) {
        let server = self.doors.servers.lock().unwrap().remove(&node).unwrap();
        server.shutdown().await;
    }

    /// A client that asks these nodes only.
    fn client(&self, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        let doors = Doors { nodes: nodes.into_iter().collect(), ..self.doors.clone() };
        Client::new(Arc::new(doors), Duration::from_secs(30))
    }
}

fn key(number: usize) -> String {
    format!("key-{number}")
}

async fn put(client: &Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.put(key(number), vec![number as u8; 1_000]).await.unwrap();
    }
}

async fn expect(client: &Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let record = client.get(key(number)).await.unwrap().unwrap();
        assert_eq!(record.value, vec![number as u8; 1_000], "{}", key(number));
    }
}

/// A node that was down while the others compacted their logs comes back on its directory, gets a
/// snapshot over a bulk stream, and returns every value. So does the cluster after all nodes were
/// restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_on_the_backends_of_a_third_party() {
    let cluster = Cluster::found().await;
    let client = cluster.client(1..=3);
    put(&client, 0..20).await;
    cluster.stop(3).await;
    put(&client, 20..200).await;
    cluster.start(3).await;
    expect(&cluster.client([3]), 0..200).await;
    let status = cluster.doors.servers.lock().unwrap()[&3].node().status();
    assert!(status.snapshot_index > 0, "the snapshot came from a peer: {status:?}");

    for node in 1..=3 {
        cluster.stop(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    expect(&cluster.client(1..=3), 0..200).await;
    for node in 1..=3 {
        cluster.stop(node).await;
    }
}
