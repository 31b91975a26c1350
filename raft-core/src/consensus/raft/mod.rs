//! The facade: one node's Raft as a value.
//!
//! The driver reports events through `step`, `on_timeout`, `propose`, `read_index` and the `on_*`
//! methods, and [`Raft::ready`] returns the work to do next. This is the one place that changes
//! role and term: `messages` holds the one match over (role, message), written out in full;
//! `transitions` enters and leaves roles; `members` changes the members; `snapshots` replaces the
//! log, or a prefix of it, by a snapshot.

mod members;
mod messages;
pub(super) mod snapshots;
mod transitions;

pub use self::members::ConfigurationStage;
use std::collections::BTreeSet;

use bytes::Bytes;

use super::config::{Config, ConfigError};
use super::founding::Founding;
use super::log::Log;
use super::node_state::{NodeState, Restoring};
use super::ready::{Ready, RoleChange};
use super::role::Role;
use super::role::follower::Follower;
use super::status::{PeerStatus, Status};
use crate::error::Rejected;
use crate::types::{
    Configuration, Index, Loaded, NodeId, PersistId, Position, RoleKind, Term, Time,
};

/// The state from which a node starts.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The state that storage returned.
    pub loaded: Loaded,
    /// The last position whose effect is in the state machine, after it restored the snapshot if it
    /// held less than the log's start.
    pub last_applied: Position,
    /// The members as the operator names them. In force while the log has no configuration; after
    /// that this must name the same members.
    pub bootstrap: Configuration,
}

/// One node's Raft.
///
/// The caller reports events, and processes each [`Ready`]. A cluster of one node elects itself and
/// commits as soon as its own disk has the entry:
///
/// ```
/// use raft_core::consensus::{Boot, Config, Raft, RoleKind};
/// use raft_core::types::{Configuration, HardState, Loaded, Position, Time};
///
/// let boot = Boot {
///     loaded: Loaded { hard_state: HardState::INITIAL, ..Loaded::default() },
///     last_applied: Position::ZERO,
///     bootstrap: Configuration::of_voters([1]),
/// };
/// let mut raft = Raft::new(Config::new(1, 42), boot, Time::ZERO)?;
/// let now = raft.next_deadline();
/// raft.on_timeout(now);
/// // The vote for itself counts once it is on disk.
/// assert_eq!(raft.role(), RoleKind::Candidate);
/// let vote = raft.ready(now).persist.expect("term and vote");
/// raft.on_persisted(now, vote.id);
/// assert_eq!(raft.role(), RoleKind::Leader);
///
/// let position = raft.propose(vec!["x = 1".into()])?;
/// let entries = raft.ready(now).persist.expect("the no-op and the command");
/// assert!(raft.commit_index() < position.index);
/// raft.on_persisted(now, entries.id);
/// assert_eq!(raft.commit_index(), position.index);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `Hash` covers the state that decides what the node does next, and leaves out times and the rng,
/// so that a test can tell a node's states apart and count them. Two nodes of equal hash react to
/// equal events alike, except for timing, random draws, and alarms that were raised before.
#[derive(Clone, Debug, Hash)]
pub struct Raft {
    node: NodeState,
    role: Role,
    /// Role, term and leader as last reported.
    reported: RoleChange,
}

