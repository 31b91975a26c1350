//! Members that change: the orders that a leader is given, and the steps that come before the
//! search.
//!
//! The search starts where node 1 leads term 1 (or the term after that of the logs), the nodes that
//! are no voters of the start have joined as learners, and every node has everything. So the steps
//! of the search go into the change itself: an order is given to a leader, and elections, losses
//! and wipes come between its steps.

use std::collections::VecDeque;

use raft_core::consensus::quorum::reached_by_quorum;
use raft_core::consensus::{Change, Overrides, Raft};
use raft_core::types::{Configuration, Member, Message, NodeId, Time};

use crate::node::{Input, Node};
use crate::scope::Scope;

/// A change of the members that a leader is asked for. The operator insists: a running node may go,
/// and the cluster may tolerate less than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// The node's first disk is recorded, and it becomes a learner that wants no vote.
    Add(NodeId, u64),
    Promote(NodeId),
    Demote(NodeId),
    Remove(NodeId),
    /// The first leaves, and the second takes its place.
    Replace(NodeId, NodeId),
}

/// Asks a leader for a change. A refusal changes nothing.
pub fn ask(raft: &mut Raft, now: Time, order: Order) {
    let change = match order {
        Order::Add(id, incarnation) => {
            let member = Member { incarnation, ..Member::default() };
            Change::Add { id, member }
        }
        Order::Promote(id) => Change::Promote { id },
        Order::Demote(id) => Change::Demote { id },
        Order::Remove(id) => Change::Remove { id },
        Order::Replace(old, new) => Change::Replace { old, new },
    };
    let mut overrides = Overrides::default();
    (overrides.live, overrides.less_redundancy) = (true, true);
    let _ = raft.change_members(now, &change, None, overrides);
}

/// The number of a disk: 0 for the voters of the start, whose disks are not recorded.
pub fn incarnation(scope: &Scope, id: NodeId, disk_number: u64) -> u64 {
    if scope.founders().contains(&id) { 0 } else { 100 * id + disk_number }
}

/// The members in the node's configuration file. A wiped voter of the start restarts with every old
/// file, from before the cluster was founded (M-R1). A node that joins knows none.
pub fn bootstrap(scope: &Scope, id: NodeId, disk_number: u64) -> Configuration {
    let founders = scope.founders();
    if !founders.contains(&id) {
        return Configuration::default();
    }
    let founded = !scope.is_founding && (disk_number == 0 || !scope.changes_members());
    Configuration { founded, ..Configuration::of_voters(founders) }
}

/// Returns true if the nodes that count can decide in every configuration that one of them has in
/// force, or may return to.
pub fn can_go_on(nodes: &[&Node]) -> bool {
    let counts = |id: NodeId| !nodes[id as usize - 1].raft.is_recovering();
    let decides = |configuration: &Configuration| {
        reached_by_quorum(configuration, |id| u8::from(counts(id))) > 0
    };
    let counting = nodes.iter().map(|node| &node.raft).filter(|raft| !raft.is_recovering());
    let mut known =
        counting.flat_map(|raft| [raft.configuration(), raft.committed_configuration()]);
    known.all(decides)
}

/// Lets node 1 lead, and the learners join and catch up. Every message arrives, in order.
pub fn prepare(scope: &Scope, nodes: &mut [Node]) {
    let mut stage = Stage { scope, nodes, flying: VecDeque::new() };
    stage.act(1, Input::Deadline);
    let founders = scope.founders();
    for id in scope.ids().filter(|id| !founders.contains(id)) {
        stage.act(1, Input::Change(Order::Add(id, incarnation(scope, id, 0))));
    }
    // One round of heartbeats tells of the commits, and by a second one a learner has kept up.
    stage.act(1, Input::Deadline);
    stage.act(1, Input::Deadline);
    for node in stage.nodes.iter() {
        let (status, leader) = (node.raft.status(), stage.nodes[0].raft.status());
        assert_eq!(status.leader, Some(1), "node {} follows", node.id);
        assert!(!status.is_recovering, "node {} counts", node.id);
        assert_eq!(status.commit_index, leader.last_index, "node {} has everything", node.id);
    }
}

struct Stage<'a> {
    scope: &'a Scope,
    nodes: &'a mut [Node],
    /// Messages under way: from, to, and the message.
    flying: VecDeque<(NodeId, NodeId, Message)>,
}

impl Stage<'_> {
    /// Gives an input to a node, and lets everything arrive that follows from it.
    fn act(&mut self, id: NodeId, input: Input) {
        self.act_once(id, input, None);
        while let Some((from, to, message)) = self.flying.pop_front() {
            let arrives = Input::Message { number: 0, late: false };
            self.act_once(to, arrives, Some(&(from, message)));
        }
    }

    fn act_once(&mut self, id: NodeId, input: Input, message: Option<&(NodeId, Message)>) {
        let place = id as usize - 1;
        let (mut node, mut sent) = self.nodes[place].after(self.scope, input, message);
        while !node.writing.is_empty() {
            let (written, more) = node.after(self.scope, Input::Write, None);
            node = written;
            sent.extend(more);
        }
        self.nodes[place] = node;
        self.flying.extend(sent.into_iter().map(|(to, message)| (id, to, message)));
    }
}
