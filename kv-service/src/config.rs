//! What a node and a client have to be told, as values and as TOML files.
//!
//! Unknown keys are errors. Relative paths in a file are relative to the file's directory, so that a
//! directory with its files can be used from anywhere. Everything that has a sensible default has it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_core::types::NodeId;
use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, duration_text};

/// Why a configuration cannot be used; the text says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
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
    /// Nowhere: a node that stops has forgotten everything and must not come back under its id.
    Memory,
}

/// What a node takes from clients. Beyond a limit a request is refused before it reaches the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub key_bytes_max: ByteSize,
    pub value_bytes_max: ByteSize,
    /// Client connections at once; further ones are closed with a reason.
    pub client_connections_max: usize,
    /// Requests of one connection that are not answered yet; the node reads no further meanwhile.
    pub connection_requests_max: usize,
    /// Requests of all connections that are not answered yet; further ones are answered `Busy`.
    pub requests_max: usize,
    /// Answers that wait to be sent, over all connections; further reads are answered `Busy`.
    pub answer_bytes_max: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: ByteSize(64 << 10),
            value_bytes_max: ByteSize(1 << 20),
            client_connections_max: 4096,
            connection_requests_max: 4096,
            requests_max: 65_536,
            answer_bytes_max: ByteSize(256 << 20),
        }
    }
}

/// How patient nodes are with each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A leader is heard of at least this often.
    #[serde(with = "duration_text")]
    pub heartbeat: Duration,
    /// A node that hears of no leader for this long, up to twice as long, campaigns.
    #[serde(with = "duration_text")]
    pub election: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(60), election: Duration::from_millis(300) }
    }
}

/// How long clients are remembered for exactly-once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// A session that writes nothing for this long expires.
    #[serde(with = "duration_text")]
    pub ttl: Duration,
    /// Beyond, the session that has been quiet for longest expires.
    pub count_max: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), count_max: 100_000 }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Lower-case letters, digits and hyphens. Nodes and clients of another cluster are refused.
    pub cluster_id: String,
    pub node_id: NodeId,
    /// UDP. Default: this node's address in `nodes`, which then has to be a numeric one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Made if it is not there; belongs to this node alone.
    pub data_dir: PathBuf,
    #[serde(default)]
    pub storage: StorageKind,
    /// When the persisted log exceeds this, the node snapshots and compacts; 0 never does.
    #[serde(default = "default_max_raft_state")]
    pub max_raft_state: ByteSize,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub sessions: SessionLimits,
    pub tls: TlsFiles,
    /// All nodes, this one included.
    pub nodes: Vec<NodeAddress>,
}

/// 128 MiB.
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
            tls,
            nodes,
        }
    }

    /// A node of a cluster within one process: no certificates, and a directory only if it is set.
    pub fn in_process(node_id: NodeId, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        // Never bound: the port only has to make sense.
        let address = |id| NodeAddress { id, address: "127.0.0.1:1".to_owned() };
        let nodes = nodes.into_iter().map(address).collect();
        Self::new("in-process", node_id, PathBuf::new(), TlsFiles::default(), nodes)
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

    /// The file that [`ServerConfig::read`] reads.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

    /// # Errors
    /// [`ConfigError::Invalid`] names the field and what it must be.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_cluster(&self.cluster_id, &self.nodes)?;
        let invalid = |message: String| Err(ConfigError::Invalid(message));
        if !self.nodes.iter().any(|node| node.id == self.node_id) {
            return invalid(format!("node_id {} is not among `nodes`", self.node_id));
        }
        let Limits {
            key_bytes_max,
            value_bytes_max,
            client_connections_max,
            connection_requests_max,
            requests_max,
            answer_bytes_max,
        } = &self.limits;
        if !(1..=64 << 10).contains(&key_bytes_max.0) {
            return invalid(format!("limits.key_bytes_max is {key_bytes_max}: 1B to 64KiB"));
        }
        if !(1..=VALUE_BYTES_CEILING).contains(&value_bytes_max.0) {
            let ceiling = ByteSize(VALUE_BYTES_CEILING);
            return invalid(format!(
                "limits.value_bytes_max is {value_bytes_max}: 1B to {ceiling}"
            ));
        }
        if *answer_bytes_max < ByteSize(2 * VALUE_BYTES_CEILING) {
            return invalid("limits.answer_bytes_max: at least 32MiB".to_owned());
        }
        let counts = [client_connections_max, connection_requests_max, requests_max];
        if counts.contains(&&0) {
            return invalid("limits of connections and requests: at least 1".to_owned());
        }
        let Timeouts { heartbeat, election } = self.timeouts;
        if election > DURATION_MAX || self.sessions.ttl > 365 * DURATION_MAX {
            return invalid("timeouts.election: at most a day; sessions.ttl: a year".to_owned());
        }
        if heartbeat.is_zero() || heartbeat > election / 3 {
            return invalid(format!(
                "timeouts.election ({election:?}) must be at least three times timeouts.heartbeat \
                 ({heartbeat:?}), or one lost packet deposes a leader"
            ));
        }
        if self.sessions.ttl < Duration::from_secs(1) || self.sessions.count_max == 0 {
            return invalid("sessions: ttl at least 1s, count_max at least 1".to_owned());
        }
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

    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        self.nodes.iter().map(|node| (node.id, node.address.clone())).collect()
    }
}

const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// No `value_bytes_max` may be larger.
pub const VALUE_BYTES_CEILING: u64 = 16 << 20;

/// How a client finds its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    pub cluster_id: String,
    /// How long an operation is retried before the client gives up.
    #[serde(with = "duration_text", default = "default_deadline")]
    pub deadline: Duration,
    pub tls: TlsFiles,
    pub nodes: Vec<NodeAddress>,
}

/// Ten seconds.
pub const fn default_deadline() -> Duration {
    Duration::from_secs(10)
}

impl ClientConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`ServerConfig::read`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let (mut config, base): (Self, _) = read(path.as_ref())?;
        config.tls.rebase(&base);
        config.check()?;
        Ok(config)
    }

    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }

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

/// What is wrong is said with its line.
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
    let invalid = |message: String| Err(ConfigError::Invalid(message));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !(1..=63).contains(&cluster_id.len()) || !cluster_id.chars().all(plain) {
        return invalid(format!(
            "cluster_id {cluster_id:?}: 1 to 63 lower-case letters, digits and hyphens"
        ));
    }
    if nodes.is_empty() {
        return invalid("`nodes` is empty: list id and address of each".to_owned());
    }
    let mut seen = BTreeMap::new();
    for NodeAddress { id, address } in nodes {
        if *id == 0 {
            return invalid(format!("node {address} has the id 0: ids start at 1"));
        }
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return invalid(format!("node {id} has the address {address:?}: write host:port"));
        }
        if seen.insert(*id, address).is_some() {
            return invalid(format!("node {id} is listed twice"));
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
            name in "[a-z0-9-]{1,63}",
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
            config.timeouts = Timeouts { heartbeat, election };
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
            ("id = 1", "id = 2", "listed twice"),
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
}
