//! What is known by seeing all nodes at once, and what must hold of it.
//!
//! | | |
//! |---|---|
//! | V1 | one leader in a term, elected by the durable votes of a majority whose word counts, or of all |
//! | V2 | one vote of each voter in a term, on disk before it leaves |
//! | V4 | a position has one entry and one history, whoever holds it |
//! | V5 | a new leader's log holds what is committed |
//! | V6, V10 | a committed index has one entry for ever, and that one is applied |
//! | V9 | committed by a leader, at an entry of its own term, with a majority of disks behind it whose nodes' word counts, or all |
//! | V13 | a read sees what was committed when it was asked |
//! | V19, V20 | a snapshot is the state at its position |
//! | V22 | what was surely not done is in no log |
//!
//! What must hold of one node between two of its steps (V3, V7, V8, V11, V24) is in `watch`.

use std::collections::{BTreeMap, BTreeSet};

use raft_core::types::{Entry, HardState, Index, NodeId, Payload, Position, SnapshotMeta, Term};

use crate::chain::{Stamp, Stamped};
use crate::node::Node;
use crate::workload::command_id;

/// An entry that was in some log.
#[derive(Clone, Copy, Debug)]
struct Seen {
    term: Term,
    previous_term: Term,
    chain: u64,
    command: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub stamp: Stamp,
    /// Of the leader that committed it.
    pub in_term: Term,
}

/// What a client was told, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Not appended: it must be in no log.
    Refused,
    Appended(Position),
    /// Nobody will be told.
    Unknown(Position),
    /// Applied, and the client was told.
    Acknowledged(Position),
}

/// Who promises a vote.
#[derive(Debug)]
pub struct Voter {
    hard_state: HardState,
    disk_number: u64,
    recovers: bool,
}

impl Voter {
    pub fn new(node: &Node, recovers: bool) -> Self {
        Self { hard_state: node.disk.hard_state, disk_number: node.disk_number, recovers }
    }
}

/// A vote that left its node.
#[derive(Clone, Copy, Debug)]
struct Vote {
    candidate: NodeId,
    /// Disks that the candidate had lost before: with the next one its candidacy goes.
    candidate_disk: u64,
    counts: bool,
}

/// Who has an entry on disk.
#[derive(Clone, Copy, Debug)]
pub struct Holders {
    /// Nodes that recover are left out.
    pub counting: usize,
}

#[derive(Debug)]
pub struct Oracle {
    majority: usize,
    leaders: BTreeMap<Term, NodeId>,
    /// How many disks each node has lost.
    lost_disks: BTreeMap<NodeId, u64>,
    /// By term, voter, and the voter's disk.
    votes: BTreeMap<(Term, NodeId, u64), Vote>,
    /// By index.
    seen: Vec<Vec<Seen>>,
    /// By index; what is before the first entry is committed.
    committed: Vec<Committed>,
    /// By number.
    pub proposals: Vec<Proposal>,
    /// The newest command that was acknowledged.
    pub last_acknowledged: Option<usize>,
}

impl Oracle {
    pub fn new(voter_count: u64) -> Self {
        Self {
            majority: voter_count as usize / 2 + 1,
            leaders: BTreeMap::new(),
            lost_disks: BTreeMap::new(),
            votes: BTreeMap::new(),
            seen: vec![Vec::new()],
            committed: vec![Committed { stamp: Stamp::ZERO, in_term: 0 }],
            proposals: Vec::new(),
            last_acknowledged: None,
        }
    }

    pub fn majority(&self) -> usize {
        self.majority
    }

    pub fn committed_index(&self) -> Index {
        self.committed.len() as u64 - 1
    }

    pub fn committed(&self, index: Index) -> Option<Committed> {
        self.committed.get(index as usize).copied()
    }

    fn seen(&self, position: Position) -> Option<Seen> {
        let seen = self.seen.get(position.index as usize)?;
        seen.iter().rev().find(|seen| seen.term == position.term).copied()
    }

    /// The stamp of a position that some log held.
    pub fn stamp(&self, position: Position) -> Stamp {
        if position == Position::ZERO {
            return Stamp::ZERO;
        }
        let Some(Seen { chain, .. }) = self.seen(position) else {
            panic!("V4 nobody ever had an entry at {position}");
        };
        Stamp { position, chain }
    }

