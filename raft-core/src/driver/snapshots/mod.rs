//! Snapshots of this node and from its leader, and compaction of the log that they cover.
//!
//! [`policy`] decides: a pure value, events in and actions out. [`Snapshots`] carries the actions
//! out, on the event loop. [`tasks`] does the work, each piece on a task of its own that ends with
//! a completion. [`transfer`] holds the plain values that pass between them. The rules:
//!
//! * A volatile machine's view is written to storage and published by a batch; a durable machine is
//!   flushed. Either way the log is compacted afterwards, down to a quarter of
//!   `max_raft_state_bytes`.
//! * A peer that lags behind the log gets the published snapshot as a stream. For a durable
//!   machine, a copy of its state is written first, so that an interrupted transfer can resume;
//!   meanwhile the machine is flushed and the log compacted. The copy is withdrawn once no peer
//!   needs it.
//! * The entries that a peer needs after its snapshot are kept, as far as four times
//!   `max_raft_state_bytes` allows. A copy that compaction has overtaken is given up: the writes of
//!   clients go on.
//! * A snapshot that a peer refuses is offered again after a pause that doubles.
//! * One snapshot is received at a time, and never beside a copy of this node's own, because
//!   storage keeps only one unfinished snapshot. A newer leader's transfer replaces that of an
//!   older one.

mod policy;
mod tasks;
pub(super) mod transfer;
pub(crate) mod wire;

use std::collections::BTreeMap;

use tokio::sync::oneshot;

pub(super) use self::policy::Published;
use self::policy::{Action, CoreView, OfferVerdict, PeerView, Policy};
pub(super) use self::tasks::JobParts;
use self::tasks::Jobs;
use self::transfer::{Admission, Meter, Sent, StopOnDrop, stop};
use self::wire::OfferResponse;
use super::config::NodeConfig;
use super::inbox::OpenStream;
use super::status::SnapshotTransfer;
use crate::consensus::{ProgressState, Raft, RoleKind};
use crate::state_machine::{Flusher, SnapshotSource, StateMachine};
use crate::types::{Index, NodeId, SnapshotContent, SnapshotMeta, Term, Time};

/// The core as the policy sees it, with the bytes of the log in storage.
struct RaftView<'a, M: StateMachine> {
    raft: &'a Raft,
    jobs: &'a Jobs<M>,
}

impl<M: StateMachine> CoreView for RaftView<'_, M> {
    fn leads(&self) -> bool {
        self.raft.role() == RoleKind::Leader
    }

    fn commit_index(&self) -> Index {
        self.raft.commit_index()
    }

    fn last_applied(&self) -> Index {
        self.raft.last_applied()
    }

    fn snapshot_index(&self) -> Index {
        self.raft.snapshot_index()
    }

    fn log_start_index(&self) -> Index {
        self.raft.log_start_index()
    }

    fn log_is_half_full(&self) -> bool {
        !self.raft.log_has_room()
    }

    fn is_restoring(&self) -> bool {
        self.raft.is_restoring()
    }

    fn index_leaving_bytes(&self, bytes: u64) -> Index {
        self.raft.index_leaving_bytes(bytes)
    }

    fn log_bytes(&self) -> u64 {
        self.jobs.log_bytes()
    }

    fn peer(&self, id: NodeId) -> Option<PeerView> {
        let progress = self.raft.peer(id)?;
        let needs_snapshot = progress.state == ProgressState::Snapshot;
        Some(PeerView { match_index: progress.match_index, needs_snapshot })
    }
}

/// A transfer to a peer: under way, or the last one.
struct Sending {
    /// `None`: the transfer was stopped, or has ended.
    stop: Option<StopOnDrop>,
    meter: Meter,
}

/// Carries out the policy's actions; holds the handles of the tasks that do.
pub(super) struct Snapshots<M: StateMachine> {
    policy: Policy,
    jobs: Jobs<M>,
    /// Absent while a flush is under way, and if the machine is volatile.
    flusher: Option<Box<dyn Flusher>>,
    flusher_back: Option<oneshot::Receiver<Box<dyn Flusher>>>,
    /// Present while a view is being written that is still wanted.
    writing: Option<StopOnDrop>,
    /// Present while a snapshot is being received that is still wanted.
    receiving: Option<StopOnDrop>,
    /// Transfers to peers that lag behind the log.
    sending: BTreeMap<NodeId, Sending>,
}

