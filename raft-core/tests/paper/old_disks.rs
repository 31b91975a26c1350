//! M-R8, R4: a node recovers on another disk, and the lost one comes back (`consensus::recovery`).

use raft_core::types::{Member, Memory, MessageBody, NodeId};

use crate::common::{Cluster, Disk, Parcel};
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

/// Delivers one parcel after the other until node 1 has appended the record of this disk of node 2.
fn until_recorded(cluster: &mut Cluster, disk: u64) {
    while cluster.raft(1).configuration().incarnation(2) != disk {
        match cluster.flying.is_empty() {
            true => cluster.rush_heartbeat(1),
            false => cluster.deliver(0),
        }
    }
}

/// Node 1 leads five nodes. Node 2 counts on its third disk, and node 5, which is cut off, has the
/// record of its second one.
fn one_node_has_an_older_record() -> Cluster {
    let mut cluster = numbered(5);
    wipe(&mut cluster, 2);
    cluster.run(1_000);
    assert_eq!(recorded(&cluster, 5, 2), second(2));
    cluster.crash(2, 0);
    cluster.swap_disk(2, Disk::default(), 302);
    cluster.start(2);
    // All must respond once, also node 5.
    until_recorded(&mut cluster, 302);
    cluster.isolate(5);
    cluster.run(1_000);
    assert!(!cluster.status(2).is_recovering);
    assert_eq!(cluster.raft(5).configuration().incarnation(2), second(2));
    cluster
}

/// A node that was away has an older record. It follows the node on its new disk.
#[test]
fn m_r8_a_node_that_lags_follows_the_new_disk() {
    let mut cluster = one_node_has_an_older_record();
    cluster.elect_again(2);
    cluster.heal();
    cluster.run(2_000);
    assert_eq!(cluster.status(5).last_index, cluster.status(2).last_index);
    assert_eq!(recorded(&cluster, 5, 2), 302);
    assert_eq!(cluster.leader(), Some(2));
}

/// The same node votes for the node on its new disk, which alone holds what is committed.
#[test]
fn m_r8_a_node_that_lags_votes_for_the_new_disk() {
    let mut cluster = one_node_has_an_older_record();
    cluster.partition(&[&[1, 2, 3], &[4], &[5]]);
    let at = cluster.propose(1, "only on 1, 2 and 3").expect("it leads");
    cluster.settle();
    assert!(cluster.status(1).commit_index >= at.index);
    cluster.crash(1, 0);
    cluster.crash(3, 0);
    cluster.heal();
    cluster.run(5_000);
    assert_eq!(cluster.leader(), Some(2));
    assert!(cluster.status(5).commit_index >= at.index);
}

