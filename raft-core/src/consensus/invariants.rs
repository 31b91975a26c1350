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

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::raft::Raft;
use super::role::Role;
use super::status::Status;
use crate::types::{
    Configuration, HardState, Index, NodeId, Position, RoleKind, SnapshotMeta, Term,
};

/// A safety property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{property}: {observation}")]
pub struct Violation {
    /// The name of the property.
    pub property: &'static str,
    /// The observation that contradicts it.
    pub observation: String,
}

fn hold(
    property: &'static str,
    holds: bool,
    observation: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { property, observation: observation() }) }
}

/// Election safety (figure 3.2): at most one leader is elected in a term. `known` is the first
/// leader observed in the term.
///
/// # Errors
/// `leader` is another node.
pub fn election_safety(term: Term, known: NodeId, leader: NodeId) -> Result<(), Violation> {
    hold("election safety", known == leader, || {
        format!("nodes {known} and {leader} both led term {term}")
    })
}

/// Election by a quorum (3.4, 4.3): a leader has the votes of a majority of the voters, and of the
/// outgoing voters while joint. `voted` returns true for a node whose vote counts and was given.
///
/// # Errors
/// Too few voters voted for the leader.
pub fn elected_by_quorum(
    configuration: &Configuration,
    leader: NodeId,
    term: Term,
    voted: impl Fn(NodeId) -> bool,
) -> Result<(), Violation> {
    hold("election by a quorum", is_quorum(configuration, &voted), || {
        let votes: Vec<NodeId> =
            configuration.members().into_iter().filter(|id| voted(*id)).collect();
        format!("node {leader} leads term {term} by the votes of {votes:?}")
    })
}

/// One vote in a term (figure 3.1, 3.4): a voter votes for at most one candidate in a term, across
/// crashes. `known` is the candidate of the first vote observed.
///
/// # Errors
/// `candidate` is another node.
pub fn one_vote_in_a_term(
    voter: NodeId,
    term: Term,
    known: NodeId,
    candidate: NodeId,
) -> Result<(), Violation> {
    hold("one vote in a term", known == candidate, || {
        format!("node {voter} voted for nodes {known} and {candidate} in term {term}")
    })
}

/// Leader append-only (figure 3.2): a leader never overwrites or deletes entries of its log.
/// `before` and `now` are two states of one node without a crash in between.
///
/// # Errors
/// The node led one term in both, and its log became shorter.
pub fn leader_append_only(before: &Marks, now: &Marks) -> Result<(), Violation> {
    let led = before.leads && now.leads && before.term == now.term;
    hold("leader append-only", !led || now.last_index >= before.last_index, || {
        format!("the log of the leader of term {} ended at {before:?}, then at {now:?}", now.term)
    })
}

/// Log matching (figure 3.2, 3.5): if two logs share an entry, they are equal through it. The logs
/// are given by the terms of their entries, from index 1.
///
/// # Errors
/// The logs share an entry and differ before it.
pub fn log_matching(one: &[Term], other: &[Term]) -> Result<(), Violation> {
    let mut shared = one.iter().zip(other).rev().skip_while(|(a, b)| a != b);
    hold("log matching", shared.all(|(a, b)| a == b), || {
        format!("an entry is shared and not all before it, in {one:?} and {other:?}")
    })
}

/// Log matching (figure 3.2, 3.5), seen from one position: the entry there, and its history, are
/// the same in every log. `known` is the first observed; a history is an entry with the position of
/// its predecessor, or a hash of all entries through it.
///
/// # Errors
/// The histories differ.
pub fn log_matching_at<H: PartialEq + Debug>(
    position: Position,
    known: &H,
    history: &H,
) -> Result<(), Violation> {
    hold("log matching", known == history, || {
        format!("{position} is {known:?} in one log and {history:?} in another")
    })
}

