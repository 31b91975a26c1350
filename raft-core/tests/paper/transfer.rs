//! Section 3.10: leadership transfer.

use raft_core::consensus::Config;
use raft_core::consensus::RoleKind::{Candidate, Follower, Leader};
use raft_core::error::Rejected;
use raft_core::types::{Message, MessageBody, NodeId};

use crate::common::{Cluster, say};

fn led() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster
}

fn transfer(cluster: &mut Cluster, to: impl Into<Option<NodeId>>) -> Result<(), Rejected> {
    let to = to.into();
    cluster.with(1, |raft, now| raft.transfer_leadership(now, to))
}

fn told(cluster: &mut Cluster) -> Vec<NodeId> {
    let sent = cluster.sent_by(1);
    let told = |(to, message): &(NodeId, Message)| {
        matches!(message.body, MessageBody::TimeoutNow { .. }).then_some(*to)
    };
    sent.iter().filter_map(told).collect()
}

/// X1: an up-to-date successor is told at once and campaigns at once, without pre-vote. The voters
/// do not stick to their leader, because the leader wants the transfer.
#[test]
fn x1_to_an_up_to_date_node() {
    let mut cluster = led();
    let now = cluster.now;
    transfer(&mut cluster, 2).expect("another voter");
    cluster.settle();
    assert_eq!((cluster.role(1), cluster.role(2), cluster.raft(2).term()), (Follower, Leader, 2));
    assert_eq!(cluster.now, now, "nobody waited for a timeout");
}

/// X1: if no successor is named, the leader chooses the voter with the highest match_index.
#[test]
fn x1_to_whoever_is_furthest() {
    let mut cluster = led();
    cluster.partition_link(1, 3);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    transfer(&mut cluster, None).expect("there are others");
    assert_eq!(told(&mut cluster), [2]);
}

/// X2: a lagging successor is caught up first.
#[test]
fn x2_to_a_slow_node() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    transfer(&mut cluster, 2).expect("another voter");
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2));
    assert!(cluster.node(2).machine.last_applied().index >= 3);
}

/// X2: also by a snapshot.
#[test]
fn x2_after_a_snapshot() {
    let mut cluster = led();
    cluster.crash(3, 0);
    cluster.with(1, |raft, now| raft.on_unreachable(now, 3));
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.snapshot(1);
    cluster.compact(1, 2);
    cluster.start(3);
    transfer(&mut cluster, 3).expect("another voter");
    cluster.run(200);
    assert_eq!(cluster.leader(), Some(3));
}

/// X3: a transfer to the leader itself or to a node that is no member is rejected.
#[test]
fn x3_to_nobody() {
    let mut cluster = led();
    for to in [1, 9] {
        assert!(transfer(&mut cluster, to).is_err());
        cluster.propose(1, "a").expect("it goes on leading");
    }
    let rejected = cluster.with(2, |raft, now| raft.transfer_leadership(now, Some(3)));
    assert_eq!(rejected, Err(Rejected::NotLeader { leader: Some(1) }));
    let mut alone = Cluster::new(1);
    alone.elect(1);
    assert!(transfer(&mut alone, None).is_err());
}

/// X5: during a transfer proposals are rejected, and nothing of them is appended.
#[test]
fn x5_no_proposals_meanwhile() {
    let mut cluster = led();
    transfer(&mut cluster, 2).expect("another voter");
    let before = cluster.status(1).last_index;
    assert!(matches!(cluster.propose(1, "a"), Err(Rejected::Busy(_))));
    assert_eq!(cluster.status(1).last_index, before);
    cluster.settle();
    cluster.propose(2, "a").expect("the successor takes them");
}

/// X4: the successor does not respond; after an election timeout the leader accepts proposals
/// again.
#[test]
fn x4_the_successor_is_dead() {
    let mut cluster = led();
    cluster.crash(2, 0);
    transfer(&mut cluster, 2).expect("another voter");
    assert!(matches!(cluster.propose(1, "a"), Err(Rejected::Busy(_))));
    cluster.run(310);
    assert_eq!(cluster.role(1), Leader);
    cluster.propose(1, "a").expect("it leads again");
}

