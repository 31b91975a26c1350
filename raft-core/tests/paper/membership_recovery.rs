//! Lost disks and snapshots while the members change. Scenarios R and S of
//! [`super::membership_catalogue`]; more of them are in [`super::membership`],
//! [`super::membership_findings`] and [`super::old_disks`].

use raft_core::consensus::Change;
use raft_core::consensus::RoleKind::{Follower, Leader};
use raft_core::types::{Configuration, MessageBody, NodeId, Payload};

use crate::common::{Cluster, Parcel};
use crate::is_vote;
use crate::membership::{add, force, founded, four, voters};
use crate::replication::led;

fn wipe(cluster: &mut Cluster, id: NodeId) {
    cluster.crash(id, 0);
    cluster.lose_disk(id);
    cluster.start(id);
}

/// The cluster goes on, under these voters, and all nodes count.
fn is_whole(cluster: &mut Cluster, expected: &[NodeId]) {
    cluster.heal();
    cluster.run(5_000);
    let leader = cluster.leader().expect("a leader");
    assert!(expected.contains(&leader));
    let at = cluster.propose(leader, "after").expect("it leads");
    cluster.run(500);
    for id in expected {
        let configuration = cluster.raft(*id).committed_configuration();
        assert!(!configuration.is_joint() && configuration.voters.iter().eq(expected), "node {id}");
        assert!(cluster.status(*id).commit_index >= at.index && !cluster.status(*id).is_recovering);
    }
}

/// M-R2: node 1 founded the cluster alone, and was wiped after it had grown to three. It is caught
/// up half way, with entries of the time when it was the only voter, and then the leader dies. It
/// never campaigns.
#[test]
fn m_r2_a_founder_that_is_half_filled_does_not_campaign() {
    let mut cluster = Cluster::with_config(1, |config| config.append_bytes_max = 1);
    cluster.run(1_000);
    for command in ["a", "b", "c", "d"] {
        cluster.propose(1, command).expect("it leads");
    }
    for id in [2, 3] {
        cluster.start_joiner(id, 100 + id);
        cluster.change(1, &add(id)).expect("it leads");
        cluster.run(3_000);
    }
    cluster.crash(1, 0);
    cluster.lose_disk(1);
    cluster.run(3_000);
    let leader = cluster.leader().expect("2 and 3 are a majority");
    cluster.start(1);
    while cluster.status(1).last_index < 3 {
        match cluster.flying.is_empty() {
            true => cluster.rush_heartbeat(leader),
            false => cluster.deliver(0),
        }
    }
    cluster.crash(leader, 0);
    cluster.isolate(1);
    let (term, last_index) = (cluster.status(1).term, cluster.status(1).last_index);
    for _ in 0..200 {
        cluster.advance(std::time::Duration::from_millis(100), false);
        assert!(cluster.sent_by(1).iter().all(|(_, message)| !is_vote(message)));
        cluster.settle();
    }
    assert_eq!((cluster.role(1), cluster.status(1).term), (Follower, term));
    assert_eq!((voters(&cluster, 1), cluster.status(1).last_index), (vec![1], last_index));
    cluster.start(leader);
    is_whole(&mut cluster, &[1, 2, 3]);
}

/// M-R10: node 3 is wiped while the configuration is joint. Its acknowledgement, which would be the
/// third of four in the old half, commits nothing.
#[test]
fn m_r10_a_voter_is_wiped_while_joint() {
    let mut cluster = four();
    cluster.partition(&[&[1, 2, 3], &[4]]);
    cluster.partition_link(1, 3);
    force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
    cluster.settle();
    let joint = cluster.raft(1).configuration_stage();
    cluster.partition(&[&[1, 2, 3], &[4]]);
    wipe(&mut cluster, 3);
    cluster.run(200);
    assert_eq!((cluster.role(1), cluster.status(1).term), (Leader, 1));
    assert!(cluster.status(3).last_index >= joint.position.index, "it holds everything");
    assert!(
        cluster.status(3).is_recovering && cluster.status(1).commit_index < joint.position.index
    );
    is_whole(&mut cluster, &[1, 2, 3]);
}

