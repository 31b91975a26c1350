//! The directory of `kv dev`.
//!
//! ```text
//!   DIR/dev.toml                      marker: the cluster, and which nodes there are; made first
//!   DIR/dev.lock, dev.sock            one supervisor at a time; how `kv dev restart` reaches it
//!   DIR/ca.pem, ca.key, cluster_id    the development CA
//!   DIR/client.toml, client.{pem,key} what a client needs
//!   DIR/nodeN.toml, nodeN.{pem,key}   what a node needs
//!   DIR/nodeN/, nodeN.log             its data; its log
//! ```
//!
//! Every file is made once, if it is missing, and used again. So an interrupted start is completed
//! by the next one, and the changes of a user to a `nodeN.toml` stay. A directory that is not empty
//! and has no marker is neither used nor cleaned.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kv_service::config::{ByteSize, NodeAddress, TlsFiles, default_max_raft_state};
use kv_service::{ClientConfig, Server, ServerConfig};
use raft_transport_quic::{DevCa, TlsConfig};
use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use super::marker::{MARKER, Marker, agree, read_marker};
use crate::files::{
    DRAFT, make_private_dir, remove, remove_with_draft, set_max_raft_state, set_nodes, with_ending,
    write_file,
};

const LOCK: &str = "dev.lock";
const SOCKET: &str = "dev.sock";
const CA_CLUSTER_ID: &str = "cluster_id";
/// File in a node's data directory that is written last when the directory is made.
const IDENTITY: &str = "identity";
/// A log of a node that is longer is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How long nodes may take to stop after their supervisor was killed.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The settings that the command line asks for.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    pub(crate) nodes: Option<u64>,
    pub(crate) base_port: Option<u16>,
    pub(crate) max_raft_state: Option<ByteSize>,
    pub(crate) clean: bool,
}

/// A locked directory that is ready to run nodes from.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    marker: Mutex<Marker>,
    /// Held while the supervisor lives.
    _lock: File,
}

