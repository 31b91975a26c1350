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
    let node = raft.node();
    node.log.check();
    let restoring = node.restoring.as_ref().map(|meta| meta.position);
    assert_eq!(restoring.is_some(), node.log.last_applied() < node.log.start().index);
    assert!(restoring.is_none_or(|position| position == node.log.start()));
}

fn batches_are_bounded(raft: &Raft) {
    let node = raft.node();
    assert!(node.persists_in_flight() <= node.config.persists_in_flight_max);
    // One response per peer and kind is typical; growth without bound would be a leak.
    assert!(node.gate.len() <= 10_000, "the gate holds {} messages", node.gate.len());
}

fn the_role_fits(raft: &Raft) {
    let node = raft.node();
    match raft.role_data() {
        Role::Follower(follower) => assert_ne!(follower.leader, Some(node.id())),
        Role::PreCandidate(_) => assert!(node.is_voter() && node.counts()),
        Role::Candidate(_) => {
            assert!(node.is_voter() && node.counts());
            assert_eq!(node.voted_for, Some(node.id()));
        }
        Role::Leader(leader) => {
            assert_eq!(node.voted_for, Some(node.id()), "elected by its own vote too");
            assert!(node.counts(), "a node that recovers does not lead");
            leader.check(node);
        }
    }
    assert!(node.log.last_position().term <= node.term);
    assert!(node.founding.is_none() || node.term == 0, "founding ends with the first term");
}
