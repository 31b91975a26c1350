//! Whoever has no business here is told why, the operator can read it, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Node, PATIENCE, addresses, config, control, with_tls};
use quinn::crypto::rustls::QuicClientConfig;
use raft_core::transport::Transport;
use raft_transport_quic::{DevCa, QuicConfig, QuicError, QuicTransport, TlsConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::timeout;

/// Two nodes that talk to each other throughout, and know a third that is played by the test.
struct Pair {
    ca: DevCa,
    peers: std::collections::BTreeMap<u64, String>,
    two: Node,
    three: Node,
}

impl Pair {
    async fn new() -> Self {
        let ca = DevCa::create("test").unwrap();
        let peers = addresses(3);
        let two = Node::start(config(&ca, 2, &peers)).await;
        let three = Node::start(config(&ca, 3, &peers)).await;
        two.connected_to(3).await;
        Self { ca, peers, two, three }
    }

    /// Messages still pass, and nothing was lost before.
    async fn is_undisturbed(&self) {
        for id in 0..10 {
            self.two.send(3, control(id));
            assert_eq!(self.three.inbound.messages(1).await, [(2, control(id))]);
        }
        let lost = self.three.inbound.wait("nothing", |seen| Some(seen.unreachable.clone())).await;
        assert!(!lost.contains(&2), "the pair lost its connection");
    }

    fn address(&self) -> SocketAddr {
        self.peers[&2].parse().unwrap()
    }
}

/// Dials node 2 as anybody with anything.
struct Stranger {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

impl Stranger {
    async fn dial(
        to: SocketAddr,
        tls: Option<&TlsConfig>,
        trust: &TlsConfig,
        alpn: &[u8],
    ) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&trust.ca_pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match tls {
            Some(tls) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(&tls.cert_pem).unwrap()],
                    PrivateKeyDer::from_pem_slice(&tls.key_pem).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let config = QuicClientConfig::try_from(config).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint
            .connect_with(quinn::ClientConfig::new(Arc::new(config)), to, "node-2.test.raft")
            .unwrap()
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self { endpoint, connection })
    }

    async fn closed(&self) -> String {
        timeout(PATIENCE, self.connection.closed()).await.expect("nobody closes it").to_string()
    }
}

#[tokio::test]
async fn whoever_does_not_fit_the_protocol_is_refused() {
    let pair = Pair::new().await;
    let other_cluster =
        DevCa::from_pem("other", pair.ca.cert_pem().as_bytes(), pair.ca.key_pem().as_bytes());
    let other_cluster = other_cluster.unwrap();
    let stranger = DevCa::create("test").unwrap();
    let node = |id| pair.ca.issue_node(id).unwrap();
    let client = pair.ca.issue_client("me").unwrap();
    let cases = [
        ("a client as a peer", Some(client.clone()), "raft/1", "does not make a peer"),
        ("an unknown node", Some(node(9)), "raft/1", "not among the peers"),
        ("a node that should be dialled", Some(node(3)), "raft/1", "dials node 3"),
        ("ourselves", Some(node(2)), "raft/1", "not among the peers"),
        ("a node of another cluster", other_cluster.issue_node(1).ok(), "raft/1", "cluster `test`"),
        (
            "a client of another cluster",
            other_cluster.issue_client("x").ok(),
            "kv/1",
            "cluster `test`",
        ),
        ("a node of another CA", stranger.issue_node(1).ok(), "raft/1", "invalid peer certificate"),
        (
            "a client of another CA",
            stranger.issue_client("x").ok(),
            "kv/1",
            "invalid peer certificate",
        ),
        ("nobody", None, "kv/1", "certificate"),
        ("another protocol", Some(client.clone()), "raft/2", "any known protocol"),
        ("a node of another protocol", Some(node(1)), "h3", "any known protocol"),
    ];
    for (who, tls, alpn, text) in cases {
        let dialled = Stranger::dial(pair.address(), tls.as_ref(), &client, alpn.as_bytes()).await;
        let reason = match dialled {
            Ok(stranger) => stranger.closed().await,
            Err(reason) => reason,
        };
        assert!(reason.contains(text), "{who}: {reason}");
        pair.is_undisturbed().await;
    }
    assert!(pair.two.inbound.wait("nothing", |seen| Some(seen.messages.is_empty())).await);
}

