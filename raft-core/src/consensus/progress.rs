//! What a leader knows of one peer.
//!
//! ```text
//!            accepted                 next entries compacted
//!   Probe ───────────────▶ Replicate ─────────────────────────▶ Snapshot
//!     ▲  ◀───────────────   │  rejected, unreachable, silent        │
//!     │                     ▼                                       │
//!     └──────────────── sent, or failed, or acknowledged ◀──────────┘
//! ```
//!
//! Probe sends one append and waits: the place where the logs agree is not known yet. Replicate
//! sends ahead within the window. Snapshot sends nothing until the snapshot's fate is known.

use super::inflights::Inflights;
use super::recovery::Recovery;
use super::status::PeerStatus;
use crate::types::{Index, NodeId, Time};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProgressState {
    /// `paused` after the one probe was sent, until an answer, or the answer to a heartbeat.
    Probe {
        paused: bool,
    },
    Replicate,
    Snapshot,
}

#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// The peer recovers, or has recovered under this leader.
    pub(super) recovery: Option<Recovery>,
    /// Known to be on the peer's disk and equal to ours through here.
    pub(super) match_index: Index,
    /// The next entry to send.
    pub(super) next_index: Index,
    pub(super) state: ProgressState,
    pub(super) inflights: Inflights,
    /// When the peer last spoke to this leader in its term.
    pub(super) last_heard: Time,
    /// The newest heartbeat round that the peer answered.
    pub(super) acked_round: u64,
    /// The largest commit index sent with an append.
    pub(super) commit_sent: Index,
    /// A paused probe waits until then for its answer; afterwards the next sign of life brings another.
    pub(super) probe_again_at: Time,
    pub(super) refused_probes: RefusedProbes,
    /// The newest cluster version that the peer supports; 0 before its first response.
    pub(super) version_max: u32,
}

hash_of!(Progress {
    recovery, match_index, next_index, state, inflights, acked_round, commit_sent, refused_probes,
    version_max;
    left out: last_heard, probe_again_at
});

/// Probes in a row, at what the peer had acknowledged, that it refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct RefusedProbes {
    count: u32,
    /// The last probe was refused already; a copy of its refusal is none of the next.
    pub(super) is_last_refused: bool,
}

/// Probes that a peer refuses before the operator is told.
const REFUSED_PROBES_MAX: u32 = 5;

impl Progress {
    /// The peer refuses an append at an index that it had acknowledged. Returns true once that is
    /// certain enough to tell the operator, and not again.
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
        }
    }

    pub(super) fn status(&self, id: NodeId) -> PeerStatus {
        PeerStatus {
            id,
            match_index: self.match_index,
            next_index: self.next_index,
            state: self.state,
            inflight_count: self.inflights.count(),
            is_recovering: self.recovers(),
            version_max: self.version_max,
        }
    }

    /// The peer has started on a disk of which nothing is known.
    pub(super) fn start_over(&mut self, recovery: Recovery, next_index: Index) {
        self.recovery = Some(recovery);
        self.match_index = 0;
        self.acked_round = 0;
        self.become_probe(next_index, false);
    }

    /// The peer's word does not count.
    pub(super) fn recovers(&self) -> bool {
        self.recovery.is_some_and(|recovery| !recovery.is_over)
    }

    /// Starts over behind what is known to match.
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

    /// The peer's log agrees through `match_index`. Returns whether that is news.
    pub(super) fn on_accepted(&mut self, match_index: Index, log_start_index: Index) -> bool {
        let advanced = match_index > self.match_index;
        self.match_index = self.match_index.max(match_index);
        self.next_index = self.next_index.max(self.match_index + 1);
        self.inflights.free_through(self.match_index);
        match self.state {
            ProgressState::Replicate => {}
            // What was to be probed beyond is a guess.
            ProgressState::Probe { .. } => {
                self.next_index = self.match_index + 1;
                self.state = ProgressState::Replicate;
            }
            // Whatever becomes of the snapshot: the log itself can serve this peer again.
            ProgressState::Snapshot if self.match_index >= log_start_index => {
                self.next_index = self.match_index + 1;
                self.state = ProgressState::Replicate;
            }
            ProgressState::Snapshot => {}
        }
        advanced
    }

    /// The peer lives: probe again, unless the answer to the last probe may still be on its way.
    pub(super) fn on_heartbeat_answer(&mut self, now: Time) {
        if let ProgressState::Probe { paused } = &mut self.state
            && now >= self.probe_again_at
        {
            *paused = false;
        }
    }
}
