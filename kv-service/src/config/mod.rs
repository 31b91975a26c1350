//! Configuration of a node and of a client, as values and as TOML files.
//!
//! Unknown keys are errors. Relative paths in a file are relative to the file's directory, so that
//! a directory with its files can be used from anywhere. Every setting with a sensible default has
//! one.

pub mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_core::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::config::units::{ByteSize, duration_text};

/// Why a configuration cannot be used; the text says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not TOML, has unknown keys, or has values of the wrong type.
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    /// A setting does not make sense, alone or together with others.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// Certificate files in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate authority of the cluster.
    pub ca: PathBuf,
    /// This node's or client's own certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeAddress {
    /// Id of the node: at least 1 and below 2^63.
    pub id: NodeId,
    /// `host:port`, UDP; for peers and clients alike.
    pub address: String,
}

/// Where a node keeps log, hard state, snapshots and state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// In the data directory; survives everything but the loss of a majority of disks.
    #[default]
    RocksDb,
    /// Nowhere: a node that stops has lost everything and must not come back under its id.
    Memory,
}

/// Limits on clients. A request beyond a limit is refused before it reaches the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest key, in bytes; at most [`KEY_BYTES_CEILING`].
    pub key_bytes_max: ByteSize,
    /// Longest value, in bytes; at most [`VALUE_BYTES_CEILING`].
    pub value_bytes_max: ByteSize,
    /// Client connections at once; further ones are closed with a reason.
    pub client_connections_max: usize,
    /// Client connections that one certificate may hold at once; further ones are closed with a
    /// reason.
    pub certificate_connections_max: usize,
    /// Client connections that one IPv4 address, or one IPv6 network of /64, may hold at once;
    /// further ones are closed with a reason.
    pub address_connections_max: usize,
    /// Requests of one connection that are not answered yet; the node reads no further ones
    /// meanwhile.
    pub connection_requests_max: usize,
    /// Requests of all connections that are not answered yet; further ones are answered `Busy`.
    pub requests_max: usize,
    /// Bytes of the requests larger than 32 KiB that are being received, over all connections.
    /// Further ones wait. A request that arrives at less than 32 KiB a second ends its connection.
    pub receive_bytes_max: ByteSize,
    /// Bytes of responses queued and not yet sent, over all connections, beyond 16 KiB for each.
    /// Further reads are answered `Busy`, and a client that takes less than 32 KiB a second loses
    /// its connection.
    pub answer_bytes_max: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: ByteSize(64 << 10),
            value_bytes_max: ByteSize(1 << 20),
            client_connections_max: 4096,
            certificate_connections_max: 1024,
            address_connections_max: 2048,
            connection_requests_max: 4096,
            requests_max: 65_536,
            receive_bytes_max: ByteSize(64 << 20),
            answer_bytes_max: ByteSize(128 << 20),
        }
    }
}

/// When the cluster version rises, after all members run a program that supports a newer one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpgradePolicy {
    /// On its own, after `upgrade_delay`.
    #[default]
    Auto,
    /// When an operator runs `kv upgrade finalize`.
    Manual,
}

/// Timeouts between nodes, and between nodes and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A leader sends a message to each peer at least this often.
    #[serde(with = "duration_text")]
    pub heartbeat: Duration,
    /// A node that receives nothing from a leader for this long, up to twice as long, campaigns.
    #[serde(with = "duration_text")]
    pub election: Duration,
    /// A connection between nodes without a sign of life for this long is given up.
    #[serde(with = "duration_text")]
    pub peer_idle: Duration,
    /// A node has this long to introduce itself on a new connection. The time doubles with each
    /// failure, up to 8 times as long.
    #[serde(with = "duration_text")]
    pub peer_hello: Duration,
    /// A client's connection without a sign of life for this long is given up. Clients show one
    /// every second.
    #[serde(with = "duration_text")]
    pub client_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(60),
            election: Duration::from_millis(300),
            peer_idle: Duration::from_secs(1),
            peer_hello: Duration::from_secs(1),
            client_idle: Duration::from_secs(5),
        }
    }
}

/// Limits on sessions, by which the cluster remembers clients for exactly-once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// A session that writes nothing for this long expires.
    #[serde(with = "duration_text")]
    pub ttl: Duration,
    /// Sessions at once; beyond, the session that has been idle for the longest is evicted.
    pub count_max: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), count_max: 100_000 }
    }
}

/// Configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Lower-case letters, digits and hyphens. Nodes and clients of another cluster are refused.
    pub cluster_id: String,
    /// Id of this node, which `nodes` must list.
    pub node_id: NodeId,
    /// UDP address to listen on. Default: this node's address in `nodes`, which must then be
    /// numeric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Created if it does not exist; belongs to this node alone.
    pub data_dir: PathBuf,
    /// Where the node keeps its log and its state.
    #[serde(default)]
    pub storage: StorageKind,
    /// When the persisted log exceeds this, the node takes a snapshot and compacts the log; 0
    /// disables compaction.
    #[serde(default = "default_max_raft_state")]
    pub max_raft_state: ByteSize,
    /// Limits on clients.
    #[serde(default)]
    pub limits: Limits,
    /// Timeouts between nodes, and between nodes and clients.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Limits on sessions.
    #[serde(default)]
    pub sessions: SessionLimits,
    /// When the cluster version rises.
    #[serde(default)]
    pub upgrade: UpgradePolicy,
    /// Time in which a newer program can be rolled back: the newer cluster version comes into force
    /// on its own once all members have supported it for this long.
    #[serde(default = "default_upgrade_delay", with = "duration_text")]
    pub upgrade_delay: Duration,
    /// This node's certificate files.
    pub tls: TlsFiles,
    /// All nodes, this one included.
    pub nodes: Vec<NodeAddress>,
}

/// The default of `upgrade_delay`: one day.
pub const fn default_upgrade_delay() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// The default of `max_raft_state`: 128 MiB.
pub const fn default_max_raft_state() -> ByteSize {
    ByteSize(128 << 20)
}

impl ServerConfig {
    /// A node with defaults for everything that has one.
    pub fn new(
        cluster_id: impl Into<String>,
        node_id: NodeId,
        data_dir: impl Into<PathBuf>,
        tls: TlsFiles,
        nodes: Vec<NodeAddress>,
    ) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            node_id,
            listen: None,
            data_dir: data_dir.into(),
            storage: StorageKind::default(),
            max_raft_state: default_max_raft_state(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            sessions: SessionLimits::default(),
            upgrade: UpgradePolicy::default(),
            upgrade_delay: default_upgrade_delay(),
            tls,
            nodes,
        }
    }

    /// A node of a cluster within one process: no certificates, and a directory only if it is set.
    pub fn in_process(node_id: NodeId, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        // These addresses are neither bound nor resolved.
        let address = |id| NodeAddress { id, address: format!("node-{id}:1") };
        let nodes = nodes.into_iter().map(address).collect();
        let tls = TlsFiles::default();
        let mut config = Self::new("in-process", node_id, PathBuf::new(), tls, nodes);
        config.listen = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
        config
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has unknown keys, or does not make sense.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let (mut config, base): (Self, _) = read(path.as_ref())?;
        config.data_dir = base.join(&config.data_dir);
        config.tls.rebase(&base);
        config.check()?;
        Ok(config)
    }

    /// Returns the text of a file that [`ServerConfig::read`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the field and what it must be.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_cluster(&self.cluster_id, &self.nodes)?;
        let own = self.nodes.iter().any(|node| node.id == self.node_id);
        require(own, || format!("node_id {} is not among `nodes`", self.node_id))?;
        let max_raft_state = self.max_raft_state;
        require(max_raft_state <= SIZE_CEILING, || {
            format!("max_raft_state is {max_raft_state}: at most {SIZE_CEILING}; 0 never compacts")
        })?;
        self.limits.check()?;
        self.timeouts.check()?;
        self.sessions.check()?;
        require(self.upgrade_delay <= UPGRADE_DELAY_CEILING, || {
            format!("upgrade_delay is {:?}: at most 365 days", self.upgrade_delay)
        })?;
        self.listen_address().map(|_| ())
    }

    /// Where the node listens.
    ///
    /// # Errors
    /// Neither `listen` nor a numeric address is given.
    pub fn listen_address(&self) -> Result<SocketAddr, ConfigError> {
        if let Some(listen) = self.listen {
            return Ok(listen);
        }
        let own = self.nodes.iter().find(|node| node.id == self.node_id);
        let parsed = own.and_then(|node| node.address.parse().ok());
        parsed.ok_or_else(|| {
            ConfigError::Invalid(
                "set `listen` (such as \"0.0.0.0:7401\"): this node's address in `nodes` is a name"
                    .to_owned(),
            )
        })
    }

    /// Addresses of all nodes, this one included, by id.
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        self.nodes.iter().map(|node| (node.id, node.address.clone())).collect()
    }
}

