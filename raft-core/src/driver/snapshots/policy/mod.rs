//! Decisions about snapshots, flushes and compaction: events in, actions out.
//!
//! A pure value, as the core is: no tasks, no channels, no clock. [`Snapshots`](super::Snapshots)
//! reports events with a view of the core ([`CoreView`]), and carries out the actions. The rules
//! are those of the [module above](super).

mod interface;
mod peers;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(in crate::driver) use self::interface::Published;
pub(super) use self::interface::{Action, CoreView, OfferVerdict, PeerView};
use self::peers::Peers;
use super::transfer::Sent;
use super::wire::OfferResponse;
use crate::consensus::OfferDecision;
use crate::driver::config::NodeConfig;
use crate::driver::status::SnapshotTransfer;
use crate::types::{Index, NodeId, Term, Time};

/// Entries dropped in one turn: dropping many at once would hold up all other work of the event
/// loop.
const COMPACT_ENTRIES_MAX: u64 = 4096;

/// Log that is kept for peers that catch up by a snapshot, in multiples of `max_raft_state_bytes`.
/// The log takes entries up to at least eight times `max_raft_state_bytes` (`NodeConfig::fitted`).
const KEPT_LIMITS: u64 = 4;

/// Pause after a view that was of no use, before the machine is asked for the next.
const VIEW_PAUSE: Duration = Duration::from_secs(1);

/// Progress of a copy of this node's own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LocalSnapshot {
    Idle,
    /// The machine was asked for a view.
    TakingView,
    /// The view at this index is being written.
    Writing(Index),
    /// Writing was given up, and the task has not ended yet.
    GivenUp,
    /// The copy at this index waits for the batch that publishes it.
    Publishing(Index),
}

/// The snapshot that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Receiving {
    from: NodeId,
    term: Term,
    index: Index,
    /// True if receiving was given up, and the task has not ended yet.
    is_given_up: bool,
}

/// State of all decisions about one node's snapshots.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    max_raft_state_bytes: u64,
    local: LocalSnapshot,
    /// True if the machine's state survives a crash, as far as it was flushed.
    is_durable: bool,
    is_flushing: bool,
    flushed_index: Index,
    receiving: Option<Receiving>,
    peers: Peers,
    published: Option<Published>,
    /// Bytes of the last snapshot written, for hysteresis.
    last_size_bytes: u64,
    is_compacting: bool,
    compact_to: Option<Index>,
    /// Bytes of the log when the last compaction was planned or done, for hysteresis.
    floor_bytes: u64,
    /// The machine is not asked for a view before this time.
    view_at: Time,
    /// Set from the service's request for a snapshot until one is under way.
    is_requested: bool,
    wake_at: Time,
}

impl Policy {
    pub(super) fn new(
        config: &NodeConfig,
        is_durable: bool,
        published: Option<Published>,
        last_applied: Index,
    ) -> Self {
        Self {
            max_raft_state_bytes: config.max_raft_state_bytes,
            local: LocalSnapshot::Idle,
            is_durable,
            is_flushing: false,
            flushed_index: last_applied,
            receiving: None,
            peers: Peers::new(config.raft.heartbeat_interval, config.snapshot_patience),
            published,
            last_size_bytes: published.map_or(0, |published| published.size_bytes),
            is_compacting: false,
            compact_to: None,
            floor_bytes: 0,
            view_at: Time::ZERO,
            is_requested: false,
            wake_at: Time::NEVER,
        }
    }

    /// The service asks for a snapshot, whatever the size of the log.
    pub(super) fn on_requested(&mut self) {
        self.is_requested = true;
    }

    /// The core needs a snapshot for the peer.
    #[must_use]
    pub(super) fn on_peer_wanted(&mut self, peer: NodeId) -> Option<Action> {
        self.peers.want(peer).map(|rounds| Action::WarnOfRounds { peer, rounds })
    }

    /// Returns the time at which snapshots next need a turn.
    pub(super) fn next_deadline(&self) -> Time {
        self.wake_at
    }

    /// Returns true while the machine is being flushed, and so must not be given a snapshot.
    pub(super) fn is_flushing(&self) -> bool {
        self.is_flushing
    }

    /// Returns true if the peer lags behind the log.
    pub(super) fn has_peer(&self, id: NodeId) -> bool {
        self.peers.contains(id)
    }

    /// Returns the state of each transfer, without its bytes.
    pub(super) fn transfers(&self) -> Vec<SnapshotTransfer> {
        self.peers.transfers()
    }

    fn is_idle(&self) -> bool {
        self.local == LocalSnapshot::Idle && self.receiving.is_none()
    }

