//! Whole nodes around a state machine: real driver, disks in memory, a network within the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::ProposeError;
use raft_core::state_machine::StateMachine;
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::{Index, NodeId};
use raft_storage::memory::{Latency, MemoryDisk, Operation};
use tokio::sync::watch;

use super::leadership::{any_changed, leader_of};
use super::observed::{Observed, Witness};
use super::trace::Trace;

/// Nodes 1 to n with their disks and network, and the faults that a scenario injects. Must be made
/// within [`run`](super::run) or another runtime with a paused clock.
///
/// A run fails, at the latest when the cluster is dropped, if two nodes lead in a term, if two
/// apply different entries at an index, or if one applies an entry twice or out of order.
pub struct Cluster<M: StateMachine> {
    /// The network between the nodes. It can lose, delay, repeat and reorder messages, and
    /// partition nodes.
    pub network: ChannelNetwork,
    /// The running nodes.
    pub nodes: BTreeMap<NodeId, Node<Observed<M>>>,
    /// Every message and every applied entry.
    pub trace: Trace,
    witness: Arc<Witness>,
    disks: BTreeMap<NodeId, MemoryDisk>,
    isolated: BTreeSet<NodeId>,
    configure: Box<dyn Fn(&mut NodeConfig)>,
    machine: Box<dyn Fn(NodeId) -> M>,
    seed: u64,
    /// Number of starts so far. Part of each node's seed, so that a node draws other timeouts after
    /// each start.
    start_count: u64,
}

impl<M: StateMachine> Cluster<M> {
    /// Starts nodes 1 to `size` with the defaults of [`NodeConfig`]. `machine` makes a node's state
    /// machine each time the node starts.
    pub async fn new(seed: u64, size: u64, machine: impl Fn(NodeId) -> M + 'static) -> Self {
        Self::with_config(seed, size, |_| {}, machine).await
    }

    /// Starts a cluster like [`Cluster::new`], after `configure` has changed each node's defaults.
    /// `configure` must leave the nodes' seeds alone: they come from `seed`.
    pub async fn with_config(
        seed: u64,
        size: u64,
        configure: impl Fn(&mut NodeConfig) + 'static,
        machine: impl Fn(NodeId) -> M + 'static,
    ) -> Self {
        let trace = Trace::new();
        let network = ChannelNetwork::new(seed);
        trace.listen_to(&network);
        let witness = Witness::new(trace.clone());
        witness.listen_to(&network);
        let mut cluster = Self {
            network,
            nodes: BTreeMap::new(),
            witness,
            trace,
            disks: (1..=size).map(|id| (id, MemoryDisk::of_new_member())).collect(),
            isolated: BTreeSet::new(),
            configure: Box::new(configure),
            machine: Box::new(machine),
            seed,
            start_count: 0,
        };
        for id in 1..=size {
            cluster.start(id).await;
        }
        cluster
    }

