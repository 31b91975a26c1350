//! The invariants that span nodes, checked by observing all nodes at once.
//!
//! | | |
//! |---|---|
//! | V1 | one leader in a term, elected by durable and counted votes of a majority |
//! | V2 | one vote of each voter in a term, on disk before it is sent |
//! | V4 | a position has the same entry and the same history on every node |
//! | V5 | a new leader's log holds every committed entry |
//! | V6, V10 | a committed index has one entry forever, and that one is applied |
//! | V9 | a leader commits at an entry of its own term, on a majority of disks (lost ones count) |
//! | V13 | a read observes every entry that was committed when it was requested |
//! | V19, V20 | a snapshot is the state at its position, with the configuration in force there |
//! | V22 | a command that was surely not executed is in no log |
//! | V28 | voters change by joint configurations only, and no id of a removed node comes back |
//!
//! Where members change, a majority is one of the configuration in force: in the log of the leader
//! that is elected, or at the entry that is committed. The oracle reads both from the entries
//! themselves, and not from the core.
//!
//! Invariants of one node between two of its steps (V3, V7, V8, V11, V24) are in `watch`.

use std::collections::{BTreeMap, BTreeSet};

use raft_core::consensus::invariants::{self, Violation};
use raft_core::types::{
    Configuration, Entry, HardState, Index, NodeId, Payload, Position, SnapshotMeta, Term,
};

use crate::chain::{Stamp, Stamped};
use crate::node::Node;
use crate::workload::command_id;

/// Fails the run if a property of `node` does not hold. A failing run is made smaller as long as
/// the failure begins with the same number.
#[track_caller]
pub fn must(number: &str, node: NodeId, result: Result<(), Violation>) {
    if let Err(violation) = result {
        panic!("{number} node {node}: {violation}");
    }
}

/// An entry that was in a log.
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
    /// The term of the leader that committed it.
    pub in_term: Term,
}

/// The outcome of a command, as reported to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Not appended: it must be in no log.
    Refused,
    Appended(Position),
    /// The client will not learn the outcome.
    Unknown(Position),
    /// Applied, and reported to the client.
    Acknowledged(Position),
}

/// The voter's state when it sends a vote.
#[derive(Debug)]
pub struct Voter {
    hard_state: HardState,
    disk_number: u64,
    recovers: bool,
}

impl Voter {
    pub fn new(node: &Node, recovers: bool) -> Self {
        let recovers = recovers || node.is_old;
        Self { hard_state: node.disk.hard_state, disk_number: node.disk_number, recovers }
    }
}

/// A vote that its node has sent.
#[derive(Clone, Copy, Debug)]
struct Vote {
    candidate: NodeId,
    /// Disks that the candidate had lost before; with the next loss its candidacy ends.
    candidate_disk: u64,
    counts: bool,
}

/// The nodes that have an entry on disk.
#[derive(Clone, Debug)]
pub struct Holders {
    /// The holders, without those that are recovering.
    pub counting: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub struct Oracle {
    /// The members of the start.
    bootstrap: Configuration,
    /// Every configuration that was in a log.
    seen_configurations: BTreeMap<Position, Configuration>,
    /// The committed ones, by the index of their entry.
    configurations: BTreeMap<Index, Configuration>,
    /// Nodes that a committed configuration has removed.
    removed: BTreeSet<NodeId>,
    leaders: BTreeMap<Term, NodeId>,
    /// Number of disks that each node has lost.
    lost_disks: BTreeMap<NodeId, u64>,
    /// By term, voter, and the voter's disk.
    votes: BTreeMap<(Term, NodeId, u64), Vote>,
    /// Every entry seen, by index.
    seen: Vec<Vec<Seen>>,
    /// By index. The first element stands for the position before the first entry.
    committed: Vec<Committed>,
    /// By the command's number.
    pub proposals: Vec<Proposal>,
    /// The number of the newest acknowledged command.
    pub last_acknowledged: Option<usize>,
}

impl Oracle {
    pub fn new(bootstrap: Configuration) -> Self {
        Self {
            bootstrap,
            seen_configurations: BTreeMap::new(),
            configurations: BTreeMap::new(),
            removed: BTreeSet::new(),
            leaders: BTreeMap::new(),
            lost_disks: BTreeMap::new(),
            votes: BTreeMap::new(),
            seen: vec![Vec::new()],
            committed: vec![Committed { stamp: Stamp::ZERO, in_term: 0 }],
            proposals: Vec::new(),
            last_acknowledged: None,
        }
    }

    /// The configuration in force at a committed index.
    pub fn configuration_at(&self, index: Index) -> &Configuration {
        self.configurations.range(..=index).next_back().map_or(&self.bootstrap, |(_, one)| one)
    }

    /// The latest committed configuration.
    pub fn committed_configuration(&self) -> &Configuration {
        self.configuration_at(Index::MAX)
    }

