//! Members that come and go: the configurations that may still be in force, how many disks they can
//! do without, and the invariants of one node that concern them.
//!
//! | | |
//! |---|---|
//! | V2 | a node counts once a leader readmits it |
//! | V2 | a leader readmits a node only if its disk is recorded, or all voters were in its term |
//! | V4 | a node acts under the latest configuration of its own log |
//! | V6 | equal configurations at equal committed indexes |
//! | V25 | a leader steps down once its removal is committed |
//! | V28 | only a voter campaigns, or a learner that has refused a candidate |
//! | V28 | a leader makes no voter of a learner that recovers |
//! | V29 | an old disk of a node that has counted on another one elects no leader |
//! | V29 | an old disk is not recorded again |

use std::collections::BTreeSet;

use raft_core::consensus::{RoleKind, Status};
use raft_core::types::{Configuration, Index, Memory, NodeId, Payload, Term, Time};

use crate::coverage::What;
use crate::fault::Kind;
use crate::node::{Life, Node, View};
use crate::simulation::Simulation;

/// The learners that are to become voters.
pub fn joining(configuration: &Configuration) -> BTreeSet<NodeId> {
    let learners = configuration.learners.iter().copied();
    learners.filter(|id| configuration.wants_vote(*id)).collect()
}

/// Returns true if progress is possible, and no committed entry is lost, without the nodes that are
/// bad: in this configuration and in those that the leader makes of it on its own.
pub fn can_do_without(configuration: &Configuration, is_bad: impl Fn(NodeId) -> bool) -> bool {
    let bad = |ids: &BTreeSet<NodeId>| ids.iter().filter(|id| is_bad(**id)).count();
    let spare = |ids: &BTreeSet<NodeId>| ids.len().saturating_sub(1) / 2;
    let Configuration { voters, outgoing, .. } = configuration;
    let joining = joining(configuration);
    // A replacement leaves as many voters as there were, or more.
    let later = voters.union(&joining).copied().collect();
    bad(voters) <= spare(voters)
        && bad(outgoing) <= spare(outgoing)
        && (joining.is_empty() || bad(&later) <= spare(voters))
}

/// The last message of each voter, as far as a majority of these voters has sent one.
fn heard_by_majority(voters: &BTreeSet<NodeId>, heard: &[Time]) -> Time {
    let mut heard: Vec<Time> = voters.iter().map(|id| heard[*id as usize - 1]).collect();
    heard.sort_unstable();
    heard[heard.len() - (heard.len() / 2 + 1)]
}

/// When a quorum last sent a message.
pub fn heard_by_quorum(configuration: &Configuration, heard: &[Time]) -> Time {
    let incoming = heard_by_majority(&configuration.voters, heard);
    match configuration.is_joint() {
        true => incoming.min(heard_by_majority(&configuration.outgoing, heard)),
        false => incoming,
    }
}

impl Simulation {
    /// The latest committed configuration, and those in logs and in flight that a leader may yet
    /// commit.
    pub fn live_configurations(&self) -> Vec<Configuration> {
        let committed_index = self.oracle.committed_index();
        let mut live = vec![self.oracle.committed_configuration().clone()];
        let mut add = |one: &Configuration| {
            if !live.contains(one) {
                live.push(one.clone());
            }
        };
        for entry in self.entries_in_flight().filter(|entry| entry.index > committed_index) {
            if let Payload::Configuration(one) = &entry.payload {
                add(one);
            }
        }
        for Node { disk, life, .. } in &self.nodes {
            let log = life.as_ref().map_or(&disk.log, |life| &life.planned);
            let later = log.configurations().take_while(|(index, _)| *index > committed_index);
            later.for_each(|(_, one)| add(one));
            if let Some(life) = life
                && life.raft.last_index() > log.last_index().max(committed_index)
                && !life.raft.configuration().is_empty()
            {
                // Entries that wait for room at the disk.
                add(life.raft.configuration());
            }
        }
        live
    }

    /// Returns true if the disk of this node is lost, or its acknowledgements do not count yet. A
    /// node that joins has nothing to lose before it counts.
    pub fn is_bad(&self, id: NodeId) -> bool {
        let node = self.node(id);
        let founders = self.plan.mix.voter_count as usize;
        let is_fresh = node.is_joiner(founders) && node.disk_number == 0;
        node.lost.is_some() || node.may_be_void || (node.recovers() && !is_fresh)
    }

