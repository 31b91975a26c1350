//! Damage by operators and by decay to the directory of a stopped node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use integration_tests::processes::cluster::{Cluster, Plan, RECOVERY, eventually, value};
use integration_tests::processes::means::run;
use integration_tests::processes::node::files_below;
use integration_tests::processes::workload::Workload;
use kv_service::Client;
use kv_service::config::ByteSize;

use super::disks::says_what_to_do;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_copied_moved_or_put_back_is_refused() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let client = cluster.client();
    client.put("k", "old").await.unwrap();
    let leader = cluster.leader().await;
    let [victim, other] = cluster.peers_of(leader);
    assert!(cluster.node(victim).stop().await.success());
    let data = cluster.nodes[&victim].data.clone();
    let (backup, aside) = (cluster.dir().join("backup"), cluster.dir().join("aside"));
    copy(&data, &backup);
    cluster.node(victim).start();
    client.put("k", "new").await.unwrap();
    cluster.converges().await;

    // A backup that is older than the node's acknowledgements since.
    cluster.node(victim).kill().await;
    fs::rename(&data, &aside).unwrap();
    copy(&backup, &data);
    cluster.node(victim).start();
    says_what_to_do(&cluster.node(victim).gives_up().await, "copy");

    // The directory of another node.
    fs::remove_dir_all(&data).unwrap();
    copy_identity(&cluster.nodes[&other].data, &data);
    cluster.node(victim).start();
    let said = cluster.node(victim).gives_up().await;
    assert!(said.contains(&format!("belongs to node {other}")), "{said}");

    // The node's own directory, moved back.
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&aside, &data).unwrap();
    cluster.node(victim).start();
    cluster.converges().await;
    assert_eq!(value(&client, "k").await.unwrap(), b"new");
    cluster.finish().await;
}

/// The others have everything, so a node may come back with an empty disk: while they are busy, and
/// while no client sends a request, so that the leader learns only that the node lacks its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_wiped_is_filled_again() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let leader = cluster.leader().await;
    let [victim, _] = cluster.peers_of(leader);
    cluster.client().put("k", "old").await.unwrap();
    cluster.converges().await;
    cluster.wipe(victim).await;
    cluster.node(victim).start();
    cluster.converges().await;
    assert_eq!(cluster.leader().await, leader, "the leader was disturbed");
    let load = Workload::start(&cluster, "wiped", 7);
    load.advances_by(300).await;
    cluster.wipe(victim).await;
    cluster.node(victim).start();
    load.advances_by(100).await;
    cluster.converges().await;
    // The node is readmitted: its votes and acknowledgements are counted.
    cluster.node(leader).kill().await;
    cluster.serves_within(RECOVERY).await;
    load.advances_by(20).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.node(leader).start();
    cluster.converges().await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_of_the_log_is_refused_and_not_taken_for_its_end() {
    // The log is never compacted.
    let plan = Plan { max_raft_state: ByteSize(0), ..Plan::default() };
    let mut cluster = Cluster::start(plan).await;
    for node in cluster.nodes.values() {
        // From then on files are filled one after the other, each from its beginning to its end.
        eventually("the log's files", async || node.said().contains("ready for reuse")).await;
    }
    let client = cluster.client();
    client.put("n", NEEDLE).await.unwrap();
    write(&client, "after", 200).await;
    cluster.converges().await;
    let leader = cluster.leader().await;
    for victim in cluster.peers_of(leader) {
        cluster.node(victim).kill().await;
        let (file, place) =
            middle_of_log(&cluster.nodes[&victim].log_files(".log")).expect("it was just written");
        flip(&file, place);
        cluster.node(victim).start();
        let said = cluster.node(victim).gives_up().await;
        says_what_to_do(&said, "damage");
        // A refused directory is not altered: with the byte restored, the node starts.
        flip(&file, place);
        cluster.node(victim).start();
        cluster.converges().await;
    }
    assert_eq!(value(&client, "n").await.unwrap(), NEEDLE.as_bytes());
    cluster.finish().await;
}

