//! M-R8, R4: a node recovers on another disk, and the lost one comes back (`consensus::recovery`).

use raft_core::types::{Member, NodeId};

use crate::common::{Cluster, Disk};
use crate::replication::led;

/// The disk of a node at the start, and its second one.
fn first(id: NodeId) -> u64 {
    100 + id
}

fn second(id: NodeId) -> u64 {
    200 + id
}

/// Node 1 leads `count` nodes, each with a numbered disk.
fn numbered(count: u64) -> Cluster {
    let mut cluster = match count {
        3 => led(),
        _ => {
            let mut cluster = Cluster::new(count);
            cluster.elect(1);
            cluster
        }
    };
    for id in cluster.ids() {
        cluster.crash(id, 0);
        cluster.set_disk_number(id, first(id));
        cluster.start(id);
    }
    cluster.run(2_000);
    if cluster.leader() != Some(1) {
        cluster.elect_again(1);
    }
    cluster.propose(1, "before").expect("it leads");
    cluster.run(100);
    cluster
}

fn recorded(cluster: &Cluster, at: NodeId, id: NodeId) -> u64 {
    cluster.raft(at).committed_configuration().incarnation(id)
}

/// Node 2 comes back on an empty disk. Returns the lost one.
fn wipe(cluster: &mut Cluster, id: NodeId) -> Disk {
    cluster.crash(id, 0);
    let lost = cluster.swap_disk(id, Disk::default(), second(id));
    cluster.start(id);
    lost
}

/// Node 2 has recovered on its second disk, and acknowledged an entry since. The first disk is put
/// back.
fn the_old_disk_is_back() -> Cluster {
    let mut cluster = numbered(3);
    let lost = wipe(&mut cluster, 2);
    cluster.run(1_000);
    assert!(!cluster.status(2).is_recovering);
    cluster.isolate(3);
    let at = cluster.propose(1, "with the new disk").expect("it leads");
    cluster.run(100);
    assert!(cluster.status(1).commit_index >= at.index, "nodes 1 and 2 are a majority");
    cluster.crash(2, 0);
    cluster.swap_disk(2, lost, first(2));
    cluster.start(2);
    cluster
}

/// The members record which disk a node recovers on, before they count it.
#[test]
fn m_r8_the_new_disk_is_recorded() {
    let mut cluster = numbered(3);
    assert_eq!(recorded(&cluster, 1, 2), 0, "nothing was lost yet");
    wipe(&mut cluster, 2);
    while cluster.status(2).is_recovering {
        cluster.run(1);
        let is_recorded = recorded(&cluster, 1, 2) == second(2);
        assert!(is_recorded || cluster.status(2).is_recovering, "counted, and not recorded");
        assert!(cluster.now < raft_core::types::Time::from_micros(60_000_000), "it recovers");
    }
    for id in cluster.ids() {
        cluster.run(1_000);
        assert_eq!(recorded(&cluster, id, 2), second(2));
        assert_eq!(recorded(&cluster, id, 1), 0, "no other record is needed");
    }
}

/// Node 3, which lacks the last entry, is not elected by the old disk, which lacks it as well.
#[test]
fn m_r8_the_old_disk_elects_nobody() {
    let mut cluster = the_old_disk_is_back();
    cluster.isolate(1);
    for _ in 0..100 {
        cluster.run(100);
        let leads = |id: &NodeId| *id != 1 && cluster.leader() == Some(*id);
        assert_eq!([2, 3].into_iter().find(leads), None, "elected without the last entry");
    }
    // The operator is told by the node itself, once it has learnt of it.
    cluster.heal();
    cluster.run(2_000);
    assert!(cluster.raft(2).is_superseded() && cluster.status(2).is_recovering);
}

/// The old disk confirms no entry of the leader, and is not readmitted.
#[test]
fn m_r8_the_old_disk_commits_nothing() {
    let mut cluster = the_old_disk_is_back();
    let at = cluster.propose(1, "with the old disk").expect("it leads");
    cluster.run(250);
    assert!(cluster.status(1).commit_index < at.index, "nodes 1 and 3 have to confirm it");
    let alarms = &cluster.node(1).alarms;
    assert!(matches!(&alarms[..], [alarm] if alarm.contains("node 2 runs on an old disk")));
    cluster.heal();
    cluster.run(10_000);
    assert!(cluster.status(1).commit_index >= at.index);
    assert_eq!(recorded(&cluster, 1, 2), second(2));
    assert!(cluster.raft(2).is_superseded() && cluster.status(2).is_recovering);
    assert_ne!(cluster.leader(), Some(2));
}