    /// Some log holds these entries behind `previous`, or a message says so.
    pub fn on_entries(
        &mut self,
        node: NodeId,
        previous: Stamp,
        entries: Vec<Entry>,
    ) -> Vec<Stamped> {
        let mut last = previous;
        let stamped = entries.into_iter().map(|entry| {
            let stamp = last.then(&entry);
            self.on_entry(node, last.position.term, &entry, stamp);
            last = stamp;
            Stamped { entry, stamp }
        });
        stamped.collect()
    }

    /// A message says that these entries follow `previous`.
    pub fn on_sent_entries(&mut self, node: NodeId, previous: Stamp, entries: &[Entry]) {
        let mut last = previous;
        for entry in entries {
            let stamp = last.then(entry);
            self.on_entry(node, last.position.term, entry, stamp);
            last = stamp;
        }
    }

    fn on_entry(&mut self, node: NodeId, previous_term: Term, entry: &Entry, stamp: Stamp) {
        let position = stamp.position;
        if let Some(known) = self.seen(position) {
            assert_eq!(known.chain, stamp.chain, "V4 node {node} has another log at {position}");
            return;
        }
        let command = match &entry.payload {
            Payload::Command(command) => Some(command_id(command)),
            Payload::Noop | Payload::Configuration(_) => None,
        };
        if let Some(id) = command {
            let proposal = self.proposals.get(id).copied();
            assert!(
                matches!(
                    proposal,
                    Some(
                        Proposal::Appended(at) | Proposal::Unknown(at) | Proposal::Acknowledged(at)
                    ) if at == position
                ),
                "V22 command {id} is at {position} of node {node}, the client was told {proposal:?}"
            );
        }
        if self.seen.len() <= position.index as usize {
            self.seen.resize(position.index as usize + 1, Vec::new());
        }
        let seen = Seen { term: entry.term, previous_term, chain: stamp.chain, command };
        self.seen[position.index as usize].push(seen);
    }

    pub fn on_disk_lost(&mut self, id: NodeId) {
        *self.lost_disks.entry(id).or_default() += 1;
    }

    /// Disks that a node has lost so far.
    fn disk_of(&self, id: NodeId) -> u64 {
        self.lost_disks.get(&id).copied().unwrap_or(0)
    }

    /// `id` promises its vote.
    pub fn on_vote(&mut self, id: NodeId, candidate: NodeId, term: Term, voter: &Voter) {
        let Voter { hard_state, disk_number, recovers } = *voter;
        assert!(
            hard_state.term > term
                || (hard_state.term == term && hard_state.voted_for == Some(candidate)),
            "V2 the vote of {id} for {candidate} in term {term} is not on its disk"
        );
        let new = Vote { candidate, candidate_disk: self.disk_of(candidate), counts: !recovers };
        let vote = self.votes.entry((term, id, disk_number)).or_insert(new);
        assert_eq!(vote.candidate, candidate, "V2 node {id} voted twice in term {term}");
        vote.counts |= new.counts;
        vote.candidate_disk = new.candidate_disk;
        // Who recovered under a leader repeats its vote for it; that elects nobody.
        if self.leaders.get(&term) != Some(&candidate) {
            let mut before = self.votes.range((term, id, 0)..(term, id, disk_number));
            // A vote was gone with the candidate: one for itself, or one for a candidate that has lost
            // its disk since, as when a cluster is founded anew from what is left of a first attempt.
            let is_void = |vote: &Vote| vote.candidate_disk != self.disk_of(vote.candidate);
            assert!(
                recovers
                    || before.all(|(_, vote)| !vote.counts
                        || [id, candidate].contains(&vote.candidate)
                        || is_void(vote)),
                "V2 node {id} voted twice in term {term}, on two disks"
            );
        }
    }

