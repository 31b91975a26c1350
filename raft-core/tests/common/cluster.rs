//! The cluster: nodes, what is between them, and the hands that move everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft_core::consensus::{
    Boot, Config, OfferAnswer, Persist, Raft, ReadState, Ready, RoleKind, Status, invariants,
};
use raft_core::error::Rejected;
use raft_core::types::{
    Configuration, Entry, Index, Message, NodeId, Position, SnapshotMeta, Term, Time,
};

use super::disk::{Disk, Machine};
use super::oracle::Oracle;
use super::render;

/// What travels.
#[derive(Clone, Debug)]
pub enum Parcel {
    Message(Message),
    /// A whole snapshot; its sender, if it still lives, hears at once what became of it.
    Snapshot {
        term: Term,
        meta: SnapshotMeta,
        state: Machine,
        incarnation: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Envelope {
    pub from: NodeId,
    pub to: NodeId,
    pub parcel: Parcel,
}

/// One node; `raft` is `None` while it is down.
#[derive(Debug)]
pub struct Node {
    pub raft: Option<Raft>,
    pub disk: Disk,
    /// Handed to the disk and not written yet.
    pub writing: VecDeque<Persist>,
    pub machine: Machine,
    /// Fates of reads, in order.
    pub reads: Vec<ReadState>,
    pub alarms: Vec<String>,
    /// What the disk will hold once everything that was handed to it is written: the log in memory,
    /// unless the disk is so slow that the core holds a batch back.
    pub log: Disk,
    /// The oracle has seen commits through here.
    commit_seen: Index,
    incarnation: u64,
}

pub struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    pub flying: VecDeque<Envelope>,
    pub now: Time,
    pub oracle: Oracle,
    /// What happened since somebody looked, one line each.
    pub events: Vec<String>,
    /// Nodes whose batches wait until `write` is called; the others write at once.
    pub slow_disks: BTreeSet<NodeId>,
    /// Links that lose everything, from and to.
    cut: BTreeSet<(NodeId, NodeId)>,
    configure: Box<dyn Fn(&mut Config)>,
    voters: Configuration,
    record: bool,
    pub stats: BTreeMap<&'static str, u32>,
    next_read: u64,
}

impl Cluster {
    /// Nodes 1 to `count`, all voters, with empty disks.
    pub fn new(count: u64) -> Self {
        Self::with_config(count, |_| {})
    }

    pub fn with_config(count: u64, configure: impl Fn(&mut Config) + 'static) -> Self {
        Self::with_disks((1..=count).map(|id| (id, Disk::default())).collect(), configure)
    }