/// The old disk is wiped as well: that is a third disk, on which the node recovers.
#[test]
fn m_r8_a_third_disk_recovers() {
    let mut cluster = the_old_disk_is_back();
    cluster.heal();
    cluster.run(1_000);
    cluster.crash(2, 0);
    cluster.swap_disk(2, Disk::default(), 302);
    cluster.start(2);
    cluster.run(2_000);
    assert_eq!(recorded(&cluster, 1, 2), 302);
    assert!(!cluster.status(2).is_recovering);
    assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
}

/// A node that was away has an older record. It follows the node on its new disk.
#[test]
fn m_r8_a_node_that_lags_follows_the_new_disk() {
    let mut cluster = numbered(5);
    wipe(&mut cluster, 2);
    cluster.run(1_000);
    assert_eq!(recorded(&cluster, 5, 2), second(2));
    cluster.isolate(5);
    // No node responds for all of them, so node 5 is taken back for a moment.
    cluster.crash(2, 0);
    cluster.swap_disk(2, Disk::default(), 302);
    cluster.start(2);
    cluster.run(1_000);
    assert!(cluster.status(2).is_recovering, "node 5 has not been heard");
    cluster.heal();
    while cluster.raft(1).configuration().incarnation(2) != 302 {
        cluster.rush_heartbeat(1);
        cluster.settle();
    }
    cluster.isolate(5);
    cluster.run(1_000);
    assert!(!cluster.status(2).is_recovering);
    cluster.elect_again(2);
    cluster.heal();
    cluster.run(2_000);
    assert_eq!(cluster.status(5).last_index, cluster.status(2).last_index);
    assert_eq!(recorded(&cluster, 5, 2), 302);
    assert_eq!(cluster.leader(), Some(2));
}

/// A record that was never committed, and is truncated, makes no disk void.
#[test]
fn m_r8_a_record_that_is_truncated_voids_no_disk() {
    let mut cluster = numbered(3);
    let lost = wipe(&mut cluster, 2);
    // The record is appended, and its leader is cut off before it is sent.
    while cluster.raft(1).configuration().incarnation(2) == 0 {
        assert!(!cluster.flying.is_empty() || cluster.status(2).is_recovering);
        match cluster.flying.is_empty() {
            true => cluster.rush_heartbeat(1),
            false => cluster.deliver(0),
        }
    }
    cluster.isolate(1);
    cluster.settle();
    cluster.crash(2, 0);
    cluster.swap_disk(2, lost, first(2));
    cluster.start(2);
    cluster.run(3_000);
    let leader = cluster.leader().expect("nodes 2 and 3 are a majority");
    assert!([2, 3].contains(&leader));
    cluster.propose(leader, "after").expect("it leads");
    cluster.heal();
    cluster.run(3_000);
    assert_eq!(cluster.raft(1).configuration().incarnation(2), 0, "truncated");
    assert!(!cluster.raft(2).is_superseded() && !cluster.status(2).is_recovering);
    cluster.isolate(3);
    let leader = cluster.leader().expect("a leader");
    cluster.run(2_000);
    let leader = if leader == 3 { cluster.leader().expect("1 or 2") } else { leader };
    let at = cluster.propose(leader, "with node 2").expect("it leads");
    cluster.run(200);
    assert!(cluster.status(leader).commit_index >= at.index, "node 2 counts");
}

/// A learner that was wiped: its first disk is void as well.
#[test]
fn m_r8_a_learner_is_recorded_anew() {
    use raft_core::consensus::Change;

    let mut cluster = numbered(3);
    cluster.start_joiner(4, first(4));
    let member = Member { incarnation: first(4), ..Member::default() };
    cluster.change(1, &Change::Add { id: 4, member }).expect("it leads");
    cluster.run(1_000);
    assert!(!cluster.status(4).is_recovering);
    let lost = wipe(&mut cluster, 4);
    cluster.run(1_000);
    assert_eq!(recorded(&cluster, 4, 4), second(4));
    assert!(!cluster.status(4).is_recovering);
    cluster.crash(4, 0);
    cluster.swap_disk(4, lost, first(4));
    cluster.start(4);
    cluster.run(1_000);
    assert!(cluster.raft(4).is_superseded());
    assert_eq!(recorded(&cluster, 1, 4), second(4));
}
