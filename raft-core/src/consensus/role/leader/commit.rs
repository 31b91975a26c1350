//! The commit rule: an entry of the leader's own term that a quorum has on disk is committed, and
//! so is everything before it (3.6.2). Entries of older terms are never committed by counting.

use super::Leader;
use crate::consensus::common::Common;

impl Leader {
    /// Advances the commit index. Call it whenever the durable log of a peer or of the leader
    /// itself grew.
    pub(in crate::consensus) fn advance_commit(&self, common: &mut Common) {
        let own_id = common.id();
        let reached = self.reached(common, |id| {
            if id == own_id {
                common.log.durable_index()
            } else {
                self.progress.get(&id).map_or(0, |progress| progress.match_index)
            }
        });
        if common.log.term_at(reached) == Some(common.term) {
            common.log.commit_to(reached);
        }
    }
}