    /// `holds` tells whether the new leader's log contains a position.
    pub fn on_leader(&mut self, node: NodeId, term: Term, holds: impl Fn(Position) -> bool) {
        let leader = *self.leaders.entry(term).or_insert(node);
        assert_eq!(leader, node, "V1 two leaders in term {term}");
        let votes = self.votes.range((term, 0, 0)..=(term, NodeId::MAX, u64::MAX));
        let own = self.votes.range((term, node, 0)..=(term, node, u64::MAX));
        let own_disk = own.last().map(|((_, _, disk_number), _)| *disk_number);
        // Its own counts from the disk that it leads with.
        let is_gone = |voter: NodeId, disk| voter == node && Some(disk) != own_disk;
        let votes: Vec<_> = votes
            .filter(|((_, voter, disk), vote)| vote.candidate == node && !is_gone(*voter, *disk))
            .collect();
        let voters = votes.iter().filter(|(_, vote)| vote.counts).map(|((_, id, _), _)| *id);
        let count = voters.collect::<BTreeSet<_>>().len();
        assert!(
            count >= self.majority,
            "V1 node {node} leads term {term} by {count} votes, {} are needed",
            self.majority
        );
        let last = self.committed.iter().rfind(|committed| committed.in_term < term);
        let position = last.expect("position zero").stamp.position;
        assert!(
            holds(position),
            "V5 node {node} leads term {term} without {position}, which is committed"
        );
    }

    /// A node regards everything through `position` as committed. Returns how many entries are news.
    pub fn on_commit(
        &mut self,
        node: NodeId,
        leads: Option<Term>,
        position: Position,
        holders: impl Fn(Stamp) -> Holders,
    ) -> usize {
        let stamp = self.stamp(position);
        if let Some(known) = self.committed(position.index) {
            assert_eq!(
                known.stamp, stamp,
                "V6 node {node} regards another entry as committed at {}",
                position.index
            );
            return 0;
        }
        let Some(in_term) = leads else {
            panic!("V9 node {node} knows {position} committed before any leader does");
        };
        assert_eq!(
            in_term, position.term,
            "V9 leader {node} of term {in_term} commits {position}, of an older term, by counting"
        );
        let Holders { counting } = holders(stamp);
        assert!(
            counting >= self.majority,
            "V9 leader {node} commits {position}, which {counting} disks hold"
        );
        self.commit(stamp, in_term)
    }

    fn commit(&mut self, last: Stamp, in_term: Term) -> usize {
        let known = self.committed_index();
        let mut news = Vec::new();
        let mut stamp = last;
        while stamp.index() > known {
            let seen = self.seen(stamp.position).expect("it was just looked up");
            if let Some(id) = seen.command {
                assert_ne!(self.proposals[id], Proposal::Refused, "V22 command {id} was refused");
            }
            news.push(Committed { stamp, in_term });
            stamp = self.stamp(Position::new(seen.previous_term, stamp.index() - 1));
        }
        assert_eq!(
            stamp, self.committed[known as usize].stamp,
            "V10 what follows does not stand on what is committed"
        );
        let count = news.len();
        self.committed.extend(news.into_iter().rev());
        count
    }

    /// The state machine of a node holds this now.
    pub fn on_state(&self, node: NodeId, state: Stamp) {
        let known = self.committed(state.index()).map(|committed| committed.stamp);
        assert_eq!(known, Some(state), "V6 node {node} applied what is not committed");
    }

    pub fn on_snapshot(&self, node: NodeId, meta: &SnapshotMeta, state: Stamp, voter_count: u64) {
        assert_eq!(
            meta.position, state.position,
            "V20 node {node} has a snapshot with another label than its state's"
        );
        let voters: Vec<NodeId> = meta.configuration.voters.iter().copied().collect();
        let expected: Vec<NodeId> = (1..=voter_count).collect();
        assert_eq!(voters, expected, "V20 node {node} has a snapshot of other members");
        let known = self.committed(state.index()).map(|committed| committed.stamp);
        assert_eq!(known, Some(state), "V19 node {node} has a snapshot of what is not committed");
    }

    pub fn acknowledge(&mut self, id: usize) {
        let Proposal::Appended(position) = self.proposals[id] else {
            panic!("V22 command {id} was {:?}, and is acknowledged", self.proposals[id]);
        };
        self.proposals[id] = Proposal::Acknowledged(position);
        self.last_acknowledged = self.last_acknowledged.max(Some(id));
    }

    /// Every command that a client was told is done is where it was said to be.
    pub fn check_acknowledged(&self) {
        for (id, proposal) in self.proposals.iter().enumerate() {
            let Proposal::Acknowledged(position) = *proposal else { continue };
            let committed = self.committed(position.index).map(|at| at.stamp.position);
            assert_eq!(committed, Some(position), "V25 acknowledged command {id} is lost");
        }
    }
}
