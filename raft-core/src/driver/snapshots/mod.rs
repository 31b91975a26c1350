//! Snapshots of this node and from its leader, and compaction of the log that they cover.
//!
//! [`Snapshots`] decides, on the event loop; [`tasks`] does the work, each piece on a task of its
//! own that ends with a completion. The rules:
//!
//! * A volatile machine's view is written to storage and published by a batch; a durable machine is
//!   flushed. Either way the log is compacted afterwards, down to a quarter of
//!   `max_raft_state_bytes`.
//! * A peer that lags behind the log gets the published snapshot as a stream. For a durable
//!   machine, a copy of its state is written first, so that an interrupted transfer can resume;
//!   meanwhile the machine is flushed and the log compacted. The copy is withdrawn once no peer
//!   needs it.
//! * The entries that a peer needs after its snapshot are kept, as far as [`KEPT_LIMITS`] allows. A
//!   copy that compaction has overtaken is given up: the writes of clients go on.
//! * A snapshot that a peer refuses is offered again after a pause that doubles.
//! * One snapshot is received at a time, and never beside a copy of this node's own, because
//!   storage keeps only one unfinished snapshot. A newer leader's transfer replaces that of an
//!   older one.

mod peers;
mod tasks;
pub(crate) mod wire;

use std::time::Duration;

use tokio::sync::oneshot;

use self::peers::Peers;
use self::tasks::{Jobs, StopOnDrop};
pub(super) use self::tasks::{Parts, Stop};
use super::config::NodeConfig;
use super::inbox::{Admission, OpenStream, Sent};
use super::status::SnapshotTransfer;
use crate::consensus::{OfferDecision, ProgressState, Raft, RoleKind};
use crate::state_machine::{Flusher, SnapshotSource, StateMachine};
use crate::types::{Index, NodeId, SnapshotContent, SnapshotMeta, Term, Time};

/// Entries dropped in one turn: dropping many at once would hold up all other work of the event
/// loop.
const COMPACT_ENTRIES_MAX: u64 = 4096;

/// Log that is kept for peers that catch up by a snapshot, in multiples of `max_raft_state_bytes`.
/// The log takes entries up to at least eight times `max_raft_state_bytes` (`NodeConfig::fitted`).
const KEPT_LIMITS: u64 = 4;

/// Pause after a view that was of no use, before the machine is asked for the next.
const VIEW_PAUSE: Duration = Duration::from_secs(1);

/// Progress of a copy of this node's own state.
enum LocalSnapshot {
    Idle,
    /// The machine was asked for a view.
    TakingView,
    /// The view at this index is being written. `None`: writing was given up, and the task has not
    /// ended yet.
    Writing(Index, Option<StopOnDrop>),
    /// The copy at this index waits for the batch that publishes it.
    Publishing(Index),
}

/// The snapshot that storage has published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) index: Index,
    pub(super) size_bytes: u64,
    /// False once the snapshot was found damaged, so that it cannot be sent to peers.
    pub(super) is_readable: bool,
}

/// The snapshot that is being received.
struct Receiving {
    from: NodeId,
    term: Term,
    index: Index,
    /// `None`: receiving was given up, and the task has not ended yet.
    stop: Option<StopOnDrop>,
}

pub(super) struct Snapshots<M: StateMachine> {
    jobs: Jobs<M>,
    max_raft_state_bytes: u64,
    local: LocalSnapshot,
    /// True if the machine's state survives a crash, as far as it was flushed.
    is_durable: bool,
    /// Absent while a flush is under way.
    flusher: Option<Box<dyn Flusher>>,
    flusher_back: Option<oneshot::Receiver<Box<dyn Flusher>>>,
    flushed_index: Index,
    receiving: Option<Receiving>,
    peers: Peers,
    published: Option<Published>,
    /// Bytes of the last snapshot written, for hysteresis.
    last_size_bytes: u64,
    compacting: bool,
    compact_to: Option<Index>,
    /// Bytes of the log when the last compaction was planned or done, for hysteresis.
    floor_bytes: u64,
    /// The machine is not asked for a view before this time.
    view_at: Time,
    /// Set from the service's request for a snapshot until one is under way.
    is_requested: bool,
    wake_at: Time,
}

impl<M: StateMachine> Snapshots<M> {
    pub(super) fn new(
        config: &NodeConfig,
        parts: Parts<M>,
        flusher: Option<Box<dyn Flusher>>,
        published: Option<Published>,
        last_applied: Index,
    ) -> Self {
        Self {
            jobs: Jobs::new(config, parts),
            max_raft_state_bytes: config.max_raft_state_bytes,
            local: LocalSnapshot::Idle,
            is_durable: flusher.is_some(),
            flusher,
            flusher_back: None,
            flushed_index: last_applied,
            receiving: None,
            peers: Peers::new(config.raft.heartbeat_interval, config.snapshot_patience),
            published,
            last_size_bytes: published.map_or(0, |published| published.size_bytes),
            compacting: false,
            compact_to: None,
            floor_bytes: 0,
            view_at: Time::ZERO,
            is_requested: false,
            wake_at: Time::NEVER,
        }
    }