    /// The ids of all nodes, running or not.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<M> {
        1..=self.disks.len() as NodeId
    }

    /// The disk of a node, to make it slow, fail, or lose power at a chosen step.
    pub fn disk(&self, id: NodeId) -> &MemoryDisk {
        &self.disks[&id]
    }

    /// Starts a node that does not run, on the content of its disk.
    ///
    /// # Panics
    /// If the node runs, or if the content of its disk does not make sense to it.
    pub async fn start(&mut self, id: NodeId) {
        assert!(!self.nodes.contains_key(&id), "node {id} runs");
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(self.start_count);
        let mut config = NodeConfig::new(id, self.ids(), seed);
        let incarnation = self.disks[&id].incarnation(seed | 1 << 63);
        config.raft.incarnation = incarnation;
        (self.configure)(&mut config);
        self.start_count += 1;
        self.trace.note(format_args!("{id} starts"));
        let transport = self.network.transport_on(id, incarnation);
        let storage = Arc::new(self.disks[&id].storage());
        let machine = Observed::new(id, (self.machine)(id), Arc::clone(&self.witness));
        let node = Node::start(config, storage, transport, machine).await;
        self.nodes.insert(id, node.expect("a node of a healthy disk starts"));
    }

    /// Stops a node in good order: it hands leadership over and writes everything.
    ///
    /// # Panics
    /// If the node does not run.
    pub async fn stop(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).expect("it runs");
        self.trace.note(format_args!("{id} stops"));
        node.shutdown().await;
    }

    /// Cuts a node's power: writes that were not synced are lost, and nothing that the node sends
    /// arrives any longer. A caller that waits for one of its results learns that the outcome is
    /// unknown.
    ///
    /// # Panics
    /// If the node does not run.
    pub fn crash(&mut self, id: NodeId) {
        self.trace.note(format_args!("{id} crashes"));
        self.disks[&id].crash();
        drop(self.network.transport(id));
        let node = self.nodes.remove(&id).expect("it runs");
        // The rest of the node can neither write nor send. It is shut down, so that it does not go
        // on for the rest of the run.
        tokio::spawn(async move { node.shutdown().await });
    }

    /// Crashes a node like [`Cluster::crash`] and destroys its disk. The node's next start is on an
    /// empty disk, and it recovers with the data of the others.
    ///
    /// # Panics
    /// If the node does not run.
    pub fn lose_disk(&mut self, id: NodeId) {
        self.crash(id);
        self.trace.note(format_args!("{id} loses its disk"));
        self.disks.insert(id, MemoryDisk::new());
    }

    /// Partitions a node from all others, in both directions and silently. It stays partitioned
    /// when it restarts.
    pub fn isolate(&mut self, id: NodeId) {
        self.trace.note(format_args!("{id} is cut off"));
        self.network.isolate(id);
        self.isolated.insert(id);
    }

    /// Heals the links between an isolated node and all nodes that are not isolated.
    pub fn reconnect(&mut self, id: NodeId) {
        self.trace.note(format_args!("{id} is connected again"));
        self.isolated.remove(&id);
        for other in self.ids().filter(|other| !self.isolated.contains(other)) {
            self.network.heal_link(id, other);
            self.network.heal_link(other, id);
        }
    }

    /// Returns true if the node is partitioned by [`Cluster::isolate`].
    pub fn is_isolated(&self, id: NodeId) -> bool {
        self.isolated.contains(&id)
    }

    /// Heals all partitions. Faults of links stay.
    pub fn heal(&mut self) {
        self.trace.note(format_args!("all links are mended"));
        self.isolated.clear();
        self.network.heal();
    }

    /// Makes every write of every node take this long, half of it after the write has taken effect.
    pub fn slow_disks(&self, latency: Duration) {
        let latency = Latency { before: latency / 2, after: latency / 2 };
        for disk in self.disks.values() {
            disk.set_latency(Operation::Persist, latency);
        }
    }

    /// Waits until a majority follows a running node, and returns that node.
    pub async fn leader(&self) -> NodeId {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.leader_among(&ids).await
    }

    /// Waits until one of these nodes leads and is followed by so many of them that they are a
    /// majority of the cluster, and returns that node.
    ///
    /// # Panics
    /// If one of these nodes does not run.
    pub async fn leader_among(&self, ids: &[NodeId]) -> NodeId {
        let nodes = ids.iter().map(|id| (*id, self.nodes[id].watch())).collect();
        leader_of(nodes, self.disks.len()).await
    }

    /// Waits until the condition holds. Checks it whenever the status of a running node changes.
    pub async fn until(&self, condition: impl Fn() -> bool) {
        let mut watches: Vec<_> = self.nodes.values().map(Node::watch_status).collect();
        loop {
            watches.iter_mut().for_each(watch::Receiver::mark_unchanged);
            if condition() {
                return;
            }
            any_changed(watches.iter_mut()).await;
        }
    }

    /// Number of commands that at least one node has applied. Commands are numbered from 1, in the
    /// order in which they are applied; other entries, such as a new leader's no-op, are not
    /// counted.
    pub fn command_count(&self) -> u64 {
        self.witness.command_count()
    }

    /// The command with this number, if a node has applied it.
    pub fn command(&self, number: u64) -> Option<Bytes> {
        self.witness.command(number).map(|(_, command)| command)
    }

    /// Number of running nodes that have applied the command with this number.
    pub fn applied_count(&self, number: u64) -> usize {
        let Some((index, _)) = self.witness.command(number) else { return 0 };
        let has_applied = |node: &&Node<_>| node.status().last_applied >= index;
        self.nodes.values().filter(has_applied).count()
    }

    /// Has the leader commit one more command, and waits until all running nodes have applied it
    /// and every entry before it. Returns the index through which they agree. No node may be
    /// partitioned meanwhile.
    ///
    /// # Panics
    /// If two nodes have applied different entries, or if the outcome of the command is unknown.
    pub async fn converged(&self, command: Bytes) -> Index {
        loop {
            let leader = self.leader().await;
            match self.nodes[&leader].propose_and_wait(command.clone()).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(_)) => continue,
                Err(error) => panic!("a whole network answers: {error}"),
            }
            let index = self.nodes[&leader].status().commit_index;
            let has_applied = |node: &Node<_>| node.status().last_applied >= index;
            self.until(|| self.nodes.values().all(has_applied)).await;
            self.check();
            return index;
        }
    }

    /// Checks the history of the run so far.
    ///
    /// # Panics
    /// If two nodes have led in a term or applied different entries at an index, or if a node has
    /// applied an entry twice or out of order.
    pub fn check(&self) {
        if let Some(violation) = self.witness.violation() {
            panic!("{violation}");
        }
    }
}

/// Reports a violation that stopped a node, even if the scenario did not look at that node.
impl<M: StateMachine> Drop for Cluster<M> {
    fn drop(&mut self) {
        match self.witness.violation() {
            Some(violation) if std::thread::panicking() => eprintln!("{violation}"),
            Some(violation) => panic!("{violation}"),
            None => {}
        }
    }
}
