//! Filling up a node that lost its disk. The argument is in [`crate::consensus::recovery`].

use super::Leader;
use crate::consensus::common::Common;
use crate::consensus::progress::Progress;
use crate::consensus::quorum::{reached_by_all, reached_by_quorum};
use crate::consensus::recovery::Recovery;
use crate::types::{Body, NodeId, Time};

impl Leader {
    /// A peer of this term speaks, under the number with which it started if it recovers.
    pub(in crate::consensus) fn hear(
        &mut self,
        common: &mut Common,
        now: Time,
        from: NodeId,
        recovering: Option<u64>,
    ) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.last_heard = now;
        match (recovering, &mut progress.recovery) {
            (Some(number), Some(known)) if known.number == number => {}
            (Some(number), _) => {
                let through_index = common.log.last_index();
                let recovery = Recovery { number, through_index, is_over: false };
                progress.start_over(recovery, common.log.durable_index() + 1);
                // Answers that are under way may be of before.
                self.recovery_round = self.round + 1;
            }
            (None, Some(known)) if !known.is_over => {
                known.is_over = true;
                self.advance_commit(common);
            }
            (None, _) => {}
        }
    }

    /// To be called when `peer` has acknowledged something: it may have all it needs.
    pub(super) fn finish_recovery(&self, common: &mut Common, peer: NodeId) {
        let Some(progress) = self.progress.get(&peer) else { return };
        if let Some(recovery) = progress.recovery
            && !recovery.is_over
            && progress.match_index >= recovery.through_index
            && self.all_follow()
        {
            common.send(peer, Body::Recovered { number: recovery.number });
        }
    }

    /// A leader holds all that it may have acknowledged before, and votes for nobody else in its term.
    pub(super) fn finish_own_recovery(&self, common: &mut Common) {
        if common.recovering.is_some() && self.all_follow() {
            common.recover_under(common.id());
        }
    }

    /// Everybody was in this term after the last recovering peer had come.
    fn all_follow(&self) -> bool {
        self.progress.values().all(|progress| progress.acked_round >= self.recovery_round)
    }

    /// The largest value that was reached by a quorum of those whose word counts, or by all voters.
    pub(super) fn reached<T: Ord + Copy + Default>(
        &self,
        common: &Common,
        value_of: impl Fn(NodeId) -> T,
    ) -> T {
        let (own_id, configuration) = (common.id(), &common.configuration);
        if common.recovering.is_none() && !self.progress.values().any(Progress::recovers) {
            return reached_by_quorum(configuration, value_of);
        }
        let counts = |id: NodeId| match id == own_id {
            true => common.recovering.is_none(),
            false => self.progress.get(&id).is_some_and(|progress| !progress.recovers()),
        };
        let of_counting = |id| if counts(id) { value_of(id) } else { T::default() };
        reached_by_quorum(configuration, of_counting).max(reached_by_all(configuration, &value_of))
    }
}