/// Leader completeness (figure 3.2, 3.6.3): an entry that was committed in an earlier term is in
/// the log of every later leader. `holds` tells if the leader's log contains `committed`.
///
/// # Errors
/// The entry was committed in a term before `leader_term`, and is missing.
pub fn leader_completeness(
    leader_term: Term,
    committed: Position,
    committed_in: Term,
    holds: bool,
) -> Result<(), Violation> {
    hold("leader completeness", committed_in >= leader_term || holds, || {
        format!(
            "{committed}, committed in term {committed_in}, is missing from the log of the leader \
             of term {leader_term}"
        )
    })
}

/// State machine safety (figure 3.2, 3.6.3): no two nodes commit or apply different entries at one
/// index. An entry is given by any value that identifies it.
///
/// # Errors
/// The entries differ.
pub fn state_machine_safety<E: PartialEq + Debug>(
    index: Index,
    known: &E,
    entry: &E,
) -> Result<(), Violation> {
    hold("state machine safety", known == entry, || {
        format!("index {index} is {known:?} at one node and {entry:?} at another")
    })
}

/// The commit rule, first half (3.6.2, 4.3): a committed entry is on the disks of a quorum. `holds`
/// returns true for a node whose disk contains the entry or a snapshot that covers it.
///
/// # Errors
/// Too few disks hold the entry.
pub fn committed_by_quorum(
    configuration: &Configuration,
    committed: Position,
    holds: impl Fn(NodeId) -> bool,
) -> Result<(), Violation> {
    hold("durability", is_quorum(configuration, &holds), || {
        let holders: Vec<NodeId> =
            configuration.members().into_iter().filter(|id| holds(*id)).collect();
        format!("{committed} is committed, and on the disks of {holders:?} only")
    })
}

/// The commit rule, second half (3.6.2, figure 3.7): a leader commits by counting only up to an
/// entry of its own term.
///
/// # Errors
/// The entry is of another term.
pub fn committed_in_own_term(leader_term: Term, committed: Position) -> Result<(), Violation> {
    hold("commit in the own term", committed.term == leader_term, || {
        format!("the leader of term {leader_term} commits {committed} by counting")
    })
}

/// A vote rests on the disk (3.8): it leaves a node only once the disk would show it after a crash.
///
/// # Errors
/// After a crash the voter could vote for another candidate in this term.
pub fn vote_is_durable(
    voter: NodeId,
    candidate: NodeId,
    term: Term,
    on_disk: &HardState,
) -> Result<(), Violation> {
    let is_durable =
        on_disk.term > term || (on_disk.term == term && on_disk.voted_for == Some(candidate));
    hold("durability", is_durable, || {
        format!("the vote of {voter} for {candidate} in term {term} is not on disk: {on_disk:?}")
    })
}

/// An acknowledgement rests on the disk (3.8, 10.2.1): it leaves a node only once its term and the
/// entries are durable. In a later term the tail may have been replaced since, so the entries are
/// checked in the same term only.
///
/// # Errors
/// The disk does not reach the acknowledged index, or not the term.
pub fn acknowledgement_is_durable(
    node: NodeId,
    term: Term,
    match_index: Index,
    on_disk: &HardState,
    last_on_disk: Index,
) -> Result<(), Violation> {
    let is_durable = on_disk.term > term || (on_disk.term == term && last_on_disk >= match_index);
    hold("durability", is_durable, || {
        format!(
            "node {node} acknowledges index {match_index} in term {term}; its disk is in term {} \
             and ends at {last_on_disk}",
            on_disk.term
        )
    })
}

/// The hard state moves forward (figure 3.1, 3.8): the term never falls, and the vote of a term
/// never changes.
///
/// # Errors
/// The later hard state takes something back.
pub fn hard_state_moves_forward(before: &HardState, now: &HardState) -> Result<(), Violation> {
    let keeps_vote =
        now.term > before.term || before.voted_for.is_none() || now.voted_for == before.voted_for;
    hold("hard state", now.term >= before.term && keeps_vote, || {
        format!("{now:?} was written after {before:?}")
    })
}

