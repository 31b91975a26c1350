//! A leader whose disk is slow, but does not hang, hands over (`role::leader::slow_disk`).

use raft_core::consensus::Config;
use raft_core::types::NodeId;

use crate::common::Cluster;
use crate::replication::led;

/// A slow disk writes once in this time.
const WRITE_MS: u64 = 50;

/// Steady writes for so long, while the disks in `slow_disks` take `WRITE_MS` for each write.
fn write_for(cluster: &mut Cluster, millis: u64) {
    for _ in 0..millis / WRITE_MS {
        for _ in 0..5 {
            if let Some(leader) = cluster.leader() {
                let _ = cluster.propose(leader, "x");
            }
            cluster.run(WRITE_MS / 5);
        }
        for id in cluster.slow_disks.clone() {
            while cluster.write(id) {}
        }
        cluster.settle();
    }
}

fn led_with(configure: impl Fn(&mut Config) + 'static) -> Cluster {
    let mut cluster = Cluster::with_config(3, configure);
    cluster.elect(1);
    cluster
}

fn notices(cluster: &Cluster) -> Vec<(NodeId, String)> {
    let of_node = |id| cluster.node(id).notices.iter().map(move |notice| (id, notice.clone()));
    cluster.ids().into_iter().flat_map(of_node).collect()
}

/// Within six seconds leadership is on a fast disk, and stays there.
#[test]
fn a_leader_leaves_its_slow_disk() {
    let mut cluster = led();
    write_for(&mut cluster, 3_000);
    assert_eq!((cluster.leader(), notices(&cluster)), (Some(1), Vec::new()));
    cluster.slow_disks.insert(1);
    write_for(&mut cluster, 6_000);
    let leader = cluster.leader().expect("a leader");
    assert_ne!(leader, 1);
    let said = notices(&cluster);
    let [(1, notice)] = &said[..] else { panic!("node 1 says it once: {said:?}") };
    assert!(notice.contains(&format!("leadership goes to node {leader}")), "{notice}");
    write_for(&mut cluster, 20_000);
    assert_eq!((cluster.leader(), notices(&cluster).len()), (Some(leader), 1));
}

/// At most once a minute, also if an operator hands leadership back.
#[test]
fn a_leader_leaves_its_slow_disk_once_a_minute() {
    let mut cluster = led();
    cluster.slow_disks.insert(1);
    write_for(&mut cluster, 6_000);
    assert_ne!(cluster.leader(), Some(1));
    let leader = cluster.leader().expect("a leader");
    let told = cluster.with(leader, |raft, now| raft.transfer_leadership(now, Some(1)));
    told.expect("another voter");
    write_for(&mut cluster, 1_000);
    assert_eq!(cluster.leader(), Some(1));
    write_for(&mut cluster, 45_000);
    assert_eq!((cluster.leader(), notices(&cluster).len()), (Some(1), 1));
    write_for(&mut cluster, 20_000);
    assert_ne!(cluster.leader(), Some(1));
    assert_eq!(notices(&cluster).len(), 2);
}

/// Nothing is gained if the others are no faster, or if only one of them is.
#[test]
fn a_leader_stays_among_slow_disks() {
    for others in [&[2, 3][..], &[2]] {
        let mut cluster = led();
        cluster.slow_disks.insert(1);
        cluster.slow_disks.extend(others);
        write_for(&mut cluster, 10_000);
        assert_eq!((cluster.leader(), notices(&cluster)), (Some(1), Vec::new()), "{others:?}");
    }
}

/// Only what is slow for a disk counts, not what is slower than other disks; and it can be switched
/// off.
#[test]
fn a_leader_stays_if_its_disk_is_fast_enough() {
    for slow_disk in [std::time::Duration::from_millis(100), std::time::Duration::MAX] {
        let mut cluster = led_with(move |config| config.slow_disk = slow_disk);
        cluster.slow_disks.insert(1);
        write_for(&mut cluster, 10_000);
        assert_eq!((cluster.leader(), notices(&cluster)), (Some(1), Vec::new()));
    }
}

/// A few writes say nothing.
#[test]
fn a_leader_stays_if_it_has_hardly_written() {
    let mut cluster = led();
    cluster.slow_disks.insert(1);
    for _ in 0..10 {
        cluster.propose(1, "x").expect("it leads");
        cluster.run(WRITE_MS);
        while cluster.write(1) {}
        cluster.run(1_000);
    }
    assert_eq!((cluster.leader(), notices(&cluster)), (Some(1), Vec::new()));
}

/// One of three voters is down: the other one that runs is enough.
#[test]
fn a_leader_leaves_its_slow_disk_for_the_only_other_voter_that_runs() {
    let mut cluster = led();
    write_for(&mut cluster, 1_000);
    cluster.crash(3, 0);
    cluster.slow_disks.insert(1);
    write_for(&mut cluster, 10_000);
    assert_eq!(cluster.leader(), Some(2));
}