/// A node is not told that it counts before it holds the record of its disk: it would find another
/// one recorded, and stop for good.
#[test]
fn m_r8_the_record_comes_before_the_readmission() {
    let mut cluster = numbered(3);
    wipe(&mut cluster, 2);
    cluster.run(1_000);
    assert_eq!(recorded(&cluster, 2, 2), second(2));
    cluster.crash(2, 0);
    cluster.swap_disk(2, Disk::default(), 302);
    cluster.start(2);
    until_recorded(&mut cluster, 302);
    for _ in 0..20 {
        // Appends to node 2 are lost, and heartbeats arrive.
        while let Some(envelope) = cluster.flying.front() {
            let is_append = matches!(
                &envelope.parcel,
                Parcel::Message(message) if matches!(message.body, MessageBody::AppendEntries { .. })
            );
            match envelope.to == 2 && is_append {
                true => cluster.drop_parcel(0),
                false => cluster.deliver(0),
            }
        }
        cluster.rush_heartbeat(1);
    }
    assert_eq!(recorded(&cluster, 1, 2), 302);
    assert_eq!(cluster.status(2).memory, Memory::Lost);
    cluster.run(2_000);
    assert!(!cluster.status(2).is_recovering && !cluster.raft(2).is_superseded());
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

fn numbered_with(count: u64, bytes: Option<u64>) -> Cluster {
    let mut cluster = Cluster::with_config(count, move |config| {
        if let Some(bytes) = bytes {
            config.append_bytes_max = bytes;
        }
    });
    for id in cluster.ids() {
        cluster.crash(id, 0);
        cluster.set_disk_number(id, 100 + id);
        cluster.start(id);
    }
    cluster.elect(1);
    cluster.run(300);
    cluster.propose(1, "before").expect("it leads");
    cluster.run(300);
    cluster
}

fn replace(cluster: &mut Cluster, id: NodeId, disk: Disk, number: u64) -> Disk {
    cluster.crash(id, 0);
    let earlier = cluster.swap_disk(id, disk, number);
    cluster.start(id);
    earlier
}

/// Disks A, B, C of node 2. B was recorded, and lost before it had received its record. C was
/// readmitted. B comes back, with a slow disk, and takes the log past its own record before its
/// first write completes. Returns C.
fn b_is_back_after_c() -> (Cluster, Disk) {
    let mut cluster = numbered_with(3, Some(1));
    cluster.partition_link(3, 1);
    replace(&mut cluster, 2, Disk::default(), 202);
    for _ in 0..5 {
        cluster.rush_heartbeat(1);
        cluster.settle();
    }
    // Node 2 has what it needs; node 3 has not responded yet. A few more entries miss node 2.
    cluster.heal();
    cluster.partition_link(1, 2);
    for command in ["p", "q", "r"] {
        cluster.propose(1, command).expect("it leads");
    }
    cluster.rush_heartbeat(1);
    cluster.settle();
    let record_b = cluster.raft(1).configuration_stage();
    assert!(record_b.is_committed);
    assert_eq!(cluster.raft(1).committed_configuration().incarnation(2), 202);
    assert_eq!(cluster.status(2).memory, Memory::Lost);
    cluster.propose(1, "between").expect("it leads");
    cluster.settle();
    cluster.crash(2, 0);
    cluster.heal();
    let disk_b = cluster.swap_disk(2, Disk::default(), 302);
    cluster.start(2);
    cluster.run(2_000);
    assert_eq!(cluster.raft(1).committed_configuration().incarnation(2), 302);
    assert!(!cluster.status(2).is_recovering, "C counts");
    if cluster.leader() != Some(1) {
        cluster.elect_again(1);
    }
    cluster.propose(1, "with C").expect("it leads");
    cluster.run(300);
    assert_eq!(cluster.leader(), Some(1));

    cluster.slow_disks.insert(2);
    let disk_c = replace(&mut cluster, 2, disk_b, 202);
    while cluster.raft(2).last_index() < cluster.raft(1).last_index() {
        cluster.rush_heartbeat(1);
        cluster.settle();
        if cluster.raft(2).last_index() < record_b.position.index {
            cluster.write(2);
            cluster.settle();
        }
    }
    cluster.rush_heartbeat(1);
    cluster.settle();
    cluster.isolate(3);
    cluster.slow_disks.clear();
    while cluster.write(2) {}
    cluster.settle();
    (cluster, disk_c)
}

#[test]
fn m_r8_a_record_is_not_committed_by_its_own_disk() {
    let (cluster, _) = b_is_back_after_c();
    // Node 3 is cut off. So nothing may be committed now.
    assert_eq!(cluster.raft(1).committed_configuration().incarnation(2), 302);
}

#[test]
fn m_r8_a_disk_that_was_recorded_earlier_loses_nothing() {
    let (mut cluster, disk_c) = b_is_back_after_c();
    let at = cluster.propose(1, "acknowledged").expect("it leads");
    cluster.settle();
    let is_acknowledged = cluster.status(1).commit_index >= at.index;
    // C is put back, and node 1 is cut off.
    replace(&mut cluster, 2, disk_c, 302);
    cluster.isolate(1);
    cluster.run(5_000);
    assert!(!is_acknowledged);
}

/// The record reached only the void disk and the leader that wrote it, which is gone. Nodes 2 (on
/// its first disk, never lost) and 3 are a majority, and all that is committed is on both.
#[test]
fn m_r8_an_uncommitted_record_stops_no_majority() {
    let mut cluster = numbered_with(3, None);
    let lost = replace(&mut cluster, 2, Disk::default(), 202);
    while cluster.raft(1).configuration().incarnation(2) == 0 {
        match cluster.flying.is_empty() {
            true => cluster.rush_heartbeat(1),
            false => cluster.deliver(0),
        }
    }
    // Node 3 lags for a moment; the lost disk is found.
    cluster.isolate(3);
    replace(&mut cluster, 2, lost, 102);
    for _ in 0..5 {
        cluster.rush_heartbeat(1);
        cluster.settle();
    }
    assert!(!cluster.raft(2).is_superseded(), "the record is not committed");
    assert_eq!(cluster.raft(1).committed_configuration().incarnation(2), 0);
    // Node 1 breaks for good.
    cluster.crash(1, 0);
    cluster.heal();
    cluster.run(60_000);
    assert!(cluster.leader().is_some(), "nodes 2 and 3 hold everything, and elect nobody");
}

/// A follower campaigns for a moment, and the message with the commit index is lost: later
/// heartbeats do not tell it what is committed. The transport keeps its connections.
#[test]
fn a_lost_commit_index_is_learned_from_heartbeats() {
    let mut cluster = numbered_with(3, None);
    let at = cluster.propose(1, "x").expect("it leads");
    // Node 3 acknowledges; what the leader sends it next is lost.
    while cluster.status(1).commit_index < at.index || cluster.raft(3).last_index() < at.index {
        cluster.deliver(0);
    }
    while cluster.raft(1).peer(3).unwrap().match_index < at.index {
        cluster.deliver(0);
    }
    cluster.isolate(3);
    cluster.settle();
    assert!(cluster.status(3).commit_index < at.index);
    cluster.run(3_000);
    cluster.heal();
    cluster.run(60_000);
    assert_eq!(cluster.leader(), Some(1));
    assert!(cluster.status(3).commit_index >= at.index, "a minute later {:?}", cluster.status(3));
}