/// M-R10: a leader that is removed has told its successor to campaign, and the successor is wiped
/// before it is told. It does not lead, and another voter does.
#[test]
fn m_r10_the_next_leader_is_wiped() {
    let mut cluster = four();
    force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
    let told = |cluster: &Cluster| {
        cluster.flying.iter().position(|envelope| match &envelope.parcel {
            Parcel::Message(message) => matches!(message.body, MessageBody::TimeoutNow { .. }),
            Parcel::Snapshot { .. } => false,
        })
    };
    while told(&cluster).is_none() {
        cluster.deliver(0);
    }
    let at = told(&cluster).expect("just seen");
    let successor = cluster.flying[at].to;
    wipe(&mut cluster, successor);
    cluster.deliver(told(&cluster).expect("it is in flight"));
    assert_eq!((cluster.role(successor), cluster.status(successor).term), (Follower, 1));
    cluster.settle();
    for _ in 0..20 {
        cluster.run(50);
        let leads = cluster.leader() == Some(successor);
        assert!(!leads || !cluster.status(successor).is_recovering);
    }
    assert_eq!(cluster.role(1), Follower);
    is_whole(&mut cluster, &[2, 3, 4]);
}

/// M-R10: node 3 is wiped under one leader and, before it counts, again under the next one, while
/// node 4 is being removed. The responses that the first leader has collected help it no more.
#[test]
fn m_r10_a_voter_is_wiped_twice_under_two_leaders() {
    let mut cluster = four();
    cluster.isolate(4);
    wipe(&mut cluster, 3);
    cluster.run(200);
    assert!(cluster.status(3).is_recovering, "node 4 has not responded");
    assert!(cluster.status(3).last_index >= cluster.status(1).last_index - 1);
    cluster.heal();
    cluster.elect_again(2);
    cluster.isolate(4);
    wipe(&mut cluster, 3);
    cluster.run(200);
    assert!(cluster.status(3).is_recovering, "neither leader knows that node 4 responded since");
    assert_eq!(cluster.leader(), Some(2));
    cluster.heal();
    cluster.run(200);
    force(&mut cluster, 2, &Change::Remove { id: 4 }).expect("it leads");
    is_whole(&mut cluster, &[1, 2, 3]);
}

/// M-S1: a snapshot is taken while the next entry is a configuration that is not committed, which
/// is truncated later. The snapshot has the members at its own index, also after a restart from it.
#[test]
fn m_s1_a_snapshot_has_the_members_at_its_index() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.isolate(1);
    let at = cluster.change(1, &add(4)).expect("it leads");
    cluster.snapshot(1);
    cluster.compact(1, at.index - 1);
    let meta = cluster.node(1).disk.loaded.snapshot.clone().expect("it was published");
    assert_eq!((meta.index(), &*meta.configuration), (at.index - 1, &founded(3)));
    assert!(cluster.raft(1).configuration().is_member(4));
    cluster.fire(2);
    cluster.settle();
    cluster.heal();
    cluster.run(500);
    assert_eq!((cluster.leader(), cluster.raft(1).configuration()), (Some(2), &founded(3)));
    cluster.crash(1, 0);
    cluster.start(1);
    assert_eq!(
        (cluster.status(1).log_start_index, voters(&cluster, 1)),
        (at.index - 1, vec![1, 2, 3])
    );
    cluster.run(500);
    cluster.change(2, &add(4)).expect("the id was not given out");
}

