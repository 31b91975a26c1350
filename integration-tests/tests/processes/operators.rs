//! Mistakes of operators: lists of members that differ or were edited, disks that are lost
//! together, a node that is started where nothing was initialised. Each is refused or waited out,
//! with a text that says what to do.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY, eventually, value};
use integration_tests::processes::disk::Disk;
use integration_tests::processes::means::not_run;
use integration_tests::processes::workload::Workload;
use kv_service::config::{NodeAddress, default_max_raft_state};
use kv_service::{NOT_INITIALISED, Outcome, ServerConfig};
use raft_core::types::NodeId;
use tokio::time::{Instant, sleep};

use super::disks::says_what_to_do;

/// Far longer than an election takes.
const NO_LEADER_FOR: Duration = Duration::from_secs(4);
const SHORT: Duration = Duration::from_secs(1);

const FULL_DISK_MEBIBYTES: u64 = 512;
/// Less than the room that a node wants to have left, which is a twentieth of a small disk.
const FULL_DISK_LEFT_BYTES: u64 = 16 << 20;

fn add_member(config: &mut ServerConfig) {
    // No process listens there, and no node gets as far as to dial it.
    config.nodes.push(NodeAddress { id: 4, address: "127.0.0.1:9".to_owned() });
}

fn remove_member(config: &mut ServerConfig) {
    let own = config.node_id;
    config.nodes.retain(|node| node.id == own || node.id == own % 3 + 1);
}

/// C3, S2. A list that was edited on one node made it count other quorums than its peers did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_members_that_was_edited_on_one_node_is_refused() {
    for compacted in [false, true] {
        let mut cluster = started(compacted).await;
        let leader = cluster.leader().await;
        let load = Workload::start(&cluster, &format!("edited {compacted}"), 21);
        for (victim, edit) in [
            (leader, add_member as fn(&mut ServerConfig)),
            (cluster.peers_of(leader)[0], remove_member),
        ] {
            load.advances_by(20).await;
            refuses_list(&mut cluster, victim, edit).await;
            cluster.node(victim).start();
            cluster.converges().await;
        }
        load.stop().await.check(&cluster.client()).await.unwrap();
        cluster.finish().await;
    }
}

/// C3, S2. How an operator "adds" nodes: the list is edited everywhere, and one node after the
/// other is started again. Each refuses; none has begun to count other quorums.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_members_that_was_edited_on_all_nodes_one_by_one_is_refused_by_each() {
    for compacted in [false, true] {
        let mut cluster = started(compacted).await;
        cluster.client().put("k", "kept").await.unwrap();
        for victim in NODES {
            refuses_list(&mut cluster, victim, add_member).await;
        }
        cluster.start_all();
        cluster.converges().await;
        assert_eq!(value(&cluster.client(), "k").await.unwrap(), b"kept");
        cluster.finish().await;
    }
}

/// A cluster whose logs have been compacted, or never.
async fn started(compacted: bool) -> Cluster {
    if !compacted {
        let plan = Plan { max_raft_state: default_max_raft_state(), ..Plan::default() };
        return Cluster::start(plan).await;
    }
    let cluster = Cluster::start(Plan::default()).await;
    let client = cluster.client();
    let is_compacted = async || {
        for number in 0..50 {
            client.put(format!("more/{number}"), vec![7; 16 << 10]).await.unwrap();
        }
        let statuses = cluster.statuses().await;
        statuses.len() == NODES.len() && statuses.iter().all(|status| status.snapshot_index > 0)
    };
    eventually("all logs to be compacted", is_compacted).await;
    cluster
}

/// Starts the node with another list, which it refuses; restores the list afterwards.
async fn refuses_list(cluster: &mut Cluster, id: NodeId, edit: fn(&mut ServerConfig)) {
    let node = cluster.node(id);
    node.kill_if_running().await;
    let mut before = None;
    node.edit_config(|config| {
        before = Some(config.nodes.clone());
        edit(config);
    });
    node.start();
    says_what_to_do(&node.gives_up().await, "members");
    node.edit_config(|config| config.nodes = before.take().expect("it was kept"));
}

/// C3, S2. A typing error in one file when the cluster is founded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_lists_of_members_found_no_cluster() {
    let mut cluster = Cluster::prepare(Plan::default()).await;
    let correct = initialise_with(&mut cluster, 3, add_member);
    cluster.start_all();
    let refused = async || {
        let said = NODES.map(|id| cluster.nodes[&id].said());
        said.iter().any(|said| said.contains("members"))
    };
    eventually("the lists to be compared", refused).await;
    stays_without_leader(&cluster).await;
    // The operator corrects the file, and the directory that was initialised with it.
    cluster.node(3).kill_if_running().await;
    initialise_with(&mut cluster, 3, |config| config.nodes = correct);
    cluster.node(3).start();
    cluster.serves_within(RECOVERY).await;
    cluster.converges().await;
    cluster.finish().await;
}

/// Initialises the node's directory anew, with another list; returns the list that it had.
fn initialise_with(
    cluster: &mut Cluster,
    id: NodeId,
    edit: impl FnOnce(&mut ServerConfig),
) -> Vec<NodeAddress> {
    let mut before = Vec::new();
    let node = cluster.node(id);
    fs::remove_dir_all(&node.data).unwrap();
    node.edit_config(|config| {
        before = config.nodes.clone();
        edit(config);
    });
    node.init();
    before
}

