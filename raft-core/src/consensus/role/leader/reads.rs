//! Linearizable reads without an entry in the log (6.4), batched by rounds.

use super::Leader;
use crate::consensus::common::Common;
use crate::consensus::read_index::ReadRequest;
use crate::consensus::ready::ReadState;
use crate::error::Rejected;
use crate::types::{MessageBody, NodeId, ReadOutcome, Time};

impl Leader {
    pub(in crate::consensus) fn read_index(
        &mut self,
        common: &Common,
        id: u64,
    ) -> Result<(), Rejected> {
        if self.reads.count() >= common.config.reads_waiting_max {
            return Err(Rejected::Busy("too many reads wait for a quorum"));
        }
        self.reads.push(ReadRequest::Local(id));
        Ok(())
    }

    pub(in crate::consensus) fn on_read_index(
        &mut self,
        common: &mut Common,
        from: NodeId,
        id: u64,
    ) {
        if self.reads.count() < common.config.reads_waiting_max {
            self.reads.push(ReadRequest::Peer(from, id));
        } else {
            common.send(from, MessageBody::ReadIndexResponse { id, outcome: ReadOutcome::Busy });
        }
    }

    /// Starts a round if reads wait for one. Call it once all events at hand are handled, so that
    /// they share the round.
    pub(in crate::consensus) fn start_round_for_reads(&mut self, common: &mut Common, now: Time) {
        if self.reads.wants_round() && Self::knows_commit_index(common) {
            self.start_round(common, now);
        }
    }

    /// Returns true once an entry of the leader's own term is committed. Before that the leader
    /// does not know which entries are committed.
    fn knows_commit_index(common: &Common) -> bool {
        common.log.term_at(common.log.commit_index()) == Some(common.term)
    }

    pub(super) fn on_round_started(&mut self, common: &mut Common) {
        if Self::knows_commit_index(common) {
            self.reads.on_round_started(self.round, common.log.commit_index());
        }
        // Alone, the leader is its own quorum.
        self.confirm_reads(common);
    }

    pub(in crate::consensus) fn on_heartbeat_answer(
        &mut self,
        common: &mut Common,
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
        self.probe_if_silent(common, now, from);
        self.finish_recoveries(common);
        self.confirm_reads(common);
    }

    fn confirm_reads(&mut self, common: &mut Common) {
        let own_id = common.id();
        let confirmed_round = self.reached(common, |id| {
            if id == own_id {
                self.round
            } else {
                self.progress.get(&id).map_or(0, |progress| progress.acked_round)
            }
        });
        for (reader, read_index) in self.reads.take_confirmed(confirmed_round) {
            let outcome = ReadOutcome::Confirmed(read_index);
            match reader {
                ReadRequest::Local(id) => common.read_states.push(ReadState { id, outcome }),
                ReadRequest::Peer(peer, id) => {
                    common.send(peer, MessageBody::ReadIndexResponse { id, outcome });
                }
            }
        }
    }

    /// Fails the local reads, because leadership ended. The followers' reads end by their own
    /// timeouts, or when they observe another leader: nothing may be sent in the name of this
    /// leadership now.
    pub(in crate::consensus) fn fail_reads(&mut self, common: &mut Common) {
        for reader in self.reads.drain() {
            if let ReadRequest::Local(id) = reader {
                common.read_states.push(ReadState { id, outcome: ReadOutcome::NotLeader });
            }
        }
    }
}
