//! Floods of handshakes: they cost no peer its connection and keep no other client out.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/flood.rs"]
mod flood;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Node, addresses, config, control};
use flood::{Flood, first_packets};
use raft_core::transport::Transport;
use raft_transport_quic::{ClientEndpoint, DevCa};
use tokio::time::Instant;

/// Messages pass both ways for a while, and the connection lasts.
async fn talk(two: &Node, three: &Node, lasting: Duration) {
    let end = Instant::now() + lasting;
    let mut id = 0;
    while Instant::now() < end {
        two.send(3, control(id));
        assert_eq!(three.inbound.messages(1).await, [(2, control(id))]);
        three.send(2, control(id));
        assert_eq!(two.inbound.messages(1).await, [(3, control(id))]);
        id += 1;
    }
    for node in [two, three] {
        let lost = node.inbound.wait("nothing", |seen| Some(seen.unreachable.clone())).await;
        assert!(lost.is_empty(), "a connection between peers was lost: {lost:?}");
    }
}

struct Cluster {
    ca: DevCa,
    peers: BTreeMap<u64, String>,
    two: Node,
    three: Node,
}

async fn cluster() -> Cluster {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(3);
    let two = Node::start(config(&ca, 2, &peers)).await;
    let three = Node::start(config(&ca, 3, &peers)).await;
    two.connected_to(3).await;
    three.connected_to(2).await;
    Cluster { ca, peers, two, three }
}

/// S12. 10,000 first packets per second from strangers without a certificate. The node begins only
/// as many handshakes as its rate allows and its peers stay connected. A peer that starts meanwhile
/// is admitted, and so is a client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_flood_of_strangers_disturbs_nobody() {
    let Cluster { ca, peers, two, three } = cluster().await;
    let packets = first_packets().await;
    let before = two.transport.handshake_counts();
    let begun = Instant::now();
    let flood = Flood::start(packets, peers[&2].clone(), 10_000);
    talk(&two, &three, Duration::from_secs(1)).await;
    let one = Node::start(config(&ca, 1, &peers)).await;
    one.connected_to(2).await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    let client = endpoint.connect(2, &peers[&2]).await.unwrap();
    let there = two.transport.accept_client().await.unwrap();
    talk(&two, &three, Duration::from_secs(1)).await;
    assert!(client.open_stream().await.is_ok());
    drop(there);

    let sent = flood.sent.load(Ordering::Relaxed);
    drop(flood);
    let counts = two.transport.handshake_counts();
    let seconds = begun.elapsed().as_secs_f64();
    let admitted = counts.admitted - before.admitted;
    // Handshakes without a proof: 20 per second and a burst of 32; and some for node 1 and the
    // client.
    let allowed = (20.0 * seconds) as u64 + 32 + 16;
    assert!(admitted <= allowed, "{admitted} of {sent} in {seconds:.1} s: {counts:?}");
    let asked = counts.proof_demanded + counts.refused + counts.ignored;
    assert!(asked > 10 * admitted, "there was no flood: {sent} sent, {counts:?}");
}

/// S12. A client with a certificate that connects as often as it can gets its share, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_client_that_connects_without_end_is_held_to_a_rate() {
    let Cluster { ca, peers, two, three } = cluster().await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    let endpoint = Arc::new(endpoint);
    let begun = Instant::now();
    let before = two.transport.handshake_counts();
    let transport = Arc::clone(&two.transport);
    let accepting = tokio::spawn(async move { while transport.accept_client().await.is_some() {} });
    let hammering: Vec<_> = (0..64)
        .map(|_| {
            let (endpoint, address) = (Arc::clone(&endpoint), peers[&2].clone());
            tokio::spawn(async move {
                loop {
                    let attempt = endpoint.connect(2, &address);
                    let _ = tokio::time::timeout(Duration::from_millis(100), attempt).await;
                }
            })
        })
        .collect();
    talk(&two, &three, Duration::from_secs(2)).await;
    let counts = two.transport.handshake_counts();
    let seconds = begun.elapsed().as_secs_f64();
    hammering.iter().for_each(tokio::task::JoinHandle::abort);
    let admitted = counts.admitted - before.admitted;
    // One source has half of the rate and a burst of 64. Added to that are handshakes that need no
    // proof, and those from the IP address of a peer, which the client has here.
    let allowed = ((100.0 + 20.0 + 20.0) * seconds) as u64 + 64 + 32 + 16;
    assert!(admitted <= allowed, "{admitted} in {seconds:.1} s: {counts:?}");
    assert!(counts.refused + counts.ignored > 0, "it was not held back: {counts:?}");
    two.transport.close().await;
    accepting.await.unwrap();
}