impl Limits {
    /// The largest command that the limits allow: a compare-and-swap carries two values.
    pub(crate) fn command_bytes_max(&self) -> u64 {
        2 * self.value_bytes_max.0 + self.key_bytes_max.0 + COMMAND_OVERHEAD_BYTES
    }

    /// The largest request that the limits allow: a scan carries two keys.
    pub(crate) fn request_bytes_max(&self) -> u64 {
        self.command_bytes_max() + self.key_bytes_max.0
    }

    fn check(&self) -> Result<(), ConfigError> {
        let byte = ByteSize(1);
        check_range("limits.key_bytes_max", self.key_bytes_max, byte, KEY_BYTES_CEILING)?;
        let value_ceiling = ByteSize(VALUE_BYTES_CEILING);
        check_range("limits.value_bytes_max", self.value_bytes_max, byte, value_ceiling)?;
        let response_bytes = ByteSize(2 * VALUE_BYTES_CEILING);
        check_range(
            "limits.answer_bytes_max",
            self.answer_bytes_max,
            response_bytes,
            SIZE_CEILING,
        )?;
        let request_bytes = ByteSize(self.request_bytes_max());
        check_range(
            "limits.receive_bytes_max",
            self.receive_bytes_max,
            request_bytes,
            SIZE_CEILING,
        )?;
        for (name, count, most) in [
            ("client_connections_max", self.client_connections_max, CONNECTIONS_CEILING),
            ("certificate_connections_max", self.certificate_connections_max, CONNECTIONS_CEILING),
            ("address_connections_max", self.address_connections_max, CONNECTIONS_CEILING),
            ("connection_requests_max", self.connection_requests_max, REQUESTS_CEILING),
            ("requests_max", self.requests_max, REQUESTS_CEILING),
        ] {
            check_range(&format!("limits.{name}"), count, 1, most)?;
        }
        Ok(())
    }
}

impl Timeouts {
    fn check(&self) -> Result<(), ConfigError> {
        let Self { heartbeat, election, peer_idle, peer_hello, client_idle } = *self;
        let least = Duration::from_millis(100);
        for (name, value, least) in [
            ("timeouts.peer_idle", peer_idle, 3 * least),
            ("timeouts.peer_hello", peer_hello, least),
            ("timeouts.client_idle", client_idle, 30 * least),
        ] {
            require((least..=IDLE_CEILING).contains(&value), || {
                format!("{name} is {value:?}: {least:?} to {IDLE_CEILING:?}")
            })?;
        }
        require(election <= ELECTION_CEILING, || {
            format!("timeouts.election is {election:?}: at most a day")
        })?;
        require(!heartbeat.is_zero() && heartbeat <= election / 3, || {
            format!(
                "timeouts.election ({election:?}) must be at least three times timeouts.heartbeat \
                 ({heartbeat:?}), or one lost packet deposes a leader"
            )
        })
    }
}

impl SessionLimits {
    fn check(&self) -> Result<(), ConfigError> {
        let ttl = self.ttl;
        require((Duration::from_secs(1)..=TTL_CEILING).contains(&ttl), || {
            format!("sessions.ttl is {ttl:?}: 1s to 365 days")
        })?;
        check_range("sessions.count_max", self.count_max, 1, SESSIONS_CEILING)
    }
}

fn require(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Invalid(complaint())) }
}

fn check_range<T: PartialOrd + fmt::Display>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    let is_within = least <= value && value <= most;
    require(is_within, || format!("{name} is {value}: {least} to {most}"))
}

/// Room in a command beside its key and value.
pub(crate) const COMMAND_OVERHEAD_BYTES: u64 = 4 << 10;

/// The largest command that a configuration allows fits into a message between nodes.
const _: () = assert!(
    2 * VALUE_BYTES_CEILING
        + crate::state::KEY_BYTES_LIMIT as u64
        + COMMAND_OVERHEAD_BYTES
        + raft_core::types::ENTRY_OVERHEAD_BYTES
        <= raft_core::codec::ENTRY_BYTES_MAX
);

/// Largest budget in bytes, and largest `max_raft_state`. Sums and small multiples of it do not
/// overflow a u64.
pub const SIZE_CEILING: ByteSize = ByteSize(1 << 40);

/// Largest `key_bytes_max`.
pub const KEY_BYTES_CEILING: ByteSize = ByteSize(64 << 10);

