//! Snapshots that are sent over bad links, find no room, and are damaged on the disk.

use std::fs;
use std::path::PathBuf;

use integration_tests::processes::cluster::{Cluster, Plan, RECOVERY, eventually};
use integration_tests::processes::means::not_run;
use integration_tests::processes::network::Conditions;
use integration_tests::processes::node::files_below;
use integration_tests::processes::preload::{FileFault, Preload};
use integration_tests::processes::workload::Workload;
use kv_service::Client;

use super::directories::flip;
use super::disks::says_what_to_do;

/// Enough keys that a transfer of the state takes seconds over a narrow link.
const STATE_KEYS: u32 = 96;
const STATE_VALUE_BYTES: usize = 16 << 10;
const NARROW_BYTES_PER_SECOND: u64 = 500_000;

async fn fill(client: &Client) {
    for number in 0..STATE_KEYS {
        client.put(format!("state/{number}"), vec![number as u8; STATE_VALUE_BYTES]).await.unwrap();
    }
}

async fn is_whole(client: &Client) {
    for number in 0..STATE_KEYS {
        let record = client.get(format!("state/{number}")).await.unwrap().unwrap();
        assert_eq!(record.value, vec![number as u8; STATE_VALUE_BYTES]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_over_a_narrow_link_holds_up_nobody() {
    let narrow = Conditions { loss: 0.02, ..Conditions::narrow(NARROW_BYTES_PER_SECOND) };
    is_sent_over(narrow, "narrow").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_over_a_link_that_loses_a_fifth_holds_up_nobody() {
    // Slower than the machine, or the transfer would be over before it is interrupted.
    let lossy = Conditions { loss: 0.2, ..Conditions::narrow(2 * NARROW_BYTES_PER_SECOND) };
    is_sent_over(lossy, "lossy").await;
}

async fn is_sent_over(conditions: Conditions, name: &str) {
    let mut cluster = Cluster::start(Plan::default()).await;
    let leader = cluster.leader().await;
    let [lagging, _] = cluster.peers_of(leader);
    cluster.node(lagging).kill().await;
    fill(&cluster.client()).await;
    let compacted = async || cluster.status(leader).await.is_some_and(|s| s.snapshot_index > 50);
    eventually("the log to be compacted", compacted).await;

    cluster.network.set_both(leader, lagging, &conditions);
    let term = cluster.status(leader).await.unwrap().term;
    let load = Workload::start(&cluster, name, 3);
    cluster.node(lagging).start();
    cluster.receives_snapshot(lagging).await;
    // The received part of the snapshot survives this.
    cluster.node(lagging).kill().await;
    cluster.node(lagging).start();
    cluster.receives_snapshot(lagging).await;
    load.advances_by(100).await;
    let status = cluster.status(leader).await.unwrap();
    assert_eq!((status.role.as_str(), status.term), ("leader", term), "heartbeats were held up");
    cluster.converges().await;
    assert!(cluster.network.traffic(leader, lagging).lost_count > 0);
    load.advances_by(20).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.network.heal();
    // Everything the node received is whole: it can lead.
    cluster.node(leader).kill().await;
    cluster.serves_within(RECOVERY).await;
    cluster.node(leader).start();
    cluster.converges().await;
    is_whole(&cluster.client()).await;
    cluster.finish().await;
}

/// The first bytes of a snapshot find no room, then bytes in its middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_finds_no_room_stops_the_node_until_there_is_some() {
    if let Err(why) = Preload::new(PathBuf::new()) {
        return not_run("a snapshot without room", &why);
    }
    let mut cluster = Cluster::start(Plan { file_faults: true, ..Plan::default() }).await;
    fill(&cluster.client()).await;
    let load = Workload::start(&cluster, "no room", 8);
    load.advances_by(20).await;
    let leader = cluster.leader().await;
    let [victim, _] = cluster.peers_of(leader);
    cluster.empty(victim).await;
    cluster.network.set_both(leader, victim, &Conditions::narrow(NARROW_BYTES_PER_SECOND));
    let hits = cluster.node(victim).preload().hit_count();
    for is_begun in [false, true] {
        let preload = cluster.node(victim).preload().clone();
        if is_begun {
            cluster.node(victim).start();
            cluster.receives_snapshot(victim).await;
            preload.set(FileFault::NoRoomOnce, ".part");
        } else {
            preload.set(FileFault::NoRoomOnce, ".part");
            cluster.node(victim).start();
            cluster.writes_until("a snapshot to come", || preload.hit_count() > hits).await;
        }
        says_what_to_do(&cluster.node(victim).gives_up().await, "No space left");
        cluster.serves_within(RECOVERY).await;
        load.advances_by(20).await;
    }
    cluster.start_all();
    cluster.converges().await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.network.heal();
    cluster.node(leader).kill().await;
    cluster.serves_within(RECOVERY).await;
    is_whole(&cluster.client()).await;
    cluster.start_all();
    cluster.converges().await;
    cluster.finish().await;
}

/// The leader first writes the snapshot that a peer needs to a file of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_room_for_a_snapshot_stops_and_another_sends_it() {
    if let Err(why) = Preload::new(PathBuf::new()) {
        return not_run("a leader's snapshot without room", &why);
    }
    let mut cluster = Cluster::start(Plan { file_faults: true, ..Plan::default() }).await;
    fill(&cluster.client()).await;
    let load = Workload::start(&cluster, "leader without room", 9);
    load.advances_by(20).await;
    let leader = cluster.leader().await;
    let [wiped, _] = cluster.peers_of(leader);
    cluster.empty(wiped).await;
    let preload = cluster.node(leader).preload().clone();
    let before = preload.hit_count();
    preload.set(FileFault::NoRoomOnce, ".part");
    cluster.node(wiped).start();
    cluster.writes_until("a snapshot to be made", || preload.hit_count() > before).await;
    says_what_to_do(&cluster.node(leader).gives_up().await, "No space left");
    // Two nodes are left, and one of them is not counted before it is readmitted.
    cluster.node(leader).start();
    cluster.serves_within(RECOVERY).await;
    cluster.is_filled(wiped).await;
    cluster.converges().await;
    assert_eq!(preload.hit_count(), before + 1, "it was to happen once");
    load.stop().await.check(&cluster.client()).await.unwrap();
    is_whole(&cluster.client()).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_is_not_restored_from_a_damaged_snapshot() {
    let mut cluster = Cluster::start(Plan::default()).await;
    fill(&cluster.client()).await;
    let leader = cluster.leader().await;
    let [victim, _] = cluster.peers_of(leader);
    let file = cluster.kill_with_snapshot(victim).await;
    // The snapshot is all that the node has.
    let state = cluster.nodes[&victim].data.join("state");
    fs::remove_dir_all(&state).unwrap();
    let length = file.metadata().unwrap().len();
    assert!(length > u64::from(STATE_KEYS) * STATE_VALUE_BYTES as u64, "{length} bytes");
    // In the file's first bytes, in its content, and in its last byte.
    let end = length as usize - 1;
    for place in [5, end / 2, end] {
        flip(&file, place);
        cluster.node(victim).start();
        says_what_to_do(&cluster.node(victim).gives_up().await, "damage");
        flip(&file, place);
    }
    // And a file that is cut short.
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    cluster.node(victim).start();
    says_what_to_do(&cluster.node(victim).gives_up().await, "damage");
    fs::write(&file, &bytes).unwrap();
    cluster.node(victim).start();
    cluster.converges().await;
    is_whole(&cluster.client()).await;
    cluster.finish().await;
}

/// The copy of the leader's state is damaged while it is sent: the peer gets another copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_not_sent_to_a_peer() {
    let mut cluster = Cluster::start(Plan::default()).await;
    fill(&cluster.client()).await;
    // More than the buffers between the two nodes hold.
    for number in 0..128_u32 {
        cluster.client().put(format!("large/{number}"), vec![7; 256 << 10]).await.unwrap();
    }
    let leader = cluster.leader().await;
    let [receiver, _] = cluster.peers_of(leader);
    let narrow = Conditions::narrow(NARROW_BYTES_PER_SECOND);
    cluster.network.set_both(leader, receiver, &narrow);
    cluster.empty(receiver).await;
    cluster.node(receiver).start();
    cluster.receives_snapshot(receiver).await;
    let files = files_below(&cluster.nodes[&leader].data.join("snapshots"), ".snap");
    let file = files.last().expect("it is being sent");
    flip(file, file.metadata().unwrap().len() as usize - 1_000);
    cluster.network.heal();
    cluster.is_filled(receiver).await;
    cluster.converges().await;
    let said = cluster.nodes[&leader].said();
    assert!(said.contains("the published snapshot cannot be read"), "it was sent:\n{said}");
    is_whole(&cluster.client()).await;
    cluster.finish().await;
}
