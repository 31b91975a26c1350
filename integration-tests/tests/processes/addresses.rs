//! Nodes that move to other addresses, and records that name wrong ones.

use std::time::Duration;

use integration_tests::processes::cluster::eventually;
use integration_tests::processes::workload::Workload;
use kv_service::members::ClusterReport;
use tokio::time::Instant;

use crate::members::{GAP_MAX, Pace, is_full_size, start};

/// A leader exists this long after the last node has started, although all have moved.
const MOVED_MAX: Duration = Duration::from_secs(5);

/// M-A1. One node after the other moves, the leader too, under load. No request fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m_a1_each_node_moves_under_load() {
    let mut cluster = start(3).await;
    let before = cluster.settles().await;
    let pace = Pace::start(cluster.direct_config());
    for id in 1..=3 {
        cluster.node(id).stop().await;
        // Its file names the others where they were, and its directory records where they are.
        cluster.move_alone(id, 100);
        cluster.node(id).start();
        let old = &before.member(id).expect("a member").info.address;
        let is_back = |report: &ClusterReport| {
            let member = report.member(id).expect("a member");
            member.info.address != *old && member.error.is_none() && report.is_settled()
        };
        let settled = cluster.members().settled(is_back).await;
        assert!(settled.is_ok(), "{settled:?}\n{}", cluster.describe().await);
    }
    let gap = pace.take_gap();
    eprintln!("all nodes moved one after the other; the longest gap between writes was {gap:?}");
    assert!(!is_full_size() || gap < GAP_MAX, "{gap:?}");
    pace.stop().await;
    cluster.finish().await;
}

/// M-A2. All addresses change at once, and each node's file names one other node that has moved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_move_at_once() {
    let mut cluster = start(3).await;
    cluster.add_node(false).await;
    let before = cluster.settles().await;
    cluster.operator().put("key", "value").await.unwrap();
    cluster.kill_all().await;
    for id in 1..=4 {
        cluster.move_node(id, 100, &[id % 4 + 1]);
    }
    cluster.start_all();
    let started = Instant::now();
    let client = cluster.moved_client(100);
    let record = client.get("key").await.unwrap().unwrap();
    let took = started.elapsed();
    assert_eq!(&record.value[..], b"value");
    eprintln!("a leader served {took:?} after the last start");
    assert!(!is_full_size() || took < MOVED_MAX, "{took:?}");
    // The new addresses are recorded.
    let before: Vec<String> = before.members.iter().map(|m| m.info.address.clone()).collect();
    let recorded = |report: &ClusterReport| {
        report.members.iter().all(|member| !before.contains(&member.info.address))
    };
    let settled = client.cluster().settled(recorded).await;
    let members = client.cluster().members().await;
    assert!(settled.is_ok(), "{members:#?}\n{}", cluster.describe().await);
    cluster.finish().await;
}

/// M-A3. The record of a node names the address of another one, which answers there. It is not
/// taken for the one that was meant, goes on undisturbed, and the node is found where it really is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m_a3_another_node_answers_at_the_address_of_a_peer() {
    let mut cluster = start(3).await;
    let load = Workload::start(&cluster, "wrong address", 4);
    let members = cluster.settles().await;
    let address = |id| members.member(id).expect("a member").info.address.clone();
    cluster.node(2).kill().await;
    cluster.members().describe(2, |info| info.address = address(3)).await.unwrap();
    // Node 3 is not taken for node 2, and the others go on.
    let error =
        |report: &ClusterReport, id| report.member(id).and_then(|member| member.error.clone());
    let is_refused = |report: &ClusterReport| error(report, 2).is_some();
    cluster.members().settled(is_refused).await.unwrap();
    eventually("node 1 names the certificate that it met", async || {
        cluster.node(1).log().contains("certificate not valid for name \"node-2.faults.raft\"")
    })
    .await;
    load.advances_by(200).await;
    let report = cluster.members().members().await.unwrap();
    assert!(is_refused(&report), "{report:?}");
    assert!([1, 3].into_iter().all(|id| error(&report, id).is_none()), "{report:?}");
    cluster.node(2).start();
    let is_back = |report: &ClusterReport| {
        let member = report.member(2).expect("a member");
        member.info.address == address(2) && (report.node_id == 2 || member.error.is_none())
    };
    cluster.members().settled(is_back).await.unwrap();
    load.stop().await.check(&cluster.operator()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}
