//! Peers that a leader brings up to date by snapshots: what each needs, and when it is offered the
//! next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::tasks::StopOnDrop;
use crate::driver::inbox::Sent;
use crate::driver::status::SnapshotTransfer;
use crate::types::{Index, NodeId, Time};

/// The longest pause before a snapshot is offered again.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Snapshots in a row after which the operator is told that a peer does not catch up.
const ROUNDS_BEFORE_ALARM: u32 = 3;

/// How long the copy is kept for a peer whose transfer failed, in multiples of a transfer's
/// patience.
const ABSENCE_PATIENCES: u32 = 6;

/// Progress of a transfer: the task writes it, the status reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    sent_bytes: Arc<AtomicU64>,
    size_bytes: Arc<AtomicU64>,
}

impl Meter {
    pub(super) fn set(&self, sent_bytes: u64, size_bytes: u64) {
        self.sent_bytes.store(sent_bytes, Ordering::Relaxed);
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
    }
}

enum Step {
    /// The core has asked for a snapshot, and none is being sent.
    Wanted,
    /// The snapshot at this index is being sent. `None`: sending was given up, and the task has not
    /// ended yet.
    Sending(Index, Option<StopOnDrop>),
    /// The peer has the snapshot and all entries through the first index, and has caught up once it
    /// has those through the second, where the log ended when the snapshot had been sent.
    Sent(Index, Index),
    /// Sending was interrupted. The core asks again once it receives from the peer.
    Failed,
}

struct Peer {
    step: Step,
    /// Offers that failed since the last one that succeeded.
    failures_in_a_row: u32,
    /// Snapshots that reached the peer without letting it catch up with the log.
    rounds: u32,
    /// No snapshot is offered before this time.
    offer_at: Time,
    failed_at: Time,
    meter: Meter,
}

pub(super) struct Peers {
    pause_min: Duration,
    patience: Duration,
    peers: BTreeMap<NodeId, Peer>,
}

impl Peers {
    pub(super) fn new(heartbeat_interval: Duration, patience: Duration) -> Self {
        Self { pause_min: heartbeat_interval, patience, peers: BTreeMap::new() }
    }

