//! The marker of a directory of `kv dev`: which cluster it holds, and which nodes.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, bail, ensure};
use kv_service::config::NodeAddress;
use serde::{Deserialize, Serialize};

use super::layout::Wish;
use crate::files::write_file;

pub(super) const MARKER: &str = "dev.toml";
const FORMAT: u32 = 1;
const NODES_DEFAULT: u64 = 3;
const BASE_PORT_DEFAULT: u16 = 7400;

/// The content of the marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub(super) format: u32,
    pub(super) cluster_id: String,
    /// Nodes 1 to this one found the cluster.
    pub(super) nodes: u64,
    pub(super) base_port: u16,
    /// Nodes that were added later.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) added: BTreeSet<u64>,
    /// Nodes that were removed; their files may still be there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) removed: BTreeSet<u64>,
}

impl Marker {
    /// The nodes that there are now.
    pub(super) fn addresses(&self) -> Vec<NodeAddress> {
        let are_there = self.ever().filter(|id| !self.removed.contains(id));
        are_there.map(|id| self.address(id)).collect()
    }

    /// The nodes that there are or were.
    pub(super) fn ever(&self) -> impl Iterator<Item = u64> {
        (1..=self.nodes).chain(self.added.iter().copied())
    }

    /// The nodes that founded the cluster.
    pub(super) fn founders(&self) -> Vec<NodeAddress> {
        (1..=self.nodes).map(|id| self.address(id)).collect()
    }

    fn address(&self, id: u64) -> NodeAddress {
        NodeAddress { id, address: format!("127.0.0.1:{}", self.port(id)) }
    }

    fn port(&self, id: u64) -> u64 {
        u64::from(self.base_port) + id
    }

    /// Notes a node that was added.
    ///
    /// # Errors
    /// It would have no port.
    pub(super) fn add(&mut self, id: u64) -> anyhow::Result<()> {
        ensure!(
            self.port(id) <= u64::from(u16::MAX),
            "node {id} would have port {}, and there is none",
            self.port(id)
        );
        self.added.insert(id);
        Ok(())
    }

    /// Notes that a node was removed.
    pub(super) fn remove(&mut self, id: u64) {
        self.removed.insert(id);
    }

    /// Writes the marker.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let head = "# Made by `kv dev`, which takes this directory for its own.\n";
        let text = toml::to_string(self).context("the marker has a form in TOML")?;
        write_file(&dir.join(MARKER), format!("{head}{text}"), 0o644)
    }
}

/// Reads the marker; `None` if there is none.
pub(super) fn read_marker(dir: &Path) -> anyhow::Result<Option<Marker>> {
    let path = dir.join(MARKER);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let marker: Marker = toml::from_str(&text)
        .with_context(|| format!("{} is not what `kv dev` writes", path.display()))?;
    ensure!(
        marker.format == FORMAT && (1..=9).contains(&marker.nodes),
        "{} was written by another version of `kv dev`: use that one, or another directory",
        path.display()
    );
    Ok(Some(marker))
}

/// Returns the cluster's marker: the existing one, which the wish must not contradict, or a new
/// one.
pub(super) fn agree(dir: &Path, kept: Option<Marker>, wish: &Wish) -> anyhow::Result<Marker> {
    let Some(kept) = kept else {
        let nodes = wish.nodes.unwrap_or(NODES_DEFAULT);
        let base_port = wish.base_port.unwrap_or(BASE_PORT_DEFAULT);
        ensure!(
            u64::from(base_port) + nodes <= u64::from(u16::MAX),
            "--base-port {base_port}: {nodes} nodes do not fit below port 65536"
        );
        // A name of its own, so that two clusters that use the same ports refuse each other.
        let cluster_id = format!("dev-{:08x}", rand::random::<u32>());
        let (added, removed) = (BTreeSet::new(), BTreeSet::new());
        return Ok(Marker { format: FORMAT, cluster_id, nodes, base_port, added, removed });
    };
    let name = dir.display();
    if let Some(nodes) = wish.nodes.filter(|nodes| *nodes != kept.nodes) {
        bail!(
            "--nodes {nodes}: the cluster in {name} has {} nodes; leave the flag out to carry on with \
             it, name another --dir, or start anew with --clean",
            kept.nodes
        );
    }
    if let Some(port) = wish.base_port.filter(|port| *port != kept.base_port) {
        bail!(
            "--base-port {port}: the cluster in {name} has {}; leave the flag out to carry on with it, \
             name another --dir, or start anew with --clean",
            kept.base_port
        );
    }
    Ok(kept)
}
