//! The properties, each a function of observations.

use std::collections::BTreeSet;
use std::fmt::Debug;

use crate::consensus::status::Status;
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
/// `before` and `now` are two states of one node without a crash in between. Their lengths are
/// compared; an overwritten entry shows in [`log_matching_at`].
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

/// The term never falls (figure 3.1, 3.3). `before` and `now` are two states of one node, across
/// crashes too.
///
/// # Errors
/// It fell.
pub fn term_never_falls(before: &Marks, now: &Marks) -> Result<(), Violation> {
    hold("term", now.term >= before.term, || format!("{before:?} became {now:?}"))
}

/// Committed entries stay committed (figure 3.1, 5.1): the commit index of a running node never
/// falls, and neither does the index through which its state is durable without the log.
///
/// # Errors
/// One of them fell.
pub fn commit_never_shrinks(before: &Marks, now: &Marks) -> Result<(), Violation> {
    let rises =
        now.commit_index >= before.commit_index && now.snapshot_index >= before.snapshot_index;
    hold("commit index", rises, || format!("{before:?} became {now:?}"))
}

/// A state machine never goes back (figure 3.1): the applied index of a running node never falls.
///
/// # Errors
/// It fell.
pub fn applied_never_falls(before: &Marks, now: &Marks) -> Result<(), Violation> {
    hold("applied index", now.last_applied >= before.last_applied, || {
        format!("{before:?} became {now:?}")
    })
}

/// The indexes are in order (the drawing at the head of `log`): what is covered by a snapshot was
/// applied, what was applied is committed and durable, and all of that is in the log.
///
/// # Errors
/// Two of them are out of order.
pub fn marks_are_in_order(marks: &Marks) -> Result<(), Violation> {
    // A snapshot from the leader replaces the log before the state machine has restored it.
    let restoring = marks.last_applied < marks.log_start_index;
    let in_order = (restoring || marks.log_start_index <= marks.snapshot_index)
        && marks.snapshot_index <= marks.last_applied
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

/// Counts by hand, so that a defect of `quorum` cannot hide itself.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_match_up() {
        assert!(log_matching(&[], &[1]).is_ok());
        assert!(log_matching(&[1, 1, 2], &[1, 1, 3]).is_ok());
        assert!(log_matching(&[1], &[2]).is_ok());
        assert!(log_matching(&[1, 2], &[2, 2]).is_err());
        assert!(log_matching(&[1, 2, 3, 4], &[1, 1, 3]).is_err());
    }

    #[test]
    fn a_quorum_is_counted_in_both_sets() {
        let mut configuration = Configuration::of_voters([1, 2, 3]);
        let elected = |configuration: &Configuration, voters: &[NodeId]| {
            elected_by_quorum(configuration, 1, 7, |id| voters.contains(&id)).is_ok()
        };
        assert!(elected(&configuration, &[1, 2]));
        assert!(!elected(&configuration, &[1, 4]));
        configuration.outgoing = [3, 4, 5].into();
        assert!(!elected(&configuration, &[1, 2, 3]));
        assert!(elected(&configuration, &[1, 3, 4]));
        assert!(!elected(&Configuration::default(), &[1]), "no voters are no quorum");
    }

    #[test]
    fn indexes_out_of_order_are_found() {
        let marks = Marks {
            term: 3,
            leads: true,
            log_start_index: 2,
            snapshot_index: 3,
            last_applied: 4,
            commit_index: 5,
            durable_index: 6,
            last_index: 7,
        };
        assert_eq!(marks_are_in_order(&marks), Ok(()));
        for wrong in [
            Marks { snapshot_index: 1, ..marks },
            Marks { snapshot_index: 5, ..marks },
            Marks { log_start_index: 5, snapshot_index: 5, ..marks },
            Marks { commit_index: 3, ..marks },
            Marks { commit_index: 8, ..marks },
            Marks { durable_index: 3, ..marks },
            Marks { durable_index: 8, ..marks },
        ] {
            assert!(marks_are_in_order(&wrong).is_err(), "{wrong:?}");
        }
        assert!(leader_append_only(&marks, &Marks { last_index: 6, ..marks }).is_err());
        assert!(leader_append_only(&marks, &Marks { term: 4, last_index: 6, ..marks }).is_ok());
        assert!(commit_never_shrinks(&marks, &Marks { commit_index: 4, ..marks }).is_err());
    }
}