impl Layout {
    /// Takes the directory, and makes every file that is missing.
    ///
    /// # Errors
    /// The directory is in use, holds something else or contradicts the wish, or a port is taken.
    /// Nothing has been changed then, except that an empty directory and its lock file may have
    /// been made.
    pub(crate) async fn open(dir: &Path, wish: &Wish) -> anyhow::Result<Self> {
        let found = read_marker(dir)?;
        if found.is_none() {
            ensure_empty(dir)?;
        }
        make_private_dir(dir)?;
        let lock = take_lock(dir)?;
        // Read again under the lock: another process may just have written it.
        let found = read_marker(dir)?;
        if let Some(old) = &found {
            wait_for_leftovers(dir, old).await?;
        }
        let kept = found.clone().filter(|_| !wish.clean);
        let marker = agree(dir, kept, wish)?;
        check_ports(&marker)?;
        if wish.clean
            && let Some(old) = found
        {
            wipe(dir, &old)?;
        }
        let layout = Self { dir: dir.to_owned(), marker: Mutex::new(marker), _lock: lock };
        layout.complete(wish).with_context(|| format!("cannot prepare {}", dir.display()))?;
        Ok(layout)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn cluster_id(&self) -> String {
        self.marker().cluster_id.clone()
    }

    pub(crate) fn nodes(&self) -> Vec<NodeAddress> {
        self.marker().addresses()
    }

    fn marker(&self) -> MutexGuard<'_, Marker> {
        // Held for single steps only; none of them panics half-way.
        self.marker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn client_config(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    pub(crate) fn node_config(&self, id: u64) -> PathBuf {
        node_config(&self.dir, id)
    }

    pub(crate) fn node_dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node{id}"))
    }

    pub(crate) fn node_log(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node{id}.log"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    /// Makes every file that is missing, the marker first.
    fn complete(&self, wish: &Wish) -> anyhow::Result<()> {
        if !self.dir.join(MARKER).exists() {
            self.marker().write(&self.dir)?;
        }
        let ca = self.certificate_authority()?;
        for NodeAddress { id, .. } in self.nodes() {
            self.complete_node(id, &ca, wish)?;
            set_aside_long_log(&self.node_log(id))?;
        }
        let tls = self.tls_files("client");
        self.certify(&tls, || ca.issue_client("kv dev"))?;
        let cluster_id = self.cluster_id();
        let client = ClientConfig::new(cluster_id, names_only(&tls), self.nodes());
        if !self.client_config().exists() {
            write_file(&self.client_config(), client.to_toml(), 0o644)?;
        }
        Ok(())
    }

    fn complete_node(&self, id: u64, ca: &DevCa, wish: &Wish) -> anyhow::Result<()> {
        let tls = self.tls_files(&format!("node{id}"));
        self.certify(&tls, || ca.issue_node(id))?;
        make_private_dir(&self.node_dir(id))?;
        let path = self.node_config(id);
        if !path.exists() {
            let config = self.config_of(id, names_only(&tls), wish);
            if !config.join {
                self.init_node(&config)?;
            }
            write_file(&path, config.to_toml(), 0o644)?;
        } else if let Some(size) = wish.max_raft_state {
            set_max_raft_state(&path, size)?;
        }
        // Read here rather than only by the node, so that a mistake in the file is reported here
        // and once.
        ServerConfig::read(&path)?;
        Ok(())
    }

    fn config_of(&self, id: u64, tls: TlsFiles, wish: &Wish) -> ServerConfig {
        let joins = self.marker().added.contains(&id);
        let nodes = if joins { self.nodes() } else { self.marker().founders() };
        let mut config = ServerConfig::new(self.cluster_id(), id, format!("node{id}"), tls, nodes);
        config.join = joins;
        config.max_raft_state = wish.max_raft_state.unwrap_or(default_max_raft_state());
        config
    }

    /// Makes the files of a node that was added to the running cluster.
    pub(crate) fn add_node(&self, id: u64) -> anyhow::Result<()> {
        self.marker().add(id)?;
        self.marker().write(&self.dir)?;
        let ca = self.certificate_authority()?;
        self.complete_node(id, &ca, &Wish::default())?;
        set_nodes(&self.client_config(), &self.nodes())
    }

    /// Deletes the files of a node that was removed from the cluster.
    pub(crate) fn remove_node(&self, id: u64) -> anyhow::Result<()> {
        self.marker().remove(id);
        self.marker().write(&self.dir)?;
        set_nodes(&self.client_config(), &self.nodes())?;
        wipe_node(&self.dir, id)
    }

    /// Makes the data directory of a node that has no configuration file yet, unless an interrupted
    /// start has made it. A node that has its file and no directory has lost its disk; the leader
    /// gives it all data.
    fn init_node(&self, config: &ServerConfig) -> anyhow::Result<()> {
        let data_dir = self.node_dir(config.node_id);
        if data_dir.join(IDENTITY).exists() {
            return Ok(());
        }
        Ok(Server::init(&ServerConfig { data_dir, ..config.clone() })?)
    }

    /// The CA's files are named as those of `kv cert`, which works on this directory as well.
    fn certificate_authority(&self) -> anyhow::Result<DevCa> {
        let (cert, key) = (self.dir.join("ca.pem"), self.dir.join("ca.key"));
        let cluster_id = &self.cluster_id();
        let name = self.dir.join(CA_CLUSTER_ID);
        if !name.exists() {
            write_file(&name, cluster_id, 0o644)?;
        }
        if cert.exists() && key.exists() {
            return Ok(DevCa::from_pem(cluster_id, &fs::read(&cert)?, &fs::read(&key)?)?);
        }
        let ca = DevCa::create(cluster_id)?;
        // Certificates of an earlier CA are of no use under the new one. They are removed first: if
        // this process is stopped in between, the next start makes what is missing and trusts
        // nothing that is left.
        let names = self.nodes().into_iter().map(|node| format!("node{}", node.id));
        remove(&cert)?;
        for name in names.chain(["client".to_owned()]) {
            remove(&self.tls_files(&name).cert)?;
        }
        write_file(&key, ca.key_pem(), 0o600)?;
        write_file(&cert, ca.cert_pem(), 0o644)?;
        Ok(ca)
    }

    fn certify<E: std::error::Error + Send + Sync + 'static>(
        &self,
        tls: &TlsFiles,
        issue: impl FnOnce() -> Result<TlsConfig, E>,
    ) -> anyhow::Result<()> {
        if tls.cert.exists() && tls.key.exists() {
            return Ok(());
        }
        let issued = issue()?;
        write_file(&tls.key, &issued.key_pem, 0o600)?;
        write_file(&tls.cert, &issued.cert_pem, 0o644)
    }

    fn tls_files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.dir.join("ca.pem"),
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        }
    }
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