impl Raft {
    /// Starts a node as a follower from what its disk holds.
    ///
    /// # Errors
    /// If the configuration contradicts itself, or state machine and log do not belong together.
    pub fn new(config: Config, boot: Boot, now: Time) -> Result<Self, ConfigError> {
        config.validate()?;
        let Boot { loaded, last_applied, bootstrap } = boot;
        let Loaded { hard_state, log_start, snapshot, entries } = loaded;
        let start = log_start.position;
        let last_index = start.index + entries.len() as u64;
        if last_applied.index < start.index || last_applied.index > last_index {
            return Err(ConfigError(format!(
                "the state machine is at index {}, the log holds {} to {last_index}: they do not \
                 belong together. Restore both from the same node, or neither",
                last_applied.index, start.index
            )));
        }
        let snapshot_index = snapshot.map_or(0, |meta| meta.index()).min(last_applied.index);
        let commit_index = hard_state.commit_index.min(last_index).max(last_applied.index);
        let snapshot_index = snapshot_index.max(start.index);
        let stored = match log_start.configuration.is_empty() {
            true => bootstrap.clone(),
            false => *log_start.configuration,
        };
        let log =
            Log::new(start, stored, entries, snapshot_index, commit_index, last_applied.index);
        check_configuration(&config, log.configuration(), &bootstrap)?;
        if log.term_at(last_applied.index) != Some(last_applied.term) {
            return Err(ConfigError(format!(
                "the state machine applied {last_applied}, the log holds another entry there: they \
                 do not belong together. Restore both from the same node, or neither"
            )));
        }
        let mut node = NodeState::new(config, hard_state, log, now);
        let deadline = node.draw_election_deadline(now);
        let role = Role::Follower(Follower::new(None, now, deadline));
        let reported = RoleChange {
            role: RoleKind::Follower,
            term: hard_state.term,
            leader: None,
            is_recovering: !node.counts(),
        };
        Ok(Self { node, role, reported })
    }

    /// The deadline of [`Raft::next_deadline`] has passed.
    pub fn on_timeout(&mut self, now: Time) {
        self.node.send_founding_round(now);
        self.ask_voters_again(now);
        let transition = match &mut self.role {
            Role::Follower(follower) => follower.on_timeout(&mut self.node, now),
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => {
                candidate.on_timeout(&mut self.node, now)
            }
            Role::Leader(leader) => leader.on_timeout(&mut self.node, now),
        };
        self.change(now, transition);
    }

    /// Appends commands to the leader's log; returns the position of the first, the others follow.
    ///
    /// # Errors
    /// Nothing was appended: this node does not lead, or a byte budget is used up.
    pub fn propose(&mut self, commands: Vec<Bytes>) -> Result<Position, Rejected> {
        match &mut self.role {
            Role::Leader(leader) => leader.propose(&mut self.node, commands),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Asks for an index that, once applied here, makes a read linearizable. The outcome arrives as
    /// a `ReadState` with this id, which must be unique.
    ///
    /// # Errors
    /// No leader is known, or too many reads wait.
    pub fn read_index(&mut self, now: Time, id: u64) -> Result<(), Rejected> {
        let node = &mut self.node;
        match &mut self.role {
            Role::Leader(leader) => leader.read_index(node, id),
            Role::Follower(follower) if follower.leader.is_some() => {
                if follower.reads_count() >= node.config.reads_waiting_max {
                    return Err(Rejected::Busy("too many reads wait for the leader"));
                }
                follower.read_index(node, now, id);
                Ok(())
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: None })
            }
        }
    }

