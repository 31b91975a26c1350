//! A leader's knowledge of one peer.
//!
//! ```text
//!            accepted                 next entries compacted
//!   Probe ───────────────▶ Replicate ─────────────────────────▶ Snapshot
//!     ▲  ◀───────────────   │  rejected, unreachable, silent        │
//!     │                     ▼                                       │
//!     └──────────────── sent, or failed, or acknowledged ◀──────────┘
//! ```
//!
//! Probe sends one append and waits: the index through which the logs agree is not known yet.
//! Replicate sends ahead within the window. Snapshot sends nothing until the snapshot was sent or
//! has failed.

use std::time::Duration;

use super::inflights::Inflights;
use super::latency::Latencies;
use super::recovery::Recovery;
use crate::types::{Index, Time};

/// The mode in which a leader sends entries to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgressState {
    /// One append at a time.
    Probe {
        /// The probe was sent, and neither it nor a later heartbeat was responded to.
        paused: bool,
    },
    /// Appends are sent ahead of their acknowledgements, within a window.
    Replicate,
    /// A snapshot is being sent, and no entries.
    Snapshot,
}

#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// The peer recovers, or has recovered under this leader.
    pub(super) recovery: Option<Recovery>,
    /// The peer has on disk, and equal to the leader's, all entries through here.
    pub(super) match_index: Index,
    /// The next entry to send.
    pub(super) next_index: Index,
    pub(super) state: ProgressState,
    pub(super) inflights: Inflights,
    /// When the peer last sent this leader a message of its term.
    pub(super) last_heard: Time,
    /// The newest heartbeat round to which the peer responded.
    pub(super) acked_round: u64,
    /// The largest commit index sent with an append.
    pub(super) commit_sent: Index,
    /// A paused probe waits until then for its response; after that, the next heartbeat response
    /// causes another probe.
    pub(super) probe_again_at: Time,
    pub(super) refused_probes: RefusedProbes,
    /// The newest cluster version that the peer supports; 0 before its first response.
    pub(super) version_max: u32,
    pub(super) catch_up: CatchUp,
    /// From sending entries to their acknowledgement: the way there and back, and the peer's disk.
    pub(super) ack_latencies: Latencies,
    /// Set once the peer is no longer a member, until it knows that.
    pub(super) farewell: Option<Farewell>,
}

/// A round of replication (4.2.1) ends when the peer has acknowledged the log as it was when the
/// round began. A peer whose rounds take less than an election timeout has caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CatchUp {
    goal: Index,
    since: Time,
    /// Every round that began since then was short.
    caught_up_since: Option<Time>,
}

/// The way of a peer out of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Farewell {
    /// The entry that removed the peer.
    pub(super) index: Index,
    pub(super) until: Time,
    /// A response to this round shows that the peer knows of its removal.
    pub(super) told_by_round: Option<u64>,
}

/// Consecutive probes, at an index that the peer had acknowledged, that it refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct RefusedProbes {
    count: u32,
    /// The refusal of the last probe was counted; a duplicate of it must not count again.
    pub(super) is_last_refused: bool,
}

/// The number of refused probes at which the operator is told.
const REFUSED_PROBES_MAX: u32 = 5;

impl Progress {
    /// Counts a refused append at an index that the peer had acknowledged. Returns true, once only,
    /// when that is certain enough to tell the operator.
    pub(super) fn is_probe_refused(&mut self, previous_index: Index) -> bool {
        let is_probe = self.state == ProgressState::Probe { paused: true }
            && previous_index == self.match_index
            && previous_index == self.next_index - 1;
        if !is_probe || std::mem::replace(&mut self.refused_probes.is_last_refused, true) {
            return false;
        }
        self.refused_probes.count += 1;
        self.refused_probes.count == REFUSED_PROBES_MAX
    }

    pub(super) fn new(next_index: Index, inflights: Inflights, now: Time) -> Self {
        Self {
            recovery: None,
            match_index: 0,
            next_index,
            state: ProgressState::Probe { paused: false },
            inflights,
            last_heard: now,
            acked_round: 0,
            commit_sent: 0,
            probe_again_at: now,
            refused_probes: RefusedProbes::default(),
            version_max: 0,
            catch_up: CatchUp { goal: next_index - 1, since: now, caught_up_since: None },
            ack_latencies: Latencies::new(now),
            farewell: None,
        }
    }

    /// Notes that the peer responds, and whether it keeps up with a log that ends at `last_index`.
    pub(super) fn track_round(&mut self, now: Time, last_index: Index, patience: Duration) {
        let round = &mut self.catch_up;
        let is_late = now.since(round.since) >= patience;
        if is_late {
            round.caught_up_since = None;
        }
        if self.match_index >= round.goal {
            if !is_late {
                round.caught_up_since = round.caught_up_since.or(Some(now));
            }
            (round.goal, round.since) = (last_index, now);
        }
    }

    /// Returns true if the peer has kept up with the log for `delay`.
    pub(super) fn is_ready(&self, now: Time, delay: Duration) -> bool {
        self.catch_up.caught_up_since.is_some_and(|since| now.since(since) >= delay)
    }

    /// The peer has started on a disk whose past is unknown.
    pub(super) fn start_over(&mut self, recovery: Recovery, next_index: Index) {
        self.recovery = Some(recovery);
        self.match_index = 0;
        self.acked_round = 0;
        self.become_probe(next_index, false);
    }

    /// Returns true if the peer's votes and acknowledgements are not counted.
    pub(super) fn recovers(&self) -> bool {
        self.recovery.is_some_and(|recovery| !recovery.is_over)
    }

    /// Probes from `next_index`.
    pub(super) fn become_probe(&mut self, next_index: Index, paused: bool) {
        assert!(next_index > self.match_index);
        self.state = ProgressState::Probe { paused };
        self.next_index = next_index;
        self.inflights.clear();
        self.commit_sent = 0;
    }

    pub(super) fn become_snapshot(&mut self) {
        self.state = ProgressState::Snapshot;
        self.inflights.clear();
    }

    /// The peer's log agrees through `match_index`. Returns true if that advanced.
    pub(super) fn on_accepted(
        &mut self,
        now: Time,
        match_index: Index,
        log_start_index: Index,
    ) -> bool {
        let advanced = match_index > self.match_index;
        self.match_index = self.match_index.max(match_index);
        self.next_index = self.next_index.max(self.match_index + 1);
        if let Some(sent_at) = self.inflights.free_through(self.match_index) {
            self.ack_latencies.note(now, now.since(sent_at));
        }
        match self.state {
            ProgressState::Replicate => {}
            // A next index beyond `match_index + 1` was a guess.
            ProgressState::Probe { .. } => {
                self.next_index = self.match_index + 1;
                self.state = ProgressState::Replicate;
            }
            // The log itself can serve this peer again, whether or not the snapshot arrives.
            ProgressState::Snapshot if self.match_index >= log_start_index => {
                self.next_index = self.match_index + 1;
                self.state = ProgressState::Replicate;
            }
            ProgressState::Snapshot => {}
        }
        advanced
    }

    /// The peer responds: probe again, unless the response to the last probe may still be in
    /// flight.
    pub(super) fn on_heartbeat_answer(&mut self, now: Time) {
        if let ProgressState::Probe { paused } = &mut self.state
            && now >= self.probe_again_at
        {
            *paused = false;
        }
    }
}