    /// Begins a turn: gives up work that is no longer of use, and goes on with the compaction that
    /// is planned.
    #[must_use]
    pub(super) fn begin_turn(&mut self, core: &impl CoreView) -> Vec<Action> {
        let mut actions = Vec::new();
        self.give_up_outrun_work(core, &mut actions);
        self.plan_if_half_full(core);
        if let Some(target) = self.compact_to
            && !self.is_compacting
        {
            let piece = target.min(core.log_start_index() + COMPACT_ENTRIES_MAX);
            actions.push(Action::DropEntries(piece));
        }
        actions
    }

    /// Ends a turn: starts flushes, transfers and views.
    #[must_use]
    pub(super) fn end_turn(&mut self, core: &impl CoreView, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_behind = core.last_applied() > core.snapshot_index();
        // If nothing was applied since the last snapshot, that snapshot serves the request.
        self.is_requested &= is_behind;
        let wants_snapshot = is_behind && (self.is_requested || self.log_is_too_large(core));
        let can_flush = self.is_durable && !self.is_flushing && !core.is_restoring();
        if can_flush && (wants_snapshot || self.waits_for_flush(core)) {
            self.is_requested = false;
            self.is_flushing = true;
            actions.push(Action::Flush);
        }
        let copies_for_peers = self.serve_peers(core, now, &mut actions);
        self.withdraw_if_unneeded(core, now, &mut actions);
        let wants_view = copies_for_peers || (wants_snapshot && !self.is_durable);
        let may_take_view = wants_view && self.is_idle() && !core.is_restoring();
        self.wake_at = self.peers.next_deadline(now);
        if may_take_view && now >= self.view_at {
            self.local = LocalSnapshot::TakingView;
            actions.push(Action::TakeView);
        } else if may_take_view {
            self.wake_at = self.wake_at.min(self.view_at);
        }
        actions
    }

    /// C12, C13. Gives up work that is no longer of use: a copy that no peer can use, the receipt
    /// of a snapshot that this node no longer needs, and transfers of a node that no longer leads.
    /// The tasks notice at their next step.
    fn give_up_outrun_work(&mut self, core: &impl CoreView, actions: &mut Vec<Action>) {
        let leads = core.leads();
        if let LocalSnapshot::Writing(index) = self.local
            && self.is_durable
            && (!leads || index < core.log_start_index())
        {
            self.local = LocalSnapshot::GivenUp;
            actions.push(Action::StopWriting);
        }
        if let Some(receiving) = &mut self.receiving
            && (leads || core.commit_index() >= receiving.index)
            && !std::mem::replace(&mut receiving.is_given_up, true)
        {
            actions.push(Action::StopReceiving);
        }
        if !leads && !self.peers.is_empty() {
            actions.extend(self.peers.give_up_all().into_iter().map(Action::StopSending));
        }
    }

    /// Returns true if the log exceeds the limit by enough to be worth a snapshot: a state that is
    /// itself larger than the limit must not be written again for every few entries. The threshold
    /// is at most four times the limit.
    fn log_is_too_large(&self, core: &impl CoreView) -> bool {
        let limit = self.max_raft_state_bytes;
        if limit == 0 {
            return false;
        }
        let state_bytes = if self.is_durable { 0 } else { self.last_size_bytes };
        let threshold = limit.max(state_bytes.min(4 * limit));
        let log_bytes = core.log_bytes();
        // A log that is half full is compacted whatever its growth: soon it would take no more
        // entries, and could not grow to be worth a snapshot.
        let is_worth_it = log_bytes >= self.floor_bytes + threshold / 4 || core.log_is_half_full();
        log_bytes > threshold && is_worth_it
    }

    /// The machine gave a view at `index`. `is_in_log`: the core's log has the view's position, so
    /// that it is not overtaken by a leader's snapshot. Returns true if the view is to be written.
    #[must_use]
    pub(super) fn on_view_taken(&mut self, now: Time, index: Index, is_in_log: bool) -> bool {
        assert_eq!(self.local, LocalSnapshot::TakingView, "a view is taken only when asked for");
        let is_new = self
            .published
            .is_none_or(|published| !published.is_readable || index > published.index);
        if !is_in_log || !is_new {
            self.on_no_view(now);
            return false;
        }
        self.is_requested &= self.is_durable;
        self.local = LocalSnapshot::Writing(index);
        true
    }

