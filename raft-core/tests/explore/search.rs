//! Breadth-first search through all worlds of a scope.
//!
//! A node is a function: the same node state and the same input give the same node state and the
//! same messages. So each such step runs once on the real [`Raft`](raft_core::consensus::Raft) and
//! is remembered; a step of the world is a table look-up. The first violation found has one of the
//! shortest possible histories.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use raft_core::types::{Message, MessageBody, NodeId};

use crate::common::{Envelope, Parcel, render};
use crate::fair;
use crate::members;
use crate::node::{Input, Node};
use crate::properties::{self, Facts};
use crate::scope::Scope;
use crate::world::{Action, BuildMix, Left, World};

/// The result of one input to one node state.
#[derive(Debug)]
struct Outcome {
    node: u32,
    sent: Vec<u32>,
}

/// Statistics of a search. A search with small numbers has shown nothing.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub states: u64,
    pub transitions: u64,
    /// Steps from the start to the last new state.
    pub depth: u32,
    /// True if no state of the scope is left; otherwise, all states within `depth` steps were
    /// visited.
    pub everything: bool,
    pub node_states: u64,
    pub node_steps: u64,
    pub fair_runs: u64,
    /// The largest number of entries that a node knew to be committed.
    pub committed_max: u64,
    /// The highest term that had a leader.
    pub term_led_max: u64,
    /// Node steps in which entries were replaced.
    pub truncations: u64,
    /// States in which a node leads in a joint configuration.
    pub joint: u64,
    /// States in which a node knows that a joint configuration was left.
    pub changed: u64,
    pub took: Duration,
}

pub struct Search<'a> {
    scope: &'a Scope,
    nodes: Vec<(Node, Facts)>,
    node_numbers: HashMap<u64, u32, BuildMix>,
    messages: Vec<(NodeId, NodeId, Message)>,
    message_numbers: HashMap<(NodeId, NodeId, Message), u32>,
    outcomes: HashMap<(u32, Input), Option<Rc<Outcome>>, BuildMix>,
    visited: HashSet<u64, BuildMix>,
    /// For each world, in the order of discovery: its predecessor and the action that led to it.
    found_by: Vec<(u32, Action)>,
    seen: Seen,
}

/// A newly discovered world, and its number.
type Found = (u32, World);

impl<'a> Search<'a> {
    pub fn new(scope: &'a Scope) -> Self {
        assert!(scope.heartbeats <= 4, "a leader must not get lonely by speaking");
        Self {
            scope,
            nodes: Vec::new(),
            node_numbers: HashMap::default(),
            messages: Vec::new(),
            message_numbers: HashMap::new(),
            outcomes: HashMap::default(),
            visited: HashSet::default(),
            found_by: Vec::new(),
            seen: Seen::default(),
        }
    }

    /// Visits every world, or every one within `steps_max` steps.
    ///
    /// # Errors
    /// The first violation, and the steps that lead to it.
    pub fn run(mut self) -> Result<Seen, String> {
        let mut nodes = self.scope.ids().map(|id| Node::new(self.scope, id)).collect::<Vec<_>>();
        if self.scope.changes_members() {
            members::prepare(self.scope, &mut nodes);
        }
        let nodes = nodes.into_iter().map(|node| self.number_node(node)).collect();
        let first = World { nodes, network: Vec::new(), left: Left::all_of(self.scope) };
        let mut edge: Vec<Found> = self.discover(first, None)?.into_iter().collect();
        while !edge.is_empty() && self.seen.depth < self.scope.steps_max {
            let mut next = Vec::new();
            for (number, world) in edge {
                for (action, world) in self.worlds_after(number, &world)? {
                    self.seen.transitions += 1;
                    next.extend(self.discover(world, Some((number, action)))?);
                }
            }
            self.seen.depth += u32::from(!next.is_empty());
            edge = next;
        }
        self.seen.everything = edge.is_empty();
        self.seen.node_states = self.nodes.len() as u64;
        self.seen.node_steps = self.outcomes.len() as u64;
        Ok(self.seen)
    }

    /// Checks a world unless it was visited before.
    fn discover(
        &mut self,
        world: World,
        found_by: Option<(u32, Action)>,
    ) -> Result<Option<Found>, String> {
        let fingerprint = world.fingerprint();
        if !self.visited.insert(fingerprint) {
            return Ok(None);
        }
        let number = self.found_by.len() as u32;
        // The first world has no predecessor; its entry is never read.
        let nothing = Action { node: 0, input: Input::Deadline, twice: false };
        self.found_by.push(found_by.unwrap_or((0, nothing)));
        self.seen.states += 1;
        let facts: Vec<&Facts> =
            world.nodes.iter().map(|node| &self.nodes[*node as usize].1).collect();
        if let Err(violation) = properties::check(&facts) {
            return Err(self.story(number, &violation));
        }
        let leads_jointly = |facts: &&Facts| facts.leads() && facts.is_joint;
        self.seen.joint += u64::from(facts.iter().any(leads_jointly));
        self.seen.changed += u64::from(facts.iter().any(|facts| facts.has_changed));
        for facts in facts {
            self.seen.committed_max = self.seen.committed_max.max(facts.committed.len() as u64);
            if facts.leads() {
                self.seen.term_led_max = self.seen.term_led_max.max(facts.term);
            }
        }
        if fingerprint.is_multiple_of(self.scope.fair_run_every) {
            self.run_fairly(number, &world, fingerprint / self.scope.fair_run_every)?;
        }
        Ok(Some((number, world)))
    }

