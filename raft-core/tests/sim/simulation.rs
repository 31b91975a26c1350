//! The world of one run: nodes, network, clients, faults, and a queue of scheduled events.
//!
//! Virtual time is microseconds from zero; events of equal time are taken in the order of
//! scheduling. All randomness comes from the plan's seed, with an rng for each purpose.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use raft_core::consensus::RoleKind;
use raft_core::types::{Entry, HardState, Message, MessageBody, NodeId, SnapshotMeta};

use crate::chain::Stamp;
use crate::common::{Random, render};
use crate::coverage::{Coverage, What};
use crate::disk::{Disk, Snapshot};
use crate::nemesis::Strike;
use crate::network::Network;
use crate::node::{Life, Node};
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::resends::Resends;
use crate::snapshots::Transfer;
use crate::trace::Trace;
use crate::watch::Sent;

#[derive(Debug)]
pub enum Event {
    Arrives {
        from: NodeId,
        /// Incarnation of the disk from which it was sent.
        disk: u64,
        to: NodeId,
        message: Message,
        is_copy: bool,
    },
    Timer {
        node: NodeId,
        life: u64,
        at: u64,
    },
    /// The node has gathered inputs, and its `Ready`s are processed.
    Asked {
        node: NodeId,
        life: u64,
    },
    Written {
        node: NodeId,
        life: u64,
    },
    Applied {
        node: NodeId,
        life: u64,
    },
    ViewWritten {
        node: NodeId,
        life: u64,
        snapshot: Box<Snapshot>,
    },
    Flushed {
        node: NodeId,
        life: u64,
        state: Stamp,
    },
    Compacted {
        node: NodeId,
        life: u64,
        through: Box<SnapshotMeta>,
    },
    Offered(Box<Transfer>),
    Transferred(Box<Transfer>),
    /// The sender learns the outcome of its snapshot.
    Sent(Box<Transfer>),
    Unreachable {
        node: NodeId,
        life: u64,
        peer: NodeId,
    },
    Restarts {
        node: NodeId,
        life: u64,
    },
    Client,
    FaultBegins(usize),
    FaultEnds(usize),
    LeaderCrashes(usize),
}

impl Event {
    /// The node whose process must be running for this event.
    fn node(&self) -> Option<NodeId> {
        match self {
            Event::Arrives { to, .. } => Some(*to),
            Event::Timer { node, .. }
            | Event::Asked { node, .. }
            | Event::Written { node, .. }
            | Event::Applied { node, .. }
            | Event::ViewWritten { node, .. }
            | Event::Flushed { node, .. }
            | Event::Compacted { node, .. }
            | Event::Unreachable { node, .. } => Some(*node),
            Event::Offered(transfer) | Event::Transferred(transfer) => Some(transfer.to),
            Event::Sent(transfer) => Some(transfer.from),
            Event::Restarts { .. }
            | Event::Client
            | Event::FaultBegins(_)
            | Event::FaultEnds(_)
            | Event::LeaderCrashes(_) => None,
        }
    }
}

/// The first disks have the numbers after this one, so that no drawn number is like them.
const FIRST_INCARNATION: u64 = 1 << 20;

#[derive(Debug)]
struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[derive(Debug)]
pub struct Simulation {
    pub plan: Plan,
    pub now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled_count: u64,
    at_once: u32,
    pub steps: u64,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub oracle: Oracle,
    pub coverage: Coverage,
    pub trace: Trace,
    /// The lasting effect of each fault, to be reverted at its end.
    pub strikes: Vec<Option<Strike>>,
    pub clients: Random,
    /// Decides which disks are lost.
    pub disks: Random,
    /// Decides how operators change the members.
    pub operators: Random,
    /// For each read, by number: the commit index at its start, its node, and that node's
    /// `life_number`.
    pub reads: Vec<(u64, NodeId, u64)>,
    /// Set while clients send requests.
    pub is_busy: bool,
    /// Messages that leaders have sent, for bounds.
    pub sent: Sent,
    /// Nodes that stay down or cut off in the second part. Appends to them are not counted: a late
    /// message of theirs makes the leader continue where it stopped. Appends from them are not
    /// counted either: one of them may believe that it leads.
    pub outside: Vec<NodeId>,
    /// By link, as (from, to).
    pub resends: Vec<Resends>,
}