#[tokio::test]
async fn a_node_with_certificates_of_another_ca_is_told_so_on_both_sides() {
    let pair = Pair::new().await;
    let strange = DevCa::create("test").unwrap();
    let one = Node::start(config(&strange, 1, &pair.peers)).await;
    let told = one.fails_with(2, "CA").await;
    assert!(told.contains("of one CA on all nodes"), "{told}");
    // It came from where node 1 is expected.
    pair.two.fails_with(1, "CA").await;
    pair.is_undisturbed().await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_told_so() {
    let pair = Pair::new().await;
    let ca = DevCa::from_pem("other", pair.ca.cert_pem().as_bytes(), pair.ca.key_pem().as_bytes());
    let mut settings = with_tls(ca.unwrap().issue_node(1).unwrap(), 1, &pair.peers);
    settings.cluster_id = "other".to_owned();
    let one = Node::start(settings).await;
    one.fails_with(2, "another cluster").await;
    pair.two.fails_with(1, "not valid for name").await;
    pair.is_undisturbed().await;
}

#[tokio::test]
async fn a_certificate_of_another_node_is_found_at_the_start() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let refused = async |settings: QuicConfig| QuicTransport::bind(settings).await.unwrap_err();
    let error = refused(with_tls(ca.issue_node(2).unwrap(), 1, &peers)).await;
    assert!(error.to_string().contains("for node 2, but this is node 1"), "{error}");
    let error = refused(with_tls(ca.issue_client("me").unwrap(), 1, &peers)).await;
    assert!(error.to_string().contains("client's"), "{error}");
    let mut settings = config(&ca, 1, &peers);
    settings.cluster_id = "Not A Label".to_owned();
    assert!(matches!(refused(settings).await, QuicError::ClusterId(_)));
    let mut settings = config(&ca, 1, &peers);
    settings.cluster_id = "other".to_owned();
    assert!(refused(settings).await.to_string().contains("cluster `other`"));
    let _taken = UdpSocket::bind(&peers[&1]).unwrap();
    let error = refused(config(&ca, 1, &peers)).await;
    assert!(matches!(error, QuicError::Bind { .. }) && error.to_string().contains("port"));
}

/// What a peer may say, byte for byte.
fn framed(body: &[u8]) -> Bytes {
    [&(body.len() as u32).to_be_bytes(), body].concat().into()
}

fn hello(cluster: &str, node: u64, class: u8) -> Bytes {
    framed(&rmp_serde::to_vec(&(cluster, node, 1u64, class)).unwrap())
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_cut_off() {
    let pair = Pair::new().await;
    let good = [hello("test", 1, 0), hello("test", 1, 1)];
    let then = |bytes: &[u8]| {
        let [control, log] = good.clone();
        [control, [&log[..], bytes].concat().into()]
    };
    let heartbeat_answer = [0, 0, 0, 3, 8, 5, 1];
    let elsewhere = framed(&rmp_serde::to_vec(&("test", 1u64, 2u64, 1u8)).unwrap());
    let endless_term = [0, 0, 0, 11, 9, 0xcf, 0x80, 0, 0, 0, 0, 0, 0, 0, 1];
    let cases: [(&str, [Bytes; 2], &str); 11] = [
        ("two incarnations", [good[0].clone(), elsewhere], "different incarnations"),
        ("a term without a next one", then(&framed(&endless_term)), "term is out of range"),
        ("another cluster", [hello("other", 1, 0), good[1].clone()], "cluster `other`"),
        ("another node", [hello("test", 3, 0), good[1].clone()], "says it is node 3"),
        ("a class twice", [good[0].clone(), good[0].clone()], "one class"),
        ("a class that is none", [good[0].clone(), hello("test", 1, 2)], "class is unknown"),
        ("no hello", [framed(b"hello"), framed(b"hello")], "hello"),
        ("a long hello", [framed(&[0; 2000]), good[1].clone()], "frame of 2000 bytes"),
        ("an oversize frame", then(&[0xff; 4]), "frame of 4294967295 bytes"),
        ("no message", then(&framed(b"\0\0\0\x01\xc1")), "undecodable message"),
        ("a message of another class", then(&framed(&heartbeat_answer)), "another class"),
    ];
    let tls = pair.ca.issue_node(1).unwrap();
    for (what, streams, text) in cases {
        let stranger = Stranger::dial(pair.address(), Some(&tls), &tls, b"raft/1").await.unwrap();
        let mut open = Vec::new();
        for bytes in streams {
            // It may be cut off while it still speaks.
            if let Ok(mut stream) = stranger.connection.open_uni().await {
                let _ = stream.write_all(&bytes).await;
                open.push(stream);
            }
        }
        let reason = stranger.closed().await;
        assert!(reason.contains(text), "{what}: {reason}");
        let noted = pair.two.fails_with(1, text).await;
        assert!(!noted.is_empty(), "{what}");
        pair.is_undisturbed().await;
        stranger.endpoint.wait_idle().await;
    }
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nobody() {
    let pair = Pair::new().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut noise = 0x9e37_79b9_u32;
    for size in (0..1400).step_by(7) {
        let datagram: Vec<u8> = (0..size)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 17;
                noise ^= noise << 5;
                noise as u8
            })
            .collect();
        socket.send_to(&datagram, pair.address()).unwrap();
        if size % 70 == 0 {
            pair.is_undisturbed().await;
        }
    }
}

/// They know how to begin, and never go on.
#[tokio::test]
async fn handshakes_that_never_end_disturb_nobody() {
    let pair = Pair::new().await;
    let tls = pair.ca.issue_client("me").unwrap();
    let strangers: Vec<_> = (0..300)
        .map(|_| {
            let (to, tls) = (pair.address(), tls.clone());
            tokio::spawn(async move {
                // Given up in the middle, without a word.
                let dial = Stranger::dial(to, Some(&tls), &tls, b"raft/1");
                let _ = timeout(Duration::from_millis(3), dial).await;
            })
        })
        .collect();
    pair.is_undisturbed().await;
    for stranger in strangers {
        stranger.await.unwrap();
    }
    pair.is_undisturbed().await;
    let one = Node::start(config(&pair.ca, 1, &pair.peers)).await;
    one.connected_to(2).await;
    one.transport.close().await;
}
