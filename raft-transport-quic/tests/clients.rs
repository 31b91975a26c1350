//! Connections of the client protocol.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, addresses, config, control};
use raft_core::transport::Transport;
use raft_transport_quic::{ClientConnection, ClientEndpoint, DevCa, QuicError};

/// Sends the bytes of every stream back.
async fn echo(connection: ClientConnection) {
    while let Some((mut send, mut receive)) = connection.accept_stream().await {
        if let Ok(bytes) = receive.read_to_end(1 << 20).await {
            // A client that has gone needs no response.
            let _ = send.write_all(&bytes).await;
        }
    }
}

async fn say(connection: &ClientConnection, text: &[u8]) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_stream().await.unwrap();
    send.write_all(text).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(1 << 20).await.unwrap()
}

struct Setup {
    ca: DevCa,
    address: String,
    node: Node,
}

async fn one_node(clients_max: usize) -> Setup {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(1);
    let mut settings = config(&ca, 1, &peers);
    settings.client_connections_max = clients_max;
    Setup { node: Node::start(settings).await, address: peers[&1].clone(), ca }
}

#[tokio::test]
async fn clients_and_nodes_talk_to_a_node() {
    let Setup { ca, address, node } = one_node(10).await;
    let transport = node.transport.clone();
    let serving = tokio::spawn(async move {
        while let Some(client) = transport.accept_client().await {
            tokio::spawn(echo(client));
        }
    });
    let port = address.rsplit(':').next().unwrap();
    let by_name = format!("localhost:{port}");
    for (tls, address) in
        [(ca.issue_client("me").unwrap(), &address), (ca.issue_node(2).unwrap(), &by_name)]
    {
        let endpoint = ClientEndpoint::new("test", tls).unwrap();
        let connection = endpoint.connect(1, address).await.unwrap();
        assert_eq!(say(&connection, b"hello").await, b"hello");
        let long = vec![7; 900_000];
        let (one, two) = tokio::join!(say(&connection, &long), say(&connection, b"short"));
        assert!(one == long && two == b"short");
        endpoint.close().await;
        assert!(connection.closed().await.contains("this side"));
    }
    node.transport.close().await;
    serving.await.unwrap();
}

/// S11. A client whose connections are ended for its faults comes back slowly. Its other
/// connections stay.
#[tokio::test]
async fn connections_that_were_ended_slow_their_source_down() {
    let Setup { ca, address, node } = one_node(10).await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    let kept = endpoint.connect(1, &address).await.unwrap();
    let kept_there = node.transport.accept_client().await.unwrap();
    tokio::spawn(echo(kept_there));
    let mut ended = 0;
    let error = loop {
        match endpoint.connect(1, &address).await {
            Ok(_) => ended += 1,
            Err(error) => break error,
        }
        assert!(ended < 50, "it still comes back");
        let there = node.transport.accept_client().await.unwrap();
        there.slow_down_source();
        there.close("too slow");
    };
    assert!(ended > 3, "a burst is allowed");
    assert!(matches!(error, QuicError::Connect { .. }), "{error}");
    assert!(node.transport.handshake_counts().refused > 0);
    assert_eq!(say(&kept, b"hello").await, b"hello");
    // The client's side has no gate.
    kept.slow_down_source();
    endpoint.close().await;
}

#[tokio::test]
async fn beyond_the_limit_clients_are_told_to_come_later() {
    let Setup { ca, address, node } = one_node(1).await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    // The first client never opens a stream; it only takes the one place.
    let first = endpoint.connect(1, &address).await.unwrap();
    let first_there = node.transport.accept_client().await.unwrap();
    let error = endpoint.connect(1, &address).await.unwrap_err();
    assert!(matches!(error, QuicError::Connect { .. }));
    assert!(error.to_string().contains("takes no more"), "{error}");
    first.close("enough");
    let reason = first_there.closed().await;
    assert!(reason.contains("enough"), "{reason}");
    drop(first_there);
    let second = endpoint.connect(1, &address).await.unwrap();
    let second_there = node.transport.accept_client().await.unwrap();
    tokio::spawn(echo(second_there.clone()));
    assert_eq!(say(&second, b"hello").await, b"hello");
    second_there.close("the node says so");
    assert!(second.closed().await.contains("the node says so"));
    assert!(second.open_stream().await.is_err());
    assert!(second.accept_stream().await.is_none());
}

#[tokio::test]
async fn a_client_is_told_why_it_cannot_connect() {
    let Setup { ca, address, node: _node } = one_node(1).await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    for (node, address, text) in [
        (2, address.as_str(), "another node"),
        (1, "127.0.0.1:1", "timed out"),
        (1, "no port", "host:port"),
        (1, "127.0.0.1", "host:port"),
    ] {
        let error = endpoint.connect(node, address).await.unwrap_err().to_string();
        assert!(error.contains(text), "{address}: {error}");
    }
    let strange = DevCa::create("test").unwrap();
    let endpoint = ClientEndpoint::new("test", strange.issue_client("me").unwrap()).unwrap();
    let error = endpoint.connect(1, &address).await.unwrap_err().to_string();
    assert!(error.contains("CA"), "{error}");
    let error = ClientEndpoint::new("other", ca.issue_client("me").unwrap()).unwrap_err();
    assert!(error.to_string().contains("cluster `other`"), "{error}");
}

#[tokio::test]
async fn clients_do_not_disturb_peers() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let one = Node::start(config(&ca, 1, &peers)).await;
    let two = Node::start(config(&ca, 2, &peers)).await;
    one.connected_to(2).await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    let client = endpoint.connect(2, &peers[&2]).await.unwrap();
    let (mut send, _receive) = client.open_stream().await.unwrap();
    // The node never reads this stream; the writer fills its window and waits.
    let flood = tokio::spawn(async move { while send.write_all(&[0; 4096]).await.is_ok() {} });
    for id in 0..100 {
        one.send(2, control(id));
        assert_eq!(two.inbound.messages(1).await, [(1, control(id))]);
    }
    endpoint.close().await;
    flood.await.unwrap();
}