impl Simulation {
    pub fn new(plan: Plan, recording: bool) -> Self {
        let mix = &plan.mix;
        let hard_state = if mix.is_founding { HardState::FOUNDING } else { HardState::INITIAL };
        let node = |id| {
            let mut disk = Disk::default();
            disk.hard_state = hard_state;
            let mut node = Node::of_plan(&plan, id, disk);
            if plan.mix.changes > 0 {
                node.incarnation = FIRST_INCARNATION + id;
            }
            node
        };
        let nodes_max = mix.nodes_max();
        let nodes: Vec<Node> = (1..=mix.voter_count).map(node).collect();
        let mut simulation = Self {
            network: Network::new(&plan),
            oracle: Oracle::new(mix.bootstrap()),
            coverage: Coverage::default(),
            trace: Trace::new(recording),
            strikes: plan.faults.iter().map(|_| None).collect(),
            clients: plan.random(100),
            disks: plan.random(200),
            operators: plan.random(300),
            plan,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled_count: 0,
            at_once: 0,
            steps: 0,
            nodes,
            reads: Vec::new(),
            is_busy: true,
            sent: Sent::default(),
            outside: Vec::new(),
            resends: vec![Resends::default(); (nodes_max * nodes_max) as usize],
        };
        for id in simulation.ids() {
            simulation.start(id);
        }
        for number in 0..simulation.plan.faults.len() {
            let at = simulation.plan.faults[number].at_us;
            simulation.schedule(at, Event::FaultBegins(number));
        }
        simulation.schedule(1, Event::Client);
        simulation
    }

    /// Runs the hostile part, then the recovery.
    pub fn run(&mut self) {
        while self.now < self.plan.mix.hostile_us && self.steps < self.plan.mix.steps_max {
            if !self.step() {
                break;
            }
        }
        self.recover();
        self.coverage.add(What::Step, self.steps);
    }

    pub fn ids(&self) -> Vec<NodeId> {
        (1..=self.nodes.len() as u64).collect()
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize - 1]
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// The running process of a node that is up.
    pub fn life(&mut self, id: NodeId) -> &mut Life {
        self.node_mut(id).life.as_mut().expect("the node is up")
    }

