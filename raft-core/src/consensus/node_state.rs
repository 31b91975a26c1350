//! The state of a node that every role shares: term and vote, the log, the members, and what waits
//! for the disk or for the next [`Ready`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::config::Config;
use super::durability::{Completed, Durability, StartedPersist};
use super::founding::Founding;
use super::latency::Latencies;
use super::log::Log;
use super::ready::{Persist, Ready};
use crate::rng::Rng;
use crate::types::{
    Batch, Configuration, HardState, Index, Memory, Message, MessageBody, NodeId, PersistId,
    Position, PublishSnapshot, SnapshotMeta, Term, Time,
};

/// A snapshot that replaced the log, on its way into the state machine.
#[derive(Clone, Debug, Default, Hash)]
pub(super) enum Restoring {
    /// There is none: the state machine's state is at a position of this log.
    #[default]
    No,
    /// The batch that publishes the snapshot is not on disk yet.
    Unpublished(SnapshotMeta),
    /// The snapshot is published; the next [`Ready`] asks the state machine to restore it.
    Due(SnapshotMeta),
    /// The state machine was asked to restore it.
    HandedOut(SnapshotMeta),
}

impl Restoring {
    /// Returns the snapshot that the state machine does not have yet.
    pub(super) fn meta(&self) -> Option<&SnapshotMeta> {
        match self {
            Restoring::No => None,
            Restoring::Unpublished(meta) | Restoring::Due(meta) | Restoring::HandedOut(meta) => {
                Some(meta)
            }
        }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Restoring::No)
    }

    /// Notes that a snapshot which replaced the log is published.
    pub(super) fn on_published(&mut self, meta: SnapshotMeta) {
        if matches!(self, Restoring::Unpublished(unpublished) if *unpublished == meta) {
            *self = Restoring::Due(meta);
        }
    }

    /// Takes the snapshot that the state machine must restore now.
    pub(super) fn take_due(&mut self) -> Option<SnapshotMeta> {
        let Restoring::Due(meta) = self else { return None };
        let meta = meta.clone();
        *self = Restoring::HandedOut(meta.clone());
        Some(meta)
    }
}

#[derive(Clone, Debug)]
pub(super) struct NodeState {
    pub(super) config: Config,
    pub(super) term: Term,
    pub(super) voted_for: Option<NodeId>,
    pub(super) memory: Memory,
    /// Distinguishes this start of the node from earlier ones. Drawn at each start; 0 if the memory
    /// was intact.
    pub(super) number: u64,
    /// Only in term 0 of a cluster that is being founded.
    pub(super) founding: Option<Founding>,
    /// The newest cluster version that all voters supported when they had met.
    pub(super) founding_version: Option<u32>,
    pub(super) log: Log,
    pub(super) rng: Rng,
    /// The last applied index, and the time when it last moved or nothing was left to apply.
    pub(super) applied_at: (Index, Time),
    pub(super) restoring: Restoring,
    pub(super) durability: Durability,
    /// The next [`Ready`], as far as it is known. `persist`, `committed`, `restore` and
    /// `role_change` are decided when it is taken.
    pub(super) ready: Ready,
    /// The operator was told that a majority of the disks is lost, since the last message of a
    /// leader.
    pub(super) told_majority_lost: bool,
    /// The operator was told that the members' programs have no version in common.
    pub(super) told_versions_differ: bool,
    /// The term in which the operator was last told of a refused configuration.
    pub(super) told_refusal_in: Term,
    /// Until then this node may campaign, although it is a learner.
    pub(super) needed_until: Time,
    /// A term, and the index through which this log was found, since the node started, to agree
    /// with that of the term's leader.
    pub(super) agreed: (Term, Index),
    /// The nodes that are to lead only if no other voter can.
    pub(super) avoided: BTreeSet<NodeId>,
    /// The disk from which each peer's messages come, as the transport reports it; 0 or absent if
    /// it is not known.
    pub(super) peer_disks: BTreeMap<NodeId, u64>,
    /// From handing a batch out to its being on disk.
    pub(super) disk_latencies: Latencies,
    /// When this node last handed leadership over because its disk was slow.
    pub(super) left_slow_disk_at: Option<Time>,
}

impl NodeState {
    pub(super) fn new(config: Config, hard_state: HardState, log: Log, now: Time) -> Self {
        let mut rng = Rng::new(config.seed);
        let applied_at = (log.last_applied(), now);
        let mut node = Self {
            memory: hard_state.memory,
            number: if hard_state.memory == Memory::Intact { 0 } else { rng.next() },
            founding: None,
            founding_version: None,
            rng,
            config,
            term: hard_state.term,
            voted_for: hard_state.voted_for,
            log,
            applied_at,
            restoring: Restoring::No,
            durability: Durability::default(),
            ready: Ready::default(),
            told_majority_lost: false,
            told_versions_differ: false,
            told_refusal_in: 0,
            needed_until: Time::ZERO,
            agreed: (0, 0),
            avoided: BTreeSet::new(),
            peer_disks: BTreeMap::new(),
            disk_latencies: Latencies::new(now),
            left_slow_disk_at: None,
        };
        node.begin_founding(now);
        node
    }

