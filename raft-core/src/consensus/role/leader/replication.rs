//! Sending entries (3.5), driven by events: an entry leaves when it is proposed; a lost one is sent
//! again once per election timeout, or as soon as the transport reports the loss. And committing
//! them (3.6.2).

use super::Leader;
use crate::consensus::node_state::NodeState;
use crate::consensus::progress::{ProgressState, RefusedProbes};
use crate::types::{Entry, Index, MessageBody, NodeId, Position, Time};

impl Leader {
    /// Sends each peer the entries it lacks, as far as its window allows. Call it once all events
    /// at hand are handled, so that one append carries their entries together.
    pub(in crate::consensus) fn replicate(&mut self, node: &mut NodeState, now: Time) {
        let peers: Vec<NodeId> = self.progress.keys().copied().collect();
        for peer in peers {
            while self.send_append(node, now, peer) {}
        }
        self.finish_transfer_when_ready(node);
    }

    /// Sends one append if there is something to send and room for it. Returns true if more may
    /// follow.
    fn send_append(&mut self, node: &mut NodeState, now: Time, peer: NodeId) -> bool {
        let progress = self.progress.get_mut(&peer).expect("only peers with progress");
        let probing = match progress.state {
            ProgressState::Probe { paused } if !paused => true,
            ProgressState::Replicate if !progress.inflights.is_full() => false,
            ProgressState::Probe { .. } | ProgressState::Replicate | ProgressState::Snapshot => {
                return false;
            }
        };
        let commit_index = node.log.commit_index();
        let last_index = last_index_for(node, peer);
        let previous_index = progress.next_index - 1;
        let has_entries = progress.next_index <= last_index;
        // A commit index alone is sent only to a peer with no append in flight: while appends come
        // and go, the next one carries it, and saves a message and a wake-up.
        let has_commit = progress.commit_sent < commit_index.min(previous_index)
            && progress.inflights.is_empty();
        if !has_entries && !has_commit && !probing {
            return false;
        }
        let Some(previous_term) = node.log.term_at(previous_index) else {
            // Only to a peer that responds: otherwise the snapshot would be offered to a dead peer
            // again and again.
            if now.since(progress.last_heard) < node.config.election_timeout {
                progress.become_snapshot();
                node.ready.snapshot_requests.push(peer);
            }
            return false;
        };
        let previous = Position::new(previous_term, previous_index);
        let entries = if has_entries {
            node.log.slice(progress.next_index, last_index, node.config.append_bytes_max)
        } else {
            Vec::new()
        };
        if probing {
            progress.state = ProgressState::Probe { paused: true };
            progress.refused_probes.is_last_refused = false;
            progress.probe_again_at = now + node.config.election_timeout;
        } else if let Some(last) = entries.last() {
            let bytes = entries.iter().map(Entry::size_bytes).sum();
            progress.inflights.push(last.index, bytes, now);
            progress.next_index = last.index + 1;
        }
        progress.commit_sent = progress.commit_sent.max(commit_index);
        node.send(peer, MessageBody::AppendEntries { previous, entries, commit_index });
        !probing && has_entries
    }

    pub(in crate::consensus) fn on_accepted(
        &mut self,
        node: &mut NodeState,
        now: Time,
        from: NodeId,
        match_index: Index,
    ) {
        let last_index = node.log.last_index();
        let start_index = node.log.start().index;
        let Some(progress) = self.progress.get_mut(&from) else { return };
        if match_index > last_index {
            node.ready.alarms.push(format!(
                "node {from} acknowledged index {match_index}, but the log of this leader ends at \
                 {last_index}; ignored. A disk was rolled back, or two nodes share an identity"
            ));
            return;
        }
        progress.refused_probes = RefusedProbes::default();
        if progress.on_accepted(now, match_index, start_index) {
            self.finish_recoveries(node);
            self.advance_commit(node);
        }
    }

