//! What every role owns: term and vote, the log, who the members are, and what is on its way out.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::log::Log;
use super::ready::{Gate, Persist, PersistId, ReadState};
use super::{Chance, Config};
use crate::types::{
    Batch, Body, Configuration, HardState, Memory, Message, NodeId, PublishSnapshot, SnapshotMeta,
    Term, Time,
};

#[derive(Clone, Debug)]
struct PersistInFlight {
    id: PersistId,
    since: Time,
    publish: Option<PublishSnapshot>,
}

#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) term: Term,
    pub(super) voted_for: Option<NodeId>,
    /// This node may have lost promises (`recovery`); the number under which it started.
    pub(super) recovering: Option<u64>,
    /// It has recovered, which counts once this batch is on disk.
    recovered_by: Option<PersistId>,
    /// Term, vote or `recovering` changed since the last batch.
    hard_state_changed: bool,
    pub(super) configuration: Configuration,
    pub(super) log: Log,
    pub(super) chance: Chance,
    /// To be published by the next batch.
    pub(super) publish: Option<PublishSnapshot>,
    /// A snapshot replaced the log, and the state machine does not have it yet.
    pub(super) restoring: Option<SnapshotMeta>,
    /// That snapshot, once it is published and until it was handed out.
    pub(super) restore: Option<SnapshotMeta>,

    pub(super) messages: Vec<(NodeId, Message)>,
    pub(super) gate: Gate,
    pub(super) read_states: Vec<ReadState>,
    pub(super) snapshot_requests: Vec<NodeId>,
    pub(super) published: Vec<SnapshotMeta>,
    pub(super) alarms: Vec<String>,

    last_persist_id: PersistId,
    persists: VecDeque<PersistInFlight>,
}

hash_of!(PersistInFlight { publish; left out: id, since });

/// By hand for the sake of the batches' numbers, which here count from the last one.
impl Hash for Common {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            config,
            term,
            voted_for,
            recovering,
            recovered_by,
            hard_state_changed,
            configuration,
            log,
            chance: _,
            publish,
            restoring,
            restore,
            messages,
            gate,
            read_states,
            snapshot_requests,
            published,
            alarms,
            last_persist_id,
            persists,
        } = self;
        (config, term, voted_for, hard_state_changed, configuration, log).hash(state);
        (recovering, publish, restoring, restore, messages, read_states, snapshot_requests)
            .hash(state);
        (published, alarms, persists).hash(state);
        recovered_by.map(|by| by.wrapping_sub(*last_persist_id)).hash(state);
        gate.hash_after(*last_persist_id, state);
    }
}