    /// The machine has no view that is of use.
    pub(super) fn on_no_view(&mut self, now: Time) {
        assert_eq!(self.local, LocalSnapshot::TakingView, "a view is refused only when asked for");
        self.local = LocalSnapshot::Idle;
        self.view_at = now + VIEW_PAUSE;
    }

    /// The view at `index` is written. `is_publishing`: the core publishes the copy with its next
    /// batch.
    pub(super) fn on_written(&mut self, index: Index, size_bytes: u64, is_publishing: bool) {
        assert!(
            matches!(self.local, LocalSnapshot::Writing(at) if at == index)
                || self.local == LocalSnapshot::GivenUp,
            "only a view that was handed out is written"
        );
        self.last_size_bytes = size_bytes;
        self.local =
            if is_publishing { LocalSnapshot::Publishing(index) } else { LocalSnapshot::Idle };
    }

    /// Writing the view was given up.
    pub(super) fn on_writing_given_up(&mut self) {
        assert_eq!(self.local, LocalSnapshot::GivenUp, "only the policy gives up a copy");
        self.local = LocalSnapshot::Idle;
    }

    /// The copy at `index` is published.
    pub(super) fn on_published(&mut self, core: &impl CoreView, index: Index) {
        assert_eq!(self.local, LocalSnapshot::Publishing(index), "one copy is published at a time");
        self.local = LocalSnapshot::Idle;
        self.publish(index);
        self.plan_compaction(core);
    }

    fn publish(&mut self, index: Index) {
        let size_bytes = self.last_size_bytes;
        self.published = Some(Published { index, size_bytes, is_readable: true });
    }

    /// The machine is durable through `index`, and the core knows it.
    pub(super) fn on_flushed(&mut self, core: &impl CoreView, index: Index) {
        assert!(self.is_durable && self.is_flushing, "a flush was under way");
        self.is_flushing = false;
        self.flushed_index = index;
        self.plan_compaction(core);
    }

    /// A leader's snapshot at `index` replaces the log.
    pub(super) fn on_replaced(&mut self, index: Index) {
        self.publish(index);
        self.compact_to = None;
        self.floor_bytes = 0;
    }

    /// Plans to drop the entries that a durable state covers. About a quarter of
    /// `max_raft_state_bytes` stays, so that a peer that lags a little finds its entries. All
    /// entries stay that a peer will need after the snapshot that it is being sent.
    fn plan_compaction(&mut self, core: &impl CoreView) {
        let limit = self.max_raft_state_bytes;
        if limit == 0 {
            return;
        }
        let target = core.index_leaving_bytes(limit / 4).min(core.snapshot_index());
        // C15. Entries are kept for peers only as far as the budget allows.
        let kept_from = core.index_leaving_bytes(KEPT_LIMITS.saturating_mul(limit));
        let own = match self.local {
            LocalSnapshot::Writing(index) | LocalSnapshot::Publishing(index) if self.is_durable => {
                Some(index)
            }
            _ => None,
        };
        let waited_for = |copy: &Published| copy.is_readable && self.peers.wait_for_copy();
        let copy = self.published.filter(waited_for).map(|copy| copy.index);
        let needed = self.peers.needed_behind().chain(own).chain(copy);
        let needed = needed.filter(|index| *index >= kept_from).min();
        let compact_to = needed.map_or(target, |needed| target.min(needed));
        assert!(compact_to <= core.snapshot_index(), "a durable state covers what is dropped");
        self.compact_to = Some(compact_to);
        self.floor_bytes = core.log_bytes();
    }

    /// Plans a compaction that no snapshot or flush will plan, once the log is half full: a full
    /// log takes no entries, so nothing new is applied and no snapshot follows. A crash may have
    /// come between the last snapshot and its compaction, or the log may have grown too large while
    /// it was kept for peers.
    fn plan_if_half_full(&mut self, core: &impl CoreView) {
        let is_covered = core.snapshot_index() > core.log_start_index();
        let is_planned = self.is_compacting || self.compact_to.is_some();
        if core.log_is_half_full() && is_covered && !is_planned && !core.is_restoring() {
            self.plan_compaction(core);
        }
    }

    /// The core dropped its entries through the index, or had none to drop. Returns true if storage
    /// is to drop them as well.
    #[must_use]
    pub(super) fn on_entries_dropped(&mut self, through: Option<Index>) -> bool {
        let target = self.compact_to.expect("a compaction was planned");
        assert!(!self.is_compacting, "one compaction at a time");
        let Some(through) = through else {
            self.compact_to = None;
            return false;
        };
        if through >= target {
            self.compact_to = None;
            self.is_compacting = true;
        }
        self.is_compacting
    }

