//! A cluster of real processes: laid out as `kv dev` does, but each node finds its peers through the
//! relays of [`Network`].
//!
//! ```text
//!   DIR/ca.pem, client.{pem,key}     certificates of a development CA
//!   DIR/nodeN.{toml,pem,key,log}     what node N is told, and what it said
//!   DIR/nodeN/                       its data, here or on a disk of its own
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use kv_service::config::{ClientConfig, NodeAddress, ServerConfig, TlsFiles};
use kv_service::protocol::NodeStatus;
use kv_service::tls::{DevCa, TlsConfig};
use kv_service::units::ByteSize;
use kv_service::{Client, ClientError};
use raft_core::types::NodeId;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout};

use super::network::Network;
use super::node::{Node, PATIENCE};

pub const NODES: [NodeId; 3] = [1, 2, 3];
/// Once a fault is over, a write has to succeed within this time.
pub const RECOVERY: Duration = Duration::from_secs(5);
const CLUSTER_ID: &str = "faults";
const STATUS_DEADLINE: Duration = Duration::from_millis(300);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Clusters want the machine for themselves, or their clocks tell nothing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What is not as usual.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Small, so that snapshots are taken all the time.
    pub max_raft_state: ByteSize,
    /// Where a node's data is, if not beside its configuration.
    pub data: BTreeMap<NodeId, PathBuf>,
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { max_raft_state: ByteSize(256 << 10), data: BTreeMap::new(), seed: 0 }
    }
}

pub struct Cluster {
    pub network: Network,
    pub nodes: BTreeMap<NodeId, Node>,
    client_config: ClientConfig,
    /// For questions about status; opens no session.
    observer: Client,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts all nodes, and waits until a write succeeds.
    ///
    /// # Panics
    /// Like everything here, if something does not go as it has to.
    pub async fn start(plan: Plan) -> Self {
        let mut cluster = Self::prepare(plan).await;
        for node in cluster.nodes.values_mut() {
            node.start();
        }
        cluster.serves_within(PATIENCE).await;
        cluster
    }