    /// The peer's log does not hold the previous position of an append. A stale refusal, of an
    /// append that was responded to since, changes nothing.
    pub(in crate::consensus) fn on_rejected(
        &mut self,
        node: &mut NodeState,
        from: NodeId,
        previous_index: Index,
        hint: Position,
    ) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        if previous_index <= progress.match_index {
            // C23. One refusal may be an old one that arrives late. A peer that refuses one probe
            // after the other at an index it acknowledged, and accepts none, has lost its entries.
            if progress.is_probe_refused(previous_index) {
                node.ready.alarms.push(format!(
                    "node {from} no longer holds index {previous_index}, which it had acknowledged: \
                     its disk was rolled back, or does not keep what it confirms. Acknowledged \
                     writes may be at risk: stop that node, wipe its data directory, and start it \
                     again, so that it recovers from the others"
                ));
            }
            return;
        }
        match progress.state {
            ProgressState::Probe { .. } if previous_index == progress.next_index - 1 => {
                let agreed = node.log.last_possible_match(hint.index, hint.term).index;
                let next_index = previous_index.min(agreed + 1).max(progress.match_index + 1);
                progress.become_probe(next_index, false);
            }
            // The append was sent ahead, and an earlier one was lost.
            ProgressState::Replicate => progress.become_probe(progress.match_index + 1, false),
            ProgressState::Probe { .. } | ProgressState::Snapshot => {}
        }
    }

    /// The peer responds to heartbeats but has acknowledged no append for an election timeout: the
    /// append was lost.
    pub(super) fn probe_if_silent(&mut self, node: &NodeState, now: Time, peer: NodeId) {
        let Some(progress) = self.progress.get_mut(&peer) else { return };
        let timeout = node.config.election_timeout;
        if progress.state == ProgressState::Replicate
            && progress.inflights.oldest_sent_at().is_some_and(|sent| now.since(sent) >= timeout)
        {
            progress.become_probe(progress.match_index + 1, false);
        }
    }

    /// The connection was lost, and probably the messages in flight with it.
    pub(in crate::consensus) fn on_unreachable(
        &mut self,
        node: &NodeState,
        now: Time,
        peer: NodeId,
    ) {
        let Some(progress) = self.progress.get_mut(&peer) else { return };
        let soon = now + node.config.heartbeat_interval;
        match progress.state {
            ProgressState::Replicate => {
                progress.become_probe(progress.match_index + 1, true);
                progress.probe_again_at = soon;
            }
            ProgressState::Probe { .. } => {
                progress.probe_again_at = progress.probe_again_at.min(soon);
            }
            ProgressState::Snapshot => {}
        }
    }

    /// A snapshot was sent in full, or not (`None`). Either way the peer's next response says what
    /// it has.
    pub(in crate::consensus) fn on_snapshot_sent(
        &mut self,
        node: &NodeState,
        now: Time,
        peer: NodeId,
        sent: Option<Index>,
    ) {
        let Some(progress) = self.progress.get_mut(&peer) else { return };
        if progress.state != ProgressState::Snapshot {
            return;
        }
        let match_index = progress.match_index;
        match sent {
            Some(index) => progress.become_probe(index.max(match_index) + 1, false),
            // Paused until the peer responds to a heartbeat, so that a dead peer is not sent to in
            // a loop.
            None => {
                progress.become_probe(match_index + 1, true);
                progress.probe_again_at = now + node.config.heartbeat_interval;
            }
        }
    }

    /// Advances the commit index: an entry of the leader's own term that a quorum has on disk is
    /// committed, and so is everything before it (3.6.2). Entries of older terms are never
    /// committed by counting. Call it whenever the durable log of a peer or of the leader itself
    /// grew.
    pub(in crate::consensus) fn advance_commit(&self, node: &mut NodeState) {
        let own_id = node.id();
        let reached = self.reached(node, |id| {
            if id == own_id {
                node.log.durable_index()
            } else {
                self.progress.get(&id).map_or(0, |progress| progress.match_index)
            }
        });
        if node.log.term_at(reached) == Some(node.term) {
            node.log.commit_to(reached);
        }
    }
}

/// The last entry that a peer is sent. A disk that would be void once the latest configuration is
/// committed, which records another disk, does not get that configuration before: if it is never
/// committed, the old disk may be needed to elect a leader.
fn last_index_for(node: &NodeState, peer: NodeId) -> Index {
    if node.log.configuration_is_committed() || node.superseded_disk(peer).is_none() {
        node.log.last_index()
    } else {
        node.log.configuration_index() - 1
    }
}
