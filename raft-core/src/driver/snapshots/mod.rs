//! Snapshots of this node and of its leader, and what of the log they make superfluous.
//!
//! [`Snapshots`] decides, on the event loop; [`tasks`] does the work, each piece on a task of its own
//! that ends with a report. The rules:
//!
//! * A volatile machine's view is written to storage and published by a batch; a durable machine is
//!   flushed. Either way the log is compacted afterwards, up to a quarter of `max_raft_state_bytes`.
//! * A peer that lags behind the log gets the published snapshot as a stream. The copy of a durable
//!   machine's state is written for the purpose first, so that a transfer can resume. The machine is
//!   flushed and the log compacted meanwhile. The copy is withdrawn once no peer needs it.
//! * The log is kept for a peer that is being filled, as far as [`KEPT_LIMITS`] allows. A copy that
//!   the log has outrun is given up: the writes of clients go on.
//! * A snapshot that a peer refuses is offered again after a pause that doubles.
//! * One snapshot is received at a time, and never beside a copy of this node's own, because both
//!   would be the storage's unfinished one. A newer leader takes the place of an older one.

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
use crate::consensus::{OfferAnswer, ProgressState, Raft, RoleKind};
use crate::state_machine::{Flusher, SnapshotSource, StateMachine};
use crate::types::{Index, NodeId, SnapshotContent, SnapshotMeta, Term, Time};

/// Entries forgotten in one turn: dropping many at once would make everybody wait.
const COMPACT_ENTRIES_MAX: u64 = 4096;

/// How much of the log is kept for peers that are being filled, in multiples of
/// `max_raft_state_bytes`. The log takes entries up to eight times that.
const KEPT_LIMITS: u64 = 4;

/// How long after a view that was of no use the machine is asked for the next.
const VIEW_PAUSE: Duration = Duration::from_secs(1);

/// What this node is doing about a copy of its own state.
enum Own {
    Idle,
    /// The machine was asked for a view.
    TakingView,
    /// The view at this index is being written. Without the second part it was given up, and the
    /// task has not ended yet.
    Writing(Index, Option<StopOnDrop>),
    /// The one at this index waits for the batch that publishes it.
    Publishing(Index),
}

/// The snapshot that storage has published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) index: Index,
    pub(super) size_bytes: u64,
    /// False once it was found damaged: it is of use to nobody.
    pub(super) is_readable: bool,
}

/// The snapshot that is being received.
struct Receiving {
    from: NodeId,
    term: Term,
    index: Index,
    /// `None`: it was given up, and the task has not ended yet.
    stop: Option<StopOnDrop>,
}

pub(super) struct Snapshots<M: StateMachine> {
    jobs: Jobs<M>,
    max_raft_state_bytes: u64,
    own: Own,
    /// The machine's state survives a crash as far as it was flushed.
    is_durable: bool,
    /// Absent while a flush is under way.
    flusher: Option<Box<dyn Flusher>>,
    flusher_back: Option<oneshot::Receiver<Box<dyn Flusher>>>,
    flushed_index: Index,
    receiving: Option<Receiving>,
    peers: Peers,
    published: Option<Published>,
    /// Of the last snapshot written, for hysteresis.
    last_size_bytes: u64,
    compacting: bool,
    compact_to: Option<Index>,
    /// What the log held after the last compaction.
    floor_bytes: u64,
    /// The machine is asked for a view no earlier.
    view_at: Time,
    /// The service asked for a snapshot.
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
            own: Own::Idle,
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

    /// The service wants a snapshot, whatever the size of the log.
    pub(super) fn request(&mut self) {
        self.is_requested = true;
    }

    /// The core needs a snapshot for each of these peers.
    pub(super) fn want(&mut self, peers: Vec<NodeId>) {
        for peer in peers {
            self.peers.want(peer);
        }
    }

    /// When the next turn is due for the sake of snapshots.
    pub(super) fn next_deadline(&self) -> Time {
        self.wake_at
    }

    pub(super) fn transfers(&self) -> Vec<SnapshotTransfer> {
        self.peers.transfers()
    }

    fn is_idle(&self) -> bool {
        matches!(self.own, Own::Idle) && self.receiving.is_none()
    }

