//! Configuration of one node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_core::types::NodeId;
use serde::{Deserialize, Serialize};

use super::check::require;
use super::cluster::{NODE_ID_CEILING, NodeAddress, TlsFiles, check_cluster};
use super::file::{ConfigError, read};
use super::limits::{Limits, SIZE_CEILING};
use super::timing::{SessionLimits, Timeouts};
use super::units::{ByteSize, duration_text, is_default};
use crate::members::{ClusterUid, MemberInfo};

const UPGRADE_DELAY_CEILING: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where a node keeps log, hard state, snapshots and state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// In the data directory; survives everything but the loss of a majority of disks.
    #[default]
    RocksDb,
    /// In memory: a node that stops loses everything. It may start again under its id, and then
    /// counts as a new member: its votes are not counted until the leader has sent it all data. A
    /// cluster of which a majority stops at the same time has lost its data.
    Memory,
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

/// Configuration of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Lower-case letters, digits and hyphens. Nodes and clients of another cluster are refused.
    pub cluster_id: String,
    /// Id of this node, which `nodes` must list unless the node joins.
    pub node_id: NodeId,
    /// Random id of the cluster, as in an invitation: nodes of another cluster with the same name
    /// are refused. Without it the node learns it from the cluster. `kv cluster` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<ClusterUid>,
    /// UDP address to listen on. Default: `advertise`, or else this node's address in `nodes`,
    /// which must then be numeric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Created if it does not exist; belongs to this node alone.
    pub data_dir: PathBuf,
    /// True for a node that joins a cluster that exists: `nodes` then lists members that it can
    /// ask, and need not list the node itself. An operator adds the node with `kv member add`, or
    /// [`Cluster::add`](crate::Cluster::add). The setting stays after the node has joined.
    #[serde(default, skip_serializing_if = "is_default")]
    pub join: bool,
    /// `host:port` at which the other nodes and the clients reach this node; the node announces it
    /// to the cluster. Default: this node's address in `nodes`, or else `listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// A name for people, which the node announces. Default: `node` and the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the node stands, such as a rack or a data centre, which the node announces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// True if the nodes of this file are reached only at their addresses in this file, as when
    /// ports are forwarded. The node then announces nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fixed_addresses: bool,
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
    /// All nodes when the cluster was founded, this one included; for a node that joins, members
    /// that it can ask. Once a node runs, it learns from the cluster who the members are.
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
            cluster_uid: None,
            listen: None,
            data_dir: data_dir.into(),
            join: false,
            advertise: None,
            name: None,
            zone: None,
            fixed_addresses: false,
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
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use kv_service::{ConfigError, ServerConfig};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let file = dir.path().join("node1.toml");
    /// let mut text = r#"
    ///     cluster_id = "test"
    ///     node_id = 1
    ///     data_dir = "node1"
    ///     tls = { ca = "ca.pem", cert = "node1.pem", key = "node1.key" }
    ///     nodes = [{ id = 1, address = "127.0.0.1:7401" }]
    /// "#
    /// .to_owned();
    /// std::fs::write(&file, &text)?;
    /// let config = ServerConfig::read(&file)?;
    /// assert_eq!(config.data_dir, dir.path().join("node1"), "relative to the file");
    ///
    /// text = text.replace("node_id = 1", "node_id = 2");
    /// std::fs::write(&file, &text)?;
    /// assert!(matches!(ServerConfig::read(&file), Err(ConfigError::Invalid(_))));
    /// # Ok(())
    /// # }
    /// ```
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
        self.check_own_place()?;
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

    /// Checks id, name and addresses of this node.
    fn check_own_place(&self) -> Result<(), ConfigError> {
        let own = self.nodes.iter().any(|node| node.id == self.node_id);
        require(own || self.join, || {
            format!(
                "node_id {} is not among `nodes`; a node that joins a cluster has `join = true`",
                self.node_id
            )
        })?;
        let ids = 1..=NODE_ID_CEILING;
        require(ids.contains(&self.node_id), || {
            format!("node_id is {}: ids are 1 to {NODE_ID_CEILING}", self.node_id)
        })?;
        let others = self.nodes.iter().any(|node| node.id != self.node_id);
        require(others || !self.join, || {
            "`join = true`: list at least one other member in `nodes`".to_owned()
        })?;
        let described = MemberInfo {
            name: self.name.clone().unwrap_or_default(),
            address: self.advertise.clone().unwrap_or_default(),
            zone: self.zone.clone().unwrap_or_default(),
            ..MemberInfo::default()
        };
        described.check().map_err(|invalid| ConfigError::Invalid(invalid.to_string()))?;
        let is_reachable = self.advertised_address().is_some() || self.fixed_addresses;
        require(is_reachable || !self.join, || {
            "set `advertise` (host:port): other nodes cannot tell from `listen` where this one is"
                .to_owned()
        })
    }

    /// The address that the node announces; `None` if neither `advertise`, nor `nodes`, nor
    /// `listen` tells one.
    pub fn advertised_address(&self) -> Option<String> {
        let in_nodes = || self.nodes.iter().find(|node| node.id == self.node_id);
        let listened = || self.listen.filter(|listen| !listen.ip().is_unspecified());
        self.advertise
            .clone()
            .or_else(|| in_nodes().map(|node| node.address.clone()))
            .or_else(|| listened().map(|listen| listen.to_string()))
    }

    /// Where the node listens.
    ///
    /// # Errors
    /// Neither `listen` nor a numeric address is given.
    pub fn listen_address(&self) -> Result<SocketAddr, ConfigError> {
        if let Some(listen) = self.listen {
            return Ok(listen);
        }
        let parsed = self.advertised_address().and_then(|address| address.parse().ok());
        parsed.ok_or_else(|| {
            ConfigError::Invalid(
                "set `listen` (such as \"0.0.0.0:7401\"): this node's own address is a name"
                    .to_owned(),
            )
        })
    }

    /// Addresses of the nodes in this file, by id.
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        self.nodes.iter().map(|node| (node.id, node.address.clone())).collect()
    }
}
