//! A cluster of real processes: laid out as by `kv dev`, except that each node finds its peers
//! through the relays of [`Network`].
//!
//! ```text
//!   DIR/ca.pem, client.{pem,key}     certificates of a development CA
//!   DIR/nodeN.{toml,pem,key,log}     configuration, certificate, key and log of node N
//!   DIR/nodeN/                       its data, here or on a disk of its own
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kv_service::config::{ByteSize, NodeAddress};
use kv_service::net::tls::{DevCa, TlsConfig};
use kv_service::{
    Client, ClientConfig, ClientError, FOUNDING, NOT_INITIALISED, NodeStatus, RECOVERING,
    ServerConfig,
};
use raft_core::types::NodeId;
use raft_transport_quic::node_name;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::attack::Target;
use super::binary::Program;
use super::layout::{addresses, write_tls};
use super::machine::{Stopwatch, Took};
use super::network::{CLIENTS, Network};
use super::node::{Node, PATIENCE};

pub const NODES: [NodeId; 3] = [1, 2, 3];
/// Once a fault is over, a write has to succeed within this time.
pub const RECOVERY: Duration = Duration::from_secs(5);
pub(super) const CLUSTER_ID: &str = "faults";
/// Short, so that a test need not wait for a learner to become a voter.
const STABILIZATION: Duration = Duration::from_millis(500);
const CLIENT_FILE: &str = "client.toml";
const STATUS_DEADLINE: Duration = Duration::from_millis(300);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Clusters run one at a time: under the load of another one, time limits would mean nothing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Settings of a cluster that differ from the usual ones.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of nodes with which the cluster begins.
    pub node_count: u64,
    /// True if the nodes find each other, and the clients find them, through relays, which can be
    /// made bad. Otherwise all follow the members' records.
    pub relayed: bool,
    /// Small, so that snapshots are taken all the time.
    pub max_raft_state: ByteSize,
    /// Data directories of nodes that are not beside their configuration.
    pub data: BTreeMap<NodeId, PathBuf>,
    /// True if single writes and syncs are to fail, see [`super::preload`].
    pub file_faults: bool,
    pub program: Program,
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        let max_raft_state = ByteSize(256 << 10);
        let node_count = NODES.len() as u64;
        Self {
            node_count,
            relayed: true,
            max_raft_state,
            data: BTreeMap::new(),
            file_faults: false,
            program: Program::default(),
            seed: 0,
        }
    }
}

pub struct Cluster {
    pub network: Network,
    pub nodes: BTreeMap<NodeId, Node>,
    /// How each group of clients reaches the nodes.
    client_configs: BTreeMap<NodeId, ClientConfig>,
    /// For status requests, past all relays; opens no session.
    observer: Client,
    /// How a client reaches the nodes past all relays.
    pub(super) direct: ClientConfig,
    /// Follows the members: an operator's, or that of clients of nodes without relays.
    pub(super) operator: Client,
    pub(super) ca: DevCa,
    pub(super) dir: TempDir,
    pub(super) plan: Plan,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts all nodes, and waits until a write succeeds.
    ///
    /// # Panics
    /// If any step fails, like every function here.
    pub async fn start(plan: Plan) -> Self {
        let mut cluster = Self::prepare(plan).await;
        for node in cluster.nodes.values_mut() {
            node.start();
        }
        cluster.serves_within(PATIENCE).await;
        cluster
    }

