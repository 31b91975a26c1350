//! Whole nodes (driver, memory storage, channel network) around a [`Counter`], all from one seed, on
//! a paused clock: a failing run is its seed.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::ProposeError;
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;
use raft_storage::memory::{Latency, MemoryDisk, Operation};

use crate::counter::Counter;

/// The longest run of a scenario, in the time of the paused clock: an hour. A cluster that takes
/// longer does not get anywhere.
const SCENARIO_PATIENCE: Duration = Duration::from_secs(3_600);

/// Runs the scenario once for each seed, each time on a runtime and a paused clock of its own. The
/// environment variable `SEEDS`, such as `0..1000` or `17..18`, takes the place of the range.
///
/// # Panics
/// If a run does, or does not end; the seed is printed.
pub fn for_seeds(seeds: Range<u64>, scenario: impl AsyncFn(u64)) {
    for seed in seeds_to_run(seeds) {
        run(seed, &scenario);
    }
}

/// Runs the scenario once, on a runtime and a paused clock of its own, and returns what it returns.
///
/// # Panics
/// If the run does, or does not end; the seed is printed.
pub fn run<T>(seed: u64, scenario: impl AsyncFn(u64) -> T) -> T {
    let _guard = SeedOfPanic(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with a clock can be built");
    runtime.block_on(async {
        let run = tokio::time::timeout(SCENARIO_PATIENCE, scenario(seed));
        run.await.expect("the scenario ends")
    })
}

/// The seeds that the environment variable `SEEDS` tells, such as `0..1000`, or else these.
///
/// # Panics
/// If the variable is something else.
pub fn seeds_to_run(seeds: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return seeds };
    let (first, end) = text.split_once("..").expect("SEEDS is a range, such as 0..1000");
    let number = |text: &str| text.parse().expect("SEEDS is a range of numbers");
    number(first)..number(end)
}

struct SeedOfPanic(u64);

impl Drop for SeedOfPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the scenario failed with seed {}", self.0);
        }
    }
}

pub struct Cluster {
    pub network: ChannelNetwork,
    pub nodes: BTreeMap<NodeId, Node<Counter>>,
    disks: BTreeMap<NodeId, MemoryDisk>,
    max_raft_state_bytes: u64,
    seed: u64,
    /// So that a node draws other times after each start.
    start_count: u64,
}

impl Cluster {
    /// Nodes 1 to `size`, all running.
    pub async fn new(seed: u64, size: u64, max_raft_state_bytes: u64) -> Self {
        let mut cluster = Self {
            network: ChannelNetwork::new(seed),
            nodes: BTreeMap::new(),
            disks: (1..=size).map(|id| (id, MemoryDisk::new())).collect(),
            max_raft_state_bytes,
            seed,
            start_count: 0,
        };
        for id in 1..=size {
            cluster.start(id).await;
        }
        cluster
    }

    pub async fn start(&mut self, id: NodeId) {
        let mut config = NodeConfig::new(id, self.disks.keys().copied());
        config.max_raft_state_bytes = self.max_raft_state_bytes;
        config.raft.seed = self.seed.wrapping_mul(1_000).wrapping_add(self.start_count);
        self.start_count += 1;
        let transport = self.network.transport(id);
        let storage = Arc::new(self.disks[&id].storage());
        let node = Node::start(config, storage, transport, Counter::default()).await;
        self.nodes.insert(id, node.expect("a node of a healthy disk starts"));
    }

    pub async fn stop(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).expect("it runs");
        node.shutdown().await;
    }

    /// Power is lost: what was not synced is gone, and nothing that the node says is heard any more.
    pub fn crash(&mut self, id: NodeId) {
        self.disks[&id].crash();
        drop(self.network.transport(id));
        self.nodes.remove(&id).expect("it runs");
    }

    /// Every write of every node takes so long, half of it after it has taken effect.
    pub fn slow_disks(&self, latency: Duration) {
        let latency = Latency { before: latency / 2, after: latency / 2 };
        for disk in self.disks.values() {
            disk.set_latency(Operation::Persist, latency);
        }
    }

    /// Waits until a majority follows a running node.
    pub async fn leader(&self) -> NodeId {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.leader_among(&ids).await
    }

    /// Waits until one of these leads, and is followed by so many of these that they are a majority
    /// of the cluster.
    pub async fn leader_among(&self, ids: &[NodeId]) -> NodeId {
        let mut watches: Vec<_> = ids.iter().map(|id| self.nodes[id].watch()).collect();
        loop {
            let seen: Vec<_> = watches.iter_mut().map(|watch| *watch.borrow_and_update()).collect();
            for (id, leadership) in ids.iter().zip(&seen).filter(|(_, seen)| seen.is_leader) {
                let follows = |other: &&raft_core::driver::Leadership| {
                    (other.leader, other.term) == (Some(*id), leadership.term)
                };
                if seen.iter().filter(follows).count() * 2 > self.disks.len() {
                    return *id;
                }
            }
            first_of(watches.iter_mut().map(|watch| Box::pin(watch.changed())).collect())
                .await
                .expect("a running node says who leads");
        }
    }

    /// What a node has applied, by its own word.
    pub async fn commands(&self, id: NodeId) -> Vec<Bytes> {
        self.nodes[&id].query_and_wait((), false).await.expect("a running node answers")
    }

    /// Waits until all running nodes have applied what the leader has applied after one more command,
    /// and returns what that is. The network has to be whole.
    pub async fn converged(&self, last: Bytes) -> Vec<Bytes> {
        loop {
            let leader = self.leader().await;
            match self.nodes[&leader].propose_and_wait(last.clone()).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(_)) => continue,
                Err(error) => panic!("a whole network answers: {error}"),
            }
            let index = self.nodes[&leader].status().commit_index;
            let mut all = Vec::new();
            for (id, node) in &self.nodes {
                let mut status = node.watch_status();
                status.wait_for(|status| status.last_applied >= index).await.expect("it runs");
                all.push(self.commands(*id).await);
            }
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "nodes differ: {all:?}");
            return all.swap_remove(0);
        }
    }
}

pub fn command(number: usize) -> Bytes {
    Bytes::from(format!("command {number}"))
}

async fn first_of<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    poll_fn(move |context| {
        for future in &mut futures {
            if let Poll::Ready(output) = std::pin::Pin::new(future).poll(context) {
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}