    /// Returns true if no last copy of a committed entry can be on this node's disk.
    pub fn tolerates_loss_of(&self, id: NodeId) -> bool {
        let is_bad = |other| other == id || self.is_bad(other);
        self.live_configurations().iter().all(|one| can_do_without(one, is_bad))
    }

    /// A node that was left behind may find that most of the voters it knows have lost their disks.
    pub fn is_superseded_alarm(&self, id: NodeId, alarm: &str) -> bool {
        let raft = self.node(id).raft().expect("it has just told");
        let is_about = |node: &Node| alarm.starts_with(&format!("node {} runs on an old", node.id));
        let is_due = self.nodes.iter().any(|node| node.was_put_back && is_about(node));
        // A clogged link delivers what a node said before it was readmitted.
        let may_be_late = self.plan.faults.iter().any(|fault| fault.kind == Kind::Clog);
        let is_left_behind = || !self.live_configurations().contains(raft.configuration());
        let is_of_lost_disks = alarm.starts_with("no leader can be elected");
        is_due || (is_of_lost_disks && (may_be_late || is_left_behind()))
    }

    /// The configuration in force in a node's log, found without the core.
    pub fn configuration_on_log(&self, id: NodeId) -> &Configuration {
        let life = self.node(id).life.as_ref().expect("the node is up");
        let start_index = life.planned.start.index();
        let latest = life.planned.configurations().next();
        latest.map_or(self.oracle.configuration_at(start_index), |(_, one)| one)
    }

    /// Checks the members that a node believes in after a step.
    pub fn check_members(&mut self, id: NodeId, before: View, status: &Status) {
        self.note_peers(id, status);
        self.note_reached_term(id, status.term);
        if before.is_recovering && !status.is_recovering {
            self.check_may_count(id, status);
        }
        self.check_left_out_leader(id, status);
        if before.role == RoleKind::Follower && status.role != RoleKind::Follower {
            self.check_may_campaign(id, before.commit_index);
        }
        self.check_configuration_in_force(id);
        let life = self.life(id);
        if life.raft.configuration() != &life.configuration {
            check_promotions(life, status);
            life.configuration = life.raft.configuration().clone();
            let members = short(&life.configuration);
            self.tell(|| format!("{id} has members {members}"));
        }
    }

    /// M-L2, 4.2.2. Only a voter of a configuration that no committed one supersedes campaigns, or
    /// a learner that has refused a candidate.
    fn check_may_campaign(&self, id: NodeId, commit_index: Index) {
        let life = self.node(id).life.as_ref().expect("it was looked at");
        let later = life.planned.configurations().take_while(|(index, _)| *index > commit_index);
        let mut later = later.map(|(_, one)| one);
        let committed = self.oracle.configuration_at(commit_index);
        assert!(
            life.raft.configuration().is_voter(id)
                || committed.is_voter(id)
                || later.any(|one| one.is_voter(id))
                || life.has_refused,
            "V28 node {id} campaigns, and is no voter"
        );
    }

    fn check_configuration_in_force(&self, id: NodeId) {
        let life = self.node(id).life.as_ref().expect("it was looked at");
        let raft = &life.raft;
        let last = raft.snapshot_meta(raft.last_index()).map(|meta| meta.position);
        // Otherwise entries have been replaced in memory, and the disk is not told yet.
        if last == Some(life.planned.last().position) && !raft.configuration().is_empty() {
            assert_eq!(
                raft.configuration(),
                self.configuration_on_log(id),
                "V4 node {id} acts under another configuration than that of its log"
            );
        }
    }

    pub fn check_committed_configuration(&self, id: NodeId, commit_index: Index) {
        let life = self.node(id).life.as_ref().expect("it was looked at");
        let committed = life.raft.committed_configuration();
        // A node that joins knows no members before it has received some.
        if !committed.is_empty() {
            let expected = self.oracle.configuration_at(commit_index);
            assert_eq!(committed, expected, "V6 node {id} has other members at {commit_index}");
        }
    }

    /// A leader learns nothing of a peer before it replicates to it.
    fn note_peers(&mut self, id: NodeId, status: &Status) {
        let own_time = self.own_time(id);
        let life = self.life(id);
        let peers: BTreeSet<NodeId> = status.peers.iter().map(|peer| peer.id).collect();
        for new in peers.difference(&life.peers) {
            life.heard[*new as usize - 1] = own_time;
            life.matches[*new as usize - 1] = 0;
        }
        life.peers = peers;
    }

