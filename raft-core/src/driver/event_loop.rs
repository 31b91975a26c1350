//! The loop that owns the core.
//!
//! A turn takes all queued inputs, feeds them to the core, carries out the core's `Ready`, and
//! advances snapshots. Inputs that arrive together thus share one append, one batch on disk and one
//! read round; a lone request waits for no other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::apply::ApplyFeed;
use super::config::NodeConfig;
use super::inbox::{Completion, Inbox, InputBatch, PeerEvent, Request};
use super::members::{Members, MembersOrder};
use super::reads::Reads;
use super::snapshots::{JobParts, Published, Snapshots};
use super::status::{Leadership, Status};
use super::tasks::Tasks;
use super::waiters::{ProposeReply, Waiters};
use crate::consensus::{
    ConfigurationStage, PeerStatus, Persist, PersistId, Raft, Ready, RoleChange, RoleKind,
};
use crate::error::Fatal;
use crate::state_machine::{Flusher, StateMachine};
use crate::storage::Storage;
use crate::transport::Transport;
use crate::types::{Entry, Index, Memory, NodeId, SnapshotMeta, Time};

/// The longest sleep of the loop: a deadline may be [`Time::NEVER`], which no timer can hold.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Status receivers that never wait for a change: the one that
/// [`Node::status`](super::Node::status) reads, which the event loop keeps as long as it runs.
const UNWATCHED_RECEIVERS: usize = 1;

/// The parts that an [`EventLoop`] is built from.
pub(super) struct EventLoopParts<M: StateMachine> {
    pub(super) raft: Raft,
    pub(super) inbox: Arc<Inbox<M>>,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) persist: mpsc::Sender<Persist>,
    pub(super) apply: ApplyFeed<M>,
    pub(super) tasks: Tasks,
    pub(super) flusher: Option<Box<dyn Flusher>>,
    pub(super) blocks: bool,
    pub(super) published: Option<Published>,
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
    /// Entries through this index were handed to the state machine.
    handed_index: Index,
    /// The last batch that was handed to storage, and the last one that it reported.
    handed_persist_id: PersistId,
    reported_persist_id: PersistId,
    snapshots: Snapshots<M>,
    /// A snapshot that waits to be restored until the machine's flush has ended.
    restore_after_flush: Option<SnapshotMeta>,
    status: watch::Sender<Status>,
    unwatched: Arc<watch::Receiver<Status>>,
    /// Memory of the peers in the status before the last one.
    spare_peers: Vec<PeerStatus>,
    leadership: watch::Sender<Leadership>,
    members: watch::Sender<Members>,
    /// The place of the configuration that was published last.
    members_stage: ConfigurationStage,
    is_recovering: bool,
    election_timeout: Duration,
    /// Set by a shutdown: the deadline for handing leadership over.
    stop_at: Option<Time>,
}

impl<M: StateMachine> EventLoop<M> {
    pub(super) fn new(config: &NodeConfig, parts: EventLoopParts<M>) -> Self {
        let EventLoopParts { raft, inbox, storage, transport, persist, apply, .. } = parts;
        let EventLoopParts { tasks, flusher, blocks, published, .. } = parts;
        let is_recovering = raft.is_recovering();
        if is_recovering && raft.status().memory == Memory::Lost {
            tracing::info!(
                "the disk was empty: this node's votes and acknowledgements are not counted until a \
                 leader has readmitted it"
            );
        } else if is_recovering {
            tracing::info!(
                "the disk is that of a new member: this node's votes and acknowledgements are not \
                 counted before it has met all members of the new cluster"
            );
        }
        let parts = JobParts {
            storage: Arc::clone(&storage),
            transport: Arc::clone(&transport),
            inbox: Arc::clone(&inbox),
            tasks,
            blocks,
        };
        let snapshots = Snapshots::new(config, parts, flusher, published, raft.last_applied());
        let status =
            watch::Sender::new(Status::of(&raft, storage.log_bytes(), 0, Vec::new(), Vec::new()));
        Self {
            handed_index: raft.last_applied(),
            members: watch::Sender::new(Members::of(&raft)),
            members_stage: raft.configuration_stage(),
            handed_persist_id: 0,
            reported_persist_id: 0,
            raft,
            started: Instant::now(),
            inbox,
            transport,
            storage,
            persist,
            apply,
            waiters: Waiters::new(),
            reads: Reads::new(config.read_patience),
            snapshots,
            restore_after_flush: None,
            unwatched: Arc::new(status.subscribe()),
            status,
            spare_peers: Vec::new(),
            leadership: watch::Sender::new(Leadership::default()),
            is_recovering,
            election_timeout: config.raft.election_timeout,
            stop_at: None,
        }
    }