    /// Hands leadership to `to`, or to the voter whose log is furthest (3.10).
    ///
    /// # Errors
    /// This node does not lead, or `to` is not another voter, or its disk was lost.
    pub fn transfer_leadership(&mut self, now: Time, to: Option<NodeId>) -> Result<(), Rejected> {
        match &mut self.role {
            Role::Leader(leader) => leader.transfer(&self.node, now, to),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Reports that all batches through `id` are on disk.
    pub fn on_persisted(&mut self, now: Time, id: PersistId) {
        self.node.on_persisted(now, id);
        self.release_gate(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.advance_commit(&mut self.node);
        }
    }

    /// Reports that the state machine has applied everything through `index`, or restored the
    /// snapshot at `index`.
    pub fn on_applied(&mut self, index: Index) {
        match self.node.restoring.meta() {
            Some(meta) if meta.index() == index => {
                self.node.log.on_restored(index);
                self.node.restoring = Restoring::No;
            }
            // These entries were replaced by the snapshot that is being restored.
            Some(_) => {}
            None => self.node.log.on_applied(index),
        }
    }

    /// Names the nodes that are to lead only if no other voter can, such as those that are about to
    /// be stopped: such a leader hands over, and leadership is handed to the others first. A matter
    /// of this node alone, so tell it to all of them.
    pub fn avoid_as_leaders(&mut self, nodes: BTreeSet<NodeId>) {
        self.node.avoided = nodes;
    }

    /// Reports the incarnation of the disk from which the messages of a peer come from now on
    /// ([`Config::incarnation`]); 0 if the peer has not told it. Responses from another disk than
    /// the recorded one are not counted.
    pub fn on_connected(&mut self, now: Time, peer: NodeId, incarnation: u64) {
        let before = self.node.peer_disks.insert(peer, incarnation);
        if before.is_none_or(|before| before == incarnation) {
            return;
        }
        match &mut self.role {
            Role::Follower(_) => {}
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => {
                candidate.uncounted.remove(&peer);
            }
            Role::Leader(leader) => leader.on_other_disk(&self.node, now, peer),
        }
    }

    /// Reports that the transport lost the connection to a peer.
    pub fn on_unreachable(&mut self, now: Time, peer: NodeId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_unreachable(&self.node, now, peer);
        }
    }

    /// Lets all members use the formats of `version`, once the entry that says so is committed
    /// ([`Status::cluster_version`]). Returns the position of that entry.
    ///
    /// # Errors
    /// Nothing was appended: this node does not lead, another change of the configuration is not
    /// yet committed, the version is not newer, or a member is not known to support it.
    pub fn raise_cluster_version(&mut self, version: u32) -> Result<Position, Rejected> {
        match &mut self.role {
            Role::Leader(leader) => leader.raise_cluster_version(&mut self.node, version),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Withdraws the published snapshot with the next batch, unless that batch publishes another
    /// one. The state machine must be durable at the log's start.
    pub fn withdraw_snapshot(&mut self) {
        self.node.durability.withdraw_snapshot = true;
    }

    /// Returns the work to do now. Call it once all events at hand are reported, so that they share
    /// messages and batches; and again after each completion.
    pub fn ready(&mut self, now: Time) -> Ready {
        self.release_gate(now);
        if let Role::Leader(leader) = &mut self.role {
            leader.follow_members(&mut self.node, now);
            leader.start_round_for_reads(&mut self.node, now);
            leader.replicate(&mut self.node, now);
        }
        let role_change = self.take_role_change();
        let node = &mut self.node;
        node.note_applied(now);
        let persist = node.take_persist(now);
        let committed = if node.restoring.is_none() {
            node.log.take_committed(node.config.apply_bytes_max)
        } else {
            Vec::new()
        };
        let restore = node.restoring.take_due();
        let gathered = std::mem::take(&mut node.ready);
        Ready { persist, committed, restore, role_change, ..gathered }
    }

    /// Returns when this node campaigns, or sends its next heartbeats, if nothing else happens.
    pub fn election_deadline(&self) -> Time {
        match &self.role {
            Role::Follower(follower) => follower.next_deadline(),
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => candidate.deadline,
            Role::Leader(leader) => leader.next_deadline(),
        }
    }

    /// Returns when `on_timeout` is due if nothing else happens.
    pub fn next_deadline(&self) -> Time {
        let founding = self.node.founding.as_ref().map_or(Time::NEVER, Founding::deadline);
        let of_role = match &self.role {
            Role::Follower(follower) => follower.next_deadline(),
            Role::PreCandidate(candidate) | Role::Candidate(candidate) => candidate.next_deadline(),
            Role::Leader(leader) => leader.next_deadline(),
        };
        of_role.min(founding)
    }

    /// Returns the leader of this term, if this node knows it.
    pub fn leader(&self) -> Option<NodeId> {
        self.role.leader(self.node.id())
    }

    /// Returns the present role.
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// Returns true if this node's votes and acknowledgements are not counted: its disk was empty
    /// or new when it started, and since then no leader has readmitted it and it has not met all
    /// other new voters.
    pub fn is_recovering(&self) -> bool {
        !self.node.counts()
    }

    /// Returns true if the members have recorded another disk of this node: it must stop, and this
    /// disk must not be used again once that is committed.
    pub fn is_superseded(&self) -> bool {
        self.node.is_superseded()
    }

    /// Returns the current term.
    pub fn term(&self) -> Term {
        self.node.term
    }

    /// Returns the last index that the state machine reported applied.
    pub fn last_applied(&self) -> Index {
        self.node.log.last_applied()
    }

    /// Returns the index through which every entry is known committed.
    pub fn commit_index(&self) -> Index {
        self.node.log.commit_index()
    }

    /// Returns the index of the last entry, durable or not.
    pub fn last_index(&self) -> Index {
        self.node.log.last_index()
    }

    /// Returns the progress of a peer; `None` unless this node leads.
    pub fn peer(&self, id: NodeId) -> Option<PeerStatus> {
        match &self.role {
            Role::Leader(leader) => leader.peer_status(id),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// Returns the index through which state survives a crash without the log.
    pub fn snapshot_index(&self) -> Index {
        self.node.log.snapshot_index()
    }

    /// Returns the index before the log's first entry.
    pub fn log_start_index(&self) -> Index {
        self.node.log.start().index
    }

    /// Returns true if less than half of the log's byte budget is used.
    pub fn log_has_room(&self) -> bool {
        self.node.log.bytes() < self.node.config.log_bytes_max / 2
    }

    /// Returns true while a snapshot has replaced the log and the state machine has not yet
    /// restored it.
    pub fn is_restoring(&self) -> bool {
        !self.node.restoring.is_none()
    }

    /// Returns a copy of this node's state for operators.
    pub fn status(&self) -> Status {
        self.status_in(Vec::new())
    }

    /// [`Raft::status`], with the peers in this vector: a caller that asks often keeps its memory.
    pub(crate) fn status_in(&self, mut peers: Vec<PeerStatus>) -> Status {
        peers.clear();
        if let Role::Leader(leader) = &self.role {
            peers.extend(leader.peer_statuses());
        }
        let log = &self.node.log;
        let committed = log.configuration_at(log.commit_index());
        Status {
            id: self.node.id(),
            role: self.role.kind(),
            term: self.node.term,
            leader: self.leader(),
            is_recovering: self.is_recovering(),
            memory: self.node.hard_state().memory,
            waits_for: self.node.founding.as_ref().map_or_else(Vec::new, Founding::missing),
            is_majority_lost: self.node.told_majority_lost,
            founded: committed.founded,
            cluster_version: committed.cluster_version,
            log_start_index: log.start().index,
            snapshot_index: log.snapshot_index(),
            last_applied: log.last_applied(),
            commit_index: log.commit_index(),
            durable_index: log.durable_index(),
            last_index: log.last_index(),
            log_bytes: log.bytes(),
            peers,
        }
    }

    pub(super) fn node(&self) -> &NodeState {
        &self.node
    }

    pub(super) fn role_data(&self) -> &Role {
        &self.role
    }

    /// Sends the held messages whose batches are durable. A message to this node itself is handled
    /// at once.
    fn release_gate(&mut self, now: Time) {
        for (to, message) in self.node.durability.release() {
            if to == self.node.id() {
                self.step(now, to, message);
            } else {
                self.node.ready.messages.push((to, message));
            }
        }
    }
}

/// Checks that this program supports the log's configuration, and that it has the members that the
/// operator names.
fn check_configuration(
    config: &Config,
    stored: &Configuration,
    named: &Configuration,
) -> Result<(), ConfigError> {
    let version = stored.cluster_version;
    let (version_min, version_max) = (config.version_min, config.version_max);
    if version > version_max {
        return Err(ConfigError(format!(
            "the cluster uses version {version}, and this program knows versions {version_min} to \
             {version_max}: install a newer program"
        )));
    }
    if version < version_min && stored.founded {
        return Err(ConfigError(format!(
            "the cluster uses version {version}, and this program knows versions {version_min} to \
             {version_max}: start an older program that knows both once, and let it raise the version"
        )));
    }
    // Once a cluster gives out ids itself, its log alone says who the members are.
    let is_from_files = stored.next_id == 0;
    if is_from_files && !named.is_empty() && !stored.has_members_of(named) {
        return Err(ConfigError(format!(
            "the configuration names the members {:?}, and this node's log was founded with {:?}. \
             Members do not change with the list (addresses can): restore the list",
            named.members(),
            stored.members()
        )));
    }
    Ok(())
}