    /// Starts founding, if this node is a new voter of a cluster that has no term yet.
    fn begin_founding(&mut self, now: Time) {
        let is_new = matches!(self.memory, Memory::New | Memory::Met);
        if !is_new {
            return;
        }
        if self.term > 0 {
            // `memory` is written in one batch with the term, so only a hand-edited disk gets here.
            // Then nothing is known of the node's promises.
            self.forget_promises();
        } else if self.is_voter() {
            self.founding = Some(Founding::new(self.number, self.voting_peers(), now));
            self.meet_all(now);
        }
    }

    fn forget_promises(&mut self) {
        self.memory = Memory::Lost;
        self.durability.next_memory = None;
        self.durability.hard_state_changed = true;
    }

    /// Returns true if this node's votes and acknowledgements are counted.
    pub(super) fn counts(&self) -> bool {
        self.memory.counts() && !self.is_superseded()
    }

    /// Returns the number that this node's messages carry while it is not counted.
    pub(super) fn recovering(&self) -> Option<u64> {
        match self.memory.counts() {
            true => self.is_superseded().then_some(self.config.incarnation),
            false => Some(self.number),
        }
    }

    /// Returns true if the members have recorded another disk of this node: what this one promised
    /// is void, and what the other one promised is not on it (`recovery`).
    pub(super) fn is_superseded(&self) -> bool {
        self.config.incarnation != 0 && self.is_other_disk(self.config.id, self.config.incarnation)
    }

    /// Returns the number under which the responses of a peer are not counted, if they come from
    /// another disk than the recorded one.
    pub(super) fn superseded_disk(&self, peer: NodeId) -> Option<u64> {
        let disk = self.peer_disk(peer);
        (disk != 0 && self.is_other_disk(peer, disk)).then_some(disk)
    }

    fn is_other_disk(&self, node: NodeId, disk: u64) -> bool {
        let recorded = self.configuration().incarnation(node);
        recorded != 0 && recorded != disk
    }

    pub(super) fn peer_disk(&self, peer: NodeId) -> u64 {
        self.peer_disks.get(&peer).copied().unwrap_or(0)
    }

    /// Returns true on an empty disk of unknown past.
    pub(super) fn has_lost_memory(&self) -> bool {
        self.memory == Memory::Lost
    }

    /// The latest configuration, committed or not.
    pub(super) fn configuration(&self) -> &Configuration {
        self.log.configuration()
    }

    /// Makes a new node count as soon as it is on disk that every other voter has met it. Waits,
    /// and tells the operator, while this program does not support the newest version that all
    /// voters know.
    pub(super) fn meet_all(&mut self, now: Time) {
        let Some(founding) = &mut self.founding else { return };
        if founding.all_have_met() {
            self.founding_version = Some(founding.common_version(self.config.version_max));
        }
        let has_met_all = founding.has_met_all();
        let common_version = founding.common_version(self.config.version_max);
        if has_met_all && common_version < self.config.version_min {
            if !std::mem::replace(&mut self.told_versions_differ, true) {
                self.ready.alarms.push(format!(
                    "the cluster is not founded: the newest version that all its members know is \
                     {common_version}, and the program of this node knows versions from {} on: \
                     install the same program on all nodes",
                    self.config.version_min
                ));
            }
            return;
        }
        if self.memory == Memory::New && self.durability.next_memory.is_none() && has_met_all {
            founding.hurry(now);
            self.durability.change_memory(Memory::Met);
        }
    }

    /// The newest cluster version that all voters of a new cluster support, as far as they said.
    pub(super) fn founding_version(&self) -> u32 {
        self.founding_version.unwrap_or(self.config.version_min.max(1))
    }

    pub(super) fn send_founding_round(&mut self, now: Time) {
        let met = self.counts();
        let (interval, version_max) = (self.config.heartbeat_interval, self.config.version_max);
        let Some(founding) = &mut self.founding else { return };
        for (peer, body) in founding.next_round(now, interval, met, version_max) {
            self.send(peer, body);
        }
    }

    /// Returns true if this node may ask for votes: it is a voter, or is needed to elect one; it
    /// counts, its disk and its state machine do not hang, and if its cluster is being founded, all
    /// other voters have met too.
    pub(super) fn may_campaign(&self, now: Time) -> bool {
        let is_founded = self.founding.as_ref().is_none_or(Founding::all_have_met);
        (self.may_vote_for_itself() || now < self.needed_until)
            && self.counts()
            && is_founded
            && !self.disk_is_stuck(now)
            && !self.machine_is_stuck(now)
    }

