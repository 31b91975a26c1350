//! Observes all nodes at once and checks the five properties of figure 3.2, and 3.8.
//!
//! | property | how it is checked |
//! |---|---|
//! | election safety | one leader per term, ever; one vote per voter and term, across crashes |
//! | leader append-only | implied by log matching and the leader's own invariants |
//! | log matching | a position has the same entry and the same predecessor on every node |
//! | leader completeness | a new leader's log holds everything known committed |
//! | state machine safety | every node that commits or applies an index has the same entry there |
//! | durability (3.8) | votes, acknowledgements and commits are on disk when they are given |

use std::collections::BTreeMap;

use raft_core::types::{Entry, Index, Message, MessageBody, NodeId, Position, Term};

use super::disk::Disk;

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
        assert_eq!(leader, node, "election safety: two leaders in term {term}");
        for (index, (committed_in, entry)) in &self.committed {
            if *index > log.start().index && *committed_in < term {
                assert_eq!(
                    log.entry(*index),
                    Some(entry),
                    "leader completeness: leader {node} of term {term} lacks a committed entry"
                );
            }
        }
    }

    /// A node appended these entries to its log in memory; the first follows `previous`.
    pub fn on_entries(&mut self, node: NodeId, mut previous: Position, entries: &[Entry]) {
        for entry in entries {
            let known = (previous, entry.clone());
            let first = self.history.entry(entry.position()).or_insert_with(|| known.clone());
            assert_eq!(*first, known, "log matching: node {node} differs at {}", entry.position());
            previous = entry.position();
        }
    }

    /// A node has advanced its commit index to `entry`.
    pub fn on_commit<'a>(
        &mut self,
        node: NodeId,
        term: Term,
        entry: &Entry,
        disks: impl ExactSizeIterator<Item = &'a Disk>,
    ) {
        if let Some((_, known)) = self.committed.get(&entry.index) {
            assert_eq!(known, entry, "state machine safety: node {node} commits another entry");
            return;
        }
        let count = disks.len();
        let holders = disks
            .filter(|disk| {
                disk.start().index >= entry.index || disk.entry(entry.index) == Some(entry)
            })
            .count();
        assert!(
            2 * (holders + self.lost_disks) > count,
            "durability: node {node} commits {} which {holders} of {count} disks hold",
            entry.position()
        );
        self.committed.insert(entry.index, (term, entry.clone()));
    }

    pub fn on_apply(&self, node: NodeId, entry: &Entry) {
        let known = self.committed.get(&entry.index).map(|(_, known)| known);
        assert_eq!(known, Some(entry), "state machine safety: node {node} applies what is not");
    }

    /// An entry arrived as part of a snapshot. A test may send a snapshot with an entry that no
    /// node has committed.
    pub fn on_restored(&self, entry: &Entry) {
        if let Some((_, known)) = self.committed.get(&entry.index) {
            assert_eq!(known, entry, "state machine safety: a snapshot of something else");
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
                let hard_state = disk.loaded.hard_state;
                assert!(hard_state.term >= term, "durability: {from} accepts before its term is");
                // In a later term the tail may have been replaced meanwhile, so only the same term
                // is checked.
                if hard_state.term == term {
                    let last = disk.last().index;
                    assert!(last >= match_index, "durability: {from} accepts what is not on disk");
                }
            }
            _ => {}
        }
    }

    fn on_vote(&mut self, voter: NodeId, candidate: NodeId, term: Term, disk: &Disk) {
        let hard_state = disk.loaded.hard_state;
        assert!(
            hard_state.term > term || hard_state.voted_for == Some(candidate),
            "durability: the vote of {voter} for {candidate} in term {term} is not on disk"
        );
        let first = *self.votes.entry((term, voter)).or_insert(candidate);
        assert_eq!(first, candidate, "election safety: {voter} voted twice in term {term}");
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
            assert!(
                read_index >= seen,
                "linearizability: read {id} at {node} got index {read_index}, but {seen} was \
                 committed when it was asked"
            );
        }
    }

    /// Forgets the reads of a node that has crashed: it will not answer them.
    pub fn forget_reads(&mut self, node: NodeId) {
        self.reads.retain(|(reader, _), _| *reader != node);
    }
}