    /// One turn. Returns whether the machine is to be asked for a view.
    #[must_use]
    pub(super) fn turn(&mut self, raft: &mut Raft, now: Time) -> bool {
        self.give_up_what_is_outrun(raft);
        self.plan_if_full(raft);
        self.compact_a_piece(raft);
        let is_behind = raft.last_applied() > raft.snapshot_index();
        // A snapshot of nothing new is there already.
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
            self.own = Own::TakingView;
        } else if may_take_view {
            self.wake_at = self.wake_at.min(self.view_at);
        }
        takes_view
    }

    /// C12, C13. Ends what is of no use any more; the tasks notice at their next step.
    fn give_up_what_is_outrun(&mut self, raft: &Raft) {
        let leads = raft.role() == RoleKind::Leader;
        if let Own::Writing(index, stop) = &mut self.own
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

    /// Beyond the limit, and by enough to be worth it: a state that is itself larger than the limit
    /// must not be written again for every few entries. Four times the limit at most.
    fn log_is_too_large(&self, raft: &Raft) -> bool {
        let limit = self.max_raft_state_bytes;
        if limit == 0 {
            return false;
        }
        let state_bytes = if self.is_durable { 0 } else { self.last_size_bytes };
        let threshold = limit.max(state_bytes.min(4 * limit));
        let log_bytes = self.jobs.log_bytes();
        // A log that fills up beyond that takes no more, so it could not grow to be worth it.
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
                self.own = Own::Writing(meta.index(), Some(self.jobs.write(meta, view)));
            }
            // A leader's snapshot has overtaken it, or it is published already.
            Some(_) | None => self.on_no_view(now),
        }
    }

    /// The machine has no view that is of use.
    pub(super) fn on_no_view(&mut self, now: Time) {
        self.own = Own::Idle;
        self.view_at = now + VIEW_PAUSE;
    }

    /// `None`: the copy was given up.
    pub(super) fn on_written(
        &mut self,
        raft: &mut Raft,
        written: Option<(SnapshotMeta, SnapshotContent)>,
    ) {
        self.own = Own::Idle;
        let Some((meta, content)) = written else { return };
        self.last_size_bytes = content.size_bytes;
        let index = meta.index();
        if raft.publish_snapshot(meta) {
            self.own = Own::Publishing(index);
        }
    }

    pub(super) fn on_published(&mut self, raft: &Raft, meta: &SnapshotMeta) {
        self.own = Own::Idle;
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

    /// Whether the machine must not be given a snapshot yet, because it is being flushed.
    pub(super) fn is_flushing(&self) -> bool {
        self.flusher_back.is_some()
    }

    /// A leader's snapshot replaces the log.
    pub(super) fn on_replaced(&mut self, meta: &SnapshotMeta) {
        self.publish(meta);
        self.compact_to = None;
        self.floor_bytes = 0;
    }

    /// Decides what to forget now that a durable state covers it: all but a quarter of a limit's
    /// worth, so that a peer that lags a little finds its entries, and nothing that a peer which is
    /// being filled will need.
    fn plan_compaction(&mut self, raft: &Raft) {
        let limit = self.max_raft_state_bytes;
        if limit == 0 {
            return;
        }
        let target = raft.index_leaving_bytes(limit / 4).min(raft.snapshot_index());
        // C15. As far as the budget allows.
        let kept_from = raft.index_leaving_bytes(KEPT_LIMITS.saturating_mul(limit));
        let own = match self.own {
            Own::Writing(index, Some(_)) | Own::Publishing(index) if self.is_durable => Some(index),
            _ => None,
        };
        let waited_for = |copy: &Published| copy.is_readable && self.peers.wait_for_copy();
        let copy = self.published.filter(waited_for).map(|copy| copy.index);
        let needed = self.peers.needed_behind().chain(own).chain(copy);
        let needed = needed.filter(|index| *index >= kept_from).min();
        self.compact_to = Some(needed.map_or(target, |needed| target.min(needed)));
        self.floor_bytes = self.jobs.log_bytes();
    }

    /// A full log takes no entries, so nothing new is applied and no snapshot follows that would plan a
    /// compaction. A crash may have come between the last snapshot and its compaction, and a log that
    /// was kept for peers may have filled up.
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

    /// Sends the published snapshot to the peers that wait for one. Returns whether they need a newer
    /// one.
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
        // After it the peer needs the entry behind it, so an older one than the log's start is of
        // no use.
        let start_index = raft.log_start_index();
        let usable =
            |published: &Published| published.is_readable && published.index >= start_index;
        match self.published.filter(usable).map(|published| published.index) {
            Some(published) if !matches!(self.own, Own::Publishing(_)) => {
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
            // The next peer that asks gets a new one.
            published.is_readable = false;
        }
        let through = match sent {
            Sent::Through(index) => Some(index),
            Sent::Interrupted | Sent::Unreadable => None,
        };
        raft.on_snapshot_sent(now, peer, through);
    }

    /// S14. The copy of a durable machine's state is of no use once no peer waits for it. It goes when
    /// the machine is durable as far as the log may be compacted, and not only as far as it is now: a
    /// compaction may be under way, and the copy is what justifies it.
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
            && matches!(self.own, Own::Idle)
            && !raft.is_restoring()
    }

    /// A published snapshot can go only once the machine is durable through it.
    fn waits_for_flush(&self, raft: &Raft) -> bool {
        let index = raft.snapshot_index();
        self.published.is_some() && self.flushed_index < index && raft.last_applied() >= index
    }

    /// A peer opened a stream, to offer a snapshot.
    pub(super) fn receive(&self, from: NodeId, stream: OpenStream) {
        self.jobs.receive(from, stream);
    }

    /// Decides about an offer. C13: a leader of a later term takes the place of an earlier one, and
    /// another attempt of the same leader that of its last; the place is free once the earlier task
    /// has ended, and the peer offers again.
    pub(super) fn on_offered(
        &mut self,
        raft: &mut Raft,
        now: Time,
        (from, term): (NodeId, Term),
        meta: &SnapshotMeta,
        answer: oneshot::Sender<Admission>,
    ) {
        let admission = match raft.on_snapshot_offer(now, from, term, meta) {
            OfferAnswer::NotNeeded => Admission::Refused(wire::Answer::NotNeeded),
            OfferAnswer::Stale { term } => Admission::Refused(wire::Answer::Stale { term }),
            OfferAnswer::Wanted if self.is_idle() && !raft.is_restoring() => {
                let (stop, stopped) = tasks::stop();
                let index = meta.index();
                self.receiving = Some(Receiving { from, term, index, stop: Some(stop) });
                Admission::Granted(stopped)
            }
            OfferAnswer::Wanted | OfferAnswer::Refused => {
                if let Some(receiving) = &mut self.receiving
                    && (term > receiving.term || (term, from) == (receiving.term, receiving.from))
                {
                    receiving.stop = None;
                }
                Admission::Refused(wire::Answer::Busy)
            }
        };
        let is_granted = matches!(admission, Admission::Granted(_));
        // Whoever asked may have given up.
        if answer.send(admission).is_err() && is_granted {
            self.receiving = None;
        }
    }

    pub(super) fn on_receive_ended(&mut self) {
        self.receiving = None;
    }
}