    /// Storage has dropped the entries.
    pub(super) fn on_compacted(&mut self, log_bytes: u64) {
        assert!(self.is_compacting, "a compaction was under way");
        self.is_compacting = false;
        self.floor_bytes = log_bytes;
    }

    /// Sends the published snapshot to the peers that wait for one. Returns true if they need a
    /// newer one.
    fn serve_peers(&mut self, core: &impl CoreView, now: Time, actions: &mut Vec<Action>) -> bool {
        if !core.leads() || self.peers.is_empty() {
            return false;
        }
        // After the snapshot the peer needs the entries that follow it, so a snapshot from before
        // the log's start is of no use.
        let start_index = core.log_start_index();
        self.peers.forget_caught_up(start_index, |peer| core.peer(peer));
        let due = self.peers.due(now);
        if due.is_empty() {
            return false;
        }
        let is_usable =
            |published: &Published| published.is_readable && published.index >= start_index;
        let Some(published) = self.published.filter(is_usable).map(|published| published.index)
        else {
            return true;
        };
        if !matches!(self.local, LocalSnapshot::Publishing(_)) {
            self.compact_to = self.compact_to.map(|target| target.min(published));
            for peer in due {
                let failures_in_a_row = self.peers.begin(peer, published);
                actions.push(Action::Send { peer, failures_in_a_row });
            }
        }
        false
    }

    /// Sending to the peer ended, when the leader's log ended at `last_index`.
    pub(super) fn on_sent(&mut self, now: Time, peer: NodeId, sent: Sent, last_index: Index) {
        let of = self.peers.on_sent(now, peer, sent, last_index);
        if sent == Sent::Unreadable
            && let Some(published) = &mut self.published
            && of == Some(published.index)
        {
            // The next peer that asks gets a new snapshot.
            published.is_readable = false;
        }
    }

    /// S14. Withdraws the copy of a durable machine's state once no peer waits for it. The machine
    /// must be durable as far as the log may be compacted, and not only as far as it is compacted
    /// now: a compaction may be under way, and the copy is what justifies it.
    fn withdraw_if_unneeded(&mut self, core: &impl CoreView, now: Time, actions: &mut Vec<Action>) {
        if self.has_unneeded_copy(core, now) && self.flushed_index >= core.snapshot_index() {
            self.published = None;
            actions.push(Action::Withdraw);
        }
    }

    fn has_unneeded_copy(&self, core: &impl CoreView, now: Time) -> bool {
        self.is_durable
            && self.published.is_some_and(|copy| {
                !copy.is_readable
                    || copy.index < core.log_start_index()
                    || !self.peers.need_copy(now)
            })
            && self.local == LocalSnapshot::Idle
            && !core.is_restoring()
    }

    /// Returns true if a flush is needed before the published snapshot may be withdrawn: the
    /// machine must be durable through its index.
    fn waits_for_flush(&self, core: &impl CoreView) -> bool {
        let index = core.snapshot_index();
        self.published.is_some() && self.flushed_index < index && core.last_applied() >= index
    }

    /// Decides about an offer, after the core did. C13: an offer of a leader of a later term, or
    /// another attempt of the same leader, ends the transfer under way. The offer itself is refused
    /// as busy: the peer offers again, and is granted once the earlier task has ended.
    #[must_use]
    pub(super) fn on_offered(
        &mut self,
        core: &impl CoreView,
        decision: OfferDecision,
        (from, term): (NodeId, Term),
        index: Index,
    ) -> OfferVerdict {
        match decision {
            OfferDecision::NotNeeded => OfferVerdict::Refuse(OfferResponse::NotNeeded),
            OfferDecision::Stale { term } => OfferVerdict::Refuse(OfferResponse::Stale { term }),
            OfferDecision::Wanted if self.is_idle() && !core.is_restoring() => {
                self.receiving = Some(Receiving { from, term, index, is_given_up: false });
                OfferVerdict::Admit
            }
            OfferDecision::Wanted | OfferDecision::Refused => match &mut self.receiving {
                Some(receiving)
                    if (term > receiving.term
                        || (term, from) == (receiving.term, receiving.from))
                        && !receiving.is_given_up =>
                {
                    receiving.is_given_up = true;
                    OfferVerdict::RefuseAndStopReceiving
                }
                _ => OfferVerdict::Refuse(OfferResponse::Busy),
            },
        }
    }

    /// The task that received a snapshot has ended.
    pub(super) fn on_receive_ended(&mut self) {
        assert!(self.receiving.is_some(), "a snapshot was being received");
        self.receiving = None;
    }
}
