//! Links that are bad in a way that a simulation of messages does not cover: the reactions of QUIC.

use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, Plan, RECOVERY, eventually};
use integration_tests::processes::network::Conditions;
use integration_tests::processes::workload::Workload;
use tokio::time::sleep;

/// A leader that reaches a quorum stays, though the third node receives nothing from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_link_of_three_deposes_nobody() {
    let cluster = Cluster::start(Plan::default()).await;
    let leader = cluster.leader().await;
    let [cut_off, hub] = cluster.peers_of(leader);
    let before = cluster.status(leader).await.unwrap().term;
    let load = Workload::start(&cluster, "bridge", 1);
    load.advances_by(50).await;
    cluster.network.set_both(leader, cut_off, &Conditions::partition());
    sleep(Duration::from_secs(4)).await;
    load.advances_by(50).await;
    let after = cluster.status(leader).await.unwrap();
    assert!(after.term <= before + 1, "term {before} became {}", after.term);
    assert!(cluster.network.traffic(leader, cut_off).lost_count > 0);
    assert!(cluster.network.traffic(leader, hub).lost_count == 0);
    cluster.network.heal();
    cluster.serves_within(RECOVERY).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}

/// A node whose messages reach no peer, or that receives none, does not lead, and does not raise
/// terms either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_one_way_deposes_a_leader_and_a_follower_disturbs_nobody() {
    let cluster = Cluster::start(Plan::default()).await;
    let deaf = cluster.leader().await;
    let peers = cluster.peers_of(deaf);
    for peer in peers {
        cluster.network.set(peer, deaf, Conditions::partition());
    }
    eventually(
        "another leader",
        async || matches!(cluster.leader_now().await, Some(leader) if leader != deaf),
    )
    .await;
    eventually("the deaf one to notice", async || {
        cluster.status(deaf).await.is_some_and(|status| status.role != "leader")
    })
    .await;
    cluster.serves_within(RECOVERY).await;
    cluster.network.heal();
    cluster.converges().await;

    let leader = cluster.leader().await;
    let [mute, _] = cluster.peers_of(leader);
    let term = cluster.status(leader).await.unwrap().term;
    for peer in cluster.peers_of(mute) {
        cluster.network.set(mute, peer, Conditions::partition());
    }
    let load = Workload::start(&cluster, "mute", 2);
    sleep(Duration::from_secs(2)).await;
    load.advances_by(50).await;
    cluster.network.heal();
    load.advances_by(20).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    let status = cluster.status(leader).await.unwrap();
    assert_eq!((status.role.as_str(), status.term), ("leader", term), "it was disturbed");
    cluster.finish().await;
}