    /// Lays everything out, and starts nothing.
    async fn prepare(plan: Plan) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let dir = tempfile::tempdir().expect("a directory");
        let addresses = addresses();
        let network = Network::between(&addresses, plan.seed).await;
        let ca = DevCa::create(CLUSTER_ID).expect("a certificate authority");
        let mut nodes = BTreeMap::new();
        for id in NODES {
            let name = format!("node{id}");
            let tls = write_tls(dir.path(), &name, &ca.issue_node(id).expect("a certificate"));
            let data = plan.data.get(&id).cloned().unwrap_or_else(|| dir.path().join(&name));
            let seen = |peer| if peer == id { addresses[&id] } else { network.address(id, peer) };
            let members =
                NODES.map(|peer| NodeAddress { id: peer, address: seen(peer).to_string() });
            let mut config = ServerConfig::new(CLUSTER_ID, id, &data, tls, members.into());
            config.max_raft_state = plan.max_raft_state;
            let path = dir.path().join(format!("{name}.toml"));
            std::fs::write(&path, config.to_toml()).expect("it can be written");
            nodes.insert(id, Node::new(id, path, data, dir.path().join(format!("{name}.log"))));
        }
        let tls =
            write_tls(dir.path(), "client", &ca.issue_client("faults").expect("a certificate"));
        let at = |id: NodeId| NodeAddress { id, address: addresses[&id].to_string() };
        let client_config = ClientConfig {
            cluster_id: CLUSTER_ID.to_owned(),
            deadline: RECOVERY,
            tls,
            nodes: NODES.map(at).into(),
        };
        let observer = Client::connect(&client_config).expect("a client");
        let observer = observer.with_deadline(STATUS_DEADLINE);
        Self { network, nodes, client_config, observer, dir, _turn: turn }
    }

    /// Where there is room for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new client, with a session and connections of its own.
    pub fn client(&self) -> Client {
        Client::connect(&self.client_config).expect("a client")
    }

    /// How to make clients, for those who do not have the cluster.
    pub fn client_config(&self) -> ClientConfig {
        self.client_config.clone()
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }

    /// What a node says of itself, if it does.
    pub async fn status(&self, id: NodeId) -> Option<NodeStatus> {
        self.observer.status(id).await.ok()
    }

    /// Waits until of all that answer the one with the highest term leads, and says which.
    pub async fn leader(&self) -> NodeId {
        let mut found = None;
        eventually("a leader", async || {
            found = self.leader_now().await;
            found.is_some()
        })
        .await;
        found.expect("just found")
    }

    /// Who leads in the highest term that can be seen.
    pub async fn leader_now(&self) -> Option<NodeId> {
        let (one, two, three) = tokio::join!(self.status(1), self.status(2), self.status(3));
        let seen: Vec<NodeStatus> = [one, two, three].into_iter().flatten().collect();
        let term = seen.iter().map(|status| status.term).max()?;
        seen.iter().find(|status| status.role == "leader" && status.term == term).map(|s| s.id)
    }

    /// The others.
    pub fn peers_of(&self, id: NodeId) -> [NodeId; 2] {
        match id {
            1 => [2, 3],
            2 => [3, 1],
            _ => [1, 2],
        }
    }

    pub async fn kill_all(&mut self) {
        for node in self.nodes.values() {
            node.signal(rustix::process::Signal::KILL);
        }
        for node in self.nodes.values_mut() {
            node.ended().await;
        }
    }

    pub fn start_all(&mut self) {
        for node in self.nodes.values_mut().filter(|node| !node.is_started()) {
            node.start();
        }
    }

    /// A new client's write succeeds in this time; how long it took.
    ///
    /// # Panics
    /// If it does not; what the nodes say of themselves is told.
    pub async fn serves_within(&self, time: Duration) -> Duration {
        let before = Instant::now();
        let written = self.client().with_deadline(time).put("probe", "").await;
        let took = before.elapsed();
        match written {
            Ok(_) => took,
            Err(error) => panic!("no write within {time:?}: {error}\n{}", self.describe().await),
        }
    }

    /// Every node has applied what the leader had committed when this was called.
    pub async fn converges(&self) {
        let leader = self.leader().await;
        let commit = self.status(leader).await.map_or(0, |status| status.commit_index);
        eventually("all nodes to catch up", async || {
            let (one, two, three) = tokio::join!(self.status(1), self.status(2), self.status(3));
            let caught_up = |status: &NodeStatus| status.last_applied >= commit;
            [one, two, three].iter().flatten().filter(|status| caught_up(status)).count() == 3
        })
        .await;
    }

    /// Everything is in order: all nodes run and none has panicked. Then stops them.
    pub async fn finish(mut self) {
        self.no_node_has_failed();
        for node in self.nodes.values_mut().filter(|node| node.is_started()) {
            node.signal(rustix::process::Signal::TERM);
        }
        for node in self.nodes.values_mut().filter(|node| node.is_started()) {
            let status = node.ended().await;
            assert!(status.success(), "node {} stopped with {status}:\n{}", node.id, node.said());
        }
        self.no_node_has_failed();
    }

    /// No started process has ended, and none has panicked.
    pub fn no_node_has_failed(&mut self) {
        for node in self.nodes.values_mut() {
            if let Some(status) = node.has_ended() {
                panic!("node {} has ended with {status}:\n{}", node.id, node.said());
            }
            let log = node.log();
            assert!(!log.contains("panicked"), "node {} has panicked:\n{log}", node.id);
        }
    }

    /// For a failure: who is how, and the last of what was said.
    pub async fn describe(&self) -> String {
        let mut text = String::new();
        for (id, node) in &self.nodes {
            let status = self.status(*id).await;
            text.push_str(&format!("node {id}: {status:?}\n"));
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(12)..] {
                text.push_str(&format!("  | {line}\n"));
            }
        }
        text
    }
}

/// Asks again and again: what another process does cannot be awaited.
///
/// # Panics
/// If it does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            sleep(LOOK_AGAIN_AFTER).await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "waited in vain for {what}");
}

/// What is stored under the key; nothing counts as empty.
pub async fn value(client: &Client, key: &str) -> Result<Vec<u8>, ClientError> {
    Ok(client.get(key.to_owned()).await?.map_or(Vec::new(), |record| record.value.into()))
}

fn write_tls(dir: &Path, name: &str, tls: &TlsConfig) -> TlsFiles {
    let file = |ending: &str, content: &[u8]| {
        let path = dir.join(format!("{name}.{ending}"));
        std::fs::write(&path, content).expect("it can be written");
        path
    };
    TlsFiles {
        ca: file("ca.pem", &tls.ca_pem),
        cert: file("pem", &tls.cert_pem),
        key: file("key", &tls.key_pem),
    }
}

/// An address of the loopback network that is this cluster's alone, where the system has more than
/// one; so nobody takes the port of a node that is down for a moment.
fn addresses() -> BTreeMap<NodeId, SocketAddr> {
    static CLUSTER_COUNT: AtomicU8 = AtomicU8::new(0);
    let number = CLUSTER_COUNT.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, high | 0x80, low, number % 250 + 1);
    let free = |ip: Ipv4Addr, base: u16| {
        NODES.iter().all(|id| UdpSocket::bind((ip, base + *id as u16)).is_ok())
    };
    let (ip, base) = if free(own, 7400) {
        (own, 7400)
    } else {
        let start = 10_000 + (std::process::id() % 2000) as u16 * 10;
        let base = (0..200).map(|step| start + step * 10);
        (
            Ipv4Addr::LOCALHOST,
            base.into_iter().find(|base| free(Ipv4Addr::LOCALHOST, *base)).expect("free ports"),
        )
    };
    NODES.map(|id| (id, SocketAddr::new(IpAddr::from(ip), base + id as u16))).into()
}