    /// The service asks for a snapshot, whatever the size of the log.
    pub(super) fn request(&mut self) {
        self.is_requested = true;
    }

    /// The core needs a snapshot for each of these peers.
    pub(super) fn want(&mut self, peers: Vec<NodeId>) {
        for peer in peers {
            self.peers.want(peer);
        }
    }

    /// Returns the time at which snapshots next need a turn.
    pub(super) fn next_deadline(&self) -> Time {
        self.wake_at
    }

    pub(super) fn transfers(&self) -> Vec<SnapshotTransfer> {
        self.peers.transfers()
    }

    fn is_idle(&self) -> bool {
        matches!(self.local, LocalSnapshot::Idle) && self.receiving.is_none()
    }

    /// Advances compaction, flushes and transfers. Returns true if the machine is to be asked for a
    /// view.
    #[must_use]
    pub(super) fn turn(&mut self, raft: &mut Raft, now: Time) -> bool {
        self.give_up_what_is_outrun(raft);
        self.plan_if_full(raft);
        self.compact_a_piece(raft);
        let is_behind = raft.last_applied() > raft.snapshot_index();
        // If nothing was applied since the last snapshot, that snapshot serves the request.
        self.is_requested &= is_behind;
        let wants_snapshot = is_behind && (self.is_requested || self.log_is_too_large(raft));
        let can_flush = self.flusher.is_some() && !raft.is_restoring();
        if can_flush && (wants_snapshot || self.waits_for_flush(raft)) {
            self.is_requested = false;
            self.flusher_back = self.flusher.take().map(|flusher| self.jobs.flush(flusher));
        }
        let copies_for_peers = self.serve_peers(raft, now);
        self.withdraw_if_unneeded(raft, now);
        let wants_view = copies_for_peers || (wants_snapshot && !self.is_durable);
        let may_take_view = wants_view && self.is_idle() && !raft.is_restoring();
        let takes_view = may_take_view && now >= self.view_at;
        self.wake_at = self.peers.next_deadline(now);
        if takes_view {
            self.local = LocalSnapshot::TakingView;
        } else if may_take_view {
            self.wake_at = self.wake_at.min(self.view_at);
        }
        takes_view
    }

    /// C12, C13. Gives up work that is no longer of use: a copy that no peer can use, the receipt
    /// of a snapshot that this node no longer needs, and transfers of a node that no longer leads.
    /// The tasks notice at their next step.
    fn give_up_what_is_outrun(&mut self, raft: &Raft) {
        let leads = raft.role() == RoleKind::Leader;
        if let LocalSnapshot::Writing(index, stop) = &mut self.local
            && self.is_durable
            && (!leads || *index < raft.log_start_index())
        {
            *stop = None;
        }
        if let Some(receiving) = &mut self.receiving
            && (leads || raft.commit_index() >= receiving.index)
        {
            receiving.stop = None;
        }
        if !leads && !self.peers.is_empty() {
            self.peers.stop_all();
        }
    }

    /// Returns true if the log exceeds the limit by enough to be worth a snapshot: a state that is
    /// itself larger than the limit must not be written again for every few entries. The threshold
    /// is at most four times the limit.
    fn log_is_too_large(&self, raft: &Raft) -> bool {
        let limit = self.max_raft_state_bytes;
        if limit == 0 {
            return false;
        }
        let state_bytes = if self.is_durable { 0 } else { self.last_size_bytes };
        let threshold = limit.max(state_bytes.min(4 * limit));
        let log_bytes = self.jobs.log_bytes();
        // A log without room takes no more entries, so it could not grow to be worth it.
        let is_worth_it = log_bytes >= self.floor_bytes + threshold / 4 || !raft.log_has_room();
        log_bytes > threshold && is_worth_it
    }

    pub(super) fn on_view_taken(&mut self, raft: &Raft, now: Time, view: Box<dyn SnapshotSource>) {
        let position = view.position();
        let meta = raft.snapshot_meta(position.index);
        let meta = meta.filter(|meta| meta.position == position && !raft.is_restoring());
        let is_new = self
            .published
            .is_none_or(|published| !published.is_readable || position.index > published.index);
        match meta {
            Some(meta) if is_new => {
                self.is_requested &= self.is_durable;
                self.local =
                    LocalSnapshot::Writing(meta.index(), Some(self.jobs.write(meta, view)));
            }
            // The view was overtaken by a leader's snapshot, or is published already.
            Some(_) | None => self.on_no_view(now),
        }
    }