/// Largest `value_bytes_max`, in bytes.
pub const VALUE_BYTES_CEILING: u64 = 16 << 20;

/// Largest limit on client connections of a node.
pub const CONNECTIONS_CEILING: usize = 1 << 16;

/// Largest limit on unanswered requests of a node.
pub const REQUESTS_CEILING: usize = 1 << 20;

/// Largest `sessions.count_max`.
pub const SESSIONS_CEILING: u64 = 10_000_000;

/// Most nodes of a cluster.
pub const NODES_CEILING: usize = 64;

/// Node ids are below 2^63, like all stored numbers.
const NODE_ID_CEILING: NodeId = (1 << 63) - 1;

/// Largest timeout of an idle connection.
const IDLE_CEILING: Duration = Duration::from_secs(600);

const ELECTION_CEILING: Duration = Duration::from_secs(24 * 3600);
const UPGRADE_DELAY_CEILING: Duration = Duration::from_secs(365 * 24 * 3600);
const TTL_CEILING: Duration = Duration::from_secs(365 * 24 * 3600);

/// Configuration of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Id of the cluster; nodes of another cluster are refused.
    pub cluster_id: String,
    /// How long an operation is retried before the client gives up.
    #[serde(with = "duration_text", default = "default_deadline")]
    pub deadline: Duration,
    /// This client's certificate files.
    pub tls: TlsFiles,
    /// All nodes of the cluster.
    pub nodes: Vec<NodeAddress>,
}

/// The default deadline: ten seconds.
pub const fn default_deadline() -> Duration {
    Duration::from_secs(10)
}

impl ClientConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The errors of [`ServerConfig::read`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let (mut config, base): (Self, _) = read(path.as_ref())?;
        config.tls.rebase(&base);
        config.check()?;
        Ok(config)
    }

    /// Returns the text of a file that [`ClientConfig::read`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// Checks that the settings make sense.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the field and what it must be.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.deadline.is_zero() {
            return Err(ConfigError::Invalid("deadline: more than 0".to_owned()));
        }
        check_cluster(&self.cluster_id, &self.nodes)
    }
}

impl TlsFiles {
    fn rebase(&mut self, base: &Path) {
        for path in [&mut self.ca, &mut self.cert, &mut self.key] {
            *path = base.join(&*path);
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<(T, PathBuf), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let config =
        parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })?;
    Ok((config, path.parent().unwrap_or(Path::new("")).to_owned()))
}

/// Parses TOML; an error text includes the line number.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let mut message = error.message().to_owned();
        if let Some(span) = error.span() {
            let line = 1 + text[..span.start.min(text.len())].matches('\n').count();
            // Writing to a String does not fail.
            let _ = write!(message, " (line {line})");
        }
        message
    })
}