/// C4. Two of three disks are lost at once. The third one holds the acknowledged writes, and must
/// not be outvoted by two nodes on empty disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_of_disks_that_is_lost_stops_the_cluster_until_one_is_back() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let client = cluster.client();
    client.put("k", "kept").await.unwrap();
    cluster.converges().await;
    cluster.kill_all().await;
    let aside = cluster.dir().join("aside");
    for id in [1, 2] {
        fs::rename(&cluster.nodes[&id].data, aside.with_extension(id.to_string())).unwrap();
    }
    cluster.start_all();
    stays_without_leader(&cluster).await;
    say_why_there_is_no_leader(&cluster, &[1, 2]).await;
    // The node that still has its disk reports more.
    let said = cluster.nodes[&3].said();
    assert!(said.contains("a majority of the nodes is on new or lost disks"), "{said}");
    // One of the lost disks is found again.
    cluster.node(1).kill().await;
    fs::remove_dir_all(&cluster.nodes[&1].data).unwrap();
    fs::rename(aside.with_extension("1"), &cluster.nodes[&1].data).unwrap();
    cluster.node(1).start();
    cluster.serves_within(RECOVERY).await;
    assert_eq!(value(&client, "k").await.unwrap(), b"kept");
    cluster.converges().await;
    cluster.finish().await;
}

/// C4. All disks are lost: an empty cluster that accepts writes would hide that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_lost_all_disks_does_not_come_back_empty() {
    let mut cluster = Cluster::start(Plan::default()).await;
    cluster.client().put("k", "lost").await.unwrap();
    cluster.kill_all().await;
    for id in NODES {
        fs::remove_dir_all(&cluster.nodes[&id].data).unwrap();
    }
    cluster.start_all();
    stays_without_leader(&cluster).await;
    say_why_there_is_no_leader(&cluster, &NODES).await;
    cluster.finish().await;
}

/// C4. `kv serve` founds no cluster by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_were_never_initialised_wait_and_say_so() {
    let mut cluster = Cluster::prepare(Plan::default()).await;
    for id in NODES {
        fs::remove_dir_all(&cluster.nodes[&id].data).unwrap();
    }
    cluster.start_all();
    stays_without_leader(&cluster).await;
    say_why_there_is_no_leader(&cluster, &NODES).await;
    cluster.finish().await;
}

/// Checks that no node leads, and that no write succeeds.
async fn stays_without_leader(cluster: &Cluster) {
    let began = Instant::now();
    while began.elapsed() < NO_LEADER_FOR {
        for status in cluster.statuses().await {
            assert_ne!(status.role, "leader", "node {} leads: {status:?}", status.id);
        }
        sleep(Duration::from_millis(50)).await;
    }
    let client = cluster.client().with_deadline(SHORT);
    client.put("refused", "").await.expect_err("there is no leader");
}

/// Checks that these nodes report that their disks are empty and what an operator may do, in the
/// log and in the status.
async fn say_why_there_is_no_leader(cluster: &Cluster, nodes: &[NodeId]) {
    for id in nodes {
        let said = cluster.nodes[id].said();
        for words in ["not initialised, or its disk was lost", "kv init"] {
            assert!(said.contains(words), "node {id} does not say {words:?}:\n{said}");
        }
        let status = cluster.status(*id).await.expect("it answers");
        assert_eq!(status.role, NOT_INITIALISED);
    }
}

/// S21. Disks fill up together. Writes are refused while there is still room for those that were
/// accepted; reads and deletes go on, no node stops, and writes go on once there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_fill_up_together_stop_writes_and_no_node() {
    let disks: Result<BTreeMap<NodeId, Disk>, String> =
        NODES.into_iter().map(|id| Ok((id, Disk::new(FULL_DISK_MEBIBYTES)?))).collect();
    let disks = match disks {
        Ok(disks) => disks,
        Err(why) => return not_run("full disks everywhere", &why),
    };
    let data = disks.iter().map(|(id, disk)| (*id, disk.data())).collect();
    let mut cluster = Cluster::start(Plan { data, ..Plan::default() }).await;
    for node in cluster.nodes.values() {
        eventually("the log's files", async || node.said().contains("ready for reuse")).await;
    }
    let client = cluster.client().with_deadline(SHORT);
    client.put("k", "kept").await.unwrap();
    client.put("useless", "v").await.unwrap();
    for disk in disks.values() {
        disk.fill_up_to(FULL_DISK_LEFT_BYTES);
    }
    let is_refused = async |key: &str| {
        let refused = client.put(key.to_owned(), "refused").await.err();
        refused.is_some_and(|error| error.outcome == Outcome::NotExecuted)
    };
    // Writes still succeed until the nodes check their disks.
    eventually("writes to be refused", async || is_refused("probe").await).await;
    assert!(is_refused("k").await, "the disks are as full as before");
    assert_eq!(value(&client, "k").await.unwrap(), b"kept", "a refused write was executed");
    assert!(client.delete("useless").await.unwrap().changed, "deletes go on");
    cluster.no_node_has_failed();
    for disk in disks.values() {
        disk.make_room();
    }
    eventually("writes to go on", async || client.put("k", "again").await.is_ok()).await;
    assert_eq!(value(&client, "k").await.unwrap(), b"again");
    cluster.converges().await;
    cluster.finish().await;
}