    /// Lays out all files, initialises the nodes, and starts none of them.
    ///
    /// # Panics
    /// If the machine has no room for it.
    pub async fn prepare(plan: Plan) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let dir = tempfile::tempdir().expect("a directory");
        let addresses = addresses(1..=plan.node_count);
        let network = Network::between(&addresses, plan.seed).await;
        let ca = DevCa::create(CLUSTER_ID).expect("a certificate authority");
        let mut nodes = BTreeMap::new();
        for &id in addresses.keys() {
            let name = format!("node{id}");
            let tls = write_tls(dir.path(), &name, &ca.issue_node(id).expect("a certificate"));
            let data = plan.data.get(&id).cloned().unwrap_or_else(|| dir.path().join(&name));
            let seen = |peer| match peer == id || !plan.relayed {
                true => addresses[&peer],
                false => network.address(id, peer),
            };
            let members = members(&addresses, seen);
            let mut config = ServerConfig::new(CLUSTER_ID, id, &data, tls, members);
            config.max_raft_state = plan.max_raft_state;
            config.fixed_addresses = plan.relayed;
            config.timeouts.stabilization = STABILIZATION;
            let path = dir.path().join(format!("{name}.toml"));
            std::fs::write(&path, config.to_toml()).expect("it can be written");
            let mut node = Node::new(id, path, data, dir.path().join(format!("{name}.log")));
            node.run_as(plan.program);
            node.init();
            if plan.file_faults {
                node.prepare_file_faults().expect("the test has asked for the means");
            }
            nodes.insert(id, node);
        }
        let tls =
            write_tls(dir.path(), "client", &ca.issue_client("faults").expect("a certificate"));
        let client_config = |at: &dyn Fn(NodeId) -> SocketAddr| {
            let nodes = members(&addresses, at);
            let mut config = ClientConfig::new(CLUSTER_ID, tls.clone(), nodes);
            // `serves_within` checks that it is fast enough.
            config.deadline = PATIENCE;
            // Past the relays no partition would be seen.
            config.fixed_nodes = plan.relayed;
            config
        };
        let of_group = |group| {
            let seen = |id| match plan.relayed {
                true => network.address(group, id),
                false => addresses[&id],
            };
            (group, client_config(&seen))
        };
        let client_configs = CLIENTS.map(of_group).into();
        let direct = client_config(&|id| addresses[&id]);
        let file = dir.path().join(CLIENT_FILE);
        std::fs::write(file, direct.to_toml()).expect("it can be written");
        let following = ClientConfig { fixed_nodes: false, ..direct.clone() };
        let operator = Client::connect(&following).expect("a client");
        let observer = operator.with_deadline(STATUS_DEADLINE);
        Self {
            network,
            nodes,
            client_configs,
            observer,
            direct,
            operator,
            ca,
            dir,
            plan,
            _turn: turn,
        }
    }

    /// Directory with room for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new client, with a session and connections of its own.
    pub fn client(&self) -> Client {
        self.client_of(CLIENTS[0])
    }

    /// A client of one of the groups [`CLIENTS`].
    pub fn client_of(&self, group: NodeId) -> Client {
        Client::connect(&self.client_configs[&group]).expect("a client")
    }

    /// A client that knows only this node, and reaches it past all relays.
    pub fn client_of_node(&self, id: NodeId) -> Client {
        let mut config = self.direct.clone();
        config.nodes.retain(|node| node.id == id);
        config.fixed_nodes = true;
        Client::connect(&config).expect("a client")
    }

    /// How a client reaches the nodes past all relays.
    pub fn direct_config(&self) -> &ClientConfig {
        &self.direct
    }

    /// A node as an attacker finds it.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn target(&self, id: NodeId) -> Target {
        let node = self.direct.nodes.iter().find(|node| node.id == id).expect("a node");
        let address = node.address.parse().expect("a numeric address");
        Target { address, name: node_name(CLUSTER_ID, id) }
    }

    /// Certificate and key of the CA, which only the operator has.
    pub fn ca_pem(&self) -> [String; 2] {
        [self.ca.cert_pem().to_owned(), self.ca.key_pem()]
    }

    /// A client's certificate and key of this cluster, of which no other client has a copy.
    pub fn issue_client(&self, name: &str) -> TlsConfig {
        self.ca.issue_client(name).expect("a certificate")
    }

    /// Configuration for clients of a group, for code that does not have the cluster.
    pub fn client_config(&self, group: NodeId) -> ClientConfig {
        self.client_configs[&group].clone()
    }

    /// Runs a command of `kv` as an operator would; returns its standard output.
    ///
    /// # Errors
    /// The standard error of a command that failed.
    pub async fn kv(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(Program::Current.path());
        command.arg("--config").arg(self.dir.path().join(CLIENT_FILE)).args(arguments);
        let done = command.stdin(Stdio::null()).output().await.expect("`kv` can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }

    /// A node's status, if it answers.
    pub async fn status(&self, id: NodeId) -> Option<NodeStatus> {
        self.observer.status(id).await.ok()
    }

    /// The status of each node that answers.
    pub async fn statuses(&self) -> Vec<NodeStatus> {
        let mut asked = JoinSet::new();
        for &id in self.nodes.keys() {
            let observer = self.observer.clone();
            asked.spawn(async move { observer.status(id).await.ok() });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    /// Waits until the highest term among the nodes that answer has a leader; returns the leader.
    pub async fn leader(&self) -> NodeId {
        let mut found = None;
        eventually("a leader", async || {
            found = self.leader_now().await;
            found.is_some()
        })
        .await;
        found.expect("just found")
    }

    /// The leader in the highest term that the nodes report.
    pub async fn leader_now(&self) -> Option<NodeId> {
        let seen = self.statuses().await;
        let term = seen.iter().map(|status| status.term).max()?;
        seen.iter().find(|status| status.role == "leader" && status.term == term).map(|s| s.id)
    }

    /// The other nodes of a cluster of three.
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

    /// Checks that a new client's write succeeds within `time`; returns how long it took.
    ///
    /// # Panics
    /// If it does not, with a description of all nodes.
    pub async fn serves_within(&self, time: Duration) -> Took {
        let watch = Stopwatch::start(&self.pids());
        let written = self.client().put("probe", "").await;
        let took = watch.read(&self.pids());
        match written {
            Ok(_) if took.net <= time => took,
            Ok(_) => panic!("a write took {took}\n{}", self.describe().await),
            Err(error) => panic!("no write within {took}: {error}\n{}", self.describe().await),
        }
    }

    /// Process ids of the nodes that run.
    fn pids(&self) -> Vec<u32> {
        self.nodes.values().filter_map(Node::pid_if_running).collect()
    }

    /// Waits until every node has applied what the leader had committed at the time of the call,
    /// and until its votes and acknowledgements are counted.
    pub async fn converges(&self) {
        let leader = self.leader().await;
        let commit = self.status(leader).await.map_or(0, |status| status.commit_index);
        eventually("all nodes to catch up", async || {
            let not_counted = [NOT_INITIALISED, RECOVERING, FOUNDING];
            let caught_up = |status: &&NodeStatus| {
                status.last_applied >= commit && !not_counted.contains(&status.role.as_str())
            };
            self.statuses().await.iter().filter(caught_up).count() == self.nodes.len()
        })
        .await;
    }

    /// Waits until `holds`, and writes meanwhile: the log grows, and tables are written.
    pub async fn writes_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let client = self.client().with_deadline(RECOVERY);
        let mut number = 0_u8;
        eventually(what, async || {
            number = number.wrapping_add(1);
            // The write need not succeed: the leader may be the node that fails.
            let _ = client.put(format!("more/{}", number % 16), vec![number; 32 << 10]).await;
            holds()
        })
        .await;
    }

    /// Kills the node and removes all its data.
    ///
    /// # Panics
    /// If its directory cannot be removed.
    pub async fn wipe(&mut self, id: NodeId) {
        self.node(id).kill().await;
        std::fs::remove_dir_all(&self.nodes[&id].data).expect("no process uses it");
    }

    /// Takes the data directory of a node away, and returns where it is.
    ///
    /// # Panics
    /// If it cannot be moved.
    pub async fn set_aside(&mut self, id: NodeId) -> PathBuf {
        self.node(id).kill_if_running().await;
        let data = &self.nodes[&id].data;
        let place = (1..).map(|number| data.with_extension(format!("old{number}")));
        let place = place.take(100).find(|place| !place.exists()).expect("a free name");
        std::fs::rename(data, &place).expect("no process uses it");
        place
    }

    /// Gives a node a data directory that was set aside.
    ///
    /// # Panics
    /// If the node has another one, or if it cannot be moved.
    pub fn put_back(&mut self, id: NodeId, place: &Path) {
        std::fs::rename(place, &self.nodes[&id].data).expect("the node has no directory now");
    }

    /// Removes all data of a node, once the others do not need it. The node has to be sent a
    /// snapshot when it is started again.
    ///
    /// # Panics
    /// If its directory cannot be removed.
    pub async fn empty(&mut self, id: NodeId) {
        self.node(id).kill_if_running().await;
        // Entries acknowledged from now on are on both other nodes; entries acknowledged before are
        // on both once this wait is over.
        let [one, other] = self.peers_of(id);
        eventually("the others to have everything", async || {
            let (one, other) = tokio::join!(self.status(one), self.status(other));
            one.zip(other).is_some_and(|(one, other)| {
                let commit_index = one.commit_index.max(other.commit_index);
                let leads = one.role == "leader" || other.role == "leader";
                leads && one.last_applied.min(other.last_applied) >= commit_index
            })
        })
        .await;
        std::fs::remove_dir_all(&self.nodes[&id].data).expect("no process uses it");
    }

    /// Checks that all nodes run and none has panicked, then stops them.
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

    /// Checks that no started process has ended, and that none has panicked.
    pub fn no_node_has_failed(&mut self) {
        for node in self.nodes.values_mut() {
            if let Some(status) = node.has_ended() {
                panic!("node {} has ended with {status}:\n{}", node.id, node.said());
            }
            let log = node.log();
            assert!(!log.contains("panicked"), "node {} has panicked:\n{log}", node.id);
        }
    }

    /// For a failure report: the status of each node, and the end of its log.
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

pub(super) fn members(
    addresses: &BTreeMap<NodeId, SocketAddr>,
    seen: impl Fn(NodeId) -> SocketAddr,
) -> Vec<NodeAddress> {
    addresses.keys().map(|&id| NodeAddress { id, address: seen(id).to_string() }).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("what the nodes said is kept in {}", self.dir.path().display());
        }
    }
}

/// Polls the condition: events in another process cannot be awaited.
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

/// The value stored under the key; a missing one counts as empty.
pub async fn value(client: &Client, key: &str) -> Result<Vec<u8>, ClientError> {
    Ok(client.get(key.to_owned()).await?.map_or(Vec::new(), |record| record.value.into()))
}
