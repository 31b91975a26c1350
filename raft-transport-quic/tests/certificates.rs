//! Certificates are exchanged while a node runs, and no connection outlives the trust in them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Node, PATIENCE, addresses, config, with_tls};
use raft_transport_quic::{ClientConnection, ClientEndpoint, DevCa, TlsConfig};
use tempfile::TempDir;
use tokio::time::timeout;

/// The three files of one node or client, as an operator exchanges them.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new(tls: &TlsConfig) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.write(tls);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, tls: &TlsConfig) {
        for (name, pem) in [("ca", &tls.ca_pem), ("cert", &tls.cert_pem), ("key", &tls.key_pem)] {
            std::fs::write(self.path(name), pem).unwrap();
        }
    }

    fn read(&self) -> TlsConfig {
        let paths: [PathBuf; 3] = ["ca", "cert", "key"].map(|name| self.path(name));
        let [ca, cert, key]: [&Path; 3] = [&paths[0], &paths[1], &paths[2]];
        TlsConfig::read(ca, cert, key).unwrap()
    }
}

/// Nodes 1 and 2, connected; the certificates of node 1 come from files.
struct Setup {
    ca: DevCa,
    peers: BTreeMap<u64, String>,
    files: Files,
    one: Node,
    two: Node,
}

impl Setup {
    async fn new(poll: Duration) -> Self {
        let ca = DevCa::create("test").unwrap();
        let peers = addresses(2);
        let files = Files::new(&ca.issue_node(1).unwrap());
        let mut settings = with_tls(files.read(), 1, &peers);
        settings.tls_poll_interval = poll;
        let one = Node::start(settings).await;
        let two = Node::start(config(&ca, 2, &peers)).await;
        one.connected_to(2).await;
        two.connected_to(1).await;
        Self { ca, peers, files, one, two }
    }

    /// A client of this CA, connected to node 1.
    async fn client(&self, ca: &DevCa) -> (ClientEndpoint, ClientConnection, ClientConnection) {
        let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
        let here = endpoint.connect(1, &self.peers[&1]).await.unwrap();
        let there = self.one.transport.accept_client().await.unwrap();
        (endpoint, here, there)
    }

    async fn pair_is_undisturbed(&self) {
        for node in [&self.one, &self.two] {
            let lost = |seen: &mut common::Seen| Some(seen.unreachable.clone());
            assert!(node.inbound.wait("nothing", lost).await.is_empty());
        }
    }
}

const NEVER: Duration = Duration::from_secs(3600);

/// S18. A renewal needs no restart and disturbs no connection.
#[tokio::test]
async fn s18_a_renewed_certificate_is_taken_without_a_restart() {
    let setup = Setup::new(NEVER).await;
    let (endpoint, first, _there) = setup.client(&setup.ca).await;
    assert!(!setup.one.transport.reload().await.unwrap(), "nothing has changed");
    setup.files.write(&setup.ca.issue_node(1).unwrap());
    assert!(setup.one.transport.reload().await.unwrap());
    assert!(!setup.one.transport.reload().await.unwrap(), "once");
    let second = endpoint.connect(1, &setup.peers[&1]).await.unwrap();
    assert_ne!(first.certificate_digest(), second.certificate_digest());
    assert!(first.open_stream().await.is_ok(), "the earlier connection stands");
    setup.pair_is_undisturbed().await;
}

/// S18. The node notices changed files by itself, without a call of `reload`.
#[tokio::test]
async fn s18_changed_files_are_noticed() {
    let setup = Setup::new(Duration::from_millis(20)).await;
    let (endpoint, first, _there) = setup.client(&setup.ca).await;
    setup.files.write(&setup.ca.issue_node(1).unwrap());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let next = endpoint.connect(1, &setup.peers[&1]).await.unwrap();
        if next.certificate_digest() != first.certificate_digest() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the new certificate is not taken");
    }
    setup.pair_is_undisturbed().await;
}

