//! Clients that are cut off from the leader, while the leader reaches its peers and other clients.

use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, Plan, RECOVERY, eventually, value};
use integration_tests::processes::network::{CLIENTS, Conditions};
use integration_tests::processes::workload::Workload;
use kv_service::Outcome;

const SHORT: Duration = Duration::from_secs(2);

/// The client reads through the followers, and reads nothing older than other clients have written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_the_leader_reads_nothing_old() {
    let cluster = Cluster::start(Plan::default()).await;
    let (near, far) = (cluster.client(), cluster.client_of(CLIENTS[1]));
    far.put("k", "0").await.unwrap();
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.unwrap().term;
    cluster.network.set_both(CLIENTS[1], leader, &Conditions::partition());
    for number in 1..=10 {
        let written = number.to_string();
        near.put("k", written.clone()).await.unwrap();
        assert_eq!(value(&far, "k").await.unwrap(), written.as_bytes());
    }
    let refused = far.with_deadline(SHORT).put("k", "never seen").await.unwrap_err();
    assert!(cluster.network.traffic(CLIENTS[1], leader).lost_count > 0);
    cluster.network.heal();
    far.put("done", "").await.unwrap();
    if refused.outcome == Outcome::NotExecuted {
        assert_eq!(value(&near, "k").await.unwrap(), b"10");
    }
    let status = cluster.status(leader).await.unwrap();
    assert_eq!((status.role.as_str(), status.term), ("leader", term), "it was disturbed");
    cluster.finish().await;
}

/// The request arrives and the response is lost: the client repeats the request until it gets the
/// response, and the request is executed once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_is_got_later_and_nothing_is_done_twice() {
    let mut cluster = Cluster::start(Plan::default()).await;
    let (near, far) = (cluster.client(), cluster.client_of(CLIENTS[1]));
    let far = far.with_deadline(Duration::from_secs(30));
    far.append("k", "before,").await.unwrap();
    let leader = cluster.leader().await;
    cluster.network.set(leader, CLIENTS[1], Conditions::partition());
    let appending = {
        let far = far.clone();
        tokio::spawn(async move { far.append("k", "once,").await })
    };
    let is_done = async || value(&near, "k").await.unwrap() == b"before,once,";
    eventually("the request to be executed", is_done).await;
    assert!(!appending.is_finished(), "the answer cannot have come");
    // The next leader knows the response, too.
    cluster.node(leader).kill().await;
    cluster.serves_within(RECOVERY).await;
    appending.await.unwrap().unwrap();
    assert_eq!(value(&near, "k").await.unwrap(), b"before,once,");
    cluster.network.heal();
    cluster.start_all();
    cluster.converges().await;
    cluster.finish().await;
}

/// A leader without clients stays, and serves them again as soon as they reach it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_clients_without_the_leader_depose_nobody() {
    let cluster = Cluster::start(Plan::default()).await;
    let load = Workload::start(&cluster, "cut off", 9);
    load.advances_by(50).await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.unwrap().term;
    for group in CLIENTS {
        cluster.network.set_both(group, leader, &Conditions::partition());
    }
    tokio::time::sleep(SHORT).await;
    let status = cluster.status(leader).await.unwrap();
    assert_eq!((status.role.as_str(), status.term), ("leader", term), "it was disturbed");
    cluster.network.heal();
    cluster.serves_within(RECOVERY).await;
    load.advances_by(50).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}
