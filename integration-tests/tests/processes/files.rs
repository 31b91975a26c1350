//! Single writes and syncs that fail once, or do less than requested.

use std::collections::BTreeMap;
use std::path::PathBuf;

use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY, eventually};
use integration_tests::processes::disk::Disk;
use integration_tests::processes::means::not_run;
use integration_tests::processes::preload::{FileFault, Preload};
use integration_tests::processes::workload::Workload;
use raft_core::types::NodeId;

use super::disks::says_what_to_do;

/// Files that a node writes: its log, the tables of its state when they are new and when they are
/// merged, and the list of those tables.
pub(crate) const KINDS_OF_FILES: [&str; 4] = [".log", ".table", ".sst", "MANIFEST"];

/// The kernel promises nothing after a failed sync: the bytes may be gone for good. So a node must
/// not go on with a log, or with a state, that may not be on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_once_stops_the_node_though_the_next_would_succeed() {
    for file in KINDS_OF_FILES {
        fails_once(FileFault::SyncFailsOnce, file, "Input/output error").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_finds_no_room_once_stops_the_node() {
    for file in KINDS_OF_FILES {
        fails_once(FileFault::NoRoomOnce, file, "No space left").await;
    }
}

async fn fails_once(fault: FileFault, file: &str, cause: &str) {
    let what = format!("{fault:?} of {file}");
    if let Err(why) = Preload::new(PathBuf::new()) {
        return not_run(&what, &why);
    }
    let mut cluster = Cluster::start(Plan { file_faults: true, ..Plan::default() }).await;
    let load = Workload::start(&cluster, &what, 10);
    load.advances_by(20).await;
    let leader = cluster.leader().await;
    for victim in [leader, cluster.peers_of(leader)[0]] {
        let preload = cluster.node(victim).preload().clone();
        let before = preload.hit_count();
        preload.set(fault, file);
        cluster.writes_until("a fault to happen", || preload.hit_count() > before).await;
        says_what_to_do(&cluster.node(victim).gives_up().await, cause);
        cluster.serves_within(RECOVERY).await;
        load.advances_by(20).await;
        cluster.start_all();
        cluster.converges().await;
        assert_eq!(preload.hit_count(), before + 1, "it was to happen once");
    }
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.finish().await;
}

/// A kernel may write less than requested and report success; the writer has to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_are_short_are_completed() {
    if let Err(why) = Preload::new(PathBuf::new()) {
        return not_run("short writes", &why);
    }
    let mut cluster = Cluster::start(Plan { file_faults: true, ..Plan::default() }).await;
    for node in cluster.nodes.values() {
        node.preload().set(FileFault::ShortWrites, &node.data.display().to_string());
    }
    let load = Workload::start(&cluster, "short", 11);
    load.advances_by(300).await;
    // The node recovers, and receives a snapshot, under the same conditions.
    let leader = cluster.leader().await;
    cluster.node(leader).kill().await;
    cluster.serves_within(RECOVERY).await;
    cluster.node(leader).start();
    cluster.converges().await;
    cluster.empty(leader).await;
    cluster.node(leader).start();
    cluster.converges().await;
    load.advances_by(100).await;
    cluster.kill_all().await;
    for node in cluster.nodes.values() {
        assert!(node.preload().hit_count() > 100, "node {} had few", node.id);
        node.preload().clear();
    }
    cluster.start_all();
    cluster.serves_within(RECOVERY).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}

const THIN_DISK_MEBIBYTES: u64 = 512;
const KEPT_MEBIBYTES: u64 = 256;

/// The kernel's own way of failing a sync: the disk has room, but no space behind it. The sync
/// fails once, and the written bytes are dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_drops_what_it_took_stops_the_node_and_takes_nothing_that_was_acknowledged() {
    let what = "a disk that drops what it took";
    let disks: Result<BTreeMap<NodeId, Disk>, String> = NODES
        .into_iter()
        .map(|id| Ok((id, Disk::thin(THIN_DISK_MEBIBYTES, KEPT_MEBIBYTES)?)))
        .collect();
    let mut disks = match disks {
        Ok(disks) => disks,
        Err(why) => return not_run(what, &why),
    };
    let data = disks.iter().map(|(id, disk)| (*id, disk.data())).collect();
    let mut cluster = Cluster::start(Plan { data, ..Plan::default() }).await;
    for victim in NODES {
        let load = Workload::start(&cluster, &format!("thin{victim}"), victim);
        load.advances_by(100).await;
        disks[&victim].exhaust_up_to(256 << 10);
        let log = cluster.nodes[&victim].log_path().to_owned();
        let gave_up = || std::fs::read_to_string(&log).unwrap().contains("the node has stopped");
        cluster.writes_until("a sync to fail", gave_up).await;
        // The kernel can also report the sync as done, and note only in its own log that extents
        // were not converted; then the table that was just written reads as zeros.
        let said = cluster.node(victim).gives_up().await;
        let reads_as_zeros = "the disk did not keep a table";
        says_what_to_do(
            &said,
            if said.contains(reads_as_zeros) { reads_as_zeros } else { "No space left" },
        );
        cluster.serves_within(RECOVERY).await;
        load.advances_by(20).await;
        let disk = disks.get_mut(&victim).unwrap();
        disk.fill_in();
        disk.regain_power();
        cluster.node(victim).start();
        serves_or_is_filled_again(&mut cluster, victim).await;
        cluster.serves_within(RECOVERY).await;
        load.stop().await.check(&cluster.client()).await.unwrap();
        cluster.converges().await;
    }
    cluster.finish().await;
}

/// The kernel may have dropped more than it reported. Then the node reports damage and advises the
/// operator, and this function follows the advice.
async fn serves_or_is_filled_again(cluster: &mut Cluster, id: NodeId) {
    let mut has_ended = false;
    eventually("the node to serve or to give up", async || {
        has_ended = cluster.node(id).has_ended().is_some();
        has_ended || cluster.status(id).await.is_some()
    })
    .await;
    if has_ended {
        says_what_to_do(&cluster.node(id).gives_up().await, "damage");
        cluster.empty(id).await;
        cluster.node(id).start();
        cluster.is_filled(id).await;
    }
}
