//! Invariants that must hold for one node after every step; O(n), so for tests. A test that runs
//! several nodes checks the properties that span them.

use super::raft::Raft;
use super::role::Role;

/// Checks all invariants of one node.
///
/// # Panics
/// If the node violates an invariant of its own.
pub fn check(raft: &Raft) {
    pointers_are_in_order(raft);
    batches_are_bounded(raft);
    the_role_fits(raft);
}

/// See the head of `log`.
fn pointers_are_in_order(raft: &Raft) {
    let common = raft.common();
    common.log.check();
    let restoring = common.restoring.as_ref().map(|meta| meta.position);
    assert_eq!(restoring.is_some(), common.log.last_applied() < common.log.start().index);
    assert!(restoring.is_none_or(|position| position == common.log.start()));
}

fn batches_are_bounded(raft: &Raft) {
    let common = raft.common();
    assert!(common.persists_in_flight() <= common.config.persists_in_flight_max);
    // One response per peer and kind is typical; growth without bound would be a leak.
    assert!(common.gate.len() <= 10_000, "the gate holds {} messages", common.gate.len());
}

fn the_role_fits(raft: &Raft) {
    let common = raft.common();
    match raft.role_data() {
        Role::Follower(follower) => assert_ne!(follower.leader, Some(common.id())),
        Role::PreCandidate(_) => assert!(common.is_voter() && common.counts()),
        Role::Candidate(_) => {
            assert!(common.is_voter() && common.counts());
            assert_eq!(common.voted_for, Some(common.id()));
        }
        Role::Leader(leader) => {
            assert_eq!(common.voted_for, Some(common.id()), "elected by its own vote too");
            assert!(common.counts(), "a node that recovers does not lead");
            leader.check(common);
        }
    }
    assert!(common.log.last_position().term <= common.term);
    assert!(common.founding.is_none() || common.term == 0, "founding ends with the first term");
}
