//! The loop that owns the core.
//!
//! A turn takes everything that came in, tells it to the core, carries out what the core wants, and
//! sees to snapshots. What came in together thus shares one append, one batch on disk and one read
//! round; a lone request waits for nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::apply::{ApplyFeed, Queries};
use super::inbox::{Inbox, PeerEvent, Report, Request, Sent, Turn};
use super::snapshotter::{Own, Snapshotter};
use super::tasks::Tasks;
use super::waiters::Waiters;
use super::{Leadership, NodeConfig, Status};
use crate::consensus::{Persist, Raft, ReadState, Ready, RoleChange, RoleKind};
use crate::error::{Fatal, Rejected};
use crate::state_machine::{Flusher, StateMachine};
use crate::storage::Storage;
use crate::transport::Transport;
use crate::types::{Entry, Index, NodeId, ReadOutcome, SnapshotMeta, Time};

/// Entries forgotten in one turn: dropping many at once would make everybody wait.
const COMPACT_ENTRIES_MAX: u64 = 4096;

/// The longest sleep of the loop: a deadline may be [`Time::NEVER`], which no timer can hold.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// What the loop is made of.
pub(super) struct Parts<M: StateMachine> {
    pub(super) raft: Raft,
    pub(super) inbox: Arc<Inbox<M>>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) persist: mpsc::Sender<Persist>,
    pub(super) apply: ApplyFeed<M>,
    pub(super) tasks: Tasks,
    pub(super) flusher: Option<Box<dyn Flusher>>,
    pub(super) blocks: bool,
    /// The snapshot that storage has published, and its size in bytes.
    pub(super) published: Option<(Index, u64)>,
}

pub(super) struct EventLoop<M: StateMachine> {
    raft: Raft,
    started: Instant,
    inbox: Arc<Inbox<M>>,
    transport: Arc<dyn Transport>,
    storage: Arc<dyn Storage>,
    persist: mpsc::Sender<Persist>,
    apply: ApplyFeed<M>,
    waiters: Waiters<M::Output>,
    reads: Reads<M>,
    /// Handed to the state machine through here.
    handed_index: Index,
    snapshotter: Snapshotter<M>,
    flusher_back: Option<oneshot::Receiver<Box<dyn Flusher>>>,
    published_index: Option<Index>,
    compact_to: Option<Index>,
    max_raft_state_bytes: u64,
    /// What the log held after the last compaction.
    floor_bytes: u64,
    status: watch::Sender<Status>,
    leadership: watch::Sender<Leadership>,
    is_recovering: bool,
    election_timeout: Duration,
    /// Set by a shutdown: until when leadership may be handed over.
    stop_at: Option<Time>,
}

/// Queries on their way: asked of a quorum, then waiting for the state machine.
struct Reads<M: StateMachine> {
    next_id: u64,
    asked: BTreeMap<u64, Queries<M>>,
    confirmed: VecDeque<(Index, Queries<M>)>,
}

impl<M: StateMachine> EventLoop<M> {
    pub(super) fn new(config: &NodeConfig, parts: Parts<M>) -> Self {
        let Parts { raft, inbox, storage, transport, persist, apply, .. } = parts;
        let Parts { tasks, flusher, blocks, published, .. } = parts;
        let is_recovering = raft.is_recovering();
        if is_recovering {
            tracing::info!(
                "the disk was empty: this node's votes and acknowledgements count once a leader has \
                 filled it up. A new cluster needs all its members to elect its first leader"
            );
        }
        let snapshotter = Snapshotter {
            storage: Arc::clone(&storage),
            transport: Arc::clone(&transport),
            inbox: Arc::clone(&inbox),
            tasks,
            patience: config.snapshot_patience,
            blocks,
            flusher,
            own: Own::Idle,
            receiving: false,
            compacting: false,
            wanted_by: std::collections::BTreeSet::new(),
            sending_to: BTreeMap::new(),
            last_size_bytes: published.map_or(0, |(_, size_bytes)| size_bytes),
        };
        let status = watch::Sender::new(Status::of(&raft, storage.log_bytes(), 0));
        Self {
            handed_index: raft.last_applied(),
            raft,
            started: Instant::now(),
            inbox,
            transport,
            storage,
            persist,
            apply,
            waiters: Waiters::new(),
            reads: Reads { next_id: 1, asked: BTreeMap::new(), confirmed: VecDeque::new() },
            snapshotter,
            flusher_back: None,
            published_index: published.map(|(index, _)| index),
            compact_to: None,
            max_raft_state_bytes: config.max_raft_state_bytes,
            floor_bytes: 0,
            status,
            leadership: watch::Sender::new(Leadership::default()),
            is_recovering,
            election_timeout: config.raft.election_timeout,
            stop_at: None,
        }
    }

