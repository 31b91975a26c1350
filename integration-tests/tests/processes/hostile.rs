//! Hostile clients and strangers, beside honest clients.
//!
//! In a run of all tests the attacks are small, and only the behaviour of the nodes is checked.
//! With `BARS=1` (`scripts/bars`) they have the promised size, and the honest clients' latencies
//! are compared with those before the attack; that needs a machine without other load.

use std::collections::BTreeMap;
use std::time::Duration;

use integration_tests::processes::attack::bystanders::{Bystanders, Seen};
use integration_tests::processes::attack::stall::{LARGE_KEY, Stalled};
use integration_tests::processes::attack::strangers::{Prepared, Strangers};
use integration_tests::processes::cluster::{Cluster, NODES, Plan};
use integration_tests::processes::means::not_run;
use kv_service::Client;
use kv_service::config::default_max_raft_state;
use raft_core::types::NodeId;
use tokio::time::{Instant, sleep, timeout};

const GIB: u64 = 1 << 30;
/// Bytes by which a node's memory may grow under attack.
const MEMORY_BYTES_MAX: u64 = GIB;
const CONNECTIONS: usize = 4096;
const CONNECTIONS_SMALL: usize = 200;
/// The 99th percentile of the honest clients' latencies, as a multiple of the undisturbed one.
const P99_WHILE_STALLED: f64 = 3.0;
const P99_BESIDE_STRANGERS: f64 = 5.0;
/// Time for a put and a get of a large value. Behind the frames of the stalled connections the put
/// would wait longer.
const LARGE_REQUESTS: Duration = Duration::from_secs(2);
const HANDSHAKES_PER_SECOND: u64 = 10_000;
const HANDSHAKES_PER_SECOND_SMALL: u64 = 500;
const MEASURED: Duration = Duration::from_secs(10);
const MEASURED_SMALL: Duration = Duration::from_secs(3);
/// Time within which every connection must have been tried.
const CONNECTING: Duration = Duration::from_secs(120);

fn is_full_size() -> bool {
    std::env::var("BARS").is_ok_and(|wish| wish == "1")
}

fn measured() -> Duration {
    if is_full_size() { MEASURED } else { MEASURED_SMALL }
}

async fn start() -> Cluster {
    // With default settings: the latencies must not contain the cost of a small log.
    Cluster::start(Plan { max_raft_state: default_max_raft_state(), ..Plan::default() }).await
}

/// Honest clients without an attack.
async fn undisturbed(cluster: &Cluster) -> Seen {
    let bystanders = Bystanders::start(cluster.direct_config());
    sleep(measured()).await;
    bystanders.stop().await
}

#[track_caller]
fn p99_is_within(before: Seen, during: Seen, times: f64) {
    let ratio = during.p99.as_secs_f64() / before.p99.as_secs_f64();
    eprintln!("before {before:?}\nduring {during:?}\np99 {ratio:.2} times");
    assert!(!is_full_size() || ratio < times, "p99 is {ratio:.2} times the undisturbed one");
}

/// S11. Each connection could make the leader keep megabytes, and there may be thousands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_connections_of_one_client_take_little_memory_and_disturb_nobody() {
    let cluster = start().await;
    let writer = cluster.client();
    writer.put(LARGE_KEY, vec![7; (1 << 20) - 1]).await.unwrap();
    let before = undisturbed(&cluster).await;
    let Some(idle) = memory(&cluster) else {
        return not_run("memory of a node under attack", "the system does not tell it");
    };
    let connections = if is_full_size() { CONNECTIONS } else { CONNECTIONS_SMALL };
    let tls = cluster.issue_client("hostile");
    let targets = NODES.map(|id| cluster.target(id)).into();
    let attack = Stalled::start(&tls, targets, connections);
    let mut peak = idle.clone();
    // Honest clients are served while the connections are opened.
    let meanwhile = Bystanders::start(cluster.direct_config());
    let all_tried = async {
        while attack.tried_count() < NODES.len() * connections {
            watch_memory(&cluster, &idle, &mut peak).await;
        }
    };
    timeout(CONNECTING, all_tried).await.expect("every connection is tried in time");
    let connecting = meanwhile.stop().await;
    let bystanders = Bystanders::start(cluster.direct_config());
    let began = Instant::now();
    while began.elapsed() < measured() {
        watch_memory(&cluster, &idle, &mut peak).await;
    }
    let during = bystanders.stop().await;
    let above = peak.iter().map(|(id, bytes)| (*id, (bytes - idle[id]) >> 20));
    eprintln!("{} of {} stalled connections are open", attack.open_count(), attack.tried_count());
    eprintln!("MiB above idle at the most: {:?}", above.collect::<Vec<_>>());
    eprintln!("while they came {connecting:?}");
    let large = large_requests(&writer).await;
    eprintln!("a large put and a large get took {large:?}");
    drop(attack);
    assert!(large < LARGE_REQUESTS, "large requests waited: {large:?}");
    p99_is_within(before, during, P99_WHILE_STALLED);
    cluster.finish().await;
}

/// Returns the time that a put of a large value and a get took, which need room that the stalled
/// connections also want.
async fn large_requests(client: &Client) -> Duration {
    let began = Instant::now();
    let value = vec![8; (1 << 20) - 1];
    client.put(LARGE_KEY, value.clone()).await.expect("there is room for the request");
    let read = client.get(LARGE_KEY).await.expect("there is room for the response");
    assert!(read.is_some_and(|record| record.value == value));
    began.elapsed()
}

/// S12. Strangers without a certificate, whose handshakes cost the leader cryptography and them
/// nothing, depose no leader and delay no client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_flood_the_leader_cause_no_election() {
    let cluster = start().await;
    let before = undisturbed(&cluster).await;
    let leader = cluster.leader().await;
    let term = cluster.status(leader).await.expect("the leader answers").term;
    let per_second =
        if is_full_size() { HANDSHAKES_PER_SECOND } else { HANDSHAKES_PER_SECOND_SMALL };
    let tls = cluster.issue_client("stranger");
    let strangers = Strangers::start(Prepared::new(&tls, cluster.target(leader), per_second));
    let bystanders = Bystanders::start(cluster.direct_config());
    sleep(measured()).await;
    let during = bystanders.stop().await;
    let rate = strangers.rate();
    eprintln!("{rate:.0} handshakes a second were begun");
    assert!(rate > 0.9 * per_second as f64, "the attacker was too slow: {rate:.0} a second");
    drop(strangers);
    let terms: Vec<u64> = cluster.statuses().await.iter().map(|status| status.term).collect();
    assert_eq!(terms, [term; NODES.len()], "there was an election");
    p99_is_within(before, during, P99_BESIDE_STRANGERS);
    cluster.finish().await;
}

fn memory(cluster: &Cluster) -> Option<BTreeMap<NodeId, u64>> {
    cluster.nodes.iter().map(|(id, node)| Some((*id, node.memory_bytes()?))).collect()
}

/// Waits a moment, and checks that no node has more memory than it may have.
async fn watch_memory(
    cluster: &Cluster,
    idle: &BTreeMap<NodeId, u64>,
    peak: &mut BTreeMap<NodeId, u64>,
) {
    sleep(Duration::from_millis(50)).await;
    for (id, bytes) in memory(cluster).expect("it was told before") {
        let above = bytes.saturating_sub(idle[&id]);
        assert!(above < MEMORY_BYTES_MAX, "node {id} has {} MiB more", above >> 20);
        let peak = peak.get_mut(&id).expect("the same nodes");
        *peak = (*peak).max(bytes);
    }
}