/// X6: the election of another node ends the transfer, as it ends any leadership.
#[test]
fn x6_a_higher_term_ends_it() {
    let mut cluster = led();
    transfer(&mut cluster, 2).expect("another voter");
    cluster.step(3, 1, say::heartbeat(9, 1, 0));
    assert_eq!((cluster.role(1), cluster.status(1).leader), (Follower, Some(3)));
}

/// X8: a second transfer to the same node does not extend the first; one to another node replaces
/// it.
#[test]
fn x8_a_second_transfer() {
    let mut cluster = led();
    cluster.crash(2, 0);
    transfer(&mut cluster, 2).expect("another voter");
    cluster.run(200);
    transfer(&mut cluster, 2).expect("the same");
    cluster.run(110);
    cluster.propose(1, "a").expect("the first deadline counted");
    cluster.settle();
    transfer(&mut cluster, 2).expect("another voter");
    transfer(&mut cluster, 3).expect("yet another");
    cluster.settle();
    assert_eq!(cluster.leader(), Some(3));
}

/// X9: `TimeoutNow` is obeyed only if it comes from the leader, in its term, and only by a
/// follower.
#[test]
fn x9_timeout_now_from_others_is_ignored() {
    let mut cluster = led();
    cluster.step(3, 2, say::timeout_now(1));
    cluster.step(3, 1, say::timeout_now(1));
    cluster.step(1, 2, say::timeout_now(0));
    assert_eq!((cluster.role(1), cluster.role(2)), (Leader, Follower));
    cluster.step(1, 2, say::timeout_now(1));
    assert_eq!(cluster.role(2), Candidate);
}

/// The nodes that are to lead only if no other voter can.
fn avoid(cluster: &mut Cluster, avoided: &[NodeId]) {
    for id in cluster.ids() {
        cluster.with(id, |raft, _| raft.avoid_as_leaders(avoided.iter().copied().collect()));
    }
}

/// A leader that is to be stopped hands over to the one that is not, although both are as far.
#[test]
fn a_leader_that_is_avoided_leaves() {
    let mut cluster = led();
    avoid(&mut cluster, &[1, 2]);
    cluster.run(1_000);
    assert_eq!(cluster.leader(), Some(3));
    // It stays, also when it is no longer one of two.
    avoid(&mut cluster, &[]);
    cluster.run(10_000);
    assert_eq!((cluster.leader(), cluster.raft(3).term()), (Some(3), 2));
}

/// A node that is avoided leads if no other voter can, and leaves as soon as one can.
#[test]
fn a_node_that_is_avoided_leads_if_it_must() {
    let mut cluster = led();
    avoid(&mut cluster, &[1, 2]);
    cluster.crash(3, 0);
    cluster.run(10_000);
    let leader = cluster.leader().expect("1 or 2");
    let term = cluster.raft(leader).term();
    cluster.propose(leader, "a").expect("it does not hand over");
    cluster.start(3);
    cluster.with(3, |raft, _| raft.avoid_as_leaders([1, 2].into()));
    cluster.run(10_000);
    assert_eq!((cluster.leader(), cluster.raft(3).term()), (Some(3), term + 1));
}

/// A follower that is avoided campaigns after the other one.
#[test]
fn a_node_that_is_avoided_campaigns_later() {
    for avoided in [2, 3] {
        let mut cluster = led();
        avoid(&mut cluster, &[avoided]);
        cluster.rush_heartbeat(1);
        cluster.settle();
        cluster.crash(1, 0);
        let before = cluster.now + 2 * Config::new(1, 1).election_timeout;
        assert!(cluster.raft(avoided).election_deadline() >= before);
        cluster.run(3_000);
        assert_eq!(cluster.leader(), Some(5 - avoided));
    }
}