    pub(super) fn status_receiver(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(super) fn leadership_receiver(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Runs until a shutdown or a failure.
    pub(super) async fn run(mut self) -> Result<(), Fatal> {
        let mut turn = Turn::new();
        loop {
            let deadline = self.raft.next_deadline().min(self.stop_at.unwrap_or(Time::NEVER));
            let wake_at = deadline.since(Time::ZERO).min(self.started.elapsed() + SLEEP_MAX);
            tokio::select! {
                biased;
                () = self.inbox.filled() => {}
                () = tokio::time::sleep_until(self.started + wake_at) => {}
            }
            // Yield once: runnable tasks may be about to enqueue requests that can share this batch.
            if self.inbox.in_flight_count() > 1 {
                tokio::task::yield_now().await;
            }
            self.inbox.take(&mut turn);
            let now = self.now();
            for report in turn.reports.drain(..) {
                self.on_report(now, report)?;
            }
            for (from, event) in turn.peers.drain(..) {
                self.on_peer(now, from, event);
            }
            self.on_requests(now, turn.requests.drain(..));
            if now >= self.raft.next_deadline() {
                self.raft.on_timeout(now);
            }
            if std::mem::take(&mut turn.shutdown) && self.stop_at.is_none() {
                self.begin_shutdown(now);
            }
            let ready = self.raft.ready(now);
            self.carry_out(ready)?;
            self.see_to_snapshots();
            self.feed_machine()?;
            self.publish_status();
            if self.stop_at.is_some_and(|at| now >= at || self.raft.role() != RoleKind::Leader) {
                return Ok(());
            }
        }
    }

    fn feed_machine(&mut self) -> Result<(), Fatal> {
        if self.apply.flush() { Ok(()) } else { Err(self.why_gone("the state machine")) }
    }

    /// A task that goes away says why before it goes, so the reason has come in.
    fn why_gone(&self, task: &str) -> Fatal {
        let mut turn = Turn::new();
        self.inbox.take(&mut turn);
        let reason = turn.reports.into_iter().find_map(|report| match report {
            Report::Failed(fatal) => Some(fatal),
            _ => None,
        });
        reason.unwrap_or_else(|| Fatal::Internal(format!("{task} ended")))
    }

    fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    /// A leader first tries to hand over, so that the others need not wait for an election timeout.
    fn begin_shutdown(&mut self, now: Time) {
        self.stop_at = Some(match self.raft.transfer_leadership(now, None) {
            Ok(()) => now + 2 * self.election_timeout,
            Err(_) => now,
        });
    }

    fn on_requests(&mut self, now: Time, requests: impl Iterator<Item = Request<M>>) {
        let mut commands = Vec::new();
        let mut replies = Vec::new();
        let mut queries = Vec::new();
        for request in requests {
            match request {
                Request::Propose { command, reply } => {
                    commands.push(command);
                    replies.push(reply);
                }
                Request::Query { query, linearizable: true, reply } => queries.push((query, reply)),
                Request::Query { query, linearizable: false, reply } => {
                    self.apply.gathered.queries.push((query, reply));
                }
                Request::RaiseVersion { version, reply } => {
                    reply.send(self.raft.raise_cluster_version(version));
                }
                Request::Transfer { to, place: _ } => {
                    if let Err(error) = self.raft.transfer_leadership(now, to) {
                        tracing::info!(%error, "leadership is not handed over");
                    }
                }
            }
        }
        if !commands.is_empty() {
            self.propose(commands, replies);
        }
        if !queries.is_empty() {
            self.read(now, queries);
        }
    }

    fn propose(
        &mut self,
        commands: Vec<bytes::Bytes>,
        replies: Vec<super::waiters::ProposeReply<M::Output>>,
    ) {
        match self.raft.propose(commands) {
            Ok(first) => {
                let mut position = first;
                for reply in replies {
                    self.waiters.push(position, reply);
                    position.index += 1;
                }
            }
            Err(rejected) => {
                for reply in replies {
                    reply.send(Err(rejected.clone().into()));
                }
            }
        }
    }

    fn read(&mut self, now: Time, queries: Queries<M>) {
        let id = self.reads.next_id;
        self.reads.next_id += 1;
        match self.raft.read_index(now, id) {
            Ok(()) => {
                self.reads.asked.insert(id, queries);
            }
            Err(rejected) => reject_all::<M>(queries, &rejected),
        }
    }

    fn on_peer(&mut self, now: Time, from: NodeId, event: PeerEvent) {
        match event {
            PeerEvent::Message(message) => self.raft.step(now, from, message),
            PeerEvent::Unreachable => self.raft.on_unreachable(now, from),
            // Until the state machine has taken over a snapshot, storage must not begin another.
            PeerEvent::Bulk(stream) if self.raft.is_restoring() => drop(stream),
            PeerEvent::Bulk(stream) => self.snapshotter.receive(from, stream),
        }
    }

    fn on_report(&mut self, now: Time, report: Report) -> Result<(), Fatal> {
        match report {
            Report::Persisted(id) => self.raft.on_persisted(now, id),
            Report::Applied(index) => {
                self.apply.on_done();
                self.raft.on_applied(index);
            }
            Report::ViewTaken(source) => self.on_view_taken(source),
            Report::SnapshotWritten { meta, content } => {
                self.snapshotter.last_size_bytes = content.size_bytes;
                self.snapshotter.own = match self.raft.publish_snapshot(meta) {
                    true => Own::Publishing,
                    false => Own::Idle,
                };
            }
            Report::StateFlushed(index) => {
                let mut back = self.flusher_back.take().expect("a flush was under way");
                self.snapshotter.flusher = back.try_recv().ok();
                self.snapshotter.own = Own::Idle;
                self.raft.on_state_durable(index);
                self.plan_compaction();
            }
            Report::Compacted => {
                self.snapshotter.compacting = false;
                self.floor_bytes = self.storage.log_bytes();
            }
            Report::SnapshotSent { peer, sent } => self.on_snapshot_sent(now, peer, sent),
            Report::SnapshotOffered { from, term, meta, answer } => {
                // Whoever asked may have given up.
                let _ = answer.send(self.raft.on_snapshot_offer(now, from, term, &meta));
            }
            Report::SnapshotReceived { from, term, meta } => {
                self.raft.on_snapshot_received(now, from, term, meta);
            }
            Report::ReceiveEnded => self.snapshotter.receiving = false,
            Report::Failed(fatal) => return Err(fatal),
        }
        Ok(())
    }

    /// Everything in a `Ready` may be done at once; naming each field keeps any from being forgotten.
    fn carry_out(&mut self, ready: Ready) -> Result<(), Fatal> {
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
        if let Some(persist) = persist {
            match self.persist.try_send(persist) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => unreachable!("the core counts what is in flight"),
                Err(TrySendError::Closed(_)) => return Err(self.why_gone("writing to storage")),
            }
        }
        for alarm in alarms {
            tracing::error!("{alarm}");
        }
        self.hand_out(committed, restore);
        for state in read_states {
            self.on_read_state(state);
        }
        self.release_reads();
        // A client that is answered on the spot hears so before peers hear that its entry is committed.
        self.feed_machine()?;
        for (to, message) in messages {
            self.transport.send(to, message);
        }
        self.snapshotter.wanted_by.extend(snapshot_requests);
        if let Some(meta) = snapshot_published {
            self.snapshotter.own = Own::Idle;
            self.published_index = Some(meta.index());
            self.plan_compaction();
        }
        if let Some(change) = role_change {
            self.on_role_change(change);
        }
        Ok(())
    }

    fn hand_out(&mut self, committed: Vec<Entry>, restore: Option<SnapshotMeta>) {
        if let Some(last) = committed.last() {
            self.handed_index = last.index;
            let replies = self.waiters.take_committed(&committed);
            self.apply.gathered.replies.extend(replies);
            self.apply.gathered.entries.extend(committed);
        }
        if let Some(meta) = restore {
            self.handed_index = meta.index();
            self.published_index = Some(meta.index());
            self.compact_to = None;
            self.floor_bytes = 0;
            self.apply.gathered.restore = Some(meta);
        }
    }

    fn on_read_state(&mut self, state: ReadState) {
        let ReadState { id, outcome } = state;
        let queries = self.reads.asked.remove(&id).expect("every read is answered once");
        match outcome {
            ReadOutcome::Confirmed(index) => self.reads.confirmed.push_back((index, queries)),
            ReadOutcome::NotLeader => {
                reject_all::<M>(queries, &Rejected::NotLeader { leader: self.raft.leader() });
            }
            ReadOutcome::Busy => {
                reject_all::<M>(queries, &Rejected::Busy("too many reads wait for the leader"));
            }
        }
    }

    /// Work is done in order, so a query may follow once the entries that it needs are handed out.
    fn release_reads(&mut self) {
        for _ in 0..self.reads.confirmed.len() {
            let (index, queries) = self.reads.confirmed.pop_front().expect("counted");
            if index <= self.handed_index {
                self.apply.gathered.queries.extend(queries);
            } else {
                self.reads.confirmed.push_back((index, queries));
            }
        }
    }

    fn on_role_change(&mut self, change: RoleChange) {
        let RoleChange { role, term, leader, is_recovering } = change;
        let is_leader = role == RoleKind::Leader;
        tracing::debug!(role = role.name(), term, leader, "role");
        if std::mem::replace(&mut self.is_recovering, is_recovering) && !is_recovering {
            tracing::info!("filled up: this node's votes and acknowledgements count");
        }
        if !is_leader {
            self.waiters.fail_all("leadership was lost before the command was committed");
            self.snapshotter.wanted_by.clear();
        }
        let now = Leadership { term, leader, is_leader };
        // A candidate's comings and goings are nobody's business: only who leads is.
        self.leadership.send_if_modified(|before| {
            let changed = (before.leader, before.is_leader) != (leader, is_leader)
                || (leader.is_some() && before.term != term);
            if changed {
                *before = now;
            }
            changed
        });
    }

    fn publish_status(&self) {
        let log_bytes = self.storage.log_bytes();
        let reply_panics_count = self.inbox.panicked_count();
        self.status.send_if_modified(|before| {
            let now = Status::of(&self.raft, log_bytes, reply_panics_count);
            let changed = *before != now;
            if changed {
                *before = now;
            }
            changed
        });
    }

    /// Starts a snapshot when the log has outgrown its limit, forgets a piece of what is covered, and
    /// serves peers that lag behind the log.
    fn see_to_snapshots(&mut self) {
        self.compact_a_piece();
        let idle = self.snapshotter.own == Own::Idle
            && !self.snapshotter.receiving
            && !self.raft.is_restoring();
        if idle && self.log_is_too_large() {
            if self.snapshotter.flusher.is_some() {
                let (give_back, back) = oneshot::channel();
                self.flusher_back = Some(back);
                self.snapshotter.flush(give_back);
            } else {
                self.take_view();
            }
        }
        self.serve_lagging_peers();
    }

    fn take_view(&mut self) {
        self.snapshotter.own = Own::TakingView;
        self.apply.gathered.take_view = true;
    }

    /// Beyond the limit, and by enough to be worth it: a state that is itself larger than the limit
    /// must not be written again for every few entries. Four times the limit at most.
    fn log_is_too_large(&self) -> bool {
        let limit = self.max_raft_state_bytes;
        if limit == 0 || self.raft.last_applied() <= self.raft.snapshot_index() {
            return false;
        }
        let volatile = self.snapshotter.flusher.is_none();
        let state_bytes = if volatile { self.snapshotter.last_size_bytes } else { 0 };
        let threshold = limit.max(state_bytes.min(4 * limit));
        let log_bytes = self.storage.log_bytes();
        // A log that fills up beyond that takes no more, so it could not grow to be worth it.
        let is_worth_it =
            log_bytes >= self.floor_bytes + threshold / 4 || !self.raft.log_has_room();
        log_bytes > threshold && is_worth_it
    }

    fn on_view_taken(&mut self, source: Box<dyn crate::state_machine::SnapshotSource>) {
        let position = source.position();
        let meta = self.raft.snapshot_meta(position.index);
        let meta = meta.filter(|meta| meta.position == position && !self.raft.is_restoring());
        let is_new = self.published_index.is_none_or(|published| position.index > published);
        match meta {
            Some(meta) if is_new => self.snapshotter.write(meta, source),
            // A leader's snapshot has overtaken it, or it is published already.
            Some(_) | None => self.snapshotter.own = Own::Idle,
        }
    }

    fn on_snapshot_sent(&mut self, now: Time, peer: NodeId, sent: Sent) {
        let published = self.snapshotter.sending_to.remove(&peer);
        if sent == Sent::Unreadable && self.published_index == published {
            // Of no use to anybody: the next peer that asks gets a new one.
            self.published_index = None;
        }
        let through = match sent {
            Sent::Through(index) => Some(index),
            Sent::Interrupted | Sent::Unreadable => None,
        };
        self.raft.on_snapshot_sent(now, peer, through);
    }

    /// Decides what to forget now that a durable state covers it: all but a quarter of a limit's worth, so
    /// that a peer that lags a little finds its entries, and nothing that a peer will need right
    /// after the snapshot that it is being sent.
    fn plan_compaction(&mut self) {
        let leave_bytes = self.max_raft_state_bytes / 4;
        let mut index = self.raft.index_leaving_bytes(leave_bytes);
        index = index.min(self.raft.snapshot_index());
        let oldest_sent = self.snapshotter.sending_to.values().min();
        if let Some(oldest_sent) = oldest_sent
            && self.raft.log_has_room()
        {
            index = index.min(*oldest_sent);
        }
        self.compact_to = Some(index);
        self.floor_bytes = self.storage.log_bytes();
    }

    fn compact_a_piece(&mut self) {
        let Some(target) = self.compact_to else { return };
        if self.snapshotter.compacting {
            return;
        }
        let piece = target.min(self.raft.log_start_index() + COMPACT_ENTRIES_MAX);
        let Some(through) = self.raft.compact(piece) else {
            self.compact_to = None;
            return;
        };
        if through.index() >= target {
            self.compact_to = None;
            self.snapshotter.compact(through);
        }
    }

    fn serve_lagging_peers(&mut self) {
        if self.snapshotter.wanted_by.is_empty() || self.raft.role() != RoleKind::Leader {
            return;
        }
        // After it the peer needs the entry behind it, so an older one than the log's start is of
        // no use.
        let start_index = self.raft.log_start_index();
        let usable = self.published_index.filter(|published| *published >= start_index);
        if let Some(published) = usable
            && self.snapshotter.own != Own::Publishing
        {
            self.compact_to = self.compact_to.min(self.published_index);
            for peer in std::mem::take(&mut self.snapshotter.wanted_by) {
                self.snapshotter.send(peer, self.raft.term(), published);
            }
        } else if self.snapshotter.own == Own::Idle && !self.snapshotter.receiving {
            self.take_view();
        }
    }
}

fn reject_all<M: StateMachine>(queries: Queries<M>, rejected: &Rejected) {
    for (_, reply) in queries {
        reply.send(Err(rejected.clone()));
    }
}

/// However the loop ends (it returns, it panics, or its runtime is dropped), no request stays
/// unanswered, and the node does not look like a leader any more.
impl<M: StateMachine> Drop for EventLoop<M> {
    fn drop(&mut self) {
        drop(self.inbox.close());
        self.status.send_modify(Status::on_stopped);
        self.leadership.send_modify(|seen| {
            *seen = Leadership { term: seen.term, ..Leadership::default() };
        });
    }
}