impl<M: StateMachine> Snapshots<M> {
    pub(super) fn new(
        config: &NodeConfig,
        parts: JobParts<M>,
        flusher: Option<Box<dyn Flusher>>,
        published: Option<Published>,
        last_applied: Index,
    ) -> Self {
        Self {
            policy: Policy::new(config, flusher.is_some(), published, last_applied),
            jobs: Jobs::new(config, parts),
            flusher,
            flusher_back: None,
            writing: None,
            receiving: None,
            sending: BTreeMap::new(),
        }
    }

    /// The service asks for a snapshot, whatever the size of the log.
    pub(super) fn request(&mut self) {
        self.policy.on_requested();
    }

    /// The core needs a snapshot for each of these peers.
    pub(super) fn want(&mut self, raft: &mut Raft, peers: Vec<NodeId>) {
        for peer in peers {
            if let Some(action) = self.policy.on_peer_wanted(peer) {
                self.carry_out(raft, action);
            }
        }
    }

    /// Returns the time at which snapshots next need a turn.
    pub(super) fn next_deadline(&self) -> Time {
        self.policy.next_deadline()
    }

    pub(super) fn transfers(&self) -> Vec<SnapshotTransfer> {
        let mut transfers = self.policy.transfers();
        for transfer in &mut transfers {
            if let Some(sending) = self.sending.get(&transfer.peer) {
                transfer.sent_bytes = sending.meter.sent_bytes();
                transfer.size_bytes = sending.meter.size_bytes();
            }
        }
        transfers
    }

    /// Returns true while the machine is being flushed, and so must not be given a snapshot.
    pub(super) fn is_flushing(&self) -> bool {
        self.policy.is_flushing()
    }

    /// Advances compaction, flushes and transfers. Returns true if the machine is to be asked for a
    /// view.
    #[must_use]
    pub(super) fn turn(&mut self, raft: &mut Raft, now: Time) -> bool {
        for action in self.policy.begin_turn(&RaftView { raft, jobs: &self.jobs }) {
            self.carry_out(raft, action);
        }
        let mut takes_view = false;
        for action in self.policy.end_turn(&RaftView { raft, jobs: &self.jobs }, now) {
            takes_view |= action == Action::TakeView;
            self.carry_out(raft, action);
        }
        self.forget_caught_up();
        takes_view
    }

    /// Forgets the last transfers to peers that no longer lag behind the log.
    fn forget_caught_up(&mut self) {
        if !self.sending.is_empty() {
            self.sending.retain(|peer, _| self.policy.has_peer(*peer));
        }
    }

    fn carry_out(&mut self, raft: &mut Raft, action: Action) {
        match action {
            Action::StopWriting => self.writing = None,
            Action::StopReceiving => self.receiving = None,
            Action::StopSending(peer) => {
                self.sending.get_mut(&peer).expect("it is being sent").stop = None;
            }
            Action::DropEntries(through) => self.drop_entries(raft, through),
            Action::Flush => {
                let flusher = self.flusher.take().expect("one flush at a time");
                self.flusher_back = Some(self.jobs.flush(flusher));
            }
            Action::Send { peer, failures_in_a_row } => {
                let (on_drop, stopped) = stop();
                let meter = Meter::default();
                self.jobs.send(peer, raft.term(), (meter.clone(), failures_in_a_row), stopped);
                self.sending.insert(peer, Sending { stop: Some(on_drop), meter });
            }
            Action::Withdraw => raft.withdraw_snapshot(),
            // Returned by `turn`: the event loop asks the machine.
            Action::TakeView => {}
            Action::WarnOfRounds { peer, rounds } => tracing::warn!(
                peer,
                snapshots = rounds,
                "a node needs one snapshot after the other: the log is compacted before it catches \
                 up. Raise max_raft_state, or give the node a faster disk or network"
            ),
        }
    }

    fn drop_entries(&mut self, raft: &mut Raft, through: Index) {
        assert!(through <= raft.snapshot_index(), "a durable state covers what is dropped");
        let dropped = raft.compact(through);
        let start_index = dropped.as_ref().map(SnapshotMeta::index);
        assert!(start_index.is_none_or(|index| index <= through), "no more than was asked for");
        if self.policy.on_entries_dropped(start_index) {
            self.jobs.compact(dropped.expect("entries were dropped"));
        }
    }

