//! One node: the core as a value, its clock and disk, and the state that a driver would keep.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft_core::consensus::invariants::Marks;
use raft_core::consensus::{Raft, RoleKind};
use raft_core::types::{
    Configuration, Entry, HardState, Index, NodeId, Position, SnapshotMeta, Term, Time,
};

use crate::chain::{Log, Stamp};
use crate::clock::Clock;
use crate::common::Random;
use crate::disk::{Disk, Write};

/// The progress of this node's own snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    Idle,
    Writing,
    Publishing,
    Flushing,
}

/// Work for the state machine, processed in order.
#[derive(Clone, Debug)]
pub enum Work {
    Apply(Vec<Entry>),
    Restore(SnapshotMeta),
}

/// The node's status after its last step.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub role: RoleKind,
    pub term: Term,
    pub commit_index: Index,
    pub last_applied: Index,
    pub last_index: Index,
    pub durable_index: Index,
    pub log_bytes: u64,
    pub is_recovering: bool,
    pub marks: Marks,
}

/// The highest acknowledgement that the node has sent to a leader; survives crashes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promise {
    pub term: Term,
    pub match_index: Index,
}

/// The state of a running process, lost in a crash.
#[derive(Debug)]
pub struct Life {
    pub raft: Raft,
    pub view: View,
    /// The log on disk as it will be once every batch handed to the disk is written.
    pub planned: Log,
    pub writing: VecDeque<Write>,
    pub disk_is_busy: bool,
    /// Term and commit index when the last batch was created.
    pub batch_term: Term,
    pub batch_commit: Index,
    pub machine: Stamp,
    pub applying: VecDeque<Work>,
    /// The last time this node became leader, on its own clock.
    pub leads_since: Time,
    /// The time since which the machine has had work and has applied nothing.
    pub applying_since: Option<Time>,
    /// Confirmed reads whose index is not applied yet.
    pub reads: Vec<(usize, Index)>,
    /// Commands proposed here whose outcome has not been reported yet.
    pub waiting: VecDeque<(Position, usize)>,
    pub own: Own,
    pub receiving: bool,
    /// The last own snapshot that names no members, which the core does not publish.
    pub not_published_through: Index,
    pub wanted_by: BTreeSet<NodeId>,
    pub sending_to: BTreeMap<NodeId, Index>,
    /// The members in force after the last step.
    pub configuration: Configuration,
    /// Peers to which this node replicates as a leader.
    pub peers: BTreeSet<NodeId>,
    /// The time since which a committed configuration leaves this leader out.
    pub left_out_since: Option<Time>,
    /// This node has refused its vote or pre-vote since its start.
    pub has_refused: bool,
    /// A leader has readmitted this node since its start.
    pub was_readmitted: bool,
    /// By peer, on this node's own clock: its last message in this node's present term as leader.
    pub heard: Vec<Time>,
    /// By peer: the match_index last observed on a leader.
    pub matches: Vec<Index>,
    /// By peer: the disk from which its last message came.
    pub disks: Vec<Option<u64>>,
    /// True time at which the present timer fires.
    pub timer_at: u64,
    pub will_be_asked: bool,
    /// The candidate and the term of the vote request that just restarted the election timer.
    pub winds_up_for: Option<(NodeId, Term)>,
    /// Set once the leader has told this node to take over.
    pub was_told: bool,
}

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub life: Option<Life>,
    /// Number of starts; events for an earlier start are dropped.
    pub life_number: u64,
    pub clock: Clock,
    pub disk: Disk,
    /// Number of lost disks.
    pub disk_number: u64,
    /// Identifies the present disk; 0 for the first disk of a node of the start.
    pub incarnation: u64,
    /// The newest term that the node was in.
    pub reached_term: Term,
    /// The log on the last lost disk, until the node has recovered: its acknowledgements remain
    /// valid.
    pub lost: Option<Log>,
    /// The last lost disk, which may come back.
    pub earlier: Option<Box<EarlierDisk>>,
    /// The present disk is one that was lost, and the node has counted on another one since.
    pub is_old: bool,
    /// The present disk came back before the node had counted on another one. A leader may still
    /// record the other one.
    pub may_be_void: bool,
    /// A lost disk of this node has come back.
    pub was_put_back: bool,
    pub random: Random,
    pub promise: Promise,
    pub paused_until: u64,
    /// Number of present faults that hang the disk.
    pub hung: u32,
    /// Set while the state machine accepts work and finishes none.
    pub machine_hangs: bool,
    pub slowness: u64,
    /// Effects left until the node crashes.
    pub crashes_in: Option<u64>,
    pub down_us: u64,
}

/// A disk that was taken out of a node.
#[derive(Debug)]
pub struct EarlierDisk {
    pub disk: Disk,
    pub disk_number: u64,
    pub incarnation: u64,
    pub promise: Promise,
}

impl EarlierDisk {
    pub fn blank(disk: Disk, disk_number: u64, incarnation: u64) -> Self {
        Self { disk, disk_number, incarnation, promise: Promise::default() }
    }
}

impl Node {
    /// Puts another disk into a node that is down, and returns the one that was there.
    pub fn take_disk(&mut self, other: EarlierDisk) -> EarlierDisk {
        let EarlierDisk { disk, disk_number, incarnation, promise } = other;
        EarlierDisk {
            disk: std::mem::replace(&mut self.disk, disk),
            disk_number: std::mem::replace(&mut self.disk_number, disk_number),
            incarnation: std::mem::replace(&mut self.incarnation, incarnation),
            promise: std::mem::replace(&mut self.promise, promise),
        }
    }

    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    pub fn role(&self) -> Option<RoleKind> {
        self.life.as_ref().map(|life| life.raft.role())
    }

    pub fn raft(&self) -> Option<&Raft> {
        self.life.as_ref().map(|life| &life.raft)
    }

    /// Returns true while the node's votes and acknowledgements are not counted.
    pub fn recovers(&self) -> bool {
        self.raft().map_or(!self.disk.hard_state.memory.counts(), Raft::is_recovering)
    }

    /// Returns true for a node that is created for an operator, and not at the start.
    pub fn is_joiner(&self, founders: usize) -> bool {
        self.id as usize > founders
    }

    /// Returns true if nothing was written since the disk was lost or initialised.
    pub fn is_blank(&self) -> bool {
        [HardState::default(), HardState::FOUNDING].contains(&self.disk.hard_state)
    }

    /// Returns true if the node has acknowledged this log, and its acknowledgement is counted.
    pub fn has_promised(&self, stamp: Stamp) -> bool {
        self.lost.as_ref().is_some_and(|log| log.at(stamp.index()) == Some(stamp))
            || ((!self.recovers() || self.is_old) && self.has_durable(stamp))
    }

    /// Returns true if the disk holds exactly this log through `stamp`, or a state that covers it.
    pub fn has_durable(&self, stamp: Stamp) -> bool {
        let log = &self.disk.log;
        match log.at(stamp.index()) {
            Some(at) => at == stamp,
            // The covered entries are compared when the state is applied.
            None => log.start.index() > stamp.index(),
        }
    }
}
