//! The safety properties of Raft, one function each, for tests.
//!
//! [`check`] takes one node and checks what that node alone can violate; it is O(n) in the log. The
//! other functions take observations of one or more nodes. A test that runs a cluster collects the
//! observations and calls them; how it observes is up to the test (the paper tests, the simulator
//! and the explorer each do it in their own way).
//!
//! Figures and sections are those of the dissertation.
//!
//! ```
//! use raft_core::consensus::invariants::{election_safety, log_matching};
//!
//! assert!(election_safety(7, 1, 1).is_ok());
//! let violation = election_safety(7, 1, 2).unwrap_err();
//! assert_eq!(violation.to_string(), "election safety: nodes 1 and 2 both led term 7");
//! // The terms of two logs, from index 1: they share the entry at 2, and differ before it.
//! assert!(log_matching(&[1, 2], &[2, 2]).is_err());
//! ```

mod properties;

pub use properties::{
    Marks, Violation, acknowledgement_is_durable, applied_never_falls, commit_never_shrinks,
    committed_by_quorum, committed_in_own_term, elected_by_quorum, election_safety,
    hard_state_moves_forward, leader_append_only, leader_completeness, log_matching,
    log_matching_at, marks_are_in_order, one_vote_in_a_term, progress_is_in_order,
    read_is_linearizable, snapshot_is_of_its_position, state_machine_safety, term_never_falls,
    vote_is_durable,
};

use super::node_state::NodeState;
use super::raft::Raft;
use super::role::Role;
use crate::types::Time;

/// Checks everything that one node alone can violate.
///
/// # Panics
/// If the node violates an invariant of its own.
pub fn check(raft: &Raft) {
    must(marks_are_in_order(&Marks::from(&raft.status())));
    the_log_is_sound(raft);
    batches_are_bounded(raft);
    the_role_fits(raft);
}

#[track_caller]
fn must(result: Result<(), Violation>) {
    if let Err(violation) = result {
        panic!("{violation}");
    }
}

fn the_log_is_sound(raft: &Raft) {
    let node = raft.node();
    node.log.check();
    let restoring = node.restoring.meta().map(|meta| meta.position);
    assert_eq!(restoring.is_some(), node.log.last_applied() < node.log.start().index);
    assert!(restoring.is_none_or(|position| position == node.log.start()));
}

fn batches_are_bounded(raft: &Raft) {
    let node = raft.node();
    assert!(node.durability.in_flight_count() <= node.config.persists_in_flight_max);
    // One response per peer and kind is typical; growth without bound would be a leak.
    let held = node.durability.gate.len();
    assert!(held <= 10_000, "the gate holds {held} messages");
}

/// A learner campaigns only after it has refused a candidate because of an older log.
fn may_stand(node: &NodeState) -> bool {
    node.may_vote_for_itself() || node.needed_until > Time::ZERO
}

fn the_role_fits(raft: &Raft) {
    let node = raft.node();
    match raft.role_data() {
        Role::Follower(follower) => assert_ne!(follower.leader, Some(node.id())),
        Role::PreCandidate(_) => assert!(may_stand(node) && node.counts()),
        Role::Candidate(_) => {
            assert!(may_stand(node) && node.counts());
            assert_eq!(node.voted_for, Some(node.id()));
        }
        Role::Leader(leader) => {
            assert_eq!(node.voted_for, Some(node.id()), "elected by its own vote too");
            assert!(node.counts(), "a node that recovers does not lead");
            let last = node.log.last_position();
            assert_eq!(last.term, node.term, "a leader has an entry of its own term");
            for (peer, progress) in &leader.progress {
                let (match_index, next_index) = (progress.match_index, progress.next_index);
                must(progress_is_in_order(*peer, match_index, next_index, last.index));
            }
        }
    }
    assert!(node.log.last_position().term <= node.term);
    assert!(node.founding.is_none() || node.term == 0, "founding ends with the first term");
}
