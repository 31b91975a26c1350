//! The directory of a node that `kv init --advertise` or an invitation has made.
//!
//! ```text
//! DIR/node.toml                   the node's configuration, written last: once it is there, the
//!                                 directory is complete
//! DIR/ca.pem, nodeN.pem, .key     its certificates and its key
//! DIR/data/                       its data
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kv_service::ServerConfig;
use kv_service::config::{NodeAddress, TlsFiles};

use crate::cert::{PUBLIC, SECRET};
use crate::files::{make_private_dir, write_file};

pub(crate) const CONFIG: &str = "node.toml";

const TRUSTED: &str = "ca.pem";

/// The certificates of a node and its key, in PEM.
pub(crate) struct Pems<'a> {
    pub(crate) ca: &'a [u8],
    pub(crate) cert: &'a [u8],
    pub(crate) key: &'a [u8],
}

/// The configuration of a node with such a directory.
pub(crate) fn config(cluster_id: &str, node_id: u64, nodes: Vec<NodeAddress>) -> ServerConfig {
    let tls = TlsFiles {
        ca: PathBuf::from(TRUSTED),
        cert: format!("node{node_id}.pem").into(),
        key: format!("node{node_id}.key").into(),
    };
    ServerConfig::new(cluster_id, node_id, "data", tls, nodes)
}

/// Writes the node's files. The configuration comes last.
pub(crate) fn write(dir: &Path, config: &ServerConfig, pems: &Pems<'_>) -> anyhow::Result<()> {
    make_private_dir(dir)?;
    write_file(&dir.join(&config.tls.key), pems.key, SECRET)?;
    write_file(&dir.join(&config.tls.cert), pems.cert, PUBLIC)?;
    write_file(&dir.join(&config.tls.ca), pems.ca, PUBLIC)?;
    write_file(&dir.join(CONFIG), config.to_toml(), PUBLIC)
}

/// All addresses of the machine, at the port of a `host:port`.
pub(crate) fn listen(advertise: &str) -> Option<SocketAddr> {
    let port = advertise.rsplit_once(':')?.1.parse().ok()?;
    Some(SocketAddr::from(([0, 0, 0, 0], port)))
}