    /// The configurations committed after an index, each with the one that it replaced.
    pub fn configurations_after(
        &self,
        index: Index,
    ) -> impl Iterator<Item = (&Configuration, &Configuration)> {
        let later = self.configurations.range(index + 1..);
        later.map(|(at, one)| (self.configuration_at(at - 1), one))
    }

    /// Returns true once the log, and no longer the operators' files, says who the members are.
    pub fn has_changed_members(&self) -> bool {
        self.committed_configuration().next_id > 0
    }

    pub fn is_removed(&self, id: NodeId) -> bool {
        self.removed.contains(&id)
    }

    /// Returns true if a committed configuration has recorded this disk of a member.
    pub fn has_recorded(&self, id: NodeId, incarnation: u64) -> bool {
        self.configurations.values().any(|one| one.incarnation(id) == incarnation)
    }

    /// The configuration in force at a position that a log held, and the position of its entry. If
    /// it was committed before, the position of the last committed entry stands for it.
    fn configuration_of(&self, mut position: Position) -> (Position, &Configuration) {
        while position.index > self.committed_index() {
            if let Some(configuration) = self.seen_configurations.get(&position) {
                return (position, configuration);
            }
            let seen = self.seen(position).expect("a log held it");
            position = Position::new(seen.previous_term, position.index - 1);
        }
        (position, self.configuration_at(position.index))
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

    /// Returns true if an entry at this position was written or sent.
    pub fn has_seen(&self, position: Position) -> bool {
        position == Position::ZERO || self.seen(position).is_some()
    }

    /// The stamp of a position that a log held.
    pub fn stamp(&self, position: Position) -> Stamp {
        if position == Position::ZERO {
            return Stamp::ZERO;
        }
        let Some(Seen { chain, .. }) = self.seen(position) else {
            panic!("V4 nobody ever had an entry at {position}");
        };
        Stamp { position, chain }
    }

    /// A node's log holds these entries after `previous`. Returns them with their stamps.
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

    /// A message contains these entries after `previous`.
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
            let (known, seen) = (&known.chain, &stamp.chain);
            return must("V4", node, invariants::log_matching_at(position, known, seen));
        }
        let command = match &entry.payload {
            Payload::Command(command) => Some(command_id(command)),
            Payload::Noop => None,
            Payload::Configuration(configuration) => {
                self.seen_configurations.insert(position, Configuration::clone(configuration));
                None
            }
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

    /// Number of disks that a node has lost so far.
    pub fn disk_of(&self, id: NodeId) -> u64 {
        self.lost_disks.get(&id).copied().unwrap_or(0)
    }

    /// Node `id` sends its vote.
    pub fn on_vote(&mut self, id: NodeId, candidate: NodeId, term: Term, voter: &Voter) {
        let Voter { hard_state, disk_number, recovers } = *voter;
        must("V2", id, invariants::vote_is_durable(id, candidate, term, &hard_state));
        let new = Vote { candidate, candidate_disk: self.disk_of(candidate), counts: !recovers };
        let vote = self.votes.entry((term, id, disk_number)).or_insert(new);
        must("V2", id, invariants::one_vote_in_a_term(id, term, vote.candidate, candidate));
        vote.counts |= new.counts;
        vote.candidate_disk = new.candidate_disk;
        // A node that recovered under a leader repeats its vote for that leader, which elects no
        // other.
        if self.leaders.get(&term) != Some(&candidate) {
            let mut before = self.votes.range((term, id, 0)..(term, id, disk_number));
            // Votes that were lost with their candidate are void: one for the voter itself, or one
            // for a candidate that has lost its disk since, as when a cluster is founded again
            // after a failed first attempt.
            // Also one for a candidate whose removal is committed (R2): a node that has
            // acknowledged the removal does not vote for a log without it.
            let is_void = |vote: &Vote| {
                vote.candidate_disk != self.disk_of(vote.candidate)
                    || self.is_removed(vote.candidate)
            };
            assert!(
                recovers
                    || before.all(|(_, vote)| !vote.counts
                        || [id, candidate].contains(&vote.candidate)
                        || is_void(vote)),
                "V2 node {id} voted twice in term {term}, on two disks"
            );
        }
    }

    /// `configuration` is in force in the new leader's log, and `holds` returns true if that log
    /// contains a position.
    pub fn on_leader(
        &mut self,
        node: NodeId,
        term: Term,
        voter: &Voter,
        configuration: &Configuration,
        holds: impl Fn(Position) -> bool,
    ) {
        let leader = *self.leaders.entry(term).or_insert(node);
        must("V1", node, invariants::election_safety(term, leader, node));
        let votes = self.votes.range((term, 0, 0)..=(term, NodeId::MAX, u64::MAX));
        // The leader's own vote is counted only from the disk with which it leads.
        let is_gone = |id: NodeId, disk| id == node && disk != voter.disk_number;
        let votes: Vec<_> = votes
            .filter(|((_, voter, disk), vote)| vote.candidate == node && !is_gone(*voter, *disk))
            .collect();
        let voters = votes.iter().filter(|(_, vote)| vote.counts).map(|((_, id, _), _)| *id);
        let voters = voters.collect::<BTreeSet<_>>();
        let voted = |id| voters.contains(&id);
        must("V1", node, invariants::elected_by_quorum(configuration, node, term, voted));
        let last = self.committed.iter().rfind(|committed| committed.in_term < term);
        let Committed { stamp: Stamp { position, .. }, in_term } = *last.expect("position zero");
        let is_held = holds(position);
        must("V5", node, invariants::leader_completeness(term, position, in_term, is_held));
    }

    /// A node's commit index has reached `position`, and `in_force` is its latest configuration.
    /// Returns the number of newly committed entries.
    pub fn on_commit(
        &mut self,
        node: NodeId,
        leads: Option<Term>,
        position: Position,
        in_force: &Configuration,
        holders: impl Fn(Stamp) -> Holders,
    ) -> usize {
        let stamp = self.stamp(position);
        if let Some(known) = self.committed(position.index) {
            let safety = invariants::state_machine_safety(position.index, &known.stamp, &stamp);
            must("V6", node, safety);
            return 0;
        }
        let Some(in_term) = leads else {
            panic!("V9 node {node} knows {position} committed before any leader does");
        };
        must("V9", node, invariants::committed_in_own_term(in_term, position));
        let (since, configuration) = self.configuration_of(position);
        let by_quorum = |configuration: &Configuration, stamp: Stamp| {
            let counting = holders(stamp).counting;
            let holds = |id| counting.contains(&id);
            must("V9", node, invariants::committed_by_quorum(configuration, stamp.position, holds));
        };
        if configuration.is_joint() && !in_force.is_joint() {
            // The leader has appended the configuration that leaves the joint one. From then on the
            // new half commits alone, after both halves have committed the joint configuration.
            if since.index > self.committed_index() {
                by_quorum(configuration, self.stamp(since));
            }
            let alone = Configuration { outgoing: BTreeSet::new(), ..configuration.clone() };
            by_quorum(&alone, stamp);
        } else {
            by_quorum(configuration, stamp);
        }
        self.commit(node, stamp, in_term)
    }

    fn commit(&mut self, node: NodeId, last: Stamp, in_term: Term) -> usize {
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
        for committed in news.into_iter().rev() {
            if let Some(one) = self.seen_configurations.get(&committed.stamp.position) {
                self.commit_configuration(node, committed.stamp.index(), one.clone());
            }
            self.committed.push(committed);
        }
        count
    }

    fn commit_configuration(&mut self, node: NodeId, index: Index, next: Configuration) {
        let before = self.committed_configuration();
        let members = next.members();
        assert!(next.is_consistent(), "V28 node {node} commits a contradiction: {next:?}");
        assert!(next.next_id >= before.next_id, "V28 node {node} gives ids out again: {next:?}");
        assert!(
            self.removed.is_disjoint(&members),
            "V28 node {node} commits {next:?}, and {:?} were removed",
            self.removed
        );
        assert!(
            !before.is_joint() || next.voters == before.voters,
            "V28 node {node} leaves {before:?} for {next:?}"
        );
        assert!(
            next.voters == before.voters || next.is_joint(),
            "V28 node {node} changes the voters {before:?} to {next:?} in one step"
        );
        assert!(
            !next.is_joint() || next.outgoing == before.voters,
            "V28 node {node} leaves other voters than those of {before:?}: {next:?}"
        );
        let is_new = |id: &NodeId| {
            let disk = next.incarnation(*id);
            disk == before.incarnation(*id) || !self.has_recorded(*id, disk)
        };
        assert!(
            before.members().intersection(&members).all(is_new),
            "V29 node {node} records an old disk, or none, of a member: {before:?}, {next:?}"
        );
        self.removed.extend(before.members().difference(&members));
        self.configurations.insert(index, next);
    }

    /// The state machine of a node has this state now.
    pub fn on_state(&self, node: NodeId, state: Stamp) {
        let Some(Committed { stamp, .. }) = self.committed(state.index()) else {
            panic!("V6 node {node} applied {state:?}, which is not committed");
        };
        must("V6", node, invariants::state_machine_safety(state.index(), &stamp, &state));
    }

    pub fn on_snapshot(&self, node: NodeId, meta: &SnapshotMeta, state: Stamp) {
        must("V20", node, invariants::snapshot_is_of_its_position(meta, state.position));
        assert_eq!(
            *meta.configuration,
            *self.configuration_at(state.index()),
            "V20 node {node} has a snapshot of other members"
        );
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

    /// Checks that every acknowledged command is committed at the position that the client was
    /// told.
    pub fn check_acknowledged(&self) {
        for (id, proposal) in self.proposals.iter().enumerate() {
            let Proposal::Acknowledged(position) = *proposal else { continue };
            let committed = self.committed(position.index).map(|at| at.stamp.position);
            assert_eq!(committed, Some(position), "V25 acknowledged command {id} is lost");
        }
    }
}