    pub(super) fn id(&self) -> NodeId {
        self.config.id
    }

    pub(super) fn is_voter(&self) -> bool {
        self.configuration().is_voter(self.config.id)
    }

    /// Returns true for a voter of a configuration that no committed one supersedes (4.2.2): the
    /// only node whose log can win may be one that the latest configuration, not committed yet,
    /// leaves out. Its own vote is counted only where the latest configuration has it.
    pub(super) fn may_vote_for_itself(&self) -> bool {
        self.is_voter() || self.log.active_voters().contains(&self.config.id)
    }

    /// Notes a candidate whose log is older than this node's. A learner that is asked for its vote
    /// is a voter by the candidate's configuration, which this learner does not have. If the
    /// candidate needs that vote, only this learner can be elected: so it campaigns, among the
    /// voters that it knows, and hands over once it has led.
    pub(super) fn observe_candidate(&mut self, now: Time, last: Position) {
        let is_learner = self.configuration().learners.contains(&self.config.id);
        if is_learner && last < self.log.last_position() {
            // Until after the next election deadline.
            self.needed_until = now + 3 * self.config.election_timeout;
        }
    }

    pub(super) fn peers(&self) -> Vec<NodeId> {
        self.configuration().members().into_iter().filter(|id| *id != self.config.id).collect()
    }

    pub(super) fn voting_peers(&self) -> Vec<NodeId> {
        let mut peers = self.peers();
        peers.retain(|id| self.configuration().is_voter(*id));
        peers
    }

    pub(super) fn draw_election_deadline(&mut self, now: Time) -> Time {
        let timeout = self.config.election_timeout;
        // The others come first.
        let wait = if self.is_avoided(self.config.id) { 2 * timeout } else { timeout };
        now + wait + self.draw_spread()
    }

    /// The index through which this log is known to agree with that of the leader of this term.
    pub(super) fn agreed_index(&self) -> Index {
        let (term, index) = self.agreed;
        if term == self.term { index } else { 0 }
    }

    /// Notes that the log agrees with that of the leader of this term through an index.
    pub(super) fn note_agreed(&mut self, index: Index) {
        self.agreed = (self.term, index.max(self.agreed_index()));
    }

    /// Returns true if this node is to lead only if no other voter can.
    pub(super) fn is_avoided(&self, node: NodeId) -> bool {
        self.avoided.contains(&node)
    }

    /// Returns when to campaign again if votes were split: the interval leaves time to receive the
    /// heartbeat of another candidate that won.
    pub(super) fn draw_retry_deadline(&mut self, now: Time) -> Time {
        now + self.config.heartbeat_interval + self.draw_spread()
    }

    /// Draws the random part of a timeout, which keeps nodes from campaigning at the same moment.
    fn draw_spread(&mut self) -> Duration {
        let timeout = self.config.election_timeout.as_micros();
        let micros = u64::try_from(timeout).expect("a timeout is far below 2^64 us");
        Duration::from_micros(self.rng.below(micros))
    }

    /// Enters a new term, in which this node has not voted. A member of a new cluster that has met
    /// all others is an ordinary node from its first term on; one that has not was wiped
    /// (`founding`, rule 4).
    pub(super) fn adopt_term(&mut self, term: Term) {
        assert!(term > self.term, "terms only grow");
        self.term = term;
        self.voted_for = None;
        self.durability.hard_state_changed = true;
        self.founding = None;
        match self.memory {
            Memory::New => self.forget_promises(),
            Memory::Met => self.memory = Memory::Intact,
            Memory::Intact | Memory::Lost => {}
        }
    }

    pub(super) fn vote_for(&mut self, candidate: NodeId) {
        assert!(self.voted_for.is_none_or(|voted| voted == candidate), "one vote in a term");
        if self.voted_for != Some(candidate) {
            self.voted_for = Some(candidate);
            self.durability.hard_state_changed = true;
        }
    }

    /// Makes this node count again, from the term of `leader` on, as soon as that is on disk. It
    /// may have voted in that term and forgotten it, so it votes for no other node in it.
    pub(super) fn recover_under(&mut self, leader: NodeId) {
        if self.durability.next_memory.is_some() {
            return;
        }
        assert!(self.has_lost_memory(), "only a node that recovers is readmitted");
        self.durability.change_memory(Memory::Intact);
        if self.voted_for.is_none() {
            self.vote_for(leader);
        }
    }

    /// Tells the operator, once per term, that this node refuses what its leader sends.
    pub(super) fn tell_refusal(&mut self, alarm: String) {
        if std::mem::replace(&mut self.told_refusal_in, self.term) != self.term {
            self.ready.alarms.push(alarm);
        }
    }