    /// Returns true if no peer lags behind the log, as in nearly all turns.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn want(&mut self, id: NodeId) {
        let peer = self.peers.entry(id).or_insert_with(|| Peer {
            step: Step::Wanted,
            failures_in_a_row: 0,
            rounds: 0,
            offer_at: Time::ZERO,
            failed_at: Time::ZERO,
            meter: Meter::default(),
        });
        match peer.step {
            // The core learns how that ends, and asks again if it has to.
            Step::Sending(..) => {}
            Step::Wanted | Step::Failed => peer.step = Step::Wanted,
            Step::Sent(..) => {
                peer.step = Step::Wanted;
                // C15. The log was compacted beyond what the peer could take over in time.
                if peer.rounds == ROUNDS_BEFORE_ALARM {
                    tracing::warn!(
                        peer = id,
                        snapshots = peer.rounds,
                        "a node needs one snapshot after the other: the log is compacted before it \
                         catches up. Raise max_raft_state, or give the node a faster disk or network"
                    );
                }
            }
        }
    }

    /// Returns when the next offer becomes due, of those that are not due yet.
    pub(super) fn next_deadline(&self, now: Time) -> Time {
        if self.peers.is_empty() {
            return Time::NEVER;
        }
        let is_later = |peer: &&Peer| matches!(peer.step, Step::Wanted) && peer.offer_at > now;
        let later = self.peers.values().filter(is_later);
        later.map(|peer| peer.offer_at).min().unwrap_or(Time::NEVER)
    }

    pub(super) fn due(&self, now: Time) -> Vec<NodeId> {
        let is_due = |peer: &Peer| matches!(peer.step, Step::Wanted) && now >= peer.offer_at;
        self.peers.iter().filter(|(_, peer)| is_due(peer)).map(|(id, _)| *id).collect()
    }

    /// Forgets the peers that the log can serve again. `progress` returns a peer's match index, and
    /// true if the peer needs a snapshot.
    pub(super) fn forget_filled(
        &mut self,
        log_start_index: Index,
        progress: impl Fn(NodeId) -> Option<(Index, bool)>,
    ) {
        self.peers.retain(|id, peer| {
            let Some((match_index, needs_snapshot)) = progress(*id) else { return false };
            match &mut peer.step {
                Step::Wanted => needs_snapshot,
                Step::Sent(holds, until) => {
                    *holds = match_index.max(*holds);
                    *holds < *until
                }
                Step::Failed => needs_snapshot || match_index < log_start_index,
                Step::Sending(..) => true,
            }
        });
    }

    /// The snapshot at `index` is sent from now on, as long as `stop` is kept. Returns the meter of
    /// the transfer, and the number of offers that failed since the last success.
    pub(super) fn begin(&mut self, id: NodeId, index: Index, stop: StopOnDrop) -> (Meter, u32) {
        let peer = self.peers.get_mut(&id).expect("it is due");
        peer.step = Step::Sending(index, Some(stop));
        peer.meter = Meter::default();
        (peer.meter.clone(), peer.failures_in_a_row)
    }

    /// Returns the index of the snapshot that was being sent.
    pub(super) fn on_sent(
        &mut self,
        now: Time,
        id: NodeId,
        sent: Sent,
        last_index: Index,
    ) -> Option<Index> {
        let peer = self.peers.get_mut(&id)?;
        let Step::Sending(index, ref stop) = peer.step else { return None };
        if stop.is_none() {
            // This node stopped leading meanwhile.
            self.peers.remove(&id);
            return Some(index);
        }
        match sent {
            Sent::Through(index) => {
                peer.failures_in_a_row = 0;
                peer.rounds += 1;
                peer.step = Step::Sent(index, last_index);
            }
            Sent::Interrupted | Sent::Unreadable => {
                // C14. The pause doubles with each failure.
                let doublings = peer.failures_in_a_row.min(16);
                peer.failures_in_a_row += 1;
                peer.failed_at = now;
                peer.offer_at = now + self.pause_min.saturating_mul(1 << doublings).min(PAUSE_MAX);
                peer.step = Step::Failed;
            }
        }
        Some(index)
    }

    /// This node no longer leads: transfers end at their next step, and all else is forgotten.
    pub(super) fn stop_all(&mut self) {
        self.peers.retain(|_, peer| match &mut peer.step {
            Step::Sending(_, stop) => {
                *stop = None;
                true
            }
            Step::Wanted | Step::Sent(..) | Step::Failed => false,
        });
    }

    /// Returns the indexes behind which peers need the entries of the log.
    pub(super) fn needed_behind(&self) -> impl Iterator<Item = Index> {
        self.peers.values().filter_map(|peer| match peer.step {
            Step::Sending(index, _) | Step::Sent(index, _) => Some(index),
            Step::Wanted | Step::Failed => None,
        })
    }

    /// Returns true if some peer waits for a snapshot, is being sent one, or had a transfer
    /// interrupted recently.
    pub(super) fn need_copy(&self, now: Time) -> bool {
        self.peers.values().any(|peer| match peer.step {
            Step::Wanted | Step::Sending(..) => true,
            Step::Failed => {
                now.since(peer.failed_at) < self.patience.saturating_mul(ABSENCE_PATIENCES)
            }
            Step::Sent(..) => false,
        })
    }

    /// Returns true if some peer is to be sent the published snapshot next, or again.
    pub(super) fn wait_for_copy(&self) -> bool {
        self.peers.values().any(|peer| matches!(peer.step, Step::Wanted | Step::Failed))
    }

    pub(super) fn transfers(&self) -> Vec<SnapshotTransfer> {
        let transfer = |(id, peer): (&NodeId, &Peer)| SnapshotTransfer {
            peer: *id,
            is_sending: matches!(peer.step, Step::Sending(..)),
            sent_bytes: peer.meter.sent_bytes.load(Ordering::Relaxed),
            size_bytes: peer.meter.size_bytes.load(Ordering::Relaxed),
            failures_in_a_row: peer.failures_in_a_row,
            rounds: peer.rounds,
        };
        self.peers.iter().map(transfer).collect()
    }
}
