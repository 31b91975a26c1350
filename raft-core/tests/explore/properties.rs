//! Properties that span nodes, checked in every state. The properties of a single node are checked
//! where it acts, in `node`.

use std::collections::BTreeSet;

use raft_core::consensus::RoleKind;
use raft_core::consensus::invariants::{self, Violation};
use raft_core::types::{Configuration, Index, Message, MessageBody, NodeId, Position, Term};

use crate::node::Node;

/// The part of a node that the properties and the search look at, extracted once.
#[derive(Clone, Debug)]
pub struct Facts {
    pub role: RoleKind,
    pub term: Term,
    pub batches_at_disk: usize,
    /// The term on disk, which survives a crash.
    durable_term: Term,
    led: Vec<(Term, Configuration)>,
    granted: BTreeSet<(Term, NodeId)>,
    /// The terms of the entries, from index 1.
    pub memory: Vec<Term>,
    disk: Vec<Term>,
    /// The terms on the disk that the node lost, until it has recovered.
    lost: Vec<Term>,
    /// The terms of the entries that the node ever knew to be committed, each with the term in
    /// which it learned that.
    pub committed: Vec<(Term, Term)>,
    /// For each of them, the configuration whose quorum has it on disk.
    quorums: Vec<Configuration>,
    /// The configuration in force is joint.
    pub is_joint: bool,
    /// The node knows that a joint configuration was left.
    pub has_changed: bool,
}

impl Facts {
    pub fn of(node: &Node) -> Self {
        let status = node.raft.status();
        let term_at =
            |index: Index| node.raft.snapshot_meta(index).expect("within the log").position.term;
        Self {
            role: status.role,
            term: status.term,
            batches_at_disk: node.writing.len(),
            durable_term: node.disk.loaded.hard_state.term,
            led: node.led.iter().map(|(term, one)| (*term, one.clone())).collect(),
            granted: node.granted.clone(),
            memory: (1..=status.last_index).map(term_at).collect(),
            disk: node.disk.terms(),
            lost: if status.is_recovering { node.lost.clone() } else { Vec::new() },
            committed: node
                .committed
                .iter()
                .map(|one| (one.position.term, one.learned_in))
                .collect(),
            is_joint: node.raft.configuration().is_joint(),
            has_changed: node.committed.iter().any(|one| one.quorum.is_joint())
                && !status.is_recovering
                && !node.raft.committed_configuration().is_joint(),
            quorums: node.committed.iter().map(|one| one.quorum.clone()).collect(),
        }
    }

    pub fn leads(&self) -> bool {
        self.role == RoleKind::Leader
    }

    /// Returns true if no future state of this node will act on the message: it responds to a
    /// request that the node sent as candidate or leader of a term, the node no longer has that
    /// role in that term, and the term on its disk prevents that it has it again.
    pub fn never_heeds(&self, message: &Message) -> bool {
        let asked_as = match message.body {
            MessageBody::PreVoteResponse { .. } => return message.term < self.durable_term,
            MessageBody::VoteResponse { .. } => RoleKind::Candidate,
            MessageBody::AppendAccepted { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::HeartbeatResponse { .. } => RoleKind::Leader,
            MessageBody::Recovered { .. }
            | MessageBody::RequestPreVote { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::AppendEntries { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::ReadIndex { .. }
            | MessageBody::ReadIndexResponse { .. }
            | MessageBody::TimeoutNow { .. }
            | MessageBody::Founding { .. } => return false,
        };
        message.term <= self.durable_term && (self.role, self.term) != (asked_as, message.term)
    }
}

/// # Errors
/// The property of figure 3.2, or of 3.8, that does not hold.
pub fn check(nodes: &[&Facts]) -> Result<(), String> {
    for (one, id) in nodes.iter().zip(1..) {
        for (other, other_id) in nodes.iter().zip(1..).skip(id as usize) {
            agree(id, one, other_id, other)
                .map_err(|violation| format!("{violation}, by nodes {id} and {other_id}"))?;
        }
        for (term, configuration) in &one.led {
            let voted = |voter: NodeId| nodes[voter as usize - 1].granted.contains(&(*term, id));
            invariants::elected_by_quorum(configuration, id, *term, voted)
                .map_err(|violation| violation.to_string())?;
        }
        for (offset, ((term, _), quorum)) in one.committed.iter().zip(&one.quorums).enumerate() {
            let holds = |holder: NodeId| {
                let node = nodes[holder as usize - 1];
                node.disk.get(offset) == Some(term) || node.lost.get(offset) == Some(term)
            };
            invariants::committed_by_quorum(quorum, position(offset, *term), holds)
                .map_err(|violation| format!("{violation}, as node {id} knows"))?;
        }
        if one.leads() {
            is_complete(one, nodes).map_err(|violation| format!("{violation}, by node {id}"))?;
        }
    }
    Ok(())
}

fn position(offset: usize, term: Term) -> Position {
    Position::new(term, offset as Index + 1)
}

fn agree(id: NodeId, one: &Facts, other_id: NodeId, other: &Facts) -> Result<(), Violation> {
    let led_by_other = |term: &Term| other.led.iter().any(|(at, _)| at == term);
    if let Some((term, _)) = one.led.iter().find(|(term, _)| led_by_other(term)) {
        invariants::election_safety(*term, id, other_id)?;
    }
    invariants::log_matching(&one.memory, &other.memory)?;
    invariants::log_matching(&one.memory, &other.disk)?;
    invariants::log_matching(&one.disk, &other.memory)?;
    invariants::log_matching(&one.disk, &other.disk)?;
    for (offset, (known, at)) in one.committed.iter().zip(&other.committed).enumerate() {
        invariants::state_machine_safety(offset as Index + 1, &known.0, &at.0)?;
    }
    Ok(())
}

fn is_complete(leader: &Facts, nodes: &[&Facts]) -> Result<(), Violation> {
    for (offset, (term, learned)) in nodes.iter().flat_map(|n| n.committed.iter().enumerate()) {
        let holds = leader.memory.get(offset) == Some(term);
        let committed = position(offset, *term);
        invariants::leader_completeness(leader.term, committed, *learned, holds)?;
    }
    Ok(())
}
