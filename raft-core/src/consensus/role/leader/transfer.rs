//! Handing leadership over (3.10): bring the successor up to date, then tell it to campaign. No
//! proposals are taken meanwhile; after an election timeout the leader gives up and continues to
//! lead.

use super::{Leader, Transfer};
use crate::consensus::node_state::NodeState;
use crate::error::Rejected;
use crate::types::{MessageBody, NodeId, Time};

/// A leader that is to leave tries once in so many election timeouts.
const LEAVE_PAUSE_TIMEOUTS: u32 = 10;

impl Leader {
    /// Starts handing over to `to`, or to the voter whose log is furthest, rather to one that is
    /// not avoided. A second call for the
    /// same node does not prolong the first; one for another node replaces it.
    pub(in crate::consensus) fn transfer(
        &mut self,
        node: &NodeState,
        now: Time,
        to: Option<NodeId>,
    ) -> Result<(), Rejected> {
        let mut voters = node.voting_peers();
        voters.retain(|id| self.progress.get(id).is_some_and(|peer| !peer.recovers()));
        let match_of = |id: &NodeId| self.progress.get(id).map(|progress| progress.match_index);
        let furthest =
            || voters.iter().copied().max_by_key(|id| (!node.is_avoided(*id), match_of(id)));
        let Some(to) = to.or_else(furthest) else {
            return Err(Rejected::Busy("no other voter can take leadership now"));
        };
        if !voters.contains(&to) {
            return Err(Rejected::Busy(
                "leadership can only be handed to another voter that has not lost its disk",
            ));
        }
        // A leader that was removed hands over once: a caller that names one successor after
        // another must not keep it in office.
        let leaves_already = self.transfer.is_some() && self.is_leaving;
        if !leaves_already && self.transfer.as_ref().is_none_or(|transfer| transfer.to != to) {
            let deadline = now + node.config.election_timeout;
            self.transfer = Some(Transfer { to, told: false, deadline });
        }
        Ok(())
    }

    /// Starts to hand over if this node is to lead only if no other voter can, and another one can.
    pub(super) fn leave_if_avoided(&mut self, node: &NodeState, now: Time) {
        if !node.is_avoided(node.id()) || self.transfer.is_some() || now < self.leave_again_at {
            return;
        }
        // The leader takes no proposals meanwhile, so it does not try without a pause.
        self.leave_again_at = now + LEAVE_PAUSE_TIMEOUTS * node.config.election_timeout;
        let commit_index = node.log.commit_index();
        let match_of = |id: &NodeId| self.progress.get(id).map(|progress| progress.match_index);
        let can_lead = |id: &NodeId| {
            let holds_all = match_of(id) >= Some(commit_index);
            holds_all && self.runs(node, now, *id) && !node.is_avoided(*id)
        };
        let to = node.voting_peers().into_iter().filter(can_lead).max_by_key(match_of);
        if to.is_some() {
            let _ = self.transfer(node, now, to);
        }
    }

    /// Returns true for a peer that responds and is counted.
    pub(super) fn runs(&self, node: &NodeState, now: Time, peer: NodeId) -> bool {
        self.progress.get(&peer).is_some_and(|progress| {
            let responds = now.since(progress.last_heard) < node.config.election_timeout;
            responds && !progress.recovers()
        })
    }

    pub(super) fn finish_transfer_when_ready(&mut self, node: &mut NodeState) {
        let Some(transfer) = &mut self.transfer else { return };
        let Some(progress) = self.progress.get(&transfer.to) else { return };
        if !transfer.told && progress.match_index == node.log.last_index() {
            transfer.told = true;
            let last = node.log.last_position();
            node.send(transfer.to, MessageBody::TimeoutNow { last });
        }
    }
}