/// The state is read on demand, so damage shows late; but it never shows as another value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_of_the_state_is_never_served() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let client = cluster.client();
    client.put("n", NEEDLE).await.unwrap();
    // Enough writes that the state is in tables and the log is compacted.
    write(&client, "after", 300).await;
    cluster.converges().await;
    let damaged = cluster.leader().await;
    cluster.kill_all().await;
    let (file, place) =
        find(&files_below(&cluster.nodes[&damaged].data.join("state"), ".sst"), NEEDLE)
            .expect("it was flushed");
    flip(&file, place);
    cluster.start_all();
    cluster.serves_within(RECOVERY).await;
    // Until the damaged node leads and serves the read.
    for _ in 0..20 {
        if cluster.node(damaged).has_ended().is_some() {
            break;
        }
        let leads = cluster.leader().await;
        assert_eq!(value(&client, "n").await.unwrap(), NEEDLE.as_bytes(), "node {leads} leads");
        if leads != damaged {
            cluster.node(leads).kill().await;
            cluster.serves_within(RECOVERY).await;
            cluster.start_all();
        }
    }
    let said = cluster.node(damaged).gives_up().await;
    says_what_to_do(&said, "damage");
    cluster.serves_within(RECOVERY).await;
    fs::remove_dir_all(&cluster.nodes[&damaged].data).unwrap();
    cluster.start_all();
    cluster.converges().await;
    cluster.finish().await;
}

/// Text that is found in every file it was written to, and in no other by accident. Nothing in it
/// is repeated, so compression leaves it as it is.
const NEEDLE: &str = "6f1d2e9b-b07a44c1-d3592e70-81c6f25a";

async fn write(client: &Client, name: &str, count: u32) {
    for number in 0..count {
        client.put(format!("{name}/{number}"), vec![b'x'; 2_000]).await.unwrap();
    }
}

/// Place of the needle, in the newest of the files that have it.
pub(crate) fn find(files: &[PathBuf], needle: &str) -> Option<(PathBuf, usize)> {
    files.iter().rev().find_map(|path| {
        let bytes = fs::read(path).unwrap();
        let place = bytes.windows(needle.len()).position(|window| window == needle.as_bytes())?;
        Some((path.clone(), place + needle.len() / 2))
    })
}

/// A place in a batch of the newest log file that later batches vouch for. The values of batches
/// are masked, their marks are not: the operation that puts the mark, and the batch's number.
pub(crate) fn middle_of_log(files: &[PathBuf]) -> Option<(PathBuf, usize)> {
    const MARK: &[u8] = &[1, 1, b'b', 33, b'B'];
    const MARK_OPERATION_BYTES: usize = 4 + 33;
    const LATER_BATCHES: u64 = 10;
    let path = files.last()?;
    let bytes = fs::read(path).unwrap();
    let marks =
        bytes.windows(MARK.len() + 8).enumerate().filter(|(_, head)| head.starts_with(MARK));
    let places: BTreeMap<u64, usize> = marks
        .map(|(at, head)| {
            let number: [u8; 8] = head[MARK.len()..].try_into().unwrap();
            (u64::from_be_bytes(number), at)
        })
        .collect();
    // A mark that lies across two blocks of the file has a part of a block's header for its number.
    let is_read = |number: &&u64| number.checked_sub(1).is_some_and(|n| places.contains_key(&n));
    let newest = places.keys().rev().find(is_read)?;
    let (_, at) = places.range(..=newest.checked_sub(LATER_BATCHES)?).next_back()?;
    // In the first record behind the mark; no record is shorter.
    Some((path.clone(), at + MARK_OPERATION_BYTES + 20))
}

pub(crate) fn flip(file: &Path, place: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[place] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

/// Copies the files that identify a directory.
pub(crate) fn copy_identity(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in ["identity", "lock", "place", "reset-key"] {
        copy(&from.join(name), &to.join(name));
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
}
