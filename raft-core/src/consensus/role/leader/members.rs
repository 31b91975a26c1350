//! Members that come and go under a leader (4.2, 4.4). Which configuration comes next is decided in
//! [`crate::consensus::membership`].
//!
//! A leader replicates to the members of every configuration that is not superseded by a committed
//! one, and for a while to those that have left, so that they learn that they have.

use std::collections::BTreeSet;

use super::configuration::append;
use super::{Leader, Stage, unknown_progress};
use crate::consensus::membership::{Change, Overrides, Standing, View, next_step, plan};
use crate::consensus::node_state::NodeState;
use crate::consensus::progress::{Farewell, Progress};
use crate::error::Rejected;
use crate::types::{Configuration, NodeId, Position, Time};

/// A member that has left is written to for so many election timeouts at most.
const FAREWELL_TIMEOUTS: u32 = 10;

impl Leader {
    /// Appends the configuration that begins `change`. Returns its position, or the position of the
    /// present one if nothing is left to do.
    pub(in crate::consensus) fn change_members(
        &mut self,
        node: &mut NodeState,
        now: Time,
        change: &Change,
        expected: Option<&Configuration>,
        overrides: Overrides,
    ) -> Result<Position, Rejected> {
        let Some(next) = self.plan_members(node, now, change, overrides)? else {
            return Ok(node.log.configuration_position());
        };
        let latest = node.configuration();
        if expected.is_some_and(|expected| expected != latest) {
            return Err(Rejected::Refused(
                "not executed: the members have changed since they were read; read them again"
                    .to_owned(),
            ));
        }
        Ok(append(node, next))
    }

    /// The configuration that would begin the change.
    pub(in crate::consensus) fn plan_members(
        &self,
        node: &NodeState,
        now: Time,
        change: &Change,
        overrides: Overrides,
    ) -> Result<Option<Configuration>, Rejected> {
        if self.transfer.is_some() {
            return Err(Rejected::Busy("leadership is being handed over"));
        }
        // Without an entry of its own term, the leader does not know which configuration is
        // committed, and an earlier leader's change could take effect beside its own.
        if !Stage::of(node).is_settled || node.configuration().is_joint() {
            return Err(Rejected::Busy("another change of the configuration is not committed yet"));
        }
        plan(node.configuration(), &self.view(node, now), change, overrides)
    }

    /// Acts on a configuration that was appended or committed since the last call: replicates to
    /// its members, takes leave of the others, and leaves a joint one.
    pub(in crate::consensus) fn follow_members(&mut self, node: &mut NodeState, now: Time) {
        // A configuration that is settled stays so; this is asked in every turn.
        let is_same = self.stage.index == node.log.configuration_index();
        if is_same && self.stage.is_settled && !self.is_leaving {
            return;
        }
        while self.stage != Stage::of(node) {
            self.stage = Stage::of(node);
            self.replicate_to_members(node, now);
            // Fewer voters may be needed than before.
            self.finish_recoveries(node);
            self.advance_commit(node);
            self.confirm_reads(node);
            if self.stage.is_settled && node.configuration().is_joint() {
                self.take_step(node, now);
            }
        }
        self.is_leaving = self.stage.is_settled && !node.configuration().is_voter(node.id());
        if self.is_leaving && self.transfer.is_none() {
            // The next check ends this leadership, also if there is no successor now.
            let _ = self.transfer(node, now, None);
        }
    }

    /// Makes voters of the learners that are ready, and lets the members go that have learnt of
    /// their removal.
    pub(super) fn check_members(&mut self, node: &mut NodeState, now: Time) {
        let next_round = self.round + 1;
        self.progress.retain(|_, progress| {
            let Some(farewell) = &mut progress.farewell else { return true };
            if farewell.told_by_round.is_none() && progress.match_index >= farewell.index {
                // From the next round on, heartbeats tell the peer that its removal is committed.
                farewell.told_by_round = Some(next_round);
            }
            let is_told = farewell.told_by_round.is_some_and(|round| progress.acked_round >= round);
            !is_told && now < farewell.until
        });
        if Stage::of(node).is_settled && self.transfer.is_none() {
            self.take_step(node, now);
        }
    }

    fn take_step(&mut self, node: &mut NodeState, now: Time) {
        if let Some(next) = next_step(node.configuration(), &self.view(node, now)) {
            append(node, next);
        }
    }

    fn replicate_to_members(&mut self, node: &NodeState, now: Time) {
        let mut members = node.log.active_members();
        members.remove(&node.id());
        for id in &members {
            let progress = self.progress.entry(*id).or_insert_with(|| unknown_progress(node, now));
            progress.farewell = None;
        }
        self.take_leave(node, now, &members);
    }

    fn take_leave(&mut self, node: &NodeState, now: Time, members: &BTreeSet<NodeId>) {
        let until = now + FAREWELL_TIMEOUTS * node.config.election_timeout;
        for (id, progress) in &mut self.progress {
            if !members.contains(id) && progress.farewell.is_none() {
                let index = node.log.configuration_index();
                progress.farewell = Some(Farewell { index, until, told_by_round: None });
            }
        }
    }

    fn view(&self, node: &NodeState, now: Time) -> View {
        let standing = |progress: &Progress| Standing {
            responds: progress.acked_round > 0
                && now.since(progress.last_heard) < node.config.election_timeout,
            recovers: progress.recovers(),
            is_ready: progress.is_ready(now, node.config.promotion_delay),
            version_max: progress.version_max,
        };
        let standings = self.progress.iter().map(|(id, progress)| (*id, standing(progress)));
        View { own_id: node.id(), standings: standings.collect() }
    }
}