    /// The machine has no view that is of use.
    pub(super) fn on_no_view(&mut self, now: Time) {
        self.local = LocalSnapshot::Idle;
        self.view_at = now + VIEW_PAUSE;
    }

    /// `None`: the copy was given up.
    pub(super) fn on_written(
        &mut self,
        raft: &mut Raft,
        written: Option<(SnapshotMeta, SnapshotContent)>,
    ) {
        self.local = LocalSnapshot::Idle;
        let Some((meta, content)) = written else { return };
        self.last_size_bytes = content.size_bytes;
        let index = meta.index();
        if raft.publish_snapshot(meta) {
            self.local = LocalSnapshot::Publishing(index);
        }
    }

    pub(super) fn on_published(&mut self, raft: &Raft, meta: &SnapshotMeta) {
        self.local = LocalSnapshot::Idle;
        self.publish(meta);
        self.plan_compaction(raft);
    }

    fn publish(&mut self, meta: &SnapshotMeta) {
        let (index, size_bytes) = (meta.index(), self.last_size_bytes);
        self.published = Some(Published { index, size_bytes, is_readable: true });
    }

    pub(super) fn on_flushed(&mut self, raft: &mut Raft, index: Index) {
        let mut back = self.flusher_back.take().expect("a flush was under way");
        self.flusher = back.try_recv().ok();
        self.flushed_index = index;
        raft.on_state_durable(index);
        self.plan_compaction(raft);
    }

    /// Returns true while the machine is being flushed, and so must not be given a snapshot.
    pub(super) fn is_flushing(&self) -> bool {
        self.flusher_back.is_some()
    }

    /// A leader's snapshot replaces the log.
    pub(super) fn on_replaced(&mut self, meta: &SnapshotMeta) {
        self.publish(meta);
        self.compact_to = None;
        self.floor_bytes = 0;
    }

    /// Plans to drop the entries that a durable state covers. About a quarter of
    /// `max_raft_state_bytes` stays, so that a peer that lags a little finds its entries. All
    /// entries stay that a peer will need after the snapshot that it is being sent.
    fn plan_compaction(&mut self, raft: &Raft) {
        let limit = self.max_raft_state_bytes;
        if limit == 0 {
            return;
        }
        let target = raft.index_leaving_bytes(limit / 4).min(raft.snapshot_index());
        // C15. Entries are kept for peers only as far as the budget allows.
        let kept_from = raft.index_leaving_bytes(KEPT_LIMITS.saturating_mul(limit));
        let own = match self.local {
            LocalSnapshot::Writing(index, Some(_)) | LocalSnapshot::Publishing(index)
                if self.is_durable =>
            {
                Some(index)
            }
            _ => None,
        };
        let waited_for = |copy: &Published| copy.is_readable && self.peers.wait_for_copy();
        let copy = self.published.filter(waited_for).map(|copy| copy.index);
        let needed = self.peers.needed_behind().chain(own).chain(copy);
        let needed = needed.filter(|index| *index >= kept_from).min();
        self.compact_to = Some(needed.map_or(target, |needed| target.min(needed)));
        self.floor_bytes = self.jobs.log_bytes();
    }

    /// Plans a compaction that no snapshot or flush will plan: a full log takes no entries, so
    /// nothing new is applied and no snapshot follows. A crash may have come between the last
    /// snapshot and its compaction, or the log may have grown too large while it was kept for
    /// peers.
    fn plan_if_full(&mut self, raft: &Raft) {
        let is_covered = raft.snapshot_index() > raft.log_start_index();
        let is_planned = self.compacting || self.compact_to.is_some();
        if !raft.log_has_room() && is_covered && !is_planned && !raft.is_restoring() {
            self.plan_compaction(raft);
        }
    }

    fn compact_a_piece(&mut self, raft: &mut Raft) {
        let Some(target) = self.compact_to else { return };
        if self.compacting {
            return;
        }
        let piece = target.min(raft.log_start_index() + COMPACT_ENTRIES_MAX);
        let Some(through) = raft.compact(piece) else {
            self.compact_to = None;
            return;
        };
        if through.index() >= target {
            self.compact_to = None;
            self.compacting = true;
            self.jobs.compact(through);
        }
    }

    pub(super) fn on_compacted(&mut self) {
        self.compacting = false;
        self.floor_bytes = self.jobs.log_bytes();
    }