    /// The leader of the highest term among the nodes that are up.
    pub fn leader(&self) -> Option<NodeId> {
        let leaders = self.nodes.iter().filter(|node| node.role() == Some(RoleKind::Leader));
        leaders.max_by_key(|node| node.raft().map(|raft| raft.term())).map(|node| node.id)
    }

    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        self.trace.tell(self.now, line);
    }

    pub fn schedule(&mut self, at: u64, event: Event) {
        assert!(at >= self.now, "nothing is scheduled for the past");
        self.scheduled_count += 1;
        self.queue.push(Reverse(Scheduled { at, number: self.scheduled_count, event }));
    }

    /// The entries in flight between nodes.
    pub fn entries_in_flight(&self) -> impl Iterator<Item = &Entry> {
        let messages = self.queue.iter().filter_map(|Reverse(one)| match &one.event {
            Event::Arrives { message, .. } => Some(&message.body),
            _ => None,
        });
        messages.flat_map(|body| match body {
            MessageBody::AppendEntries { entries, .. } => &entries[..],
            _ => &[],
        })
    }

    /// Removes the scheduled events for which `is_taken` returns true, and returns them.
    pub fn take_scheduled(&mut self, is_taken: impl Fn(u64, &Event) -> bool) -> Vec<Event> {
        let queue = std::mem::take(&mut self.queue).into_sorted_vec();
        let (taken, left): (Vec<_>, Vec<_>) =
            queue.into_iter().partition(|Reverse(one)| is_taken(one.at, &one.event));
        self.queue = left.into();
        taken.into_iter().map(|Reverse(one)| one.event).collect()
    }

    /// Handles one event. Returns false if there is none.
    pub fn step(&mut self) -> bool {
        let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else { return false };
        self.at_once = if at == self.now { self.at_once + 1 } else { 0 };
        assert!(self.at_once < 10_000, "V24 things happen without time passing: {event:?}");
        self.now = at;
        if let Some(id) = event.node()
            && self.node(id).paused_until > at
        {
            let resumes_at = self.node(id).paused_until;
            self.schedule(resumes_at, event);
            return true;
        }
        self.steps += 1;
        self.trace.note(at);
        self.handle(event);
        true
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrives { from, disk, to, message, is_copy } => {
                self.on_arrival((from, disk), to, message, is_copy);
            }
            Event::Timer { node, life, at } => {
                if self.is_alive(node, life) && self.life(node).timer_at == at {
                    self.on_timer(node);
                }
            }
            Event::Asked { node, life } => {
                if self.is_alive(node, life) {
                    self.life(node).will_be_asked = false;
                    self.settle(node);
                }
            }
            Event::Written { node, life } => {
                if self.is_alive(node, life) {
                    self.on_written(node);
                }
            }
            Event::Applied { node, life } => {
                if self.is_alive(node, life) {
                    self.on_applied(node);
                }
            }
            Event::ViewWritten { node, life, snapshot } => {
                if self.is_alive(node, life) {
                    self.on_view_written(node, *snapshot);
                }
            }
            Event::Flushed { node, life, state } => {
                if self.is_alive(node, life) {
                    self.on_flushed(node, state);
                }
            }
            Event::Compacted { node, life, through } => {
                if self.is_alive(node, life) {
                    self.node_mut(node).disk.compact(&through);
                }
            }
            Event::Offered(transfer) => self.on_offer(transfer),
            Event::Transferred(transfer) => self.on_transferred(transfer),
            Event::Sent(transfer) => self.on_sent(&transfer),
            Event::Unreachable { node, life, peer } => {
                if self.is_alive(node, life) {
                    self.coverage.count(What::Unreachable);
                    self.note_reason(node, peer);
                    self.with(node, |raft, now| raft.on_unreachable(now, peer));
                }
            }
            Event::Restarts { node, life } => {
                if !self.node(node).is_up() && self.node(node).life_number == life {
                    self.start(node);
                }
            }
            Event::Client => self.on_client(),
            Event::FaultBegins(number) => self.begin_fault(number),
            Event::FaultEnds(number) => self.end_fault(number),
            Event::LeaderCrashes(number) => self.crash_leader(number),
        }
    }

    pub fn is_alive(&self, id: NodeId, life: u64) -> bool {
        self.node(id).is_up() && self.node(id).life_number == life
    }

    fn on_arrival(&mut self, from: (NodeId, u64), to: NodeId, message: Message, is_copy: bool) {
        let (from, incarnation) = from;
        self.network.on_arrival(from, to);
        if self.network.is_cut(from, to) || !self.node(to).is_up() {
            self.coverage.count(What::CutOff);
            self.tell(|| format!("{from} -x {to}  {}", render::message(&message)));
            return;
        }
        if is_copy {
            self.coverage.count(What::Copy);
        }
        self.trace.note(from << 32 | to << 16 | message.term);
        self.tell(|| format!("{from} -> {to}  {}", render::message(&message)));
        self.note_heard(from, to, &message);
        let own_time = self.own_time(to);
        let life = self.life(to);
        let disk = life.disks[from as usize - 1].replace(incarnation);
        if disk.is_some_and(|disk| disk != incarnation) {
            life.matches[from as usize - 1] = 0;
        }
        let raft = &mut life.raft;
        let before = (raft.role(), raft.next_deadline());
        let term = message.term;
        // In a newer term the deadline of reads is removed as well.
        let is_vote =
            matches!(message.body, MessageBody::RequestVote { .. }) && term == raft.term();
        let is_leaders = matches!(
            message.body,
            MessageBody::AppendEntries { .. } | MessageBody::Heartbeat { .. }
        );
        raft.on_connected(own_time, from, incarnation);
        raft.step(own_time, from, message);
        assert!(
            !is_leaders || raft.term() > term || raft.leader() == Some(from),
            "V1 node {to} hears the leader of its term and does not follow it"
        );
        let grew = is_vote && before.0 == RoleKind::Follower && raft.next_deadline() > before.1;
        self.life(to).winds_up_for = grew.then_some((from, term));
        self.with(to, |_, _| ());
    }
}
