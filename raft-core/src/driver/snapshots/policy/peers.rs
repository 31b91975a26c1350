//! Peers that a leader brings up to date by snapshots: what each needs, and when it is offered the
//! next one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::interface::PeerView;
use crate::driver::snapshots::transfer::Sent;
use crate::driver::status::SnapshotTransfer;
use crate::types::{Index, NodeId, Time};

/// The longest pause before a snapshot is offered again.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Snapshots in a row after which the operator is told that a peer does not catch up.
const ROUNDS_BEFORE_ALARM: u32 = 3;

/// How long the copy is kept for a peer whose transfer failed, in multiples of a transfer's
/// patience.
const ABSENCE_PATIENCES: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The core has asked for a snapshot, and none is being sent.
    Wanted,
    /// The snapshot at this index is being sent.
    Sending(Index),
    /// Sending the snapshot at this index was given up, and the task has not ended yet.
    GivenUp(Index),
    /// The peer has the snapshot and all entries through the first index, and has caught up once it
    /// has those through the second, where the log ended when the snapshot had been sent.
    Sent(Index, Index),
    /// Sending was interrupted. The core asks again once it receives from the peer.
    Failed,
}

#[derive(Clone, Debug)]
struct LaggingPeer {
    step: Step,
    /// Offers that failed since the last one that succeeded.
    failures_in_a_row: u32,
    /// Snapshots that reached the peer without letting it catch up with the log.
    rounds: u32,
    /// No snapshot is offered before this time.
    offer_at: Time,
    failed_at: Time,
}

#[derive(Clone, Debug)]
pub(super) struct Peers {
    pause_min: Duration,
    patience: Duration,
    peers: BTreeMap<NodeId, LaggingPeer>,
}

impl Peers {
    pub(super) fn new(heartbeat_interval: Duration, patience: Duration) -> Self {
        Self { pause_min: heartbeat_interval, patience, peers: BTreeMap::new() }
    }

    /// Returns true if no peer lags behind the log, as in nearly all turns.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Returns true if the peer lags behind the log, as far as the core has said.
    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.peers.contains_key(&id)
    }

    /// The core needs a snapshot for the peer. Returns the number of snapshots in a row that did
    /// not let the peer catch up, if the operator is to be told (C15): the log was compacted beyond
    /// what the peer could take over in time.
    pub(super) fn want(&mut self, id: NodeId) -> Option<u32> {
        let peer = self.peers.entry(id).or_insert_with(|| LaggingPeer {
            step: Step::Wanted,
            failures_in_a_row: 0,
            rounds: 0,
            offer_at: Time::ZERO,
            failed_at: Time::ZERO,
        });
        match peer.step {
            // The core learns how that ends, and asks again if it has to.
            Step::Sending(_) | Step::GivenUp(_) => None,
            Step::Wanted | Step::Failed => {
                peer.step = Step::Wanted;
                None
            }
            Step::Sent(..) => {
                peer.step = Step::Wanted;
                (peer.rounds == ROUNDS_BEFORE_ALARM).then_some(peer.rounds)
            }
        }
    }

    /// Returns when the next offer becomes due, of those that are not due yet.
    pub(super) fn next_deadline(&self, now: Time) -> Time {
        if self.peers.is_empty() {
            return Time::NEVER;
        }
        let is_later =
            |peer: &&LaggingPeer| matches!(peer.step, Step::Wanted) && peer.offer_at > now;
        let later = self.peers.values().filter(is_later);
        later.map(|peer| peer.offer_at).min().unwrap_or(Time::NEVER)
    }

    pub(super) fn due(&self, now: Time) -> Vec<NodeId> {
        let is_due = |peer: &LaggingPeer| matches!(peer.step, Step::Wanted) && now >= peer.offer_at;
        self.peers.iter().filter(|(_, peer)| is_due(peer)).map(|(id, _)| *id).collect()
    }

    /// Forgets the peers that the log can serve again. `progress` is the core's view of a peer.
    pub(super) fn forget_caught_up(
        &mut self,
        log_start_index: Index,
        progress: impl Fn(NodeId) -> Option<PeerView>,
    ) {
        self.peers.retain(|id, peer| {
            let Some(PeerView { match_index, needs_snapshot }) = progress(*id) else {
                return false;
            };
            match &mut peer.step {
                Step::Wanted => needs_snapshot,
                Step::Sent(holds, until) => {
                    *holds = match_index.max(*holds);
                    *holds < *until
                }
                Step::Failed => needs_snapshot || match_index < log_start_index,
                Step::Sending(_) | Step::GivenUp(_) => true,
            }
        });
    }

    /// The snapshot at `index` is sent from now on. Returns the number of offers that failed since
    /// the last success.
    pub(super) fn begin(&mut self, id: NodeId, index: Index) -> u32 {
        let peer = self.peers.get_mut(&id).expect("it is due");
        assert_eq!(peer.step, Step::Wanted, "one transfer to a peer at a time");
        peer.step = Step::Sending(index);
        peer.failures_in_a_row
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
        let index = match peer.step {
            Step::Sending(index) => index,
            Step::GivenUp(index) => {
                // This node stopped leading meanwhile.
                self.peers.remove(&id);
                return Some(index);
            }
            Step::Wanted | Step::Sent(..) | Step::Failed => return None,
        };
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

    /// This node no longer leads: transfers are given up, and all else is forgotten. Returns the
    /// peers to which a transfer is to be stopped.
    pub(super) fn give_up_all(&mut self) -> Vec<NodeId> {
        let mut stopped = Vec::new();
        self.peers.retain(|id, peer| match peer.step {
            Step::Sending(index) => {
                stopped.push(*id);
                peer.step = Step::GivenUp(index);
                true
            }
            Step::GivenUp(_) => true,
            Step::Wanted | Step::Sent(..) | Step::Failed => false,
        });
        stopped
    }

    /// Returns the indexes behind which peers need the entries of the log.
    pub(super) fn needed_behind(&self) -> impl Iterator<Item = Index> {
        self.peers.values().filter_map(|peer| match peer.step {
            Step::Sending(index) | Step::GivenUp(index) | Step::Sent(index, _) => Some(index),
            Step::Wanted | Step::Failed => None,
        })
    }

    /// Returns true if some peer waits for a snapshot, is being sent one, or had a transfer
    /// interrupted recently.
    pub(super) fn need_copy(&self, now: Time) -> bool {
        self.peers.values().any(|peer| match peer.step {
            Step::Wanted | Step::Sending(_) | Step::GivenUp(_) => true,
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

    /// Returns the state of each transfer, without the bytes, which the task counts.
    pub(super) fn transfers(&self) -> Vec<SnapshotTransfer> {
        // Asked after each step of the node, and there are rarely any.
        if self.peers.is_empty() {
            return Vec::new();
        }
        let transfer = |(id, peer): (&NodeId, &LaggingPeer)| SnapshotTransfer {
            peer: *id,
            is_sending: matches!(peer.step, Step::Sending(_) | Step::GivenUp(_)),
            sent_bytes: 0,
            size_bytes: 0,
            failures_in_a_row: peer.failures_in_a_row,
            rounds: peer.rounds,
        };
        self.peers.iter().map(transfer).collect()
    }
}
