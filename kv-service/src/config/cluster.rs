//! The members of a cluster, and the files by which they prove their identity.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use raft_core::types::NodeId;
use serde::{Deserialize, Serialize};

use super::check::require;
use super::file::ConfigError;

/// Most nodes of a cluster.
pub const NODES_CEILING: usize = 64;

/// Node ids are below 2^63, like all stored numbers.
pub(super) const NODE_ID_CEILING: NodeId = (1 << 63) - 1;

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

impl TlsFiles {
    /// Makes relative paths relative to `base`.
    pub(super) fn rebase(&mut self, base: &Path) {
        for path in [&mut self.ca, &mut self.cert, &mut self.key] {
            *path = base.join(&*path);
        }
    }
}

/// Checks what the configurations of nodes and of clients have in common.
pub(super) fn check_cluster(cluster_id: &str, nodes: &[NodeAddress]) -> Result<(), ConfigError> {
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