    /// Sends the published snapshot to the peers that wait for one. Returns true if they need a
    /// newer one.
    fn serve_peers(&mut self, raft: &Raft, now: Time) -> bool {
        if raft.role() != RoleKind::Leader || self.peers.is_empty() {
            return false;
        }
        self.peers.forget_filled(raft.log_start_index(), |peer| {
            let progress = raft.peer(peer)?;
            Some((progress.match_index, progress.state == ProgressState::Snapshot))
        });
        let due = self.peers.due(now);
        if due.is_empty() {
            return false;
        }
        // After the snapshot the peer needs the entries that follow it, so a snapshot from before
        // the log's start is of no use.
        let start_index = raft.log_start_index();
        let usable =
            |published: &Published| published.is_readable && published.index >= start_index;
        match self.published.filter(usable).map(|published| published.index) {
            Some(published) if !matches!(self.local, LocalSnapshot::Publishing(_)) => {
                self.compact_to = self.compact_to.map(|target| target.min(published));
                for peer in due {
                    let (stop, stopped) = tasks::stop();
                    let (meter, failures) = self.peers.begin(peer, published, stop);
                    self.jobs.send(peer, raft.term(), (meter, failures), stopped);
                }
                false
            }
            Some(_) => false,
            None => true,
        }
    }

    pub(super) fn on_sent(&mut self, raft: &mut Raft, now: Time, peer: NodeId, sent: Sent) {
        let of = self.peers.on_sent(now, peer, sent, raft.last_index());
        if sent == Sent::Unreadable
            && let Some(published) = &mut self.published
            && of == Some(published.index)
        {
            // The next peer that asks gets a new snapshot.
            published.is_readable = false;
        }
        let through = match sent {
            Sent::Through(index) => Some(index),
            Sent::Interrupted | Sent::Unreadable => None,
        };
        raft.on_snapshot_sent(now, peer, through);
    }

    /// S14. Withdraws the copy of a durable machine's state once no peer waits for it. The machine
    /// must be durable as far as the log may be compacted, and not only as far as it is compacted
    /// now: a compaction may be under way, and the copy is what justifies it.
    fn withdraw_if_unneeded(&mut self, raft: &mut Raft, now: Time) {
        if self.has_unneeded_copy(raft, now) && self.flushed_index >= raft.snapshot_index() {
            raft.withdraw_snapshot();
            self.published = None;
        }
    }

    fn has_unneeded_copy(&self, raft: &Raft, now: Time) -> bool {
        self.is_durable
            && self.published.is_some_and(|copy| {
                !copy.is_readable
                    || copy.index < raft.log_start_index()
                    || !self.peers.need_copy(now)
            })
            && matches!(self.local, LocalSnapshot::Idle)
            && !raft.is_restoring()
    }

    /// Returns true if a flush is needed before the published snapshot may be withdrawn: the
    /// machine must be durable through its index.
    fn waits_for_flush(&self, raft: &Raft) -> bool {
        let index = raft.snapshot_index();
        self.published.is_some() && self.flushed_index < index && raft.last_applied() >= index
    }

    /// A peer opened a stream, to offer a snapshot.
    pub(super) fn receive(&self, from: NodeId, stream: OpenStream) {
        self.jobs.receive(from, stream);
    }

    /// Decides about an offer. C13: an offer of a leader of a later term, or another attempt of the
    /// same leader, ends the transfer under way. The offer itself is refused as busy: the peer
    /// offers again, and is granted once the earlier task has ended.
    pub(super) fn on_offered(
        &mut self,
        raft: &mut Raft,
        now: Time,
        (from, term): (NodeId, Term),
        meta: &SnapshotMeta,
        answer: oneshot::Sender<Admission>,
    ) {
        let admission = match raft.on_snapshot_offer(now, from, term, meta) {
            OfferDecision::NotNeeded => Admission::Refused(wire::OfferResponse::NotNeeded),
            OfferDecision::Stale { term } => {
                Admission::Refused(wire::OfferResponse::Stale { term })
            }
            OfferDecision::Wanted if self.is_idle() && !raft.is_restoring() => {
                let (stop, stopped) = tasks::stop();
                let index = meta.index();
                self.receiving = Some(Receiving { from, term, index, stop: Some(stop) });
                Admission::Granted(stopped)
            }
            OfferDecision::Wanted | OfferDecision::Refused => {
                if let Some(receiving) = &mut self.receiving
                    && (term > receiving.term || (term, from) == (receiving.term, receiving.from))
                {
                    receiving.stop = None;
                }
                Admission::Refused(wire::OfferResponse::Busy)
            }
        };
        let is_granted = matches!(admission, Admission::Granted(_));
        // The task that asked may have ended.
        if answer.send(admission).is_err() && is_granted {
            self.receiving = None;
        }
    }

    pub(super) fn on_receive_ended(&mut self) {
        self.receiving = None;
    }
}