    /// Returns the receiver that only reads, and never waits for a change.
    pub(super) fn status_receiver(&self) -> Arc<watch::Receiver<Status>> {
        Arc::clone(&self.unwatched)
    }

    pub(super) fn members_receiver(&self) -> watch::Receiver<Members> {
        self.members.subscribe()
    }

    pub(super) fn leadership_receiver(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Runs until a shutdown or a failure.
    pub(super) async fn run(mut self) -> Result<(), Fatal> {
        let mut turn = InputBatch::new();
        loop {
            let deadline = self.next_deadline();
            let wake_at = deadline.since(Time::ZERO).min(self.started.elapsed() + SLEEP_MAX);
            tokio::select! {
                biased;
                () = self.inbox.filled() => {}
                () = tokio::time::sleep_until(self.started + wake_at) => {}
            }
            // Yield once: runnable tasks may be about to enqueue requests for this batch.
            if self.inbox.in_flight_count() > 1 {
                tokio::task::yield_now().await;
            }
            self.inbox.take(&mut turn);
            let now = self.now();
            for completion in turn.completions.drain(..) {
                self.on_completion(now, completion)?;
            }
            for (from, event) in turn.peers.drain(..) {
                self.on_peer(now, from, event);
            }
            self.on_requests(now, turn.requests.drain(..));
            if let Some(nodes) = turn.avoided.take() {
                self.raft.avoid_as_leaders(nodes);
            }
            if now >= self.raft.next_deadline() {
                self.raft.on_timeout(now);
            }
            if std::mem::take(&mut turn.shutdown) && self.stop_at.is_none() {
                self.begin_shutdown(now);
            }
            self.reads.give_up(now);
            let ready = self.raft.ready(now);
            self.process_ready(now, ready)?;
            self.apply.gathered.take_view |= self.snapshots.turn(&mut self.raft, now);
            self.feed_machine()?;
            self.check_order();
            self.publish_members();
            self.publish_status();
            if self.stop_at.is_some_and(|at| now >= at || self.raft.role() != RoleKind::Leader) {
                return Ok(());
            }
        }
    }

    /// Checks the order of the pointers at the end of a turn.
    fn check_order(&self) {
        assert!(self.raft.last_applied() <= self.handed_index, "applied after it was handed out");
        assert!(self.handed_index <= self.raft.commit_index(), "handed out once committed");
    }

    fn next_deadline(&self) -> Time {
        let stop_at = self.stop_at.unwrap_or(Time::NEVER);
        let of_reads = self.reads.next_deadline();
        self.raft.next_deadline().min(self.snapshots.next_deadline()).min(of_reads).min(stop_at)
    }

    fn feed_machine(&mut self) -> Result<(), Fatal> {
        if self.apply.flush() { Ok(()) } else { Err(self.exit_reason("the state machine")) }
    }

    /// Returns the reason why a task ended. A task reports its failure before it ends, so the
    /// completion is in the inbox.
    fn exit_reason(&self, task: &str) -> Fatal {
        let mut turn = InputBatch::new();
        self.inbox.take(&mut turn);
        let reason = turn.completions.into_iter().find_map(|completion| match completion {
            Completion::Failed(fatal) => Some(fatal),
            _ => None,
        });
        reason.unwrap_or_else(|| Fatal::Internal(format!("{task} ended")))
    }

    fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    /// A leader first tries to hand leadership over, so that the other nodes need not wait for an
    /// election timeout.
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
                Request::ChangeMembers { order, reply } => {
                    let MembersOrder { change, expected, overrides } = *order;
                    let expected = expected.as_ref();
                    reply.send(self.raft.change_members(now, &change, expected, overrides));
                }
                Request::PlanMembers { order, reply } => {
                    let MembersOrder { change, expected: _, overrides } = *order;
                    reply.send(self.raft.plan_members(now, &change, overrides));
                }
                Request::Transfer { to, place: _ } => {
                    if let Err(error) = self.raft.transfer_leadership(now, to) {
                        tracing::info!(%error, "leadership is not handed over");
                    }
                }
                Request::Snapshot { place: _ } => self.snapshots.request(),
            }
        }
        if !commands.is_empty() {
            self.propose(commands, replies);
        }
        if !queries.is_empty() {
            self.reads.begin(&mut self.raft, now, queries);
        }
    }

    fn propose(&mut self, commands: Vec<Bytes>, replies: Vec<ProposeReply<M::Output>>) {
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

    fn on_peer(&mut self, now: Time, from: NodeId, event: PeerEvent) {
        match event {
            PeerEvent::Message { message, incarnation } => {
                if let Some(incarnation) = incarnation {
                    self.raft.on_connected(now, from, incarnation);
                }
                self.raft.step(now, from, message);
            }
            PeerEvent::Unreachable => self.raft.on_unreachable(now, from),
            PeerEvent::Bulk(stream) => self.snapshots.receive(from, stream),
        }
    }

    fn on_completion(&mut self, now: Time, completion: Completion) -> Result<(), Fatal> {
        match completion {
            Completion::Persisted(id) => {
                assert!(id > self.reported_persist_id, "a batch is reported once, in order");
                assert!(id <= self.handed_persist_id, "only what was handed out is written");
                self.reported_persist_id = id;
                self.raft.on_persisted(now, id);
            }
            Completion::Applied(index) => {
                assert!(index <= self.handed_index, "only what was handed out is applied");
                self.apply.on_done();
                self.raft.on_applied(index);
            }
            Completion::ViewTaken(view) => self.snapshots.on_view_taken(&self.raft, now, view),
            Completion::NoView => self.snapshots.on_no_view(now),
            Completion::SnapshotWritten(written) => {
                self.snapshots.on_written(&mut self.raft, written);
            }
            Completion::StateFlushed(index) => {
                assert!(index <= self.handed_index, "only what was handed out is flushed");
                self.snapshots.on_flushed(&mut self.raft, index);
                if let Some(meta) = self.restore_after_flush.take() {
                    self.give_restore(meta);
                }
            }
            Completion::Compacted => self.snapshots.on_compacted(),
            Completion::SnapshotSent { peer, sent } => {
                self.snapshots.on_sent(&mut self.raft, now, peer, sent);
            }
            Completion::SnapshotOffered { from, term, meta, answer } => {
                self.snapshots.on_offered(&mut self.raft, now, (from, term), &meta, answer);
            }
            Completion::SnapshotReceived { from, term, meta } => {
                self.raft.on_snapshot_received(now, from, term, meta);
            }
            Completion::ReceiveEnded => self.snapshots.on_receive_ended(),
            Completion::Failed(fatal) => return Err(fatal),
        }
        Ok(())
    }

    /// Carries out a `Ready`, whose parts may be done at once and in any order. Naming each field
    /// keeps any from being forgotten.
    fn process_ready(&mut self, now: Time, ready: Ready) -> Result<(), Fatal> {
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
            notices,
        } = ready;
        if let Some(persist) = persist {
            assert!(persist.id > self.handed_persist_id, "batches are handed out in order");
            self.handed_persist_id = persist.id;
            match self.persist.try_send(persist) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => unreachable!("the core counts what is in flight"),
                Err(TrySendError::Closed(_)) => return Err(self.exit_reason("writing to storage")),
            }
        }
        alarms.iter().for_each(|alarm| tracing::error!("{alarm}"));
        notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        self.dispatch_committed(committed, restore);
        for state in read_states {
            self.reads.on_state(now, self.raft.leader(), state);
        }
        self.reads.release(self.handed_index, &mut self.apply.gathered.queries);
        // Fed before the messages are sent: a client whose entry is applied inline gets its
        // response before the peers learn that the entry is committed.
        self.feed_machine()?;
        for (to, message) in messages {
            self.transport.send(to, message);
        }
        self.snapshots.want(&mut self.raft, snapshot_requests);
        if let Some(meta) = snapshot_published {
            self.snapshots.on_published(&self.raft, &meta);
        }
        if let Some(change) = role_change {
            self.on_role_change(change);
        }
        Ok(())
    }

    fn dispatch_committed(&mut self, committed: Vec<Entry>, restore: Option<SnapshotMeta>) {
        if let (Some(first), Some(last)) = (committed.first(), committed.last()) {
            assert_eq!(first.index, self.handed_index + 1, "entries are handed out once, in order");
            assert_eq!(last.index - first.index + 1, committed.len() as u64, "without a gap");
            self.handed_index = last.index;
            let replies = self.waiters.take_committed(&committed);
            self.apply.gathered.push_entries(committed, replies);
        }
        if let Some(meta) = restore {
            assert!(self.restore_after_flush.is_none(), "one snapshot is restored at a time");
            self.snapshots.on_replaced(&meta);
            if self.snapshots.is_flushing() {
                self.restore_after_flush = Some(meta);
            } else {
                self.give_restore(meta);
            }
        }
    }

    /// Hands the snapshot to the machine. Only from now on may reads that it covers be handed over:
    /// they follow it, because the machine does its work in order.
    fn give_restore(&mut self, meta: SnapshotMeta) {
        assert!(meta.index() > self.handed_index, "a snapshot is restored to go forward");
        self.handed_index = meta.index();
        let earlier = self.apply.gathered.restore.replace(meta);
        assert!(earlier.is_none(), "one snapshot is restored at a time");
    }

    fn on_role_change(&mut self, change: RoleChange) {
        let RoleChange { role, term, leader, is_recovering } = change;
        let is_leader = role == RoleKind::Leader;
        tracing::debug!(role = role.name(), term, leader, "role");
        let was_recovering = std::mem::replace(&mut self.is_recovering, is_recovering);
        // A member of a cluster that is being founded was never out of it.
        let had_lost_its_disk = self.status.borrow().memory == Memory::Lost;
        if was_recovering && !is_recovering && had_lost_its_disk {
            tracing::info!(
                "this node is readmitted: its votes and acknowledgements are counted from now on"
            );
        }
        if !is_leader {
            self.waiters.fail_all("leadership was lost before the command was committed");
        }
        let now = Leadership { term, leader, is_leader };
        // Watchers are notified of a change of the leader or of its term, and not of the terms in
        // which candidates run.
        self.leadership.send_if_modified(|before| {
            let changed = (before.leader, before.is_leader) != (leader, is_leader)
                || (leader.is_some() && before.term != term);
            if changed {
                *before = now;
            }
            changed
        });
    }

    fn publish_members(&mut self) {
        let stage = self.raft.configuration_stage();
        if stage != self.members_stage {
            self.members_stage = stage;
            let now = Members::of(&self.raft);
            // A compaction moves the place and changes nothing.
            self.members.send_if_modified(|before| {
                let changed = (&before.configuration, before.is_committed)
                    != (&now.configuration, now.is_committed);
                *before = now;
                changed
            });
        }
    }

    /// Publishes the status. It changes with each batch, and notifying costs more than writing it,
    /// so watchers are notified only if there are any. They are counted under the lock under which
    /// they read, so that a watcher that has read the status before this change is counted.
    fn publish_status(&mut self) {
        let log_bytes = self.storage.log_bytes();
        let reply_panics_count = self.inbox.panicked_count();
        let transfers = self.snapshots.transfers();
        let peers = std::mem::take(&mut self.spare_peers);
        let now = Status::of(&self.raft, log_bytes, reply_panics_count, transfers, peers);
        let (status, spare_peers) = (&self.status, &mut self.spare_peers);
        status.send_if_modified(|before| {
            let is_watched = status.receiver_count() > UNWATCHED_RECEIVERS;
            let changed = is_watched && *before != now;
            *spare_peers = std::mem::replace(before, now).peers;
            changed
        });
    }
}

/// However the loop ends (it returns, it panics, or its runtime is dropped), every request is
/// answered, and the node no longer looks like a leader.
impl<M: StateMachine> Drop for EventLoop<M> {
    fn drop(&mut self) {
        drop(self.inbox.close());
        self.status.send_modify(Status::on_stopped);
        self.leadership.send_modify(|seen| {
            *seen = Leadership { term: seen.term, ..Leadership::default() };
        });
    }
}
