//! One node: the core as a value, its clock and disk, and what a driver would keep beside it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft_core::consensus::{Raft, RoleKind};
use raft_core::types::{Entry, HardState, Index, NodeId, Position, SnapshotMeta, Term, Time};

use crate::chain::{Log, Stamp};
use crate::clock::Clock;
use crate::common::Random;
use crate::disk::{Disk, Write};

/// What this node does about a snapshot of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    Idle,
    Writing,
    Publishing,
    Flushing,
}

/// For the state machine, in order.
#[derive(Clone, Debug)]
pub enum Work {
    Apply(Vec<Entry>),
    Restore(SnapshotMeta),
}

/// What was seen of the node after its last step.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub role: RoleKind,
    pub term: Term,
    pub commit_index: Index,
    pub last_applied: Index,
    pub last_index: Index,
    pub snapshot_index: Index,
    pub durable_index: Index,
    pub log_bytes: u64,
}

/// What the node has told a leader to be on its disk; outlives crashes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promise {
    pub term: Term,
    pub match_index: Index,
}

/// What does not survive a crash.
#[derive(Debug)]
pub struct Life {
    pub raft: Raft,
    pub view: View,
    /// What the disk will hold once everything that was handed to it is written.
    pub planned: Log,
    pub writing: VecDeque<Write>,
    pub disk_is_busy: bool,
    /// Term and commit index when the last batch was handed out.
    pub batch_term: Term,
    pub batch_commit: Index,
    pub machine: Stamp,
    pub applying: VecDeque<Work>,
    /// When it last became leader, by its own clock.
    pub leads_since: Time,
    /// Since when the machine has had work and has applied nothing.
    pub applying_since: Option<Time>,
    /// Reads whose index is known and not applied yet.
    pub reads: Vec<(usize, Index)>,
    /// Commands proposed here that nobody was told about yet.
    pub waiting: VecDeque<(Position, usize)>,
    pub own: Own,
    pub receiving: bool,
    pub wanted_by: BTreeSet<NodeId>,
    pub sending_to: BTreeMap<NodeId, Index>,
    /// By peer, on the own clock: when it was last heard in this node's term as a leader.
    pub heard: Vec<Time>,
    /// By peer: match indexes as last seen on a leader.
    pub matches: Vec<Index>,
    /// True time of the timer that is set.
    pub timer_at: u64,
    pub will_be_asked: bool,
    /// Whose request for a vote just wound the election timer up.
    pub winds_up_for: Option<(NodeId, Term)>,
    /// Told to take over by the leader.
    pub was_told: bool,
}

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub life: Option<Life>,
    /// Counts lives; what was meant for an earlier one is dropped.
    pub life_number: u64,
    pub clock: Clock,
    pub disk: Disk,
    /// Counts disks that were lost.
    pub disk_number: u64,
    /// The log of the last disk that was lost, until the node has recovered: what it acknowledged is
    /// acknowledged.
    pub lost: Option<Log>,
    pub random: Random,
    pub promise: Promise,
    pub paused_until: u64,
    /// How many faults hang the disk.
    pub hung: u32,
    /// The state machine takes work and finishes none.
    pub machine_hangs: bool,
    pub slowness: u64,
    /// Crashes after so many more effects.
    pub crashes_in: Option<u64>,
    pub down_us: u64,
}

impl Node {
    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    pub fn role(&self) -> Option<RoleKind> {
        self.life.as_ref().map(|life| life.raft.role())
    }

    pub fn raft(&self) -> Option<&Raft> {
        self.life.as_ref().map(|life| &life.raft)
    }

    /// Its word does not count.
    pub fn recovers(&self) -> bool {
        self.raft().map_or(!self.disk.hard_state.memory.counts(), Raft::is_recovering)
    }

    /// Its disk is empty: nothing was written since it was lost, or since it was initialised.
    pub fn is_blank(&self) -> bool {
        [HardState::default(), HardState::FOUNDING].contains(&self.disk.hard_state)
    }

    /// It has acknowledged this log, and counts.
    pub fn has_promised(&self, stamp: Stamp) -> bool {
        self.lost.as_ref().is_some_and(|log| log.at(stamp.index()) == Some(stamp))
            || (!self.recovers() && self.has_durable(stamp))
    }

    /// On disk, this node holds exactly this log through here, or a state that covers it.
    pub fn has_durable(&self, stamp: Stamp) -> bool {
        let log = &self.disk.log;
        match log.at(stamp.index()) {
            Some(at) => at == stamp,
            // Whether what is covered is the same is checked when it is applied.
            None => log.start.index() > stamp.index(),
        }
    }
}
