//! Observes all nodes at once and checks the five properties of figure 3.2, and 3.8, by
//! [`invariants`].
//!
//! | property | how it is checked |
//! |---|---|
//! | election safety | one leader per term, ever; one vote per voter and term, across crashes |
//! | leader append-only | length after each step (`process_ready`); the rest by log matching |
//! | log matching | a position has the same entry and the same predecessor on every node |
//! | leader completeness | a new leader's log holds everything known committed |
//! | state machine safety | every node that commits or applies an index has the same entry there |
//! | durability (3.8) | votes, acknowledgements and commits are on disk when they are given |

use std::collections::{BTreeMap, BTreeSet};

use raft_core::consensus::invariants::{self, Violation};
use raft_core::consensus::{Raft, RoleKind};
use raft_core::types::{Configuration, Entry, Index, Message, MessageBody, NodeId, Position, Term};

use super::disk::Disk;

/// Fails the test if a property of `node` does not hold.
#[track_caller]
pub fn must(node: NodeId, result: Result<(), Violation>) {
    if let Err(violation) = result {
        panic!("node {node}: {violation}");
    }
}

/// The configuration whose quorum has the entry at a committed index on disk: the one in force
/// there. But once a leader has appended the configuration that leaves a joint one, the new half
/// commits alone, after both halves have committed the joint configuration. A follower may learn of
/// such a commit before it has that configuration.
pub fn deciding_configuration(raft: &Raft, index: Index) -> Configuration {
    let at = |index| raft.snapshot_meta(index).expect("within the log").configuration;
    let in_force = at(index);
    let decides_jointly = raft.role() == RoleKind::Leader && raft.configuration().is_joint();
    if !in_force.is_joint() || decides_jointly || in_force != at(index - 1) {
        return *in_force;
    }
    Configuration { outgoing: BTreeSet::new(), ..*in_force }
}

#[derive(Clone, Debug, Default, Hash)]
pub struct Oracle {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(Term, NodeId), NodeId>,
    /// Every entry that ever was in a log, with the position that it followed.
    history: BTreeMap<Position, (Position, Entry)>,
    /// Committed entries, each with the term in which it was first known to be committed.
    committed: BTreeMap<Index, (Term, Entry)>,
    /// For every read in progress: the commit index that its read index must not be below.
    reads: BTreeMap<(NodeId, u64), Index>,
    /// Number of lost disks, which held entries that their nodes had acknowledged.
    lost_disks: usize,
}

impl Oracle {
    pub(super) fn with_lost_disks(lost_disks: usize) -> Self {
        Self { lost_disks, ..Self::default() }
    }

    pub fn committed_index(&self) -> Index {
        self.committed.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// `log` is the node's present log in memory.
    pub fn on_leader(&mut self, node: NodeId, term: Term, log: &Disk) {
        let leader = *self.leaders.entry(term).or_insert(node);
        must(node, invariants::election_safety(term, leader, node));
        for (index, (committed_in, entry)) in &self.committed {
            if *index > log.start().index {
                let (at, holds) = (entry.position(), log.entry(*index) == Some(entry));
                must(node, invariants::leader_completeness(term, at, *committed_in, holds));
            }
        }
    }

    /// A node appended these entries to its log in memory; the first follows `previous`.
    pub fn on_entries(&mut self, node: NodeId, mut previous: Position, entries: &[Entry]) {
        for entry in entries {
            let known = (previous, entry.clone());
            let first = self.history.entry(entry.position()).or_insert_with(|| known.clone());
            must(node, invariants::log_matching_at(entry.position(), first, &known));
            previous = entry.position();
        }
    }

    /// A node has advanced its commit index to `entry`, which came under the configuration
    /// `voters`.
    pub fn on_commit<'a>(
        &mut self,
        node: NodeId,
        term: Term,
        entry: &Entry,
        voters: &Configuration,
        disks: impl Iterator<Item = (NodeId, &'a Disk)>,
    ) {
        if let Some((_, known)) = self.committed.get(&entry.index) {
            return must(node, invariants::state_machine_safety(entry.index, known, entry));
        }
        let has = |disk: &Disk| {
            disk.start().index >= entry.index || disk.entry(entry.index) == Some(entry)
        };
        let (mut holders, mut others) = (BTreeSet::new(), Vec::new());
        for (id, disk) in disks {
            if has(disk) {
                holders.insert(id);
            } else {
                others.push(id);
            }
        }
        // The lost disks held it, too.
        holders.extend(others.into_iter().take(self.lost_disks));
        let holds = |id| holders.contains(&id);
        must(node, invariants::committed_by_quorum(voters, entry.position(), holds));
        self.committed.insert(entry.index, (term, entry.clone()));
    }

    pub fn on_apply(&self, node: NodeId, entry: &Entry) {
        let Some((_, known)) = self.committed.get(&entry.index) else {
            panic!("state machine safety: node {node} applies {}, not committed", entry.position());
        };
        must(node, invariants::state_machine_safety(entry.index, known, entry));
    }

    /// An entry arrived as part of a snapshot. A test may send a snapshot with an entry that no
    /// node has committed.
    pub fn on_restored(&self, node: NodeId, entry: &Entry) {
        if let Some((_, known)) = self.committed.get(&entry.index) {
            must(node, invariants::state_machine_safety(entry.index, known, entry));
        }
    }

    /// A node sends a message; `disk` is the state that would survive if the node crashed now.
    pub fn on_send(&mut self, from: NodeId, to: NodeId, message: &Message, disk: &Disk) {
        let term = message.term;
        match message.body {
            MessageBody::RequestVote { .. } => self.on_vote(from, from, term, disk),
            // A vote marked as recovering is not counted, so a node may give it twice.
            MessageBody::VoteResponse { granted: true } if message.recovering.is_none() => {
                self.on_vote(from, to, term, disk);
            }
            MessageBody::AppendAccepted { match_index } => {
                let (on_disk, last) = (&disk.loaded.hard_state, disk.last().index);
                must(
                    from,
                    invariants::acknowledgement_is_durable(from, term, match_index, on_disk, last),
                );
            }
            _ => {}
        }
    }

    fn on_vote(&mut self, voter: NodeId, candidate: NodeId, term: Term, disk: &Disk) {
        let on_disk = &disk.loaded.hard_state;
        must(voter, invariants::vote_is_durable(voter, candidate, term, on_disk));
        let first = *self.votes.entry((term, voter)).or_insert(candidate);
        must(voter, invariants::one_vote_in_a_term(voter, term, first, candidate));
    }

    /// Forgets the votes that the node gave itself. They were lost with its disk, and no other node
    /// can have counted them.
    pub fn forget_own_votes(&mut self, node: NodeId) {
        self.votes.retain(|(_, voter), candidate| (*voter, *candidate) != (node, node));
    }

    pub fn on_read(&mut self, node: NodeId, id: u64) {
        let seen = self.committed_index();
        assert!(self.reads.insert((node, id), seen).is_none(), "read ids are unique");
    }

    pub fn on_read_answered(&mut self, node: NodeId, id: u64, read_index: Option<Index>) {
        let seen = self.reads.remove(&(node, id)).expect("each read is answered at most once");
        if let Some(read_index) = read_index {
            must(node, invariants::read_is_linearizable(seen, read_index));
        }
    }

    /// Forgets the reads of a node that has crashed: it will not answer them.
    pub fn forget_reads(&mut self, node: NodeId) {
        self.reads.retain(|(reader, _), _| *reader != node);
    }
}