fn check_cluster(cluster_id: &str, nodes: &[NodeAddress]) -> Result<(), ConfigError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = (1..=63).contains(&cluster_id.len())
        && cluster_id.chars().all(plain)
        && !cluster_id.starts_with('-')
        && !cluster_id.ends_with('-');
    // The cluster id is part of a DNS name, for which these are the rules.
    require(is_label, || {
        format!(
            "cluster_id {cluster_id:?}: 1 to 63 lower-case letters, digits and hyphens, with no hyphen \
             at either end"
        )
    })?;
    require(!nodes.is_empty(), || "`nodes` is empty: list id and address of each".to_owned())?;
    require(nodes.len() <= NODES_CEILING, || {
        format!("`nodes` lists {} nodes: at most {NODES_CEILING}", nodes.len())
    })?;
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeMap::new());
    for NodeAddress { id, address } in nodes {
        require((1..=NODE_ID_CEILING).contains(id), || {
            format!("node {address} has the id {id}: ids are 1 to {NODE_ID_CEILING}")
        })?;
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        require(port.is_some_and(|port| port != 0), || {
            format!("node {id} has the address {address:?}: write host:port")
        })?;
        require(ids.insert(*id), || format!("node {id} is listed twice"))?;
        // Host names are case-insensitive.
        if let Some(other) = addresses.insert(address.to_ascii_lowercase(), *id) {
            let text = format!("nodes {other} and {id} have the same address {address:?}");
            return Err(ConfigError::Invalid(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVER: &str = r#"
        cluster_id = "test"
        node_id = 2
        data_dir = "node2"
        max_raft_state = "1MiB"
        [timeouts]
        election = "400ms"
        [tls]
        ca = "ca.pem"
        cert = "node2.pem"
        key = "/keys/node2.key"
        [[nodes]]
        id = 1
        address = "127.0.0.1:7401"
        [[nodes]]
        id = 2
        address = "127.0.0.1:7402"
    "#;

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_is_read_with_defaults_and_paths_of_its_own_directory() {
        let (dir, path) = write(SERVER);
        let config = ServerConfig::read(&path).unwrap();
        assert_eq!(config.data_dir, dir.path().join("node2"));
        assert_eq!(config.tls.ca, dir.path().join("ca.pem"));
        assert_eq!(config.tls.key, Path::new("/keys/node2.key"));
        assert_eq!(config.max_raft_state, ByteSize(1 << 20));
        assert_eq!(config.timeouts.heartbeat, Timeouts::default().heartbeat);
        assert_eq!(config.listen_address().unwrap().port(), 7402);
        let (_dir, again) = write(&config.to_toml());
        assert_eq!(ServerConfig::read(again).unwrap(), config);
    }

    proptest! {
        #[test]
        fn a_written_file_is_read_as_it_was(
            sizes in any::<[u64; 3]>(),
            counts in prop::array::uniform3(1usize..),
            node_id in 1u64..,
            session_count_max in 1u64..,
            times in prop::array::uniform3(1u64..86_400_000_000_000),
            listen in proptest::option::of(any::<(std::net::IpAddr, u16)>()),
            name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            path in "\\PC{1,20}",
            in_memory in any::<bool>(),
        ) {
            let nodes = vec![NodeAddress { id: node_id, address: format!("{name}.example:7401") }];
            let tls = TlsFiles { ca: path.clone().into(), cert: "c".into(), key: "k".into() };
            let mut config = ServerConfig::new(name, node_id, path, tls.clone(), nodes.clone());
            let [heartbeat, election, ttl] = times.map(Duration::from_nanos);
            config.listen = listen.map(SocketAddr::from);
            config.storage = if in_memory { StorageKind::Memory } else { StorageKind::RocksDb };
            config.max_raft_state = ByteSize(sizes[0]);
            config.limits.value_bytes_max = ByteSize(sizes[1]);
            config.limits.answer_bytes_max = ByteSize(sizes[2]);
            config.limits.client_connections_max = counts[0];
            config.limits.connection_requests_max = counts[1];
            config.limits.requests_max = counts[2];
            config.timeouts = Timeouts { heartbeat, election, ..Timeouts::default() };
            config.sessions = SessionLimits { ttl, count_max: session_count_max };
            prop_assert_eq!(parse::<ServerConfig>(&config.to_toml()), Ok(config.clone()));
            let cluster_id = config.cluster_id;
            let client = ClientConfig { cluster_id, deadline: ttl, tls, nodes };
            prop_assert_eq!(parse::<ClientConfig>(&client.to_toml()), Ok(client));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (from, to, complaint) in [
            ("node_id = 2", "node_id = 3", "not among"),
            ("node_id = 2", "node_id = 2\nnodeid = 2", "nodeid"),
            ("\"test\"", "\"Test!\"", "cluster_id"),
            ("\"test\"", "\"-test\"", "cluster_id"),
            ("\"test\"", "\"test-\"", "cluster_id"),
            ("id = 1", "id = 2", "listed twice"),
            ("id = 1", "id = 0", "ids are 1 to"),
            ("id = 1", "id = 9223372036854775808", "ids are 1 to"),
            ("127.0.0.1:7401", "127.0.0.1:7402", "same address"),
            ("127.0.0.1:7401", "localhost", "host:port"),
            ("1MiB", "1 apple", "is not a size"),
            ("400ms", "100ms", "three times"),
            ("400ms", "soon", "is not a duration"),
        ] {
            let (_dir, path) = write(&SERVER.replacen(from, to, 1));
            let error = ServerConfig::read(path).unwrap_err().to_string();
            assert!(error.contains(complaint), "{to}: {error}");
        }
    }

    /// One change of a configuration, and the text that refuses it; `None` if it is allowed.
    type Change = (fn(&mut ServerConfig), Option<&'static str>);

    /// S24. Each limit at zero, at its largest value, and one beyond.
    #[test]
    fn each_limit_is_bounded_at_both_ends() {
        let changes: [Change; 42] = [
            (|c| c.max_raft_state = ByteSize(0), None),
            (|c| c.max_raft_state = SIZE_CEILING, None),
            (|c| c.max_raft_state = ByteSize(SIZE_CEILING.0 + 1), Some("max_raft_state")),
            (|c| c.max_raft_state = ByteSize(u64::MAX), Some("max_raft_state")),
            (|c| c.limits.key_bytes_max = ByteSize(0), Some("key_bytes_max")),
            (|c| c.limits.key_bytes_max = KEY_BYTES_CEILING, None),
            (|c| c.limits.key_bytes_max.0 = KEY_BYTES_CEILING.0 + 1, Some("key_bytes_max")),
            (|c| c.limits.value_bytes_max = ByteSize(0), Some("value_bytes_max")),
            (|c| c.limits.value_bytes_max.0 = VALUE_BYTES_CEILING, None),
            (|c| c.limits.value_bytes_max.0 = VALUE_BYTES_CEILING + 1, Some("value_bytes_max")),
            (|c| c.limits.answer_bytes_max = ByteSize(0), Some("answer_bytes_max")),
            (|c| c.limits.answer_bytes_max = SIZE_CEILING, None),
            (|c| c.limits.answer_bytes_max = ByteSize(u64::MAX), Some("answer_bytes_max")),
            (|c| c.limits.receive_bytes_max = ByteSize(0), Some("receive_bytes_max")),
            (|c| c.limits.receive_bytes_max = ByteSize(1 << 20), Some("receive_bytes_max")),
            (|c| c.limits.receive_bytes_max = SIZE_CEILING, None),
            (|c| c.limits.receive_bytes_max = ByteSize(u64::MAX), Some("receive_bytes_max")),
            (|c| c.limits.client_connections_max = 0, Some("client_connections_max")),
            (|c| c.limits.client_connections_max = usize::MAX, Some("client_connections_max")),
            (|c| c.limits.certificate_connections_max = 0, Some("certificate_connections_max")),
            (|c| c.limits.address_connections_max = 0, Some("address_connections_max")),
            (|c| c.limits.connection_requests_max = 0, Some("connection_requests_max")),
            (|c| c.limits.connection_requests_max = usize::MAX, Some("connection_requests_max")),
            (|c| c.limits.requests_max = 0, Some("limits.requests_max")),
            (|c| c.limits.requests_max = REQUESTS_CEILING, None),
            (|c| c.limits.requests_max = usize::MAX, Some("limits.requests_max")),
            (|c| c.timeouts.heartbeat = Duration::ZERO, Some("timeouts.heartbeat")),
            (|c| c.timeouts.election = Duration::ZERO, Some("timeouts.election")),
            (|c| c.timeouts.election = ELECTION_CEILING, None),
            (|c| c.timeouts.election = Duration::MAX, Some("timeouts.election")),
            (|c| c.timeouts.peer_idle = Duration::from_millis(299), Some("timeouts.peer_idle")),
            (|c| c.timeouts.peer_idle = IDLE_CEILING, None),
            (|c| c.timeouts.peer_idle = Duration::MAX, Some("timeouts.peer_idle")),
            (|c| c.timeouts.peer_hello = Duration::ZERO, Some("timeouts.peer_hello")),
            (|c| c.timeouts.client_idle = Duration::from_secs(2), Some("timeouts.client_idle")),
            (|c| c.timeouts.client_idle = Duration::from_secs(3), None),
            (|c| c.sessions.ttl = Duration::ZERO, Some("sessions.ttl")),
            (|c| c.sessions.ttl = Duration::MAX, Some("sessions.ttl")),
            (|c| c.sessions.count_max = 0, Some("sessions.count_max")),
            (|c| c.sessions.count_max = u64::MAX, Some("sessions.count_max")),
            (|c| c.upgrade_delay = Duration::ZERO, None),
            (|c| c.upgrade_delay = Duration::MAX, Some("upgrade_delay")),
        ];
        for (place, (change, complaint)) in changes.into_iter().enumerate() {
            let mut config = ServerConfig::in_process(1, 1..=3);
            change(&mut config);
            match (config.check(), complaint) {
                (Ok(()), None) => {}
                (Err(error), Some(name)) if error.to_string().contains(name) => {}
                (result, complaint) => panic!("change {place}: {result:?}, not {complaint:?}"),
            }
        }
        let mut config = ServerConfig::in_process(1, 1..=NODES_CEILING as NodeId);
        config.check().unwrap();
        config.nodes = ServerConfig::in_process(1, 1..=NODES_CEILING as NodeId + 1).nodes;
        assert!(config.check().unwrap_err().to_string().contains("at most 64"));
    }
}
