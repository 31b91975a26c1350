//! A fair run from one state of the search: disks write, messages arrive, timers fire. A majority
//! must then elect a leader, and the leader must commit.

use std::collections::{BTreeMap, VecDeque};

use raft_core::consensus::Config;
use raft_core::types::{NodeId, Payload};

use crate::common::{Cluster, Envelope};
use crate::node::{AFTERWARDS, Node};
use crate::scope::Scope;

/// # Errors
/// The step that the cluster did not reach, or an alarm that a node raised.
pub fn elects_and_commits(
    scope: &Scope,
    nodes: &[&Node],
    flying: VecDeque<Envelope>,
    cut_off: Option<NodeId>,
) -> Result<(), String> {
    let mut cluster = cluster_of(scope, nodes);
    // Added to the messages that the writes in `cluster_of` released.
    cluster.flying.extend(flying);
    if let Some(id) = cut_off {
        cluster.isolate(id);
    }
    let connected: Vec<NodeId> = scope.ids().filter(|id| Some(*id) != cut_off).collect();
    let followed = |cluster: &Cluster| {
        let leads = |id: &NodeId| cluster.status(*id).leader == Some(*id);
        let mut leaders = connected.iter().copied().filter(leads);
        leaders.find(|leader| is_followed(cluster, *leader, &connected))
    };
    let leader = within(&mut cluster, 20_000, followed).ok_or("nobody is elected")?;
    let position = cluster.propose(leader, "last").map_err(|rejected| rejected.to_string())?;
    let done = |cluster: &Cluster| {
        let holds = |id: &NodeId| {
            let applied = &cluster.node(*id).machine.applied;
            // More may follow, if a change of the members goes on.
            applied.iter().any(|entry| {
                entry.position() == position && matches!(entry.payload, Payload::Command(_))
            }) && !cluster.raft(*id).is_recovering()
        };
        members(cluster, cluster.leader()?, &connected).all(holds).then_some(())
    };
    within(&mut cluster, 5_000, done).ok_or("the last command is not applied everywhere")?;
    let alarms = cluster.nodes.values().flat_map(|node| &node.alarms).next();
    alarms.map_or(Ok(()), |alarm| Err(alarm.clone()))
}

/// The members among the connected nodes, as the leader knows.
fn members<'a>(
    cluster: &'a Cluster,
    leader: NodeId,
    connected: &'a [NodeId],
) -> impl Iterator<Item = &'a NodeId> {
    let members = cluster.raft(leader).configuration().members();
    connected.iter().filter(move |id| members.contains(id))
}

/// Returns true if all members follow the leader, and no change of the members is under way.
fn is_followed(cluster: &Cluster, leader: NodeId, connected: &[NodeId]) -> bool {
    let (raft, mut members) = (cluster.raft(leader), members(cluster, leader, connected));
    let configuration = raft.configuration();
    let is_settled = !configuration.is_joint() && raft.configuration_stage().is_committed;
    is_settled
        && configuration.is_voter(leader)
        && members.all(|id| cluster.status(*id).leader == Some(leader))
}

/// Lets time pass until `answer` returns a value, or for `millis`.
fn within<T>(
    cluster: &mut Cluster,
    millis: u64,
    answer: impl Fn(&Cluster) -> Option<T>,
) -> Option<T> {
    const STEP_MS: u64 = 100;
    for _ in 0..millis / STEP_MS {
        cluster.run(STEP_MS);
        let found = answer(cluster);
        if found.is_some() {
            return found;
        }
    }
    None
}

/// A cluster of these nodes, with an oracle that starts observing now.
fn cluster_of(scope: &Scope, nodes: &[&Node]) -> Cluster {
    let disks: BTreeMap<_, _> = nodes.iter().map(|node| (node.id, node.disk.clone())).collect();
    let configured = scope.clone();
    let configure = move |config: &mut Config| configured.configure(config);
    let lost_disks = nodes.iter().filter(|node| !node.lost.is_empty()).count();
    let mut cluster = Cluster::with_lost_disks(lost_disks, disks, configure);
    cluster.now = AFTERWARDS;
    for node in nodes {
        let slot = cluster.nodes.get_mut(&node.id).expect("one for each disk");
        node.writing.iter().for_each(|persist| slot.log.write(&persist.batch));
        slot.writing = node.writing.clone();
        slot.machine = node.machine.clone();
        slot.raft = Some(node.raft.clone());
        slot.marks = None;
    }
    for node in nodes {
        while cluster.write(node.id) {}
    }
    cluster
}