/// Node 4 is being removed, and node 1 leads. Node 2 knows that the joint configuration is
/// committed, and has a snapshot of that moment instead of its log. Node 3 lacks the joint
/// configuration, and the final one is lost.
fn a_snapshot_of_a_joint_configuration() -> Cluster {
    let mut cluster = four();
    cluster.partition_link(1, 3);
    force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
    while cluster.raft(1).configuration().is_joint() {
        cluster.deliver(0);
    }
    cluster.flying.clear();
    cluster.rush_heartbeat(1);
    let to_2 = cluster.flying.iter().position(|envelope| envelope.to == 2);
    cluster.deliver(to_2.expect("a heartbeat"));
    cluster.flying.clear();
    cluster.snapshot(2);
    let meta = cluster.node(2).disk.loaded.snapshot.clone().expect("it was published");
    assert!(meta.configuration.is_joint());
    cluster.compact(2, meta.index());
    assert_eq!(cluster.status(2).last_index, meta.index(), "nothing is after it");
    cluster.crash(1, 0);
    cluster.heal();
    cluster
}

/// M-S2: node 3 restores a snapshot of a joint configuration, and the leader that sent it dies.
/// Node 3 acts joint, also after a restart, and the joint configuration is left once.
#[test]
fn m_s2_a_snapshot_of_a_joint_configuration_is_restored() {
    let mut cluster = a_snapshot_of_a_joint_configuration();
    cluster.crash(2, 0);
    cluster.start(2);
    assert!(cluster.raft(2).configuration().is_joint(), "from its own snapshot");
    cluster.now = cluster.now.max(cluster.raft(2).election_deadline());
    while cluster.role(2) != Leader || cluster.status(3).snapshot_index == 0 {
        match cluster.flying.is_empty() {
            true if cluster.role(2) == Leader => cluster.rush_heartbeat(2),
            true => cluster.fire(2),
            false => cluster.deliver(0),
        }
    }
    cluster.crash(2, 0);
    cluster.flying.clear();
    cluster.crash(3, 0);
    cluster.start(3);
    let expected = Configuration { outgoing: [1, 2, 3, 4].into(), ..founded(3) };
    assert!(cluster.raft(3).configuration().has_members_of(&expected));
    // Node 4 is a voter of the old half, which needs three of four.
    cluster.isolate(4);
    cluster.start(2);
    cluster.run(3_000);
    assert_eq!(cluster.leader(), None, "nodes 2 and 3 are a majority of the new half only");
    cluster.heal();
    cluster.run(3_000);
    assert!(cluster.leader().is_some(), "and with node 4 of both");
    cluster.start(1);
    is_whole(&mut cluster, &[1, 2, 3]);
    for id in 1..=3 {
        let entries = &cluster.node(id).disk.loaded.entries;
        let start = cluster.status(id).snapshot_index;
        let is_final = |payload: &Payload| match payload {
            Payload::Configuration(configuration) => configuration.has_members_of(&founded(3)),
            _ => false,
        };
        let after = entries.iter().filter(|entry| entry.index > start);
        let left = after.filter(|entry| is_final(&entry.payload)).count();
        assert!(left == 1 || start == 0, "node {id} has left it {left} times");
    }
}

/// M-S3: the snapshot that a joiner gets does not contain it. The joiner keeps it, also over a
/// restart, does not campaign, and is added by the entries that follow.
#[test]
fn m_s3_a_snapshot_without_its_receiver_is_kept() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.snapshot(1);
    let index = cluster.status(1).snapshot_index;
    cluster.compact(1, index);
    cluster.start_joiner(4, 104);
    cluster.change(1, &add(4)).expect("it leads");
    while cluster.status(4).snapshot_index < index {
        match cluster.flying.is_empty() {
            true => cluster.rush_heartbeat(1),
            false => cluster.deliver(0),
        }
    }
    assert_eq!(
        (voters(&cluster, 4), cluster.raft(4).configuration().is_member(4)),
        (vec![1, 2, 3], false)
    );
    cluster.isolate(4);
    cluster.run(10_000);
    assert_eq!((cluster.role(4), cluster.status(4).term), (Follower, 1));
    cluster.crash(4, 0);
    cluster.start(4);
    assert_eq!((cluster.status(4).snapshot_index, voters(&cluster, 4)), (index, vec![1, 2, 3]));
    cluster.run(10_000);
    assert_eq!((cluster.role(4), cluster.status(4).term), (Follower, 1));
    is_whole(&mut cluster, &[1, 2, 3, 4]);
}