/// The indexes never fall (figure 3.1): term, commit index, applied index and snapshot index of a
/// running node. `last_index` may fall at a follower, and `durable_index` with it.
///
/// # Errors
/// One of them fell.
pub fn marks_never_fall(before: &Marks, now: &Marks) -> Result<(), Violation> {
    let rise = now.term >= before.term
        && now.commit_index >= before.commit_index
        && now.last_applied >= before.last_applied
        && now.snapshot_index >= before.snapshot_index;
    hold("monotonic indexes", rise, || format!("{before:?} became {now:?}"))
}

/// The indexes are in order (the drawing at the head of `log`): what is covered by a snapshot was
/// applied, what was applied is committed and durable, and all of that is in the log.
///
/// # Errors
/// Two of them are out of order.
pub fn marks_are_in_order(marks: &Marks) -> Result<(), Violation> {
    // A snapshot from the leader replaces the log before the state machine has restored it.
    let restoring = marks.last_applied < marks.log_start_index;
    let start_is_covered = restoring
        || (marks.log_start_index <= marks.snapshot_index
            && marks.snapshot_index <= marks.last_applied);
    let in_order = start_is_covered
        && marks.last_applied <= marks.commit_index
        && marks.commit_index <= marks.last_index
        && marks.last_applied <= marks.durable_index
        && marks.durable_index <= marks.last_index;
    hold("order of the indexes", in_order, || format!("{marks:?}"))
}

/// A leader's knowledge of a peer is in order (figure 3.1): what the peer holds ends before the
/// next entry to send, and both lie within the leader's log.
///
/// # Errors
/// `match_index` or `next_index` is out of place.
pub fn progress_is_in_order(
    peer: NodeId,
    match_index: Index,
    next_index: Index,
    last_index: Index,
) -> Result<(), Violation> {
    hold("progress", match_index < next_index && next_index <= last_index + 1, || {
        format!("peer {peer}: match {match_index}, next {next_index}, the log ends at {last_index}")
    })
}

/// A snapshot is the state at its position (5.1): its label is the position through which its state
/// was applied, no earlier and no later.
///
/// # Errors
/// The state is that of another position.
pub fn snapshot_is_of_its_position(meta: &SnapshotMeta, state: Position) -> Result<(), Violation> {
    hold("snapshot", meta.position == state, || {
        format!("the snapshot of {} holds the state at {state}", meta.position)
    })
}

/// A read is linearizable (6.4): its index is not below what was known committed anywhere when it
/// was asked.
///
/// # Errors
/// The read could miss a committed entry.
pub fn read_is_linearizable(
    committed_when_asked: Index,
    read_index: Index,
) -> Result<(), Violation> {
    hold("linearizability", read_index >= committed_when_asked, || {
        format!("a read got index {read_index}, and {committed_when_asked} was committed before it")
    })
}

/// Counts by hand, so that a defect of [`quorum`](super::quorum) cannot hide itself.
fn is_quorum(configuration: &Configuration, is_in: &impl Fn(NodeId) -> bool) -> bool {
    let majority = |voters: &BTreeSet<NodeId>| {
        2 * voters.iter().filter(|id| is_in(**id)).count() > voters.len()
    };
    majority(&configuration.voters)
        && (configuration.outgoing.is_empty() || majority(&configuration.outgoing))
}

/// The indexes of one node at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The current term.
    pub term: Term,
    /// The node leads that term.
    pub leads: bool,
    /// The index before the log's first entry.
    pub log_start_index: Index,
    /// State through here survives a crash without the log.
    pub snapshot_index: Index,
    /// The state machine has applied the entries through here.
    pub last_applied: Index,
    /// Known committed through here.
    pub commit_index: Index,
    /// On this node's disk through here.
    pub durable_index: Index,
    /// The last entry, durable or not.
    pub last_index: Index,
}

impl From<&Status> for Marks {
    fn from(status: &Status) -> Self {
        Self {
            term: status.term,
            leads: status.role == RoleKind::Leader,
            log_start_index: status.log_start_index,
            snapshot_index: status.snapshot_index,
            last_applied: status.last_applied,
            commit_index: status.commit_index,
            durable_index: status.durable_index,
            last_index: status.last_index,
        }
    }
}

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
