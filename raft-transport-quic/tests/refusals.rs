//! Refused connections: the refused side learns the reason, the operator can read it, and no other
//! connection is disturbed.

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

/// Two nodes that talk to each other throughout; the test plays the third.
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

    /// Asserts that messages still pass, and that no connection was lost before.
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

/// Dials node 2 with any certificate and any protocol.
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
        ("a client as a peer", Some(client.clone()), "raft/2", "does not make a peer"),
        ("an unknown node", Some(node(9)), "raft/2", "not among the peers"),
        ("a node that should be dialled", Some(node(3)), "raft/2", "dials node 3"),
        ("ourselves", Some(node(2)), "raft/2", "not among the peers"),
        ("a node of another cluster", other_cluster.issue_node(1).ok(), "raft/2", "cluster `test`"),
        (
            "a client of another cluster",
            other_cluster.issue_client("x").ok(),
            "kv/2",
            "cluster `test`",
        ),
        ("a node of another CA", stranger.issue_node(1).ok(), "raft/2", "invalid peer certificate"),
        (
            "a client of another CA",
            stranger.issue_client("x").ok(),
            "kv/2",
            "invalid peer certificate",
        ),
        ("nobody", None, "kv/2", "certificate"),
        (
            "a client that knows version 1 only",
            Some(client.clone()),
            "kv/1",
            "no version later than kv/1",
        ),
        (
            "a node that knows version 1 only",
            Some(node(1)),
            "raft/1",
            "no version later than raft/1",
        ),
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
    // It dialled from the address at which node 1 is expected.
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

/// A frame with this body, as a peer sends it.
fn framed(body: &[u8]) -> Bytes {
    [&(body.len() as u32).to_be_bytes(), body].concat().into()
}

/// The fields of a hello, as `docs/wire.md` draws them.
#[derive(Clone)]
struct Hello {
    cluster: &'static str,
    uid: u64,
    node: u64,
    incarnation: u64,
    class: u8,
    versions: (u32, u32),
    members: Vec<u64>,
}

impl Hello {
    fn of_class(class: u8) -> Self {
        let (cluster, versions, members) = ("test", (1, 1), vec![1, 2, 3]);
        Self { cluster, uid: 0, node: 1, incarnation: 1, class, versions, members }
    }

    fn frame(&self) -> Bytes {
        let ids: Vec<u8> = self.members.iter().flat_map(|id| id.to_be_bytes()).collect();
        let digest = ring::digest::digest(&ring::digest::SHA256, &ids);
        let digest = u64::from_be_bytes(*digest.as_ref().first_chunk().unwrap());
        let Self { cluster, uid, node, incarnation, class, versions: (min, max), members } = self;
        let fields =
            (cluster, 0, uid, node, incarnation, class, min, max, digest, members, 0, false);
        framed(&rmp_serde::to_vec(&fields).unwrap())
    }
}

