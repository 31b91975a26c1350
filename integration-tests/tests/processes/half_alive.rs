//! A node that answers and does not work: hung disks and a hung state machine, at the leader and at
//! a follower. The other nodes could serve, so they have to.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY};
use integration_tests::processes::disk::Disk;
use integration_tests::processes::means::{not_run, run};
use integration_tests::processes::network::Conditions;
use integration_tests::processes::workload::Workload;
use raft_core::types::NodeId;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

const DISK_MEBIBYTES: u64 = 1024;
/// Reads come more often than heartbeats.
const READ_EVERY: Duration = Duration::from_millis(20);
/// The longest that a leader may wait for a disk or a state machine to come back: 16 election
/// timeouts of 300 ms, and the election after it.
const STALLED: Duration = Duration::from_secs(10);

/// More than a state keeps in memory before it waits for its disk.
const BUFFERED_BYTES: usize = 400 << 20;
const VALUE_BYTES: usize = 1_000_000;

fn disks(nodes: impl Iterator<Item = NodeId>) -> Result<BTreeMap<NodeId, Disk>, String> {
    nodes.map(|id| Ok((id, Disk::new(DISK_MEBIBYTES)?))).collect()
}

/// C9. Reads at followers, each of which asks the leader, kept the leader from checking its disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_do_not_keep_a_leader_with_a_hung_disk_in_office() {
    let disks = match disks(NODES.into_iter()) {
        Ok(disks) => disks,
        Err(why) => return not_run("a hung disk under reads", &why),
    };
    let data = disks.iter().map(|(id, disk)| (*id, disk.data())).collect();
    let cluster = Cluster::start(Plan { data, ..Plan::default() }).await;
    let leader = cluster.leader().await;
    let load = Workload::start(&cluster, "reads", 11);
    load.advances_by(20).await;
    let mut readers = JoinSet::new();
    for follower in cluster.peers_of(leader) {
        let client = cluster.client_of_node(follower);
        readers.spawn(async move {
            let mut turns = interval(READ_EVERY);
            loop {
                turns.tick().await;
                // A read may fail while there is no leader.
                let _ = client.with_deadline(RECOVERY).get("probe").await;
            }
        });
    }
    sleep(Duration::from_millis(500)).await;
    let frozen = match disks[&leader].freeze() {
        Ok(frozen) => frozen,
        Err(why) => return not_run("a hung disk under reads", &why),
    };
    cluster.serves_within(RECOVERY).await;
    assert_ne!(cluster.leader().await, leader, "its heartbeats have outlived its disk");
    load.advances_by(100).await;
    drop(frozen);
    readers.shutdown().await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}

/// C10. A follower whose disk hangs answered heartbeats. With it the leader had a quorum that can
/// commit nothing, while three nodes with good disks observed a leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_hung_disk_keeps_no_leader_in_office() {
    let nodes = 1..=5;
    let disks = match disks(nodes) {
        Ok(disks) => disks,
        Err(why) => return not_run("a hung disk of a follower", &why),
    };
    let data = disks.iter().map(|(id, disk)| (*id, disk.data())).collect();
    let cluster = Cluster::start(Plan { node_count: 5, data, ..Plan::default() }).await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = (1..=5).filter(|id| *id != leader).collect();
    let load = Workload::start(&cluster, "hung", 12);
    load.advances_by(20).await;
    let frozen = match disks[&others[0]].freeze() {
        Ok(frozen) => frozen,
        Err(why) => return not_run("a hung disk of a follower", &why),
    };
    for cut in &others[2..] {
        cluster.network.set_both(leader, *cut, &Conditions::partition());
    }
    cluster.serves_within(STALLED).await;
    load.advances_by(100).await;
    drop(frozen);
    cluster.network.heal();
    cluster.serves_within(RECOVERY).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}

/// C11. The log works and the state machine does not: the leader accepted writes and answered none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_state_hangs_hands_over() {
    let disks = match disks(NODES.into_iter()) {
        Ok(disks) => disks,
        Err(why) => return not_run("a hung state", &why),
    };
    let mut cluster = Cluster::start(Plan::default()).await;
    // Put the state of each node on a disk of its own, beside the log.
    for (id, disk) in &disks {
        assert!(cluster.node(*id).stop().await.success());
        let (here, there) = (cluster.nodes[id].data.join("state"), disk.data());
        run("cp", &["-a", here.to_str().unwrap(), there.to_str().unwrap()]).unwrap();
        fs::remove_dir_all(&here).unwrap();
        symlink(&there, &here).unwrap();
        cluster.node(*id).start();
        cluster.converges().await;
    }
    let load = Workload::start(&cluster, "state", 13);
    load.advances_by(20).await;
    let leader = cluster.leader().await;
    let frozen = match disks[&leader].freeze() {
        Ok(frozen) => frozen,
        Err(why) => return not_run("a hung state", &why),
    };
    // The state takes writes in memory until its write buffers are full; then it waits for its
    // disk.
    let client = cluster.client().with_deadline(STALLED);
    for number in 0..BUFFERED_BYTES / VALUE_BYTES {
        client.put(format!("more/{number}"), vec![number as u8; VALUE_BYTES]).await.unwrap();
    }
    assert_ne!(cluster.leader().await, leader, "it has hung, and leads");
    cluster.serves_within(STALLED).await;
    load.advances_by(100).await;
    drop(frozen);
    cluster.serves_within(RECOVERY).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}