pub(crate) fn node_config(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("node{id}.toml"))
}

fn ensure_empty(dir: &Path) -> anyhow::Result<()> {
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot use {}", dir.display())),
    };
    // A start that was refused leaves a lock file; one that was stopped may also leave the draft of
    // a marker.
    let draft = format!("{MARKER}{DRAFT}");
    let ours = |e: &fs::DirEntry| e.file_name() == LOCK || e.file_name() == draft.as_str();
    if let Some(Ok(entry)) = entries.find(|entry| !matches!(entry, Ok(e) if ours(e))) {
        bail!(
            "{} holds {} and was not made by `kv dev`: name another directory with --dir",
            dir.display(),
            entry.file_name().display()
        );
    }
    Ok(())
}

fn take_lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another `kv dev` runs on {}: stop it with Ctrl-C, or name another directory with --dir",
            dir.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Waits for nodes of this directory that still run and hold their files and ports. A node that
/// stops releases its files first. A port that stays taken is reported by [`check_ports`].
async fn wait_for_leftovers(dir: &Path, marker: &Marker) -> anyhow::Result<()> {
    let until = Instant::now() + LEFTOVER_PATIENCE;
    for NodeAddress { id, address } in marker.addresses() {
        let data = dir.join(format!("node{id}"));
        while is_in_use(&data) {
            ensure!(
                Instant::now() < until,
                "node {id} runs already, on {}: stop that `kv serve` first",
                data.display()
            );
            sleep(LOOK_AGAIN_AFTER).await;
        }
        while UdpSocket::bind(&address).is_err() && Instant::now() < until {
            sleep(LOOK_AGAIN_AFTER).await;
        }
    }
    Ok(())
}

fn wipe_node(dir: &Path, id: u64) -> anyhow::Result<()> {
    let data = dir.join(format!("node{id}"));
    match fs::remove_dir_all(&data) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot delete {}", data.display()));
        }
        _ => {}
    }
    for end in ["log", "log.old"] {
        remove(&dir.join(format!("node{id}.{end}")))?;
    }
    for end in ["toml", "pem", "key"] {
        remove_with_draft(&dir.join(format!("node{id}.{end}")))?;
    }
    Ok(())
}

/// Returns true if a node holds the file `lock` in its data directory.
fn is_in_use(data: &Path) -> bool {
    let Ok(lock) = File::open(data.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
}

fn check_ports(marker: &Marker) -> anyhow::Result<()> {
    for NodeAddress { id, address } in marker.addresses() {
        UdpSocket::bind(&address).with_context(|| {
            format!(
                "node {id} cannot have UDP {address}: stop what uses it (another cluster, or a node \
                 that is still stopping?), or use a --base-port and --dir of its own"
            )
        })?;
    }
    Ok(())
}

/// Deletes the files that `kv dev` made, by name, and nothing else. The marker goes last: until
/// then the directory is known to belong to `kv dev`.
fn wipe(dir: &Path, marker: &Marker) -> anyhow::Result<()> {
    for id in marker.ever() {
        wipe_node(dir, id)?;
    }
    let of_ca = ["ca.pem", "ca.key", "ca-next.key", CA_CLUSTER_ID];
    let others = ["client.toml", "client.pem", "client.key", SOCKET, MARKER];
    for name in of_ca.into_iter().chain(others) {
        remove_with_draft(&dir.join(name))?;
    }
    Ok(())
}

fn set_aside_long_log(path: &Path) -> anyhow::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() > LOG_BYTES_MAX) {
        fs::rename(path, with_ending(path, ".old"))
            .with_context(|| format!("cannot set aside {}", path.display()))?;
    }
    Ok(())
}

/// Paths in the files are relative to the directory, so that it can be moved.
fn names_only(tls: &TlsFiles) -> TlsFiles {
    let name = |path: &Path| PathBuf::from(path.file_name().expect("made by joining a name"));
    TlsFiles { ca: name(&tls.ca), cert: name(&tls.cert), key: name(&tls.key) }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
