//! Readmitting a node that lost its disk. The argument is in [`crate::consensus::recovery`].

use super::configuration::append;
use super::{Leader, Stage, unknown_progress};
use crate::consensus::node_state::NodeState;
use crate::consensus::progress::Progress;
use crate::consensus::quorum::reached_by_quorum;
use crate::consensus::recovery::Recovery;
use crate::types::{Index, MessageBody, NodeId, Time};

impl Leader {
    /// Notes a message of a peer in this term. `recovering` is the number that the peer drew when
    /// it started, if it recovers.
    pub(in crate::consensus) fn observe_peer(
        &mut self,
        node: &mut NodeState,
        now: Time,
        from: NodeId,
        recovering: Option<u64>,
    ) {
        let Some(progress) = self.progress.get_mut(&from) else { return };
        progress.last_heard = now;
        match (recovering, &mut progress.recovery) {
            (Some(number), Some(known)) if known.number == number => {}
            (Some(number), _) => {
                if node.superseded_disk(from) == Some(number) {
                    node.ready.alarms.push(format!(
                        "node {from} runs on an old disk: another one is recorded, on which it has \
                         run since. Its votes and acknowledgements are not counted. Start it with \
                         the newer disk; if that is lost, wipe the old one and start it again, so \
                         that it recovers from the others"
                    ));
                }
                let through_index = node.log.last_index();
                let recovery = Recovery { number, through_index, is_over: false };
                progress.start_over(recovery, node.log.durable_index() + 1);
                // Responses in flight may be older than this, so the next round asks again, at
                // once.
                self.recovery_round = self.round + 1;
                self.next_heartbeat = now;
            }
            (None, Some(known)) if !known.is_over => {
                known.is_over = true;
                self.advance_commit(node);
            }
            (None, _) => {}
        }
    }

    /// The peer speaks from another disk than before: nothing that it acknowledged need be on this
    /// one.
    pub(in crate::consensus) fn on_other_disk(
        &mut self,
        node: &NodeState,
        now: Time,
        peer: NodeId,
    ) {
        let Some(progress) = self.progress.get_mut(&peer) else { return };
        let (last_heard, farewell) = (progress.last_heard, progress.farewell);
        *progress = Progress { last_heard, farewell, ..unknown_progress(node, now) };
    }

    /// Readmits the recovering peers that have all entries they need. The disk of each is recorded
    /// first, once all other peers have followed. Call it when a peer has acknowledged something.
    pub(super) fn finish_recoveries(&self, node: &mut NodeState) {
        if !self.progress.values().any(Progress::recovers) {
            return;
        }
        let all_follow = self.all_follow(node);
        for (peer, progress) in &self.progress {
            let unfinished = progress.recovery.filter(|known| !known.is_over);
            let Some(Recovery { number, through_index, .. }) = unfinished else { continue };
            let is_void = node.superseded_disk(*peer) == Some(number);
            if is_void || progress.match_index < through_index {
                continue;
            }
            if self.may_count(node, *peer, progress.match_index, all_follow) {
                node.send(*peer, MessageBody::Recovered { number });
            }
        }
    }

    /// Returns true if it is committed which disk the peer has, and the peer has that record. A
    /// disk is recorded as the first one of a learner, or here: once all have followed, and no
    /// other change of the configuration is under way. A disk that is not known (0) only has to
    /// wait for the others.
    fn may_count(
        &self,
        node: &mut NodeState,
        peer: NodeId,
        match_index: Index,
        all_follow: bool,
    ) -> bool {
        let disk = node.peer_disk(peer);
        let latest = node.configuration();
        let is_recorded = latest.incarnation(peer) == disk;
        if is_recorded && disk == 0 {
            return all_follow;
        }
        // A node that is being removed has no record, and need not count.
        if !Stage::of(node).is_settled || latest.is_joint() || !latest.is_member(peer) {
            return false;
        }
        if is_recorded {
            return match_index >= node.log.configuration_index();
        }
        let mut next = latest.clone();
        next.record(peer).incarnation = disk;
        if all_follow && next.is_storable() && self.transfer.is_none() {
            append(node, next);
        }
        false
    }

    /// Returns true if every other voter was in this term after the last recovering peer was first
    /// observed. The voters are those of every configuration that no committed one supersedes.
    fn all_follow(&self, node: &NodeState) -> bool {
        let own_id = node.id();
        let follows = |id| {
            let progress = self.progress.get(&id);
            progress.is_some_and(|progress| progress.acked_round >= self.recovery_round)
        };
        node.log.active_voters().into_iter().all(|id| id == own_id || follows(id))
    }

    /// Returns the largest value that was reached by a quorum, recovering voters not counted. A
    /// leader itself never recovers.
    pub(super) fn reached<T: Ord + Copy + Default>(
        &self,
        node: &NodeState,
        value_of: impl Fn(NodeId) -> T,
    ) -> T {
        assert!(node.counts(), "a node that recovers does not lead");
        let configuration = node.configuration();
        if !self.progress.values().any(Progress::recovers) {
            return reached_by_quorum(configuration, value_of);
        }
        let recovers = |id: NodeId| self.progress.get(&id).is_some_and(Progress::recovers);
        reached_by_quorum(
            configuration,
            |id| if recovers(id) { T::default() } else { value_of(id) },
        )
    }
}
