//! Linearizable reads without an entry in the log (6.4), batched by rounds.

use super::Leader;
use crate::consensus::node_state::NodeState;
use crate::consensus::read_index::ReadRequest;
use crate::consensus::ready::ReadState;
use crate::error::Rejected;
use crate::types::{MessageBody, NodeId, ReadOutcome, Time};

impl Leader {
    pub(in crate::consensus) fn read_index(
        &mut self,
        node: &NodeState,
        id: u64,
    ) -> Result<(), Rejected> {
        if self.reads.count() >= node.config.reads_waiting_max {
            return Err(Rejected::Busy("too many reads wait for a quorum"));
        }
        self.reads.push(ReadRequest::Local(id));
        Ok(())
    }

    pub(in crate::consensus) fn on_read_index(
        &mut self,
        node: &mut NodeState,
        from: NodeId,
        id: u64,
    ) {
        if self.reads.count() < node.config.reads_waiting_max {
            self.reads.push(ReadRequest::Peer(from, id));
        } else {
            node.send(from, MessageBody::ReadIndexResponse { id, outcome: ReadOutcome::Busy });
        }
    }

    /// Starts a round if reads wait for one. Call it once all events at hand are handled, so that
    /// they share the round.
    pub(in crate::consensus) fn start_round_for_reads(&mut self, node: &mut NodeState, now: Time) {
        if self.reads.wants_round() && Self::knows_commit_index(node) {
            self.start_round(node, now);
        }
    }

    /// Returns true once an entry of the leader's own term is committed. Before that the leader
    /// does not know which entries are committed.
    pub(super) fn knows_commit_index(node: &NodeState) -> bool {
        node.log.term_at(node.log.commit_index()) == Some(node.term)
    }

    pub(super) fn on_round_started(&mut self, node: &mut NodeState) {
        if Self::knows_commit_index(node) {
            self.reads.on_round_started(self.round, node.log.commit_index());
        }
        // Alone, the leader is its own quorum.
        self.confirm_reads(node);
    }

    pub(in crate::consensus) fn on_heartbeat_answer(
        &mut self,
        node: &mut NodeState,
        now: Time,
        from: NodeId,
        round: u64,
        version_max: u32,
    ) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        // Clamped, because a peer cannot confirm a round that was never started.
        progress.acked_round = progress.acked_round.max(round.min(self.round));
        progress.version_max = version_max;
        progress.on_heartbeat_answer(now);
        progress.track_round(now, node.log.last_index(), node.config.election_timeout);
        self.probe_if_silent(node, now, from);
        self.finish_recoveries(node);
        self.confirm_reads(node);
    }

    pub(super) fn confirm_reads(&mut self, node: &mut NodeState) {
        let own_id = node.id();
        let confirmed_round = self.reached(node, |id| {
            if id == own_id {
                self.round
            } else {
                self.progress.get(&id).map_or(0, |progress| progress.acked_round)
            }
        });
        for (reader, read_index) in self.reads.take_confirmed(confirmed_round) {
            let outcome = ReadOutcome::Confirmed(read_index);
            match reader {
                ReadRequest::Local(id) => node.ready.read_states.push(ReadState { id, outcome }),
                ReadRequest::Peer(peer, id) => {
                    node.send(peer, MessageBody::ReadIndexResponse { id, outcome });
                }
            }
        }
    }

    /// Fails the local reads, because leadership ended. The followers' reads end by their own
    /// timeouts, or when they observe another leader: nothing may be sent in the name of this
    /// leadership now.
    pub(in crate::consensus) fn fail_reads(&mut self, node: &mut NodeState) {
        for reader in self.reads.drain() {
            if let ReadRequest::Local(id) = reader {
                node.ready.read_states.push(ReadState { id, outcome: ReadOutcome::NotLeader });
            }
        }
    }
}
