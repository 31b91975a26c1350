//! One node as a value: its state, its history, and its transition for an input.
//!
//! Time has three moments. Everything happens at the first, except heartbeat responses: they arrive
//! at the second, an hour later, so that a leader may resend unacknowledged entries. Requests for
//! votes arrive at the first moment and, if it makes a difference, also at the second, when no node
//! rejects them out of loyalty to a leader. At the third moment a leader has received nothing for a
//! long time. A deadline may pass at any moment. So no state depends on when something happened,
//! and [`Raft`]'s `Hash`, which leaves out time and rng, identifies a state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use raft_core::consensus::invariants::Marks;
use raft_core::consensus::{Boot, Config, Persist, Raft, Ready, RoleKind, invariants};
use raft_core::types::{
    Configuration, Index, Message, MessageBody, NodeId, Payload, Position, Term, Time,
};

use crate::common::oracle::{Oracle, deciding_configuration, must};
use crate::common::{Disk, Machine};
use crate::members::{self, Order};
use crate::scope::Scope;

const HOUR_US: u64 = 3_600_000_000;
const NOW: Time = Time::from_micros(HOUR_US);
const LATER: Time = Time::from_micros(2 * HOUR_US);
const MUCH_LATER: Time = Time::from_micros(3 * HOUR_US);
/// Every deadline has passed.
pub const AFTERWARDS: Time = Time::from_micros(4 * HOUR_US);

/// An input to a node. A message is given separately, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The message of this number arrives. `late`: at the second moment, for a request for votes.
    Message {
        number: u32,
        late: bool,
    },
    Deadline,
    /// A leader finds that no quorum has contacted it.
    Lonely,
    Propose,
    /// A leader is asked to change the members.
    Change(Order),
    /// The oldest batch reaches the disk.
    Write,
    /// A crash and a new start. The first `written` of the waiting batches survive.
    Restart {
        written: u8,
    },
    /// A crash, and a new start on an empty disk.
    LoseDisk,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub id: NodeId,
    pub raft: Raft,
    pub disk: Disk,
    /// Number of disks that this node has lost; also seeds the node's rng.
    disk_number: u64,
    /// The terms of the entries on the disk that the node lost.
    pub lost: Vec<Term>,
    pub writing: VecDeque<Persist>,
    pub machine: Machine,
    /// The terms that the node has led, also before a crash, each with the configuration in force
    /// when it was elected.
    pub led: BTreeMap<Term, Configuration>,
    /// The votes that count and that the node has sent, also before a crash: term and candidate.
    pub granted: BTreeSet<(Term, NodeId)>,
    /// Every entry that the node has known to be committed, from index 1.
    pub committed: Vec<Commit>,
    /// Remembers the votes given, and checks each message sent against the disk.
    oracle: Oracle,
}

/// An entry that a node knows to be committed.
#[derive(Clone, Debug, Hash)]
pub struct Commit {
    pub position: Position,
    /// The term in which the node learned that.
    pub learned_in: Term,
    /// A quorum of it has the entry on disk.
    pub quorum: Configuration,
}

impl Node {
    pub fn new(scope: &Scope, id: NodeId) -> Self {
        let log = scope.logs[id as usize - 1];
        let disk_number = 0;
        let founders = scope.founders();
        let disk = match scope.is_founding {
            true => Disk::new_member(),
            false if founders.contains(&id) => Disk::of_terms(log, scope.term),
            false => Disk::default(),
        };
        let quorum = Configuration::of_voters(founders);
        let commit = |position: Position| Commit {
            position,
            learned_in: position.term,
            quorum: quorum.clone(),
        };
        let position = |(term, index): (&Term, Index)| Position::new(*term, index);
        let committed = scope.logs[0][..scope.committed].iter().zip(1..).map(position);
        let holds =
            |position: &Position| log.get(position.index as usize - 1) == Some(&position.term);
        Self {
            id,
            raft: start(scope, id, disk_number, &disk),
            disk,
            disk_number,
            lost: Vec::new(),
            writing: VecDeque::new(),
            machine: Machine::default(),
            led: BTreeMap::new(),
            granted: BTreeSet::new(),
            committed: committed.take_while(holds).map(commit).collect(),
            oracle: Oracle::default(),
        }
    }

    pub fn fingerprint(&self, scope: &Scope) -> u64 {
        let Self {
            id,
            raft,
            disk,
            disk_number,
            lost,
            writing,
            machine,
            led,
            granted,
            committed,
            oracle,
        } = self;
        let mut hasher = DefaultHasher::new();
        (id, raft, disk, disk_number, lost, machine).hash(&mut hasher);
        (led, granted, committed, oracle).hash(&mut hasher);
        if scope.changes_members() {
            // Times decide which members are ready and which have left, and which learner may
            // campaign. All of that shows when a deadline passes.
            let mut later = raft.clone();
            later.on_timeout(self.deadline());
            let _ = later.ready(self.deadline());
            later.hash(&mut hasher);
        }
        writing.iter().for_each(|persist| persist.batch.hash(&mut hasher));
        hasher.finish()
    }

