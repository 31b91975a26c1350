//! A cluster whose nodes start and crash; each has a [`Machine`] and a [`Disk`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raft_core::driver::{Node, NodeConfig, Status};
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;

use super::machine::{Knobs, Machine, StateDisk};
use super::store::Disk;

/// The longest wait for any event that must happen, in the runtime's (virtual) time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The parts of a node that exist whether it is running or not.
#[derive(Clone, Default)]
pub(crate) struct Site {
    pub(crate) disk: Disk,
    pub(crate) state: StateDisk,
    pub(crate) knobs: Arc<Knobs>,
}

pub(crate) struct Cluster {
    seed: u64,
    starts_count: AtomicU64,
    pub(crate) network: ChannelNetwork,
    pub(crate) sites: BTreeMap<NodeId, Site>,
    pub(crate) nodes: BTreeMap<NodeId, Node<Machine>>,
    pub(crate) configure: Box<dyn Fn(&mut NodeConfig) + Send + Sync>,
    /// Machines are durable: their flushed state survives a crash.
    pub(crate) durable: bool,
    /// Machines block, so each runs on a thread of its own.
    pub(crate) blocks: bool,
}

impl Cluster {
    /// Nodes 1 to `size`, none running.
    pub(crate) fn new(seed: u64, size: u64) -> Self {
        let member = |id| (id, Site { disk: Disk::of_member(), ..Site::default() });
        Self {
            seed,
            starts_count: AtomicU64::new(0),
            network: ChannelNetwork::new(seed),
            sites: (1..=size).map(member).collect(),
            nodes: BTreeMap::new(),
            configure: Box::new(|_| {}),
            durable: false,
            blocks: false,
        }
    }

    /// Returns another seed at each start.
    fn draw_seed(&self) -> u64 {
        let starts = self.starts_count.fetch_add(1, Ordering::Relaxed);
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(starts)
    }

    pub(crate) fn config(&self, id: NodeId) -> NodeConfig {
        let mut config = NodeConfig::new(id, self.sites.keys().copied(), self.draw_seed());
        (self.configure)(&mut config);
        config
    }

    pub(crate) async fn start(&mut self, id: NodeId) {
        let site = &self.sites[&id];
        let mut machine = if self.durable {
            Machine::durable(&site.knobs, &site.state)
        } else {
            Machine::volatile(&site.knobs)
        };
        machine.blocks = self.blocks;
        let transport = self.network.transport(id);
        let started = Node::start(self.config(id), site.disk.open(), transport, machine);
        self.nodes.insert(id, started.await.expect("a node of a healthy disk starts"));
    }

    pub(crate) async fn start_all(&mut self) {
        for id in self.sites.keys().copied().collect::<Vec<_>>() {
            self.start(id).await;
        }
    }

    /// The process ends without a shutdown.
    pub(crate) async fn crash(&mut self, id: NodeId) {
        self.sites[&id].disk.crash();
        drop(self.network.transport(id));
        if let Some(node) = self.nodes.remove(&id) {
            node.abort().await;
        }
    }

    /// Waits for a leader that a majority follows.
    pub(crate) async fn leader(&self) -> NodeId {
        let found = async {
            loop {
                for (id, node) in &self.nodes {
                    if node.watch().borrow().is_leader
                        && node.query_and_wait((), true).await.is_ok()
                    {
                        return *id;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        in_time("a leader is elected", found).await
    }

    /// Proposes the command to the leader until it is executed. Returns its output.
    pub(crate) async fn write(&self, command: impl Into<Bytes>) -> u64 {
        let command = command.into();
        let written = async {
            loop {
                let leader = self.leader().await;
                match self.nodes[&leader].propose_and_wait(command.clone()).await {
                    Ok(output) => return output,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        in_time("a command is executed", written).await
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        id: NodeId,
        holds: impl FnMut(&Status) -> bool,
    ) -> Status {
        let mut status = self.nodes[&id].watch_status();
        let held = in_time(what, status.wait_for(holds)).await;
        // A copy: the node cannot publish a new status while the original is borrowed.
        held.unwrap_or_else(|_| panic!("{what}: node {id} stopped")).clone()
    }

    /// The commands that the node's machine holds.
    pub(crate) async fn commands(&self, id: NodeId) -> Vec<Bytes> {
        self.nodes[&id].query_and_wait((), false).await.expect("a running node answers")
    }
}

pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}
