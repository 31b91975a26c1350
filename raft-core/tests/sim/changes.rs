//! Operators: they add nodes, and ask the leader for changes of the members. They are careful where
//! disks are lost, and careless otherwise.

use bytes::Bytes;
use raft_core::consensus::{Change, Overrides};
use raft_core::types::{Configuration, Member, NodeId};

use crate::coverage::What;
use crate::disk::Disk;
use crate::members::{can_do_without, short};
use crate::node::Node;
use crate::simulation::Simulation;

/// A node that is stopped for good.
const FOR_EVER_US: u64 = u64::MAX / 2;

impl Simulation {
    /// The identity of a new disk.
    pub fn draw_incarnation(&mut self) -> u64 {
        match self.plan.mix.changes {
            0 => 0,
            _ => self.operators.next() | 1,
        }
    }

    /// An operator asks this node for a change.
    pub fn change_something(&mut self, id: NodeId) {
        if self.operators.percent(5) {
            return self.stop_a_removed_node();
        }
        let raft = self.node(id).raft().expect("it was chosen");
        let configuration = raft.configuration().clone();
        if configuration.is_empty() {
            return;
        }
        let Some(change) = self.draw_change(&configuration) else { return };
        let mut overrides = Overrides::default();
        overrides.live = self.operators.percent(70);
        overrides.less_redundancy = self.operators.percent(40);
        let expected = self.operators.percent(30).then_some(&configuration);
        if !self.is_careful(id, &change, expected, overrides) {
            return;
        }
        let last_index = self.life(id).raft.last_index();
        let result =
            self.with(id, |raft, now| raft.change_members(now, &change, expected, overrides));
        self.tell(|| format!("{id} is asked for {change:?}: {result:?}"));
        match result {
            Ok(position) if position.index > last_index => self.coverage.count(What::Change),
            Ok(_) => {}
            Err(_) => self.coverage.count(What::ChangeRefused),
        }
    }

    fn draw_change(&mut self, configuration: &Configuration) -> Option<Change> {
        let members: Vec<NodeId> = configuration.members().into_iter().collect();
        let learners: Vec<NodeId> = configuration.learners.iter().copied().collect();
        let voters: Vec<NodeId> = configuration.voters.iter().copied().collect();
        let nodes = self.nodes.len();
        let operators = &mut self.operators;
        // Sometimes a node that is no member.
        let any = 1 + operators.below(nodes) as u64;
        let id = if operators.percent(10) { any } else { *operators.pick(&members) };
        let learner = if learners.is_empty() { id } else { *operators.pick(&learners) };
        let voter = *operators.pick(&voters);
        Some(match operators.below(16) {
            0..4 => return self.draw_addition(configuration),
            4..6 => Change::Promote { id: learner },
            6..8 => Change::Demote { id },
            8..11 => Change::Replace { old: voter, new: learner },
            11..14 => Change::Remove { id },
            14 => {
                let context = Bytes::from(format!("context {}", operators.below(1000)));
                match operators.percent(30) {
                    true => Change::SetClusterContext { context },
                    false => Change::SetContext { id, context },
                }
            }
            _ => {
                let other = operators.next() | 1;
                // Rather a node with an empty disk, if there is one.
                let wiped = members.iter().copied().find(|id| self.is_bad(*id));
                let id = wiped.unwrap_or(learner);
                let incarnation = match self.node(id).incarnation {
                    0 => other,
                    own => own,
                };
                Change::Bind { id, incarnation }
            }
        })
    }

    /// A node with the next id, which is created if it does not exist yet. It exists if an earlier
    /// attempt to add it has failed.
    fn draw_addition(&mut self, configuration: &Configuration) -> Option<Change> {
        let id = configuration.fresh_id();
        if id > self.plan.mix.nodes_max() {
            return None;
        }
        if id > self.nodes.len() as u64 {
            self.create_joiner(id);
        }
        let incarnation = match self.operators.percent(15) {
            // To be recorded later.
            true => 0,
            false => self.node(id).incarnation,
        };
        let wants_vote = self.operators.percent(75);
        Some(Change::Add { id, member: Member { incarnation, wants_vote, context: Bytes::new() } })
    }

    fn create_joiner(&mut self, id: NodeId) {
        assert_eq!(id, self.nodes.len() as u64 + 1, "V28 ids are given out in order");
        let mut node = Node::of_plan(&self.plan, id, Disk::default());
        node.incarnation = self.draw_incarnation();
        self.nodes.push(node);
        self.coverage.count(What::Joiner);
        self.start(id);
    }

    /// Operators do not change the voters to a set of which too many disks are lost: no later
    /// leader could be elected, and no rule of the core prevents it.
    fn is_careful(
        &self,
        id: NodeId,
        change: &Change,
        expected: Option<&Configuration>,
        overrides: Overrides,
    ) -> bool {
        let mut trial = self.node(id).raft().expect("it was chosen").clone();
        let now = self.own_time(id);
        let result = trial.change_members(now, change, expected, overrides);
        result.is_err() || can_do_without(trial.configuration(), |other| self.is_bad(other))
    }

    fn stop_a_removed_node(&mut self) {
        let is_running = |id: &NodeId| self.oracle.is_removed(*id) && self.node(*id).is_up();
        let running: Vec<NodeId> = self.ids().into_iter().filter(is_running).collect();
        if !running.is_empty() {
            let id = *self.operators.pick(&running);
            self.stop(id);
        }
    }

    /// Stops a node for good.
    pub fn stop(&mut self, id: NodeId) {
        self.tell(|| format!("{id} is stopped"));
        self.node_mut(id).down_us = FOR_EVER_US;
        self.crash(id);
        // Makes a restart that is already scheduled ineffective.
        self.node_mut(id).life_number += 1;
    }

    pub fn tell_members(&mut self) {
        let members = short(self.oracle.committed_configuration());
        self.tell(|| format!("the members are {members}"));
    }
}