    /// Returns the node after this input, and the messages that it sends. `message` is the one that
    /// arrives.
    pub fn after(
        &self,
        scope: &Scope,
        input: Input,
        message: Option<&(NodeId, Message)>,
    ) -> (Self, Vec<(NodeId, Message)>) {
        let mut node = self.clone();
        match input {
            Input::Message { late, .. } => {
                let (from, message) = message.expect("the one that arrives").clone();
                let answers_heartbeat =
                    matches!(message.body, MessageBody::HeartbeatResponse { .. });
                let now = if late || answers_heartbeat { LATER } else { NOW };
                node.raft.step(now, from, message);
            }
            Input::Deadline => node.raft.on_timeout(node.deadline()),
            Input::Lonely => node.raft.on_timeout(MUCH_LATER),
            Input::Propose => {
                let status = node.raft.status();
                let command = vec![status.term as u8, status.last_index as u8 + 1];
                let proposed = node.raft.propose(vec![Bytes::from(command)]);
                // A leader that leaves the voters refuses.
                assert!(proposed.is_ok() || scope.changes_members(), "a leader with room");
            }
            Input::Change(order) => members::ask(&mut node.raft, NOW, order),
            Input::Write => node.write(),
            Input::Restart { written } => {
                for Persist { batch, .. } in node.writing.drain(..).take(written.into()) {
                    node.disk.write(&batch);
                }
                node.machine = Machine::default();
                node.raft = start(scope, node.id, node.disk_number, &node.disk);
            }
            Input::LoseDisk => {
                node.writing.clear();
                node.lost = std::mem::take(&mut node.disk).terms();
                node.disk_number += 1;
                if scope.lost_disks_are_new {
                    node.disk = Disk::new_member();
                }
                node.machine = Machine::default();
                node.oracle = Oracle::default();
                node.raft = start(scope, node.id, node.disk_number, &node.disk);
            }
        }
        let sent = node.process_ready(scope);
        if !matches!(input, Input::Restart { .. } | Input::LoseDisk) {
            node.check_step(&self.raft);
        }
        (node, sent)
    }

    fn deadline(&self) -> Time {
        self.raft.election_deadline().max(NOW)
    }

    /// Compares the node with its state before a step in which it was up.
    fn check_step(&self, before: &Raft) {
        let (before, now) = (Marks::from(&before.status()), Marks::from(&self.raft.status()));
        must(self.id, invariants::term_never_falls(&before, &now));
        must(self.id, invariants::commit_never_shrinks(&before, &now));
        must(self.id, invariants::applied_never_falls(&before, &now));
        must(self.id, invariants::leader_append_only(&before, &now));
    }

    fn write(&mut self) {
        let Persist { id, batch } = self.writing.pop_front().expect("a batch at the disk");
        self.disk.write(&batch);
        self.raft.on_persisted(NOW, id);
    }

    fn process_ready(&mut self, scope: &Scope) -> Vec<(NodeId, Message)> {
        let mut sent = Vec::new();
        loop {
            invariants::check(&self.raft);
            let ready = self.raft.ready(NOW);
            invariants::check(&self.raft);
            self.see_commits(scope);
            if ready.is_empty() {
                return sent;
            }
            self.carry_out_one(ready, &mut sent);
            while !scope.slow_disks && !self.writing.is_empty() {
                self.write();
            }
        }
    }

    fn carry_out_one(&mut self, ready: Ready, sent: &mut Vec<(NodeId, Message)>) {
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
            notices: _,
        } = ready;
        // This alarm is legitimate: a majority of the disks may be lost.
        let is_due = |alarm: &String| alarm.starts_with("no leader can be elected");
        assert!(alarms.iter().all(is_due), "node {} raises an alarm: {alarms:?}", self.id);
        assert!(restore.is_none() && snapshot_published.is_none() && snapshot_requests.is_empty());
        assert!(read_states.is_empty(), "nobody reads");
        if let Some(change) = role_change.filter(|change| change.role == RoleKind::Leader) {
            self.led.insert(change.term, self.raft.configuration().clone());
            // A candidate that is the only voter asks no other node.
            self.granted.insert((change.term, self.id));
        }
        for (to, message) in messages {
            self.oracle.on_send(self.id, to, &message, &self.disk);
            self.note_vote(to, &message);
            sent.push((to, message));
        }
        self.writing.extend(persist);
        let applied = committed.last().map(|entry| entry.index);
        for entry in committed {
            assert_eq!(self.disk.entry(entry.index), Some(&entry), "applied before it is on disk");
            if let Payload::Command(command) = &entry.payload {
                assert_eq!(command[..], [entry.term as u8, entry.index as u8], "another's command");
            }
            self.machine.apply(entry);
        }
        if let Some(index) = applied {
            self.raft.on_applied(index);
        }
    }

    fn note_vote(&mut self, to: NodeId, message: &Message) {
        let candidate = match message.body {
            MessageBody::RequestVote { .. } => self.id,
            MessageBody::VoteResponse { granted: true } if message.recovering.is_none() => to,
            _ => return,
        };
        self.granted.insert((message.term, candidate));
    }

    fn see_commits(&mut self, scope: &Scope) {
        let (learned_in, commit_index) = (self.raft.term(), self.raft.status().commit_index);
        for index in 1..=commit_index {
            let position = self.raft.snapshot_meta(index).expect("within the log").position;
            match self.committed.get(index as usize - 1) {
                Some(known) => {
                    let safety =
                        invariants::state_machine_safety(index, &known.position, &position);
                    must(self.id, safety);
                }
                None => {
                    let mut quorum = deciding_configuration(&self.raft, index);
                    if quorum.is_empty() {
                        // A node that joins does not know the voters before its first members.
                        quorum = Configuration::of_voters(scope.founders());
                    }
                    self.committed.push(Commit { position, learned_in, quorum });
                }
            }
        }
    }
}

fn start(scope: &Scope, id: NodeId, disk_number: u64, disk: &Disk) -> Raft {
    // The rng decides only the node's identifying number, so each disk gives another one.
    let mut config = Config::new(id, 1_000 * disk_number + id);
    scope.configure(&mut config);
    config.incarnation = members::incarnation(scope, id, disk_number);
    let bootstrap = members::bootstrap(scope, id, disk_number);
    let boot = Boot { loaded: disk.loaded.clone(), last_applied: Position::ZERO, bootstrap };
    Raft::new(config, boot, NOW).expect("what a core wrote, a core can start from")
}