/// S18. Files that do not fit, such as a certificate whose key is not there yet, change nothing.
#[tokio::test]
async fn s18_a_set_that_does_not_fit_keeps_the_earlier_one() {
    let setup = Setup::new(NEVER).await;
    let other = DevCa::create("other").unwrap();
    let good = setup.ca.issue_node(1).unwrap();
    let half = TlsConfig::from_pem(
        good.ca_pem.clone(),
        good.cert_pem.clone(),
        setup.ca.issue_node(1).unwrap().key_pem,
    );
    for (what, tls, text) in [
        ("half of a renewal", half, "belong together"),
        ("another node's", setup.ca.issue_node(2).unwrap(), "for node 2, but this is node 1"),
        ("a client's", setup.ca.issue_client("me").unwrap(), "a client's"),
        ("of another cluster", other.issue_node(1).unwrap(), "cluster `test`"),
        ("nothing", TlsConfig::from_pem(vec![], vec![], vec![]), "BEGIN CERTIFICATE"),
    ] {
        setup.files.write(&tls);
        let error = setup.one.transport.reload().await.unwrap_err().to_string();
        assert!(error.contains(text), "{what}: {error}");
        setup.client(&setup.ca).await;
    }
    std::fs::remove_file(setup.files.path("key")).unwrap();
    let error = setup.one.transport.reload().await.unwrap_err().to_string();
    assert!(error.contains("cannot read the private key"), "{error}");
    setup.files.write(&good);
    assert!(setup.one.transport.reload().await.unwrap());
    setup.client(&setup.ca).await;
    setup.pair_is_undisturbed().await;
}

/// S18. A new CA is the answer to a leaked key: it ends the connections of the old CA at once.
#[tokio::test]
async fn s18_a_new_ca_ends_the_connections_of_the_old_one() {
    let setup = Setup::new(NEVER).await;
    let (endpoint, client, _there) = setup.client(&setup.ca).await;
    let new_ca = DevCa::create("test").unwrap();
    let renewed = new_ca.issue_node(1).unwrap();
    // Both CAs are trusted at first, so no connection is closed.
    let both = [renewed.ca_pem.clone(), setup.ca.cert_pem().into()].concat();
    let first = TlsConfig::from_pem(both, renewed.cert_pem.clone(), renewed.key_pem.clone());
    setup.files.write(&first);
    assert!(setup.one.transport.reload().await.unwrap());
    assert!(client.open_stream().await.is_ok());
    setup.pair_is_undisturbed().await;
    setup.files.write(&renewed);
    assert!(setup.one.transport.reload().await.unwrap());
    let reason = timeout(PATIENCE, client.closed()).await.unwrap();
    assert!(reason.contains("no longer trusted"), "{reason}");
    setup.two.fails_with(1, "no longer trusted").await;
    let refused = endpoint.connect(1, &setup.peers[&1]).await.unwrap_err().to_string();
    assert!(refused.contains("CA"), "{refused}");
    setup.client(&new_ca).await;
}

/// S18. A connection ends, on both sides, when the certificate expires with which it was opened.
#[tokio::test]
async fn s18_a_connection_does_not_outlive_its_certificate() {
    let ca = DevCa::create("test").unwrap().with_leaf_lifetime(Duration::from_secs(3));
    let lasting = DevCa::from_pem("test", ca.cert_pem().as_bytes(), ca.key_pem().as_bytes());
    let lasting = lasting.unwrap();
    let peers = addresses(2);
    let settings = |tls, id| {
        let mut settings = with_tls(tls, id, &peers);
        settings.tls_poll_interval = Duration::from_millis(20);
        settings
    };
    let two = Node::start(settings(lasting.issue_node(2).unwrap(), 2)).await;
    let one = Node::start(settings(ca.issue_node(1).unwrap(), 1)).await;
    let endpoint = ClientEndpoint::new("test", ca.issue_client("me").unwrap()).unwrap();
    let client = endpoint.connect(2, &peers[&2]).await.unwrap();
    let there = two.transport.accept_client().await.unwrap();
    two.connected_to(1).await;
    let reason = timeout(PATIENCE, client.closed()).await.unwrap();
    assert!(reason.contains("has expired"), "{reason}");
    drop(there);
    one.fails_with(2, "xpired").await;
    two.fails_with(1, "xpired").await;
}

/// A long-lived client takes a renewed certificate as well.
#[tokio::test]
async fn a_client_takes_a_renewed_certificate() {
    let setup = Setup::new(NEVER).await;
    let files = Files::new(&setup.ca.issue_client("me").unwrap());
    let endpoint = ClientEndpoint::new("test", files.read()).unwrap();
    endpoint.connect(1, &setup.peers[&1]).await.unwrap();
    let first = setup.one.transport.accept_client().await.unwrap().certificate_digest();
    files.write(&setup.ca.issue_client("me").unwrap());
    assert!(endpoint.reload().await.unwrap());
    endpoint.connect(1, &setup.peers[&1]).await.unwrap();
    let second = setup.one.transport.accept_client().await.unwrap().certificate_digest();
    assert_ne!(first, second);
    files.write(&DevCa::create("other").unwrap().issue_client("me").unwrap());
    assert!(endpoint.reload().await.is_err());
    endpoint.connect(1, &setup.peers[&1]).await.unwrap();
}