    fn message(&self, term: Term, body: MessageBody) -> Message {
        Message { recovering: self.recovering(), ..Message::new(term, body) }
    }

    /// Sends a message that promises nothing about this node's disk.
    pub(super) fn send(&mut self, to: NodeId, body: MessageBody) {
        self.send_at_term(to, self.term, body);
    }

    pub(super) fn send_at_term(&mut self, to: NodeId, term: Term, body: MessageBody) {
        assert_ne!(to, self.config.id, "no node writes to itself");
        self.ready.messages.push((to, self.message(term, body)));
    }

    /// Sends a message that rests on a write, once everything decided so far is on disk. A message
    /// to this node itself is then handled like one of a peer.
    pub(super) fn send_when_durable(&mut self, to: NodeId, body: MessageBody) {
        let message = self.message(self.term, body);
        let Some(message) = self.durability.hold(self.has_unpersisted(), to, message) else {
            return;
        };
        if to == self.config.id {
            // No write to wait for, but only the gate delivers a message to this node itself.
            self.durability.hold_for_nothing(to, message);
        } else {
            self.ready.messages.push((to, message));
        }
    }

    /// Returns true if the log is full and will have room again without any further message: at
    /// least half of its limit is committed, so it will be applied, covered by a snapshot and
    /// compacted. Uncommitted entries do not count, because they may need the very entry that is
    /// refused.
    pub(super) fn log_waits_for_compaction(&self) -> bool {
        let committed_bytes = self.log.bytes() - self.log.uncommitted_bytes();
        let bytes_max = self.config.log_bytes_max;
        self.log.bytes() >= bytes_max && committed_bytes >= bytes_max / 2
    }

    fn has_unpersisted(&self) -> bool {
        self.durability.has_unpersisted() || self.log.has_unpersisted()
    }

    pub(super) fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            voted_for: self.voted_for,
            commit_index: self.log.commit_index(),
            memory: self.durability.next_memory.map_or(self.memory, |(_, memory)| memory),
        }
    }

    /// Returns the next batch, if there is something to write and room for one more at the disk.
    pub(super) fn take_persist(&mut self, now: Time) -> Option<Persist> {
        let has_room = self.durability.in_flight_count() < self.config.persists_in_flight_max;
        if !self.has_unpersisted() || !has_room {
            return None;
        }
        let (truncate_from, entries) = self.log.take_unpersisted();
        // The hard state costs nothing extra in a batch, and takes the commit index along.
        let hard_state = Some(self.hard_state());
        let StartedPersist { id, publish, withdraw_snapshot } = self.durability.start(now);
        self.log.on_persist_started(id);
        Some(Persist {
            id,
            batch: Batch { publish, withdraw_snapshot, truncate_from, entries, hard_state },
        })
    }

    /// Notes that the batches through `id` are on disk, and what follows from that for this node.
    /// Its messages are released separately, because they may be for this node itself.
    pub(super) fn on_persisted(&mut self, now: Time, id: PersistId) {
        let Completed { published, memory, since } = self.durability.complete(id);
        if let Some(since) = since {
            self.disk_latencies.note(now, now.since(since));
        }
        self.log.on_persisted(id);
        if let Some(memory) = memory {
            self.memory = memory;
            if let Some(founding) = &mut self.founding {
                founding.hurry(Time::ZERO);
            }
        }
        for PublishSnapshot { meta, replaces_log } in published {
            if replaces_log {
                self.restoring.on_published(meta);
            } else {
                self.log.on_state_durable(meta.index().min(self.log.last_applied()));
                self.ready.snapshot_published = Some(meta);
            }
        }
    }

    /// Returns true if the oldest batch has been outstanding for longer than a leader may wait.
    pub(super) fn disk_is_stuck(&self, now: Time) -> bool {
        self.durability.is_stuck(now, self.config.disk_patience)
    }

    /// Notes when the applied index last moved. Call it before entries are handed out.
    pub(super) fn note_applied(&mut self, now: Time) {
        if self.applied_at.0 != self.log.last_applied() || !self.log.has_work_at_machine() {
            self.applied_at = (self.log.last_applied(), now);
        }
    }

    /// Returns true if the state machine has been given entries, and has applied none for longer
    /// than a leader may wait.
    pub(super) fn machine_is_stuck(&self, now: Time) -> bool {
        self.log.has_work_at_machine()
            && self.applied_at.0 == self.log.last_applied()
            && now.since(self.applied_at.1) >= self.config.stall_patience
    }
}

/// The slowest link for which a leader waits, in bytes per millisecond (2 Mbit/s). A slower one is
/// treated as partitioned.
const BYTES_PER_MS_MIN: u64 = 256;

/// The time for which a leader waits for so many bytes on a link before it steps down.
pub(super) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes / BYTES_PER_MS_MIN)
}