impl Common {
    pub(super) fn new(
        config: Config,
        hard_state: HardState,
        configuration: Configuration,
        log: Log,
    ) -> Self {
        let mut chance = Chance::new(config.seed);
        Self {
            recovering: (hard_state.memory == Memory::Lost).then(|| chance.next()),
            recovered_by: None,
            chance,
            config,
            term: hard_state.term,
            voted_for: hard_state.voted_for,
            hard_state_changed: false,
            configuration,
            log,
            publish: None,
            restoring: None,
            restore: None,
            messages: Vec::new(),
            gate: Gate::default(),
            read_states: Vec::new(),
            snapshot_requests: Vec::new(),
            published: Vec::new(),
            alarms: Vec::new(),
            last_persist_id: 0,
            persists: VecDeque::new(),
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.config.id
    }

    /// Whether this node may campaign.
    pub(super) fn is_voter(&self) -> bool {
        self.configuration.is_voter(self.config.id)
    }

    pub(super) fn peers(&self) -> Vec<NodeId> {
        self.configuration.members().into_iter().filter(|id| *id != self.config.id).collect()
    }

    pub(super) fn voting_peers(&self) -> Vec<NodeId> {
        let mut peers = self.peers();
        peers.retain(|id| self.configuration.is_voter(*id));
        peers
    }

    pub(super) fn draw_election_deadline(&mut self, now: Time) -> Time {
        now + self.config.election_timeout + self.draw_spread()
    }

    /// When to ask again if votes were split: whoever won them instead is heard before.
    pub(super) fn draw_retry_deadline(&mut self, now: Time) -> Time {
        now + self.config.heartbeat_interval + self.draw_spread()
    }

    /// What sets the nodes' timeouts apart.
    fn draw_spread(&mut self) -> Duration {
        let timeout = self.config.election_timeout.as_micros();
        let micros = u64::try_from(timeout).expect("a timeout is far below 2^64 us");
        Duration::from_micros(self.chance.below(micros))
    }

    /// A new term: nobody in it has this node's vote yet.
    pub(super) fn adopt_term(&mut self, term: Term) {
        assert!(term > self.term, "terms only grow");
        self.term = term;
        self.voted_for = None;
        self.hard_state_changed = true;
    }

    pub(super) fn vote_for(&mut self, candidate: NodeId) {
        assert!(self.voted_for.is_none_or(|voted| voted == candidate), "one vote in a term");
        if self.voted_for != Some(candidate) {
            self.voted_for = Some(candidate);
            self.hard_state_changed = true;
        }
    }

    /// This node's word counts again, from the term of `leader` on, as soon as that is on disk. It may have
    /// voted in that term and forgotten it, so it votes for nobody else in it.
    pub(super) fn recover_under(&mut self, leader: NodeId) {
        if self.recovered_by.is_some() {
            return;
        }
        self.recovered_by = Some(self.last_persist_id + 1);
        self.hard_state_changed = true;
        if self.voted_for.is_none() {
            self.vote_for(leader);
        }
    }

    fn message(&self, term: Term, body: Body) -> Message {
        Message { recovering: self.recovering, ..Message::new(term, body) }
    }

    /// For what promises nothing about this node's disk.
    pub(super) fn send(&mut self, to: NodeId, body: Body) {
        self.send_at_term(to, self.term, body);
    }

    pub(super) fn send_at_term(&mut self, to: NodeId, term: Term, body: Body) {
        assert_ne!(to, self.config.id, "no node writes to itself");
        self.messages.push((to, self.message(term, body)));
    }

    /// For what rests on a write: leaves when everything decided so far is on disk. May be addressed
    /// to this node itself, which then hears it like any other.
    pub(super) fn send_when_durable(&mut self, to: NodeId, body: Body) {
        let message = self.message(self.term, body);
        if self.has_unpersisted() {
            self.gate.hold(self.last_persist_id + 1, to, message);
        } else if let Some(newest) = self.persists.back() {
            self.gate.hold(newest.id, to, message);
        } else if to == self.config.id {
            // Nothing to wait for, yet it has to go through the gate to be heard.
            self.gate.hold(self.last_persist_id, to, message);
        } else {
            self.messages.push((to, message));
        }
    }

    /// The log is full, and will have room again without a word from anybody: at least half of what
    /// it may hold is committed, which is applied, covered by a snapshot and forgotten. What is not
    /// committed may need the very entry that is refused, so it does not count.
    pub(super) fn log_waits_for_compaction(&self) -> bool {
        let committed_bytes = self.log.bytes() - self.log.uncommitted_bytes();
        let bytes_max = self.config.log_bytes_max;
        self.log.bytes() >= bytes_max && committed_bytes >= bytes_max / 2
    }

    fn has_unpersisted(&self) -> bool {
        self.hard_state_changed || self.publish.is_some() || self.log.has_unpersisted()
    }

    pub(super) fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            voted_for: self.voted_for,
            commit_index: self.log.commit_index(),
            memory: match self.recovering.is_some() && self.recovered_by.is_none() {
                true => Memory::Lost,
                false => Memory::Intact,
            },
        }
    }

    /// The next batch, if there is something to write and room for one more at the disk.
    pub(super) fn take_persist(&mut self, now: Time) -> Option<Persist> {
        if !self.has_unpersisted() || self.persists.len() >= self.config.persists_in_flight_max {
            return None;
        }
        let publish = self.publish.take();
        let (truncate_from, entries) = self.log.take_unpersisted();
        // It rides along for free, and the commit index with it.
        let hard_state = Some(self.hard_state());
        self.hard_state_changed = false;
        self.last_persist_id += 1;
        let id = self.last_persist_id;
        self.log.on_persist_started(id);
        self.persists.push_back(PersistInFlight { id, since: now, publish: publish.clone() });
        Some(Persist {
            id,
            batch: Batch { publish, withdraw_snapshot: false, truncate_from, entries, hard_state },
        })
    }

    /// Batches through `id` are on disk. Returns what they published.
    pub(super) fn on_persisted(&mut self, id: PersistId) -> Vec<PublishSnapshot> {
        assert!(id <= self.last_persist_id, "only what was handed out can be persisted");
        let mut published = Vec::new();
        while let Some(first) = self.persists.front()
            && first.id <= id
        {
            published.extend(self.persists.pop_front().and_then(|persist| persist.publish));
        }
        self.log.on_persisted(id);
        if self.recovered_by.is_some_and(|by| by <= id) {
            (self.recovering, self.recovered_by) = (None, None);
        }
        published
    }

    pub(super) fn persisted_id(&self) -> PersistId {
        self.persists.front().map_or(self.last_persist_id, |oldest| oldest.id - 1)
    }

    /// The disk has not answered for longer than a leader may wait.
    pub(super) fn disk_is_stuck(&self, now: Time) -> bool {
        self.persists
            .front()
            .is_some_and(|oldest| now.since(oldest.since) >= self.config.disk_patience)
    }

    pub(super) fn persists_in_flight(&self) -> usize {
        self.persists.len()
    }
}