    /// Requires that a fair run from this world, with all nodes or all but one, elects and commits.
    fn run_fairly(&mut self, number: u32, world: &World, chance: u64) -> Result<(), String> {
        let nodes =
            world.nodes.iter().map(|node| &self.nodes[*node as usize].0).collect::<Vec<_>>();
        let count = nodes.len() as u64;
        // A cluster that has lost a majority of its disks stands still, as it must.
        let counting = nodes.iter().filter(|node| !node.raft.is_recovering()).count();
        // So may a founding cluster of two after the loss of one disk: the other member may have
        // announced a term that it then lost in a crash.
        let is_founding = self.scope.is_founding && self.scope.lost_disks == 0;
        if self.scope.changes_members() {
            if !members::can_go_on(&nodes) {
                return Ok(());
            }
        } else if counting <= nodes.len() / 2 && !is_founding {
            return Ok(());
        }
        self.seen.fair_runs += 1;
        // A node that has lost its disk needs all others to recover.
        let recovers = nodes.iter().any(|node| node.raft.is_recovering());
        let may_cut_off = count > 2 && !recovers && !self.scope.changes_members();
        let cut_off = may_cut_off.then(|| chance % (count + 1)).filter(|id| *id != 0);
        // The messages in flight either all arrive first, or are all lost.
        let arriving: &[u32] =
            if (chance / (count + 1)).is_multiple_of(2) { &world.network[..] } else { &[] };
        let envelope = |message: &u32| {
            let (from, to, message) = self.messages[*message as usize].clone();
            Envelope { from, to, parcel: Parcel::Message(message) }
        };
        let flying = arriving.iter().map(envelope).collect();
        let run = || fair::elects_and_commits(self.scope, &nodes, flying, cut_off);
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(said(panic)));
        result.map_err(|why| {
            let what = format!("a fair run (cut off: {cut_off:?}) comes to nothing: {why}");
            self.story(number, &what)
        })
    }

    fn worlds_after(&mut self, number: u32, world: &World) -> Result<Vec<(Action, World)>, String> {
        let mut found = Vec::new();
        for action in self.actions(number, world) {
            let before = world.nodes[usize::from(action.node)];
            let leads = self.nodes[before as usize].1.leads();
            let Some(left) = world.left.after(action, leads) else { continue };
            let outcome = match self.outcome(before, action.input) {
                Ok(Some(outcome)) => outcome,
                Ok(None) => continue,
                Err(violation) => {
                    let what = format!("{}\n  {violation}", self.show(action));
                    return Err(self.story(number, &what));
                }
            };
            // At most the message would be consumed. It may as well stay in the network forever, so
            // this is no new case.
            let says_nothing_new =
                outcome.sent.iter().all(|sent| world.network.binary_search(sent).is_ok());
            if outcome.node == before && says_nothing_new {
                continue;
            }
            let mut after = World { left, ..world.clone() };
            after.nodes[usize::from(action.node)] = outcome.node;
            if let Input::Message { number, .. } = action.input
                && !action.twice
            {
                after.network.retain(|message| *message != number);
            }
            if action.input == Input::LoseDisk {
                // The network is required not to mix up two disks of one node.
                let lost = NodeId::from(action.node) + 1;
                after.network.retain(|message| {
                    let (from, to, _) = &self.messages[*message as usize];
                    *from != lost && *to != lost
                });
            }
            for sent in &outcome.sent {
                if let Err(place) = after.network.binary_search(sent) {
                    after.network.insert(place, *sent);
                }
            }
            self.forget_what_is_void(usize::from(action.node), &mut after);
            found.push((action, after));
        }
        Ok(found)
    }

    fn actions(&self, number: u32, world: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        let alike = number == 0 && self.scope.starts_alike();
        let acting_count = if alike { 1 } else { world.nodes.len() };
        for (place, node) in world.nodes.iter().enumerate().take(acting_count) {
            let node_number = place as u8;
            let mut push = |input, twice| actions.push(Action { node: node_number, input, twice });
            let facts = &self.nodes[*node as usize].1;
            push(Input::Deadline, false);
            if facts.leads() {
                push(Input::Propose, false);
                self.scope.orders.iter().for_each(|order| push(Input::Change(*order), false));
            }
            // A founding member also wakes up to send its founding messages, more often than to
            // campaign.
            let is_founding = self.scope.is_founding && facts.term == 0;
            if is_founding || facts.leads() && self.scope.check_quorum {
                push(Input::Lonely, false);
            }
            if facts.batches_at_disk > 0 {
                push(Input::Write, false);
            }
            for written in 0..=facts.batches_at_disk as u8 {
                push(Input::Restart { written }, false);
            }
            push(Input::LoseDisk, false);
            for number in &world.network {
                let (_, to, message) = &self.messages[*number as usize];
                if *to != place as NodeId + 1 {
                    continue;
                }
                let number = *number;
                for twice in [false, true] {
                    push(Input::Message { number, late: false }, twice);
                    let asks = matches!(
                        message.body,
                        MessageBody::RequestPreVote { .. } | MessageBody::RequestVote { .. }
                    );
                    if asks && self.scope.check_quorum {
                        push(Input::Message { number, late: true }, twice);
                    }
                }
            }
        }
        actions
    }

    /// Drops the messages that the node that just acted will never act on, not even after a crash.
    fn forget_what_is_void(&self, place: usize, world: &mut World) {
        let facts = &self.nodes[world.nodes[place] as usize].1;
        world.network.retain(|number| {
            let (_, to, message) = &self.messages[*number as usize];
            *to != place as NodeId + 1 || !facts.never_heeds(message)
        });
    }

    /// Returns `None` if the input leads out of the scope.
    fn outcome(&mut self, before: u32, input: Input) -> Result<Option<Rc<Outcome>>, String> {
        if let Some(known) = self.outcomes.get(&(before, input)) {
            return Ok(known.clone());
        }
        let node = &self.nodes[before as usize].0;
        let message = match input {
            Input::Message { number, .. } => {
                let (from, _, message) = &self.messages[number as usize];
                Some((*from, message.clone()))
            }
            _ => None,
        };
        let scope = self.scope;
        let step = || node.after(scope, input, message.as_ref());
        let (after, sent) = catch_unwind(AssertUnwindSafe(step)).map_err(said)?;
        let outcome = if after.raft.term() > scope.term_max {
            None
        } else {
            let from = after.id;
            let arrives = |message: &Message| {
                scope.heartbeats_arrive || !matches!(message.body, MessageBody::Heartbeat { .. })
            };
            let sent = sent.into_iter().filter(|(_, message)| arrives(message));
            let sent = sent.map(|(to, message)| self.number_message(from, to, message)).collect();
            let node = self.number_node(after);
            let (old, new) = (&self.nodes[before as usize].1, &self.nodes[node as usize].1);
            let restarts = matches!(input, Input::Restart { .. } | Input::LoseDisk);
            if !restarts && !new.memory.starts_with(&old.memory) {
                self.seen.truncations += 1;
            }
            Some(Rc::new(Outcome { node, sent }))
        };
        self.outcomes.insert((before, input), outcome.clone());
        Ok(outcome)
    }

    fn number_node(&mut self, node: Node) -> u32 {
        let next = self.nodes.len() as u32;
        let number = *self.node_numbers.entry(node.fingerprint(self.scope)).or_insert(next);
        if number == next {
            let facts = Facts::of(&node);
            self.nodes.push((node, facts));
        }
        number
    }

    fn number_message(&mut self, from: NodeId, to: NodeId, message: Message) -> u32 {
        let next = self.messages.len() as u32;
        let envelope = (from, to, message);
        let number = *self.message_numbers.entry(envelope.clone()).or_insert(next);
        if number == next {
            self.messages.push(envelope);
        }
        number
    }

    /// Describes the steps that lead to a world, and the violation there.
    fn story(&self, number: u32, what: &str) -> String {
        let mut steps = Vec::new();
        let mut at = number;
        while at != 0 {
            let (from, action) = self.found_by[at as usize];
            steps.push(action);
            at = from;
        }
        let Scope { name, logs, .. } = self.scope;
        let mut story = format!("scope {name}, {} steps from the logs {logs:?}:\n", steps.len());
        for action in steps.iter().rev() {
            writeln!(story, "  {}", self.show(*action)).expect("a string takes it");
        }
        write!(story, "  {what}").expect("a string takes it");
        story
    }

    fn show(&self, action: Action) -> String {
        let node = action.node + 1;
        match action.input {
            Input::Message { number, late } => {
                let (from, to, message) = &self.messages[number as usize];
                let late = if late { ", late" } else { "" };
                let twice = if action.twice { ", and is still under way" } else { "" };
                format!("{from} -> {to}  {}{late}{twice}", render::message(message))
            }
            Input::Deadline => format!("{node}: its deadline passes"),
            Input::Lonely => format!("{node}: has not heard a quorum"),
            Input::Propose => format!("{node}: takes a proposal"),
            Input::Change(order) => format!("{node}: is asked to {order:?}"),
            Input::Write => format!("{node}: the disk writes a batch"),
            Input::Restart { written } => format!("{node}: restarts, {written} batches survive"),
            Input::LoseDisk => format!("{node}: restarts on an empty disk"),
        }
    }
}

/// The message of a failed assertion.
fn said(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a panic without words".to_owned())
}