fn hello(change: impl FnOnce(&mut Hello)) -> Bytes {
    let mut hello = Hello::of_class(0);
    change(&mut hello);
    hello.frame()
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_cut_off() {
    let pair = Pair::new().await;
    let good = [Hello::of_class(0).frame(), Hello::of_class(1).frame()];
    let then = |bytes: &[u8]| {
        let [control, log] = good.clone();
        [control, [&log[..], bytes].concat().into()]
    };
    let with_log = |control: Bytes| [control, good[1].clone()];
    // Kind, group, term and body.
    let heartbeat_answer = [0, 0, 0, 6, 8, 0, 5, 0x92, 1, 1];
    let endless_term = [0, 0, 0, 12, 9, 0, 0xcf, 0x80, 0, 0, 0, 0, 0, 0, 0, 1];
    let elsewhere = hello(|hello| (hello.incarnation, hello.class) = (2, 1));
    let cases: [(&str, [Bytes; 2], &str); 14] = [
        ("two incarnations", [good[0].clone(), elsewhere], "different incarnations"),
        ("a term without a next one", then(&framed(&endless_term)), "term is out of range"),
        ("another cluster", with_log(hello(|hello| hello.cluster = "other")), "cluster `other`"),
        ("another node", with_log(hello(|hello| hello.node = 3)), "says it is node 3"),
        (
            "other members",
            with_log(hello(|hello| hello.members.push(4))),
            "the members are 1, 2, 3, 4 by the configuration of node 1, and 1, 2, 3 by",
        ),
        (
            "fewer members",
            with_log(hello(|hello| hello.members = vec![1, 2])),
            "the members are 1, 2 by the configuration of node 1, and 1, 2, 3 by",
        ),
        (
            "a later release",
            with_log(hello(|hello| hello.versions = (2, 3))),
            "supports cluster versions 2 to 3, and node 2 0 to 1",
        ),
        ("a class twice", [good[0].clone(), good[0].clone()], "one class"),
        ("a class that is none", [good[0].clone(), hello(|h| h.class = 2)], "class is unknown"),
        ("no hello", [framed(b"hello"), framed(b"hello")], "hello"),
        ("a long hello", [framed(&[0; 3000]), good[1].clone()], "frame of 3000 bytes"),
        ("an oversize frame", then(&[0xff; 4]), "frame of 4294967295 bytes"),
        ("no message", then(&framed(b"\0\0\0\x01\xc1")), "undecodable message"),
        ("a message of another class", then(&framed(&heartbeat_answer)), "another class"),
    ];
    let tls = pair.ca.issue_node(1).unwrap();
    for (what, streams, text) in cases {
        let stranger = Stranger::dial(pair.address(), Some(&tls), &tls, b"raft/2").await.unwrap();
        let mut open = Vec::new();
        for bytes in streams {
            // The node may close the connection while the test still writes.
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

/// S2, C3. If the list of members was edited on one node only, the hello is refused, and the
/// operators of both nodes can read both lists. The node with the edited list must not count
/// another majority.
#[tokio::test]
async fn s02_nodes_with_different_members_refuse_each_other() {
    let pair = Pair::new().await;
    let mut edited = pair.peers.clone();
    edited.insert(4, "127.0.0.1:9".to_owned());
    edited.insert(5, "127.0.0.1:9".to_owned());
    let one = Node::start(config(&pair.ca, 1, &edited)).await;
    let told = one.fails_with(2, "the members are").await;
    assert!(told.contains("1, 2, 3 by") && told.contains("1, 2, 3, 4, 5 by"), "{told}");
    let told = pair.two.fails_with(1, "the members are").await;
    assert!(told.contains("1, 2, 3 by") && told.contains("1, 2, 3, 4, 5 by"), "{told}");
    pair.is_undisturbed().await;
    one.transport.close().await;
    // With the same list as the others the node is accepted.
    let one = Node::start(config(&pair.ca, 1, &pair.peers)).await;
    one.connected_to(2).await;
}

/// Two clusters of one name and one CA.
#[tokio::test]
async fn nodes_of_clusters_with_different_uids_refuse_each_other() {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(2);
    let with_uid = |id, uid| {
        let mut settings = config(&ca, id, &peers);
        settings.cluster_uid = uid;
        settings
    };
    let one = Node::start(with_uid(1, 7)).await;
    let two = Node::start(with_uid(2, 8)).await;
    one.fails_with(2, "another cluster with the name `test`").await;
    two.transport.close().await;
    // A node that has no uid yet is accepted.
    let two = Node::start(with_uid(2, 0)).await;
    one.connected_to(2).await;
    two.transport.close().await;
    // So is one that has learned the uid of the cluster meanwhile, and no other one.
    let two = Node::start(with_uid(2, 8)).await;
    one.fails_with(2, "another cluster with the name `test`").await;
    two.transport.set_cluster_uid(7);
    one.connected_to(2).await;
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

/// Strangers begin handshakes and never complete them.
#[tokio::test]
async fn handshakes_that_never_end_disturb_nobody() {
    let pair = Pair::new().await;
    let tls = pair.ca.issue_client("me").unwrap();
    let strangers: Vec<_> = (0..300)
        .map(|_| {
            let (to, tls) = (pair.address(), tls.clone());
            tokio::spawn(async move {
                // Given up in the middle, without closing.
                let dial = Stranger::dial(to, Some(&tls), &tls, b"raft/2");
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
