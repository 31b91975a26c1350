//! The cluster: nodes, the network between them, and the methods by which a test moves everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft_core::consensus::invariants::Marks;
use raft_core::consensus::{
    Boot, Change, Config, Overrides, Persist, Raft, ReadState, RoleKind, Status, invariants,
};
use raft_core::error::Rejected;
use raft_core::types::{Configuration, Index, Message, NodeId, Position, Time};

use super::disk::{Disk, Machine};
use super::network::Envelope;
use super::oracle::Oracle;

/// One node; `raft` is `None` while it is down.
#[derive(Debug)]
pub struct Node {
    pub raft: Option<Raft>,
    pub disk: Disk,
    /// Batches handed to the disk and not written yet.
    pub writing: VecDeque<Persist>,
    pub machine: Machine,
    /// Outcomes of reads, in order.
    pub reads: Vec<ReadState>,
    pub alarms: Vec<String>,
    pub notices: Vec<String>,
    /// The disk as it will be once every batch handed to it is written. Equals the core's log in
    /// memory, unless the disk is so slow that the core holds a batch back.
    pub log: Disk,
    /// The oracle has checked this node's commits through this index.
    pub(super) commit_seen: Index,
    /// The indexes after the last step of the running node.
    pub marks: Option<Marks>,
    pub(super) incarnation: u64,
    /// The number that identifies the disk; 0 for a node of the start, unless a test gives it one.
    pub disk_number: u64,
}

pub struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    pub flying: VecDeque<Envelope>,
    pub now: Time,
    pub oracle: Oracle,
    /// Events since the last `take_events`, one line each.
    pub events: Vec<String>,
    /// Nodes whose batches wait until the test calls `write`; the other nodes write at once.
    pub slow_disks: BTreeSet<NodeId>,
    /// Nodes whose state machines accept entries and never report them as applied.
    pub hung_machines: BTreeSet<NodeId>,
    /// Links, as (from, to), that lose everything.
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    pub configure: Box<dyn Fn(&mut Config)>,
    pub voters: Configuration,
    next_read: u64,
}

impl Node {
    fn new(disk: Disk, disk_number: u64) -> Self {
        Self {
            raft: None,
            log: disk.clone(),
            disk,
            writing: VecDeque::new(),
            machine: Machine::default(),
            reads: Vec::new(),
            alarms: Vec::new(),
            notices: Vec::new(),
            commit_seen: 0,
            marks: None,
            incarnation: 0,
            disk_number,
        }
    }
}

impl Cluster {
    /// Nodes 1 to `count`, all of them voters that have made no promise yet.
    pub fn new(count: u64) -> Self {
        Self::with_config(count, |_| {})
    }

    pub fn with_config(count: u64, configure: impl Fn(&mut Config) + 'static) -> Self {
        Self::with_disks((1..=count).map(|id| (id, Disk::of_terms(&[], 0))).collect(), configure)
    }

    /// Nodes that start from existing disks.
    pub fn with_disks(
        disks: BTreeMap<NodeId, Disk>,
        configure: impl Fn(&mut Config) + 'static,
    ) -> Self {
        Self::with_lost_disks(0, disks, configure)
    }

