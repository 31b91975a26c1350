//! A replicated state machine in thirty lines, first on memory and channels within this process,
//! then on RocksDB and QUIC, restarted once.
//!
//! ```text
//! cargo run -p kv-service --features memory --example counter
//! ```
//!
//! An application runs one node in each process, and sends a command that its node rejects with
//! `NotLeader` to the process that leads. This example runs all three nodes itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_service::net::tls::DevCa;
use raft_core::driver::NodeConfig;
use raft_core::error::{ProposeError, Rejected};
use raft_core::replicated::{Replicated, ReplicatedState};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;
use raft_storage::DataDir;
use raft_storage::memory::MemoryDisk;
use raft_storage::rocksdb::{RocksOptions, RocksStorage};
use raft_transport_quic::{QuicConfig, QuicTransport};
use serde::{Deserialize, Serialize};

// The state machine: 27 lines.

#[derive(Clone, Default, Serialize, Deserialize)]
struct Counters {
    totals: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct Add {
    name: String,
    number: u64,
}

impl ReplicatedState for Counters {
    type Command = Add;
    type Output = u64;
    type Query = String;
    type Answer = u64;

    fn apply(&mut self, Add { name, number }: Add) -> u64 {
        let total = self.totals.entry(name).or_default();
        *total = total.saturating_add(number);
        *total
    }

    fn query(&self, name: String) -> u64 {
        self.totals.get(&name).copied().unwrap_or(0)
    }
}

// The rest runs it.

type Nodes = Vec<Replicated<Counters>>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CLUSTER: &str = "counter";
const IDS: std::ops::RangeInclusive<NodeId> = 1..=3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let nodes = start_in_memory().await?;
    println!("in memory: apples = {}", count_apples(&nodes).await?);
    stop(nodes).await;

    let dir = tempfile::tempdir()?;
    let ca = DevCa::create(CLUSTER)?;
    let nodes = start_durable(dir.path(), &ca, true).await?;
    println!("on RocksDB and QUIC: apples = {}", count_apples(&nodes).await?);
    stop(nodes).await;

    let nodes = start_durable(dir.path(), &ca, false).await?;
    nodes[2].leader().await.ok_or("the node has stopped")?;
    let apples = nodes[2].query("apples".into()).await?;
    println!("after a restart: apples = {apples}");
    assert_eq!(apples, 5);
    stop(nodes).await;
    Ok(())
}

async fn start_in_memory() -> Result<Nodes> {
    let network = ChannelNetwork::new(1);
    let mut nodes = Nodes::new();
    for id in IDS {
        let config = NodeConfig::new(id, IDS, rand::random());
        let storage = Arc::new(MemoryDisk::of_new_member().storage());
        nodes.push(Replicated::start(config, storage, network.transport(id)).await?);
    }
    Ok(nodes)
}

/// `is_new`: makes the directories. An application does so once, when an operator decides so, and
/// never because a directory is missing.
async fn start_durable(dir: &Path, ca: &DevCa, is_new: bool) -> Result<Nodes> {
    let address = |id: NodeId| SocketAddr::from(([127, 0, 0, 1], 17_600 + id as u16));
    let mut nodes = Nodes::new();
    for id in IDS {
        let path = dir.join(id.to_string());
        let dir = Arc::new(match is_new {
            true => DataDir::initialise(path, CLUSTER, id)?,
            false => DataDir::open(path, CLUSTER, id)?,
        });
        let storage = Arc::new(RocksStorage::open(Arc::clone(&dir), RocksOptions::default())?);
        let peers = IDS.filter(|peer| *peer != id).map(|peer| (peer, address(peer).to_string()));
        let (incarnation, reset_key) = (dir.incarnation(), *dir.reset_key());
        let tls = ca.issue_node(id)?;
        let peers = peers.collect();
        let quic = QuicConfig::new(CLUSTER, id, incarnation, address(id), peers, tls, reset_key);
        let transport = QuicTransport::bind(quic).await?;
        let mut config = NodeConfig::new(id, IDS, rand::random());
        config.raft.incarnation = incarnation;
        nodes.push(Replicated::start(config, storage, transport).await?);
    }
    Ok(nodes)
}

/// Adds 2 and 3, then reads the sum at a node that need not lead.
async fn count_apples(nodes: &Nodes) -> Result<u64> {
    assert_eq!(add(nodes, "apples", 2).await?, 2);
    assert_eq!(add(nodes, "apples", 3).await?, 5);
    Ok(nodes[2].query("apples".into()).await?)
}

/// Executes through the leader. Tries again only after a rejection, which means *not executed*.
async fn add(nodes: &Nodes, name: &str, number: u64) -> Result<u64> {
    loop {
        let leader = nodes[0].leader().await.ok_or("the node has stopped")?;
        let command = Add { name: name.to_owned(), number };
        match nodes[leader as usize - 1].execute(command).await {
            Err(ProposeError::Rejected(Rejected::NotLeader { .. } | Rejected::Busy(_))) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            outcome => return Ok(outcome?),
        }
    }
}

async fn stop(nodes: Nodes) {
    for node in nodes {
        node.shutdown().await;
    }
}