    fn note_reached_term(&mut self, id: NodeId, term: Term) {
        let reached = &mut self.node_mut(id).reached_term;
        *reached = term.max(*reached);
    }

    fn check_may_count(&mut self, id: NodeId, status: &Status) {
        let Node { life, was_put_back, .. } = self.node(id);
        let was_readmitted = life.as_ref().is_some_and(|life| life.was_readmitted);
        // The record of another disk may have been truncated.
        let is_void_no_more = *was_put_back && status.memory == Memory::Intact;
        assert!(
            was_readmitted || is_void_no_more || status.memory == Memory::Met,
            "V2 node {id} counts, and no leader has readmitted it"
        );
    }

    /// A leader readmits `to`: all other voters were in its term.
    pub fn check_readmission(&self, id: NodeId, to: NodeId, term: Term) {
        let life = self.node(id).life.as_ref().expect("it has just sent something");
        let configuration = self.oracle.configuration_at(life.view.commit_index);
        // The disk that the leader knows: by now the node may have another one.
        let disk = life.disks[to as usize - 1].unwrap_or(0);
        if disk != 0 && configuration.incarnation(to) == disk {
            // It is a new learner's first disk, or the voters were in the term of the record.
            return;
        }
        for voter in configuration.voters.union(&configuration.outgoing) {
            assert!(
                [id, to].contains(voter) || self.node(*voter).reached_term >= term,
                "V2 leader {id} readmits {to} in term {term}, and {voter} was never in that term"
            );
        }
    }

    /// M-J12. A leader that is removed leads until that is committed, and for the time of a
    /// transfer after it.
    fn check_left_out_leader(&mut self, id: NodeId, status: &Status) {
        let own_time = self.own_time(id);
        let config = self.plan.mix.config(id, 0);
        let life = self.life(id);
        let raft = &life.raft;
        let term_there = raft.snapshot_meta(status.commit_index).map(|meta| meta.position.term);
        let is_left_out = status.role == RoleKind::Leader
            && term_there == Some(status.term)
            && raft.configuration() == raft.committed_configuration()
            && !raft.configuration().is_voter(id);
        if !is_left_out {
            life.left_out_since = None;
            return;
        }
        let since = *life.left_out_since.get_or_insert(own_time);
        // Clients may ask for another successor once or twice.
        let patience = 3 * config.election_timeout + 2 * config.heartbeat_interval;
        let is_awake = raft.next_deadline() > own_time;
        assert!(
            !is_awake || own_time.since(since) <= patience,
            "V25 node {id} goes on leading, and its removal is committed"
        );
    }

    /// Counts the changes that were committed after an index.
    pub fn count_changes(&mut self, committed_before: Index) {
        for (before, next) in self.oracle.configurations_after(committed_before) {
            let promoted = next.voters.difference(&before.voters).count() as u64;
            self.coverage.add(What::Promotion, promoted);
            let gone = before.members().difference(&next.members()).count() as u64;
            self.coverage.add(What::Removal, gone);
            if next.is_joint() {
                self.coverage.count(What::Joint);
            }
            if before.is_joint() && !next.is_joint() {
                self.coverage.count(What::JointLeft);
            }
        }
    }
}

/// A leader that has just appended a configuration makes no voter of a learner that it knows to
/// recover.
fn check_promotions(life: &Life, status: &Status) {
    let (before, next) = (&life.configuration, life.raft.configuration());
    for peer in &status.peers {
        assert!(
            !peer.is_recovering || before.is_voter(peer.id) || !next.is_voter(peer.id),
            "V28 leader {} makes a voter of {}, which recovers",
            status.id,
            peer.id
        );
    }
}

/// Voters, outgoing voters and learners; a learner that is to become a voter is marked.
pub fn short(configuration: &Configuration) -> String {
    let Configuration { voters, outgoing, learners, .. } = configuration;
    let joining = joining(configuration);
    let mark = |id: &NodeId| if joining.contains(id) { format!("{id}^") } else { id.to_string() };
    let learners: Vec<String> = learners.iter().map(mark).collect();
    format!("{voters:?} leaving {outgoing:?} learners {learners:?}")
}