    /// Starts a cluster in which `lost_disks` of the nodes have new, empty disks. Entries on the
    /// lost disks had been acknowledged and may be committed, so the oracle counts every lost disk
    /// as a holder of each entry.
    pub fn with_lost_disks(
        lost_disks: usize,
        disks: BTreeMap<NodeId, Disk>,
        configure: impl Fn(&mut Config) + 'static,
    ) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            flying: VecDeque::new(),
            now: Time::ZERO,
            oracle: Oracle::with_lost_disks(lost_disks),
            events: Vec::new(),
            slow_disks: BTreeSet::new(),
            hung_machines: BTreeSet::new(),
            cut: BTreeSet::new(),
            configure: Box::new(configure),
            voters: founded(disks.keys().copied()),
            next_read: 1,
        };
        for (id, disk) in disks {
            cluster.oracle.on_entries(id, disk.start(), &disk.loaded.entries);
            cluster.nodes.insert(id, Node::new(disk, 0));
        }
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster.events.clear();
        cluster
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn up(&self) -> Vec<NodeId> {
        self.ids().into_iter().filter(|id| self.is_up(*id)).collect()
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.node(id).raft.is_some()
    }

    /// Returns true if the node is up. A member that never came has no node.
    pub(super) fn is_there(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.raft.is_some())
    }

    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(&id).expect("a node of this cluster")
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this cluster")
    }

    pub fn raft(&self, id: NodeId) -> &Raft {
        self.node(id).raft.as_ref().expect("the node is up")
    }

    pub fn status(&self, id: NodeId) -> Status {
        self.raft(id).status()
    }

    pub fn role(&self, id: NodeId) -> RoleKind {
        self.raft(id).role()
    }

    /// The leader of the highest term among the nodes that are up.
    pub fn leader(&self) -> Option<NodeId> {
        let leads = |id: &NodeId| self.role(*id) == RoleKind::Leader;
        self.up().into_iter().filter(leads).max_by_key(|id| self.raft(*id).term())
    }

    pub fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }

    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        self.events.push(line());
    }

    /// Gives one input to one node, then processes the resulting `Ready`s.
    pub fn with<R>(&mut self, id: NodeId, tell: impl FnOnce(&mut Raft, Time) -> R) -> R {
        let now = self.now;
        let raft = self.node_mut(id).raft.as_mut().expect("the node is up");
        let term = raft.term();
        let result = tell(raft, now);
        assert!(raft.term() >= term, "terms only grow");
        invariants::check(raft);
        self.process_ready(id);
        result
    }

    pub fn step(&mut self, from: NodeId, to: NodeId, message: Message) {
        let disk = self.nodes.get(&from).map_or(0, |node| node.disk_number);
        self.with(to, |raft, now| {
            raft.on_connected(now, from, disk);
            raft.step(now, from, message);
        });
    }

    /// The node's election deadline passes: the clock of all nodes moves there, but only this node
    /// looks at it.
    pub fn fire(&mut self, id: NodeId) {
        self.now = self.now.max(self.raft(id).election_deadline());
        self.with(id, Raft::on_timeout);
    }

    /// Like `fire`, but only this node's clock has run ahead; for all others no time has passed.
    pub fn rush(&mut self, id: NodeId) {
        let deadline = self.raft(id).election_deadline();
        self.with(id, |raft, _| raft.on_timeout(deadline));
    }

    /// A leader's next heartbeat is due. The clocks of the other nodes stand still.
    pub fn rush_heartbeat(&mut self, id: NodeId) {
        let deadline = self.raft(id).next_deadline();
        self.with(id, |raft, _| raft.on_timeout(deadline));
    }

    pub fn propose(&mut self, id: NodeId, command: &str) -> Result<Position, Rejected> {
        let command = Bytes::copy_from_slice(command.as_bytes());
        self.with(id, |raft, _| raft.propose(vec![command]))
    }

    /// Asks for a read index; returns the read's number.
    pub fn read(&mut self, id: NodeId) -> Result<u64, Rejected> {
        let read = self.next_read;
        self.next_read += 1;
        self.oracle.on_read(id, read);
        let asked = self.with(id, |raft, now| raft.read_index(now, read));
        if asked.is_err() {
            self.oracle.on_read_answered(id, read, None);
        }
        asked.map(|()| read)
    }

    /// Writes the oldest batch that waits for this disk. Returns false if there was none.
    pub fn write(&mut self, id: NodeId) -> bool {
        let node = self.node_mut(id);
        let Some(Persist { id: batch_id, batch }) = node.writing.pop_front() else { return false };
        node.disk.write(&batch);
        self.tell(|| format!("{id} wrote #{batch_id}"));
        self.with(id, |raft, now| raft.on_persisted(now, batch_id));
        true
    }

    /// Stops the node. The first `written` of the batches that are being written survive.
    pub fn crash(&mut self, id: NodeId, written: usize) {
        let node = self.node_mut(id);
        for Persist { batch, .. } in node.writing.drain(..).take(written) {
            node.disk.write(&batch);
        }
        node.raft = None;
        node.machine = Machine::default();
        self.oracle.forget_reads(id);
        self.tell(|| format!("{id} is down"));
    }

    /// Replaces the disk of a node that is down by an empty one.
    pub fn lose_disk(&mut self, id: NodeId) {
        assert!(!self.is_up(id), "node {id} is up");
        self.node_mut(id).disk = Disk::default();
        self.oracle.forget_own_votes(id);
    }

    /// Starts a node that is no member yet, on an empty disk.
    pub fn start_joiner(&mut self, id: NodeId, disk_number: u64) {
        let earlier = self.nodes.insert(id, Node::new(Disk::default(), disk_number));
        assert!(earlier.is_none(), "node {id} is there already");
        self.start(id);
    }

    /// The next start of a node is on a disk of this number. What is in flight from or to
    /// another one is lost.
    pub fn set_disk_number(&mut self, id: NodeId, disk_number: u64) {
        assert!(!self.is_up(id), "node {id} is up");
        self.node_mut(id).disk_number = disk_number;
        self.flying.retain(|envelope| envelope.from != id && envelope.to != id);
    }

    /// Takes the disk out of a node that is down, and puts in another one, with its number.
    pub fn swap_disk(&mut self, id: NodeId, disk: Disk, disk_number: u64) -> Disk {
        self.set_disk_number(id, disk_number);
        self.oracle.forget_own_votes(id);
        std::mem::replace(&mut self.node_mut(id).disk, disk)
    }

    /// Asks a node for a change of the members.
    pub fn change(&mut self, id: NodeId, change: &Change) -> Result<Position, Rejected> {
        let overrides = Overrides::default();
        self.with(id, |raft, now| raft.change_members(now, change, None, overrides))
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, id: NodeId) {
        let (mut bootstrap, now) = (self.voters.clone(), self.now);
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        assert!(node.raft.is_none(), "node {id} is up");
        node.incarnation += 1;
        node.log = node.disk.clone();
        node.machine = node.disk.state.clone();
        node.commit_seen = node.machine.last_applied().index;
        node.marks = None;
        let mut config = Config::new(id, id);
        config.seed = 1000 * node.incarnation + id;
        config.incarnation = node.disk_number;
        config.promotion_delay = 2 * config.election_timeout;
        (self.configure)(&mut config);
        let last_applied = node.machine.last_applied();
        if !self.voters.is_voter(id) || !node.disk.loaded.log_start.configuration.is_empty() {
            // The members in a snapshot may differ from those in the configuration file.
            bootstrap = Configuration::default();
        }
        let boot = Boot { loaded: node.disk.loaded.clone(), last_applied, bootstrap };
        let raft = Raft::new(config, boot, now).expect("what a core wrote, a core can start from");
        node.raft = Some(raft);
        self.tell(|| format!("{id} is up"));
        self.process_ready(id);
    }

    /// Takes a snapshot of the machine's present state and publishes it, unless a later snapshot
    /// has replaced the log meanwhile.
    pub fn snapshot(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let state = node.machine.clone();
        let raft = node.raft.as_mut().expect("the node is up");
        let Some(meta) = raft.snapshot_meta(state.last_applied().index) else { return };
        if raft.publish_snapshot(meta.clone()) {
            node.disk.finish_snapshot(meta.clone(), state.clone());
            node.log.finish_snapshot(meta, state);
        }
        self.process_ready(id);
    }

    /// Drops the log through `index`, which a published snapshot covers.
    pub fn compact(&mut self, id: NodeId, index: Index) {
        let node = self.node_mut(id);
        if let Some(through) = node.raft.as_mut().expect("the node is up").compact(index) {
            node.disk.compact(through.clone());
            node.log.compact(through);
        }
        self.process_ready(id);
    }
}

/// The configuration of a cluster that its first leader has founded.
fn founded(voters: impl IntoIterator<Item = NodeId>) -> Configuration {
    Configuration { founded: true, cluster_version: 1, ..Configuration::of_voters(voters) }
}