    pub(super) fn on_view_taken(&mut self, raft: &Raft, now: Time, view: Box<dyn SnapshotSource>) {
        let position = view.position();
        let meta = raft.snapshot_meta(position.index);
        // A node that joins has applied the entries before the first configuration. A copy of them
        // would not be published, and the next one would keep the leader's offers out.
        let is_useful = |meta: &SnapshotMeta| {
            meta.position == position && !meta.configuration.is_empty() && !raft.is_restoring()
        };
        let meta = meta.filter(is_useful);
        let is_to_be_written = self.policy.on_view_taken(now, position.index, meta.is_some());
        if let Some(meta) = meta
            && is_to_be_written
        {
            assert!(meta.index() <= raft.last_applied(), "a view is of what is applied");
            self.writing = Some(self.jobs.write(meta, view));
        }
    }

    /// The machine has no view that is of use.
    pub(super) fn on_no_view(&mut self, now: Time) {
        self.policy.on_no_view(now);
    }

    /// `None`: the copy was given up.
    pub(super) fn on_written(
        &mut self,
        raft: &mut Raft,
        written: Option<(SnapshotMeta, SnapshotContent)>,
    ) {
        self.writing = None;
        let Some((meta, content)) = written else { return self.policy.on_writing_given_up() };
        let index = meta.index();
        let is_publishing = raft.publish_snapshot(meta);
        self.policy.on_written(index, content.size_bytes, is_publishing);
    }

    pub(super) fn on_published(&mut self, raft: &Raft, meta: &SnapshotMeta) {
        self.policy.on_published(&RaftView { raft, jobs: &self.jobs }, meta.index());
    }

    pub(super) fn on_flushed(&mut self, raft: &mut Raft, index: Index) {
        let mut back = self.flusher_back.take().expect("a flush was under way");
        self.flusher = back.try_recv().ok();
        assert!(self.flusher.is_some(), "the flusher is given back before the flush is reported");
        raft.on_state_durable(index);
        self.policy.on_flushed(&RaftView { raft, jobs: &self.jobs }, index);
    }

    /// A leader's snapshot replaces the log.
    pub(super) fn on_replaced(&mut self, meta: &SnapshotMeta) {
        self.policy.on_replaced(meta.index());
    }

    pub(super) fn on_compacted(&mut self) {
        self.policy.on_compacted(self.jobs.log_bytes());
    }

    pub(super) fn on_sent(&mut self, raft: &mut Raft, now: Time, peer: NodeId, sent: Sent) {
        if let Some(sending) = self.sending.get_mut(&peer) {
            sending.stop = None;
        }
        self.policy.on_sent(now, peer, sent, raft.last_index());
        self.forget_caught_up();
        let through = match sent {
            Sent::Through(index) => Some(index),
            Sent::Interrupted | Sent::Unreadable => None,
        };
        raft.on_snapshot_sent(now, peer, through);
    }

    /// A peer opened a stream, to offer a snapshot.
    pub(super) fn receive(&self, from: NodeId, stream: OpenStream) {
        self.jobs.receive(from, stream);
    }

    /// Decides about an offer.
    pub(super) fn on_offered(
        &mut self,
        raft: &mut Raft,
        now: Time,
        (from, term): (NodeId, Term),
        meta: &SnapshotMeta,
        answer: oneshot::Sender<Admission>,
    ) {
        let decision = raft.on_snapshot_offer(now, from, term, meta);
        let view = RaftView { raft, jobs: &self.jobs };
        let refusal = match self.policy.on_offered(&view, decision, (from, term), meta.index()) {
            OfferVerdict::Admit => {
                let (on_drop, stopped) = stop();
                self.receiving = Some(on_drop);
                // The task that asked may have ended.
                if answer.send(Admission::Granted(stopped)).is_err() {
                    self.on_receive_ended();
                }
                return;
            }
            OfferVerdict::Refuse(refusal) => refusal,
            OfferVerdict::RefuseAndStopReceiving => {
                self.carry_out(raft, Action::StopReceiving);
                OfferResponse::Busy
            }
        };
        // The task that asked may have ended.
        let _ = answer.send(Admission::Refused(refusal));
    }

    pub(super) fn on_receive_ended(&mut self) {
        self.receiving = None;
        self.policy.on_receive_ended();
    }
}
