//! Handing leadership away from a slow disk.
//!
//! A disk that hangs ends a leadership after `disk_patience`. A disk that is merely slow does not,
//! but every client feels it, because a leader applies only what its own disk has.

use std::time::Duration;

use super::Leader;
use crate::consensus::latency::Bounds;
use crate::consensus::node_state::NodeState;
use crate::types::{Index, NodeId, Time};

/// A disk is slow if it takes this many times as long as those of the best followers.
const SLOW_FACTOR: u32 = 4;
/// So many followers must be faster: one that is fast alone may just have done less.
const FASTER_PEERS: usize = 2;
/// A node hands over because of its disk once in this time at most.
const INTERVAL: Duration = Duration::from_secs(60);

impl Leader {
    /// Starts to hand over if this node's disk is much slower than those of the best followers.
    pub(super) fn leave_slow_disk(&mut self, node: &mut NodeState, now: Time) {
        let is_too_soon = node.left_slow_disk_at.is_some_and(|at| now.since(at) < INTERVAL);
        if is_too_soon || self.transfer.is_some() {
            return;
        }
        let slow_disk = node.config.slow_disk;
        let Some(own) = node.disk_latencies.p95(now).filter(|p95| p95.at_least >= slow_disk) else {
            return;
        };
        let peers = self.fastest_voters(node, now);
        let needed = FASTER_PEERS.min(self.running_voters(node, now));
        let is_faster = |peer: &Peer| peer.p95.below.saturating_mul(SLOW_FACTOR) < own.at_least;
        if needed == 0 || peers.iter().take_while(|peer| is_faster(peer)).count() < needed {
            return;
        }
        // A successor that holds all that is committed is brought up to date in a moment.
        let commit_index = node.log.commit_index();
        let can_lead = |peer: &&Peer| {
            let stays = node.configuration().wants_vote(peer.id) && !node.is_avoided(peer.id);
            peer.match_index >= commit_index && stays
        };
        let to = peers[..needed].iter().find(can_lead);
        if let Some(Peer { id, .. }) = to
            && self.transfer(node, now, Some(*id)).is_ok()
        {
            node.left_slow_disk_at = Some(now);
            node.ready.notices.push(format!(
                "leadership goes to node {id}: 1 of 20 writes to this node's disk took {:?} or \
                 longer in the last seconds, at least {SLOW_FACTOR} times as long as on the other \
                 nodes",
                own.at_least
            ));
        }
    }

    /// Number of the other voters that respond and are counted.
    fn running_voters(&self, node: &NodeState, now: Time) -> usize {
        node.voting_peers().iter().filter(|id| self.runs(node, now, **id)).count()
    }

    /// The other voters that are counted and whose speed is known, fastest first.
    fn fastest_voters(&mut self, node: &NodeState, now: Time) -> Vec<Peer> {
        let configuration = node.configuration();
        let of_voters = self
            .progress
            .iter_mut()
            .filter(|(id, progress)| configuration.voters.contains(id) && !progress.recovers());
        let known = of_voters.filter_map(|(id, progress)| {
            let p95 = progress.ack_latencies.p95(now)?;
            Some(Peer { id: *id, p95, match_index: progress.match_index })
        });
        let mut peers: Vec<Peer> = known.collect();
        peers.sort_by_key(|peer| peer.p95);
        peers
    }
}

/// Knowledge of another voter's disk.
struct Peer {
    id: NodeId,
    p95: Bounds,
    match_index: Index,
}
