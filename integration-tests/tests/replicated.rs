//! `raft_core::replicated` on whole nodes: crashes and a snapshot on disks in memory, a restart on
//! RocksDB, and an upgrade from one version of the program to the next.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use raft_core::driver::{NodeConfig, Status};
use raft_core::error::{Fatal, ProposeError, Rejected};
use raft_core::replicated::{Replicated, ReplicatedState};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;
use raft_storage::DataDir;
use raft_storage::memory::MemoryDisk;
use raft_storage::rocksdb::{RocksOptions, RocksStorage};
use serde::{Deserialize, Serialize};

const IDS: RangeInclusive<NodeId> = 1..=3;

/// The longest wait, in virtual time, for a thread that takes real time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Keeps every text that was appended.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Book {
    lines: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Append(String);

impl ReplicatedState for Book {
    type Command = Append;
    type Output = usize;
    type Query = ();
    type Answer = Vec<String>;

    fn apply(&mut self, Append(line): Append) -> usize {
        self.lines.push(line);
        self.lines.len()
    }

    fn query(&self, (): ()) -> Vec<String> {
        self.lines.clone()
    }
}

type Nodes<S> = BTreeMap<NodeId, Replicated<S>>;

/// Executes through the leader, which all of `nodes` know or will know.
async fn execute<S: ReplicatedState>(nodes: &Nodes<S>, command: S::Command) -> S::Output
where
    S::Command: Clone,
{
    loop {
        let node = nodes.values().next().expect("a node runs");
        let leader = node.leader().await.expect("the node runs");
        if let Some(leading) = nodes.get(&leader) {
            match leading.execute(command.clone()).await {
                Ok(output) => return output,
                Err(ProposeError::Rejected(Rejected::NotLeader { .. } | Rejected::Busy(_))) => {}
                Err(error) => panic!("a healthy majority executes: {error}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn line(number: usize) -> Append {
    Append(format!("line {number}"))
}

fn lines(count: usize) -> Vec<String> {
    (1..=count).map(|number| line(number).0).collect()
}

struct InMemory {
    network: ChannelNetwork,
    disks: BTreeMap<NodeId, MemoryDisk>,
    max_raft_state_bytes: u64,
}

impl InMemory {
    fn new(max_raft_state_bytes: u64) -> Self {
        let disks = IDS.map(|id| (id, MemoryDisk::of_new_member())).collect();
        Self { network: ChannelNetwork::new(1), disks, max_raft_state_bytes }
    }

    async fn start<S: ReplicatedState>(&self, id: NodeId) -> Result<Replicated<S>, Fatal> {
        let mut config = NodeConfig::new(id, IDS, rand::random());
        config.max_raft_state_bytes = self.max_raft_state_bytes;
        let storage = Arc::new(self.disks[&id].storage());
        Replicated::start(config, storage, self.network.transport(id)).await
    }

    async fn start_all<S: ReplicatedState>(&self) -> Nodes<S> {
        let mut nodes = Nodes::new();
        for id in IDS {
            nodes.insert(id, self.start(id).await.expect("its disk is healthy"));
        }
        nodes
    }

    /// Cuts the power of the node: what was not synced is lost.
    async fn crash<S: ReplicatedState>(&self, id: NodeId, node: Replicated<S>) {
        self.disks[&id].crash();
        drop(self.network.transport(id));
        node.node().abort().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lagging_node_gets_a_snapshot_and_a_crash_loses_nothing() {
    let cluster = InMemory::new(4_000);
    let mut nodes = cluster.start_all::<Book>().await;
    for number in 1..=20 {
        assert_eq!(execute(&nodes, line(number)).await, number);
    }
    let leader = nodes[&1].leader().await.expect("it runs");
    let lagging = 1 + leader % 3;
    cluster.crash(lagging, nodes.remove(&lagging).expect("it runs")).await;
    for number in 21..=300 {
        assert_eq!(execute(&nodes, line(number)).await, number);
    }
    // The snapshot is written beside the node, and another node may lead by now.
    let leader = nodes.values().next().expect("two run").leader().await.expect("it runs");
    let mut watch = nodes[&leader].node().watch_status();
    let is_replaced = |status: &Status| {
        // Beyond the entries of the node that is down. The log may be kept for it up to its budget.
        let is_short = status.snapshot_index > 30 && status.log_bytes <= 8 * 4_000;
        is_short && status.last_applied == status.commit_index
    };
    let replaced = tokio::time::timeout(PATIENCE, watch.wait_for(is_replaced)).await;
    let last = nodes[&leader].status();
    let replaced = replaced.unwrap_or_else(|_| panic!("the log is not replaced: {last:?}"));
    let status = replaced.expect("it runs").clone();

    let node = cluster.start::<Book>(lagging).await.expect("its disk is healthy");
    let goal = status.last_applied;
    let mut watch = node.node().watch_status();
    let caught_up = watch.wait_for(|status| status.last_applied >= goal);
    let caught_up = tokio::time::timeout(PATIENCE, caught_up).await;
    assert!(caught_up.expect("soon").expect("it runs").snapshot_index > 20, "by a snapshot");
    assert_eq!(node.query_stale(()).await.expect("it runs"), lines(300));
    nodes.insert(lagging, node);

    for (id, node) in nodes {
        cluster.crash(id, node).await;
    }
    let nodes = cluster.start_all::<Book>().await;
    nodes[&lagging].leader().await.expect("it runs");
    assert_eq!(execute(&nodes, line(301)).await, 301);
    assert_eq!(nodes[&lagging].query(()).await.expect("a majority runs"), lines(301));
    for node in nodes.values() {
        node.shutdown().await;
        node.stopped().await.expect("in good order");
    }
}

async fn start_on_rocksdb(dir: &Path, network: &ChannelNetwork, is_new: bool) -> Nodes<Book> {
    let mut nodes = Nodes::new();
    for id in IDS {
        let path = dir.join(id.to_string());
        let dir = match is_new {
            true => DataDir::initialise(path, "book", id),
            false => DataDir::open(path, "book", id),
        };
        let dir = Arc::new(dir.expect("a directory of this node"));
        let storage = RocksStorage::open(dir, RocksOptions::default()).expect("it opens");
        let config = NodeConfig::new(id, IDS, rand::random());
        let started = Replicated::start(config, Arc::new(storage), network.transport(id)).await;
        nodes.insert(id, started.expect("a node with the defaults"));
    }
    nodes
}

/// With the defaults of every constructor.
#[tokio::test]
async fn a_restart_on_rocksdb_brings_back_snapshot_and_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let network = ChannelNetwork::new(1);
    let nodes = start_on_rocksdb(dir.path(), &network, true).await;
    for number in 1..=50 {
        assert_eq!(execute(&nodes, line(number)).await, number);
    }
    for node in nodes.values() {
        let mut watch = node.node().watch_status();
        watch.wait_for(|status| status.last_applied >= 50).await.expect("it runs");
        node.node().take_snapshot();
        let taken = watch.wait_for(|status| status.snapshot_index > 0);
        tokio::time::timeout(Duration::from_secs(60), taken).await.expect("soon").expect("it runs");
    }
    // Behind the snapshot.
    assert_eq!(execute(&nodes, line(51)).await, 51);
    for node in nodes.into_values() {
        node.shutdown().await;
    }
    let nodes = start_on_rocksdb(dir.path(), &network, false).await;
    assert_eq!(execute(&nodes, line(52)).await, 52);
    assert_eq!(nodes[&2].query(()).await.expect("a majority runs"), lines(52));
    for node in nodes.values() {
        node.shutdown().await;
    }
}

/// The next version of [`Book`]: a command more.
#[derive(Clone, Default, Serialize, Deserialize)]
struct NextBook {
    lines: Vec<String>,
    #[serde(default)]
    torn_out: u64,
}

#[derive(Clone, Serialize, Deserialize)]
enum Edit {
    Append(String),
    TearOut,
}

/// [`Book`] with the commands of an enum, so that version 2 can have more.
#[derive(Clone, Default, Serialize, Deserialize)]
struct FirstBook {
    lines: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
enum FirstEdit {
    Append(String),
}

impl ReplicatedState for FirstBook {
    type Command = FirstEdit;
    type Output = usize;
    type Query = ();
    type Answer = usize;

    fn apply(&mut self, FirstEdit::Append(line): FirstEdit) -> usize {
        self.lines.push(line);
        self.lines.len()
    }

    fn query(&self, (): ()) -> usize {
        self.lines.len()
    }
}

impl ReplicatedState for NextBook {
    type Command = Edit;
    type Output = usize;
    type Query = ();
    type Answer = usize;

    const VERSION: u32 = 2;

    fn needed_version(edit: &Edit) -> u32 {
        match edit {
            Edit::Append(_) => 1,
            Edit::TearOut => 2,
        }
    }

    fn apply(&mut self, edit: Edit) -> usize {
        match edit {
            Edit::Append(line) => self.lines.push(line),
            Edit::TearOut => self.torn_out += self.lines.pop().map_or(0, |_| 1),
        }
        self.lines.len()
    }

    fn query(&self, (): ()) -> usize {
        self.lines.len()
    }
}

/// The text with which the leader refuses `command`. A node that does not lead says so instead.
async fn refusal_by_leader(nodes: &Nodes<NextBook>, command: Edit) -> String {
    loop {
        for node in nodes.values() {
            match node.execute(command.clone()).await {
                Err(ProposeError::Rejected(Rejected::Refused(text))) => return text,
                Err(ProposeError::Rejected(Rejected::NotLeader { .. } | Rejected::Busy(_))) => {}
                other => panic!("no node executes it: {other:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Node by node; a command of the new version is refused until all nodes know it and it is in
/// force, and then the old program refuses to start.
#[tokio::test(start_paused = true)]
async fn an_upgrade_goes_node_by_node() {
    let cluster = InMemory::new(2_000);
    let mut old = cluster.start_all::<FirstBook>().await;
    for number in 1..=100 {
        let output = execute(&old, FirstEdit::Append(line(number).0)).await;
        assert_eq!(output, number);
    }
    let mut new = Nodes::<NextBook>::new();
    for id in IDS {
        old.remove(&id).expect("it runs").shutdown().await;
        let node = cluster.start::<NextBook>(id).await.expect("it reads what version 1 wrote");
        new.insert(id, node);
    }
    let text = refusal_by_leader(&new, Edit::TearOut).await;
    assert!(text.contains("not executed") && text.contains("install version 2"), "{text}");
    assert_eq!(execute(&new, Edit::Append("by version 2".into())).await, 101);
    loop {
        let leader = new[&1].leader().await.expect("it runs");
        // The leader learns from heartbeat responses that each node supports version 2.
        if new[&leader].raise_version().await.is_ok() {
            let mut watch = new[&leader].node().watch_status();
            watch.wait_for(|status| status.cluster_version == 2).await.expect("it runs");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(execute(&new, Edit::TearOut).await, 100);

    let mut watch = new[&3].node().watch_status();
    watch.wait_for(|status| status.cluster_version == 2).await.expect("it runs");
    new.remove(&3).expect("it runs").shutdown().await;
    let error = cluster.start::<FirstBook>(3).await.err().expect("version 2 is in force");
    assert!(error.to_string().contains("version 2"), "{error}");
    let node = cluster.start::<NextBook>(3).await.expect("version 2 is installed again");
    node.leader().await.expect("it runs");
    assert_eq!(node.query(()).await.expect("a majority runs"), 100);
}