    /// Nodes that have lived before.
    pub fn with_disks(
        disks: BTreeMap<NodeId, Disk>,
        configure: impl Fn(&mut Config) + 'static,
    ) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            flying: VecDeque::new(),
            now: Time::ZERO,
            oracle: Oracle::default(),
            events: Vec::new(),
            slow_disks: BTreeSet::new(),
            cut: BTreeSet::new(),
            configure: Box::new(configure),
            voters: Configuration::of_voters(disks.keys().copied()),
            record: true,
            stats: BTreeMap::new(),
            next_read: 1,
        };
        for (id, disk) in disks {
            cluster.oracle.on_entries(id, disk.start(), &disk.loaded.entries);
            let node = Node {
                raft: None,
                log: disk.clone(),
                disk,
                writing: VecDeque::new(),
                machine: Machine::default(),
                reads: Vec::new(),
                alarms: Vec::new(),
                commit_seen: 0,
                incarnation: 0,
            };
            cluster.nodes.insert(id, node);
        }
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster.events.clear();
        cluster
    }

    /// Whether to keep lines of what happens; not for long runs.
    pub fn recording(mut self, record: bool) -> Self {
        self.record = record;
        self
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

    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(&id).expect("a node of this cluster")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
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
        if self.record {
            self.events.push(line());
        }
    }

    // What can happen to a node.

    /// Tells one node one thing, and carries out what it wants.
    pub fn with<R>(&mut self, id: NodeId, tell: impl FnOnce(&mut Raft, Time) -> R) -> R {
        let now = self.now;
        let raft = self.node_mut(id).raft.as_mut().expect("the node is up");
        let term = raft.term();
        let result = tell(raft, now);
        assert!(raft.term() >= term, "terms only grow");
        invariants::check(raft);
        self.carry_out(id);
        result
    }

    pub fn step(&mut self, from: NodeId, to: NodeId, message: Message) {
        self.with(to, |raft, now| raft.step(now, from, message));
    }

    /// Its deadline passes now: the clock moves there, for everybody, but nobody else looks at it.
    pub fn fire(&mut self, id: NodeId) {
        self.now = self.now.max(self.raft(id).next_deadline());
        self.with(id, Raft::on_timeout);
    }

    /// The same, but only its own clock has run ahead; for everybody else no time has passed.
    pub fn rush(&mut self, id: NodeId) {
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

    /// Writes the oldest batch that waits for this disk; returns whether there was one.
    pub fn write(&mut self, id: NodeId) -> bool {
        let node = self.node_mut(id);
        let Some(Persist { id: batch_id, batch }) = node.writing.pop_front() else { return false };
        node.disk.write(&batch);
        self.tell(|| format!("{id} wrote #{batch_id}"));
        self.with(id, |raft, now| raft.on_persisted(now, batch_id));
        true
    }

    /// Stops the node. Of what was at the disk, the first `written` batches survive.
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

    /// Starts a node from its disk.
    pub fn start(&mut self, id: NodeId) {
        let (bootstrap, now) = (self.voters.clone(), self.now);
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        assert!(node.raft.is_none(), "node {id} is up");
        node.incarnation += 1;
        node.log = node.disk.clone();
        node.machine = node.disk.state.clone();
        node.commit_seen = node.machine.last_applied().index;
        let mut config = Config::new(id);
        config.seed = 1000 * node.incarnation + id;
        (self.configure)(&mut config);
        let last_applied = node.machine.last_applied();
        let boot = Boot { loaded: node.disk.loaded.clone(), last_applied, bootstrap };
        let raft = Raft::new(config, boot, now).expect("what a core wrote, a core can start from");
        node.raft = Some(raft);
        self.tell(|| format!("{id} is up"));
        self.carry_out(id);
    }

    /// Takes a snapshot of the machine as it is, and publishes it, unless the log has been replaced
    /// by a later one meanwhile.
    pub fn snapshot(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let state = node.machine.clone();
        let raft = node.raft.as_mut().expect("the node is up");
        let Some(meta) = raft.snapshot_meta(state.last_applied().index) else { return };
        if raft.publish_snapshot(meta.clone()) {
            node.disk.finish_snapshot(meta.clone(), state.clone());
            node.log.finish_snapshot(meta, state);
        }
        self.carry_out(id);
    }

    /// Forgets the log through `index`, which a published snapshot covers.
    pub fn compact(&mut self, id: NodeId, index: Index) {
        let node = self.node_mut(id);
        if let Some(through) = node.raft.as_mut().expect("the node is up").compact(index) {
            node.disk.compact(through.clone());
            node.log.compact(through);
        }
        self.carry_out(id);
    }

    // What can happen between nodes.

    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// Nodes of different groups no longer hear each other; the groups name every node.
    pub fn partition(&mut self, groups: &[&[NodeId]]) {
        self.cut.clear();
        for one in groups {
            for other in groups.iter().filter(|other| *other != one) {
                let links = one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b)));
                self.cut.extend(links);
            }
        }
    }

    /// Cuts one node off from all others.
    pub fn isolate(&mut self, id: NodeId) {
        let others: Vec<NodeId> = self.ids().into_iter().filter(|other| *other != id).collect();
        self.partition(&[&[id], &others]);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Takes a parcel out of the network and hands it over, unless the link is cut or nobody is there.
    pub fn deliver(&mut self, position: usize) {
        let envelope = self.flying.remove(position).expect("a parcel at this position");
        let Envelope { from, to, .. } = &envelope;
        if self.cut.contains(&(*from, *to)) || !self.is_up(*to) {
            return self.lose(envelope);
        }
        let Envelope { from, to, parcel } = envelope;
        match parcel {
            Parcel::Message(message) => {
                self.tell(|| format!("{from} -> {to}  {}", render::message(&message)));
                self.step(from, to, message);
            }
            Parcel::Snapshot { term, meta, state, incarnation } => {
                self.install(from, to, term, meta, state, incarnation);
            }
        }
    }

    pub fn drop_parcel(&mut self, position: usize) {
        let envelope = self.flying.remove(position).expect("a parcel at this position");
        self.lose(envelope);
    }

    fn lose(&mut self, Envelope { from, to, parcel }: Envelope) {
        match parcel {
            Parcel::Message(message) => {
                self.tell(|| format!("{from} -x {to}  {}", render::message(&message)));
            }
            Parcel::Snapshot { meta, incarnation, .. } => {
                self.tell(|| format!("{from} -x {to}  snapshot {}", meta.position));
                self.report_snapshot(from, to, None, incarnation);
            }
        }
    }

    fn install(
        &mut self,
        from: NodeId,
        to: NodeId,
        term: Term,
        meta: SnapshotMeta,
        state: Machine,
        incarnation: u64,
    ) {
        let answer = self.with(to, |raft, now| raft.on_snapshot_offer(now, from, term, &meta));
        self.tell(|| format!("{from} => {to}  t{term} snapshot {}: {answer:?}", meta.position));
        let sent = match answer {
            OfferAnswer::Stale { .. } => None,
            OfferAnswer::NotNeeded => Some(meta.index()),
            OfferAnswer::Wanted => {
                let index = meta.index();
                let node = self.node_mut(to);
                node.disk.finish_snapshot(meta.clone(), state.clone());
                node.log.finish_snapshot(meta.clone(), state);
                self.with(to, |raft, now| raft.on_snapshot_received(now, from, term, meta));
                Some(index)
            }
        };
        self.report_snapshot(from, to, sent, incarnation);
    }

    fn report_snapshot(&mut self, from: NodeId, to: NodeId, sent: Option<Index>, incarnation: u64) {
        if self.is_up(from) && self.node(from).incarnation == incarnation {
            self.with(from, |raft, now| raft.on_snapshot_sent(now, to, sent));
        }
    }

    /// Takes what a node has sent out of the network, to be looked at instead of delivered.
    pub fn sent_by(&mut self, id: NodeId) -> Vec<(NodeId, Message)> {
        let (sent, others) = self.flying.drain(..).partition(|envelope| envelope.from == id);
        self.flying = others;
        let sent: VecDeque<Envelope> = sent;
        let message = |Envelope { to, parcel, .. }: Envelope| match parcel {
            Parcel::Message(message) => Some((to, message)),
            Parcel::Snapshot { .. } => None,
        };
        sent.into_iter().filter_map(message).collect()
    }

    /// Delivers until nothing flies any more.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.flying.is_empty() {
                return;
            }
            self.deliver(0);
        }
        panic!("the cluster does not come to rest");
    }

    /// Lets time pass; deadlines pass in order. With `deliver`, what is sent arrives at once.
    pub fn advance(&mut self, duration: Duration, deliver: bool) {
        let end = self.now + duration;
        loop {
            if deliver {
                self.settle();
            }
            let deadline = |id: &NodeId| self.raft(*id).next_deadline();
            let next = self.up().into_iter().min_by_key(deadline);
            match next.filter(|id| self.raft(*id).next_deadline() <= end) {
                Some(id) => self.fire(id),
                None => break,
            }
        }
        self.now = end;
    }

    /// Time passes, and everything arrives.
    pub fn run(&mut self, millis: u64) {
        self.advance(Duration::from_millis(millis), true);
    }

    /// Makes this node the leader: its deadline passes and everything arrives.
    pub fn elect(&mut self, id: NodeId) {
        self.fire(id);
        self.settle();
        assert_eq!(self.role(id), RoleKind::Leader, "node {id} was not elected");
    }

    /// Makes another node the leader, by a transfer.
    pub fn elect_again(&mut self, id: NodeId) {
        let leader = self.leader().expect("a leader");
        let told = self.with(leader, |raft, now| raft.transfer_leadership(now, Some(id)));
        told.expect("another voter");
        self.settle();
        assert_eq!(self.role(id), RoleKind::Leader, "node {id} did not take over");
    }

    // What nodes want.

    fn carry_out(&mut self, id: NodeId) {
        loop {
            let now = self.now;
            let raft = self.node_mut(id).raft.as_mut().expect("the node is up");
            let ready = raft.ready(now);
            invariants::check(raft);
            if ready.is_empty() {
                return;
            }
            self.carry_out_one(id, ready);
        }
    }

    fn carry_out_one(&mut self, id: NodeId, ready: Ready) {
        let Ready {
            persist,
            messages,
            committed,
            restore,
            read_states,
            snapshot_requests,
            snapshot_published,
            role_change,
            alarms,
        } = ready;
        if let Some(change) = role_change {
            let leader = change.leader.map_or(String::new(), |leader| format!(" of {leader}"));
            self.tell(|| format!("{id} is {}{leader} in t{}", change.role.name(), change.term));
            if change.role == RoleKind::Leader {
                *self.stats.entry("leaders").or_default() += 1;
                let log = &self.nodes[&id].log;
                self.oracle.on_leader(id, change.term, log);
            }
        }
        for (to, message) in messages {
            self.oracle.on_send(id, to, &message, &self.nodes[&id].disk);
            self.flying.push_back(Envelope { from: id, to, parcel: Parcel::Message(message) });
        }
        if let Some(persist) = &persist {
            self.take_batch(id, persist);
        }
        self.see_commits(id);
        self.apply(id, committed);
        if let Some(meta) = restore {
            self.restore(id, &meta);
        }
        for state in &read_states {
            *self
                .stats
                .entry(if state.read_index.is_some() { "reads" } else { "reads failed" })
                .or_default() += 1;
            self.oracle.on_read_answered(id, state.id, state.read_index);
            let index = state.read_index.map_or("failed".to_owned(), |index| index.to_string());
            self.tell(|| format!("{id} read {}: {index}", state.id));
        }
        self.node_mut(id).reads.extend(read_states);
        for peer in snapshot_requests {
            self.send_snapshot(id, peer);
        }
        if let Some(meta) = snapshot_published {
            self.tell(|| format!("{id} published snapshot {}", meta.position));
        }
        for alarm in alarms {
            self.tell(|| format!("{id} ALARM {alarm}"));
            self.node_mut(id).alarms.push(alarm);
        }
        if persist.is_some() && !self.slow_disks.contains(&id) {
            while self.is_up(id) && self.write(id) {}
        }
    }

    fn take_batch(&mut self, id: NodeId, persist: &Persist) {
        self.tell(|| format!("{id} writes #{}: {}", persist.id, render::batch(&persist.batch)));
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        node.writing.push_back(persist.clone());
        node.log.write(&persist.batch);
        if persist.batch.truncate_from.is_some() {
            *self.stats.entry("truncations").or_default() += 1;
        }
        if let Some(first) = persist.batch.entries.first() {
            let term = node.log.term_at(first.index - 1).expect("entries follow the log");
            let previous = Position::new(term, first.index - 1);
            self.oracle.on_entries(id, previous, &persist.batch.entries);
        }
    }

    /// Shows the oracle what this node newly regards as committed. While the disk is slow, the last
    /// batch may be older than the log in memory; then the rest is shown later.
    fn see_commits(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let Some(raft) = &node.raft else { return };
        let (term, commit_index) = (raft.term(), raft.status().commit_index);
        let start_index = node.log.start().index;
        let mut seen = node.commit_seen.max(start_index);
        while seen < commit_index
            && let Some(entry) = node.log.entry(seen + 1)
            && raft.snapshot_meta(seen + 1).map(|meta| meta.position) == Some(entry.position())
        {
            let disks = self.nodes.values().map(|node| &node.disk);
            self.oracle.on_commit(id, term, entry, disks);
            seen += 1;
        }
        self.node_mut(id).commit_seen = seen;
    }

    fn apply(&mut self, id: NodeId, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        self.tell(|| format!("{id} applies {}", render::entries(&entries)));
        for entry in entries {
            self.oracle.on_apply(id, &entry);
            let node = self.node_mut(id);
            assert_eq!(node.disk.entry(entry.index), Some(&entry), "applied before it is on disk");
            node.machine.apply(entry);
        }
        self.node_mut(id).raft.as_mut().expect("the node is up").on_applied(last);
    }

    fn restore(&mut self, id: NodeId, meta: &SnapshotMeta) {
        *self.stats.entry("restores").or_default() += 1;
        self.tell(|| format!("{id} restores {}", meta.position));
        let node = self.nodes.get_mut(&id).expect("a node of this cluster");
        assert_eq!(
            node.disk.loaded.snapshot.as_ref(),
            Some(meta),
            "restored before it is published"
        );
        node.machine = node.disk.state.clone();
        for (entry, known) in node.machine.applied.iter().zip(self.oracle.committed()) {
            assert_eq!(entry, known, "state machine safety: a snapshot of something else");
        }
        node.raft.as_mut().expect("the node is up").on_applied(meta.index());
    }

    fn send_snapshot(&mut self, from: NodeId, to: NodeId) {
        let node = &self.nodes[&from];
        let incarnation = node.incarnation;
        let term = self.raft(from).term();
        match &node.disk.loaded.snapshot {
            Some(meta) => {
                let (meta, state) = (meta.clone(), node.disk.state.clone());
                let parcel = Parcel::Snapshot { term, meta, state, incarnation };
                self.flying.push_back(Envelope { from, to, parcel });
            }
            None => self.report_snapshot(from, to, None, incarnation),
        }
    }
}
