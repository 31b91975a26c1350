//! Properties that span nodes, checked in every state. The properties of a single node are checked
//! where it acts, in `node`.

use raft_core::consensus::RoleKind;
use raft_core::types::{Index, Message, MessageBody, Term};

use crate::node::Node;

/// The part of a node that the properties and the search look at, extracted once.
#[derive(Clone, Debug)]
pub struct Facts {
    pub role: RoleKind,
    pub term: Term,
    pub batches_at_disk: usize,
    /// The term on disk, which survives a crash.
    durable_term: Term,
    led: Vec<Term>,
    /// The terms of the entries, from index 1.
    pub memory: Vec<Term>,
    disk: Vec<Term>,
    /// The terms on the disk that the node lost, until it has recovered.
    lost: Vec<Term>,
    /// The terms of the entries that the node ever knew to be committed, each with the term in
    /// which it learned that.
    pub committed: Vec<(Term, Term)>,
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
            led: node.led.iter().copied().collect(),
            memory: (1..=status.last_index).map(term_at).collect(),
            disk: node.disk.terms(),
            lost: if status.is_recovering { node.lost.clone() } else { Vec::new() },
            committed: node.committed.iter().map(|(at, learned)| (at.term, *learned)).collect(),
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
    for (at, one) in nodes.iter().enumerate() {
        for (other_at, other) in nodes.iter().enumerate().skip(at + 1) {
            agree(one, other)
                .map_err(|what| format!("{what}, by nodes {} and {}", at + 1, other_at + 1))?;
        }
        for (offset, (term, _)) in one.committed.iter().enumerate() {
            let holds = |node: &&&Facts| {
                node.disk.get(offset) == Some(term) || node.lost.get(offset) == Some(term)
            };
            let holders = nodes.iter().filter(holds).count();
            if 2 * holders <= nodes.len() {
                let entry = format!("{}@{term}, which node {} committed,", offset + 1, at + 1);
                return Err(format!("durability: {entry} is on {holders} disks"));
            }
        }
        if one.leads() {
            is_complete(one, nodes).map_err(|what| format!("{what}, by node {}", at + 1))?;
        }
    }
    Ok(())
}

fn agree(one: &Facts, other: &Facts) -> Result<(), String> {
    if let Some(term) = one.led.iter().find(|term| other.led.contains(term)) {
        return Err(format!("election safety: term {term} was led twice"));
    }
    let logs = [
        (&one.memory, &other.memory),
        (&one.memory, &other.disk),
        (&one.disk, &other.memory),
        (&one.disk, &other.disk),
    ];
    if !logs.iter().all(|(a, b)| match_up(a, b)) {
        return Err("log matching: an entry is shared, and not all before it".to_owned());
    }
    let mut both = one.committed.iter().zip(&other.committed).enumerate();
    match both.find(|(_, ((term, _), (other_term, _)))| term != other_term) {
        None => Ok(()),
        Some((offset, _)) => {
            Err(format!("state machine safety: index {} was committed twice", offset + 1))
        }
    }
}

fn is_complete(leader: &Facts, nodes: &[&Facts]) -> Result<(), String> {
    for (offset, (term, learned)) in nodes.iter().flat_map(|n| n.committed.iter().enumerate()) {
        if *learned < leader.term && leader.memory.get(offset) != Some(term) {
            let (index, leads) = (offset + 1, leader.term);
            return Err(format!("leader completeness: {index}@{term} is missed in term {leads}"));
        }
    }
    Ok(())
}

/// Returns true if the logs are equal below the last entry that they share.
fn match_up(one: &[Term], other: &[Term]) -> bool {
    let mut both = one.iter().zip(other).rev().skip_while(|(a, b)| a != b);
    both.all(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_match_up() {
        assert!(match_up(&[], &[1]));
        assert!(match_up(&[1, 1, 2], &[1, 1, 3]));
        assert!(match_up(&[1], &[2]));
        assert!(!match_up(&[1, 2], &[2, 2]));
        assert!(!match_up(&[1, 2, 3, 4], &[1, 1, 3]));
    }
}
