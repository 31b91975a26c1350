//! A cluster of `kv serve` processes, as `kv dev` sets one up: defaults for everything, mutual TLS
//! with certificates made on the spot, each node's data in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use kv_service::config::{ByteSize, NodeAddress, StorageKind, TlsFiles};
use kv_service::net::tls::{DevCa, TlsConfig};
use kv_service::{Client, ClientConfig, NodeStatus, ServerConfig};
use tempfile::TempDir;

use super::{Processes, scratch, until};
use crate::load::Store;

const CLUSTER: &str = "bench";
/// How long a node may take to return its status.
const STATUS_DEADLINE: Duration = Duration::from_millis(500);

/// The `kv` binary, its data directory and its ports.
#[derive(Clone, Debug, clap::Args, serde::Serialize)]
pub(crate) struct KvArgs {
    /// The `kv` binary [default: built by cargo from the workspace above]
    #[arg(long, value_name = "FILE")]
    pub(crate) kv: Option<PathBuf>,
    /// Directory for the servers' data; should be on the disk that is to be measured
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) dir: PathBuf,
    /// Ports from this one on
    #[arg(long, value_name = "PORT", default_value_t = 17_500)]
    pub(crate) base_port: u16,
}

/// The settings of a cluster that may differ from the defaults.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) nodes: u64,
    pub(crate) storage: StorageKind,
    pub(crate) max_raft_state: Option<ByteSize>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { nodes: 3, storage: StorageKind::RocksDb, max_raft_state: None }
    }
}

#[derive(Debug)]
pub(crate) struct KvCluster {
    processes: Processes,
    client: ClientConfig,
    dir: TempDir,
}

impl KvCluster {
    /// Starts the nodes and waits until they have a leader.
    pub(crate) async fn start(args: &KvArgs, setup: &Setup) -> anyhow::Result<Self> {
        let binary = match &args.kv {
            Some(path) => path.clone(),
            None => build()?,
        };
        let dir = scratch(&args.dir)?;
        let ca = DevCa::create(CLUSTER)?;
        let address = |id| {
            let port = u64::from(args.base_port) + id;
            NodeAddress { id, address: format!("127.0.0.1:{port}") }
        };
        let nodes: Vec<NodeAddress> = (1..=setup.nodes).map(address).collect();
        // All files are written before the first node starts: each node reads the CA's certificate,
        // which `write_tls` writes again.
        let config_file = |id| dir.path().join(format!("node{id}.toml"));
        for id in 1..=setup.nodes {
            let name = format!("node{id}");
            let tls = write_tls(dir.path(), &name, &ca.issue_node(id)?)?;
            let mut config = ServerConfig::new(CLUSTER, id, &name, tls, nodes.clone());
            config.storage = setup.storage;
            config.max_raft_state = setup.max_raft_state.unwrap_or(config.max_raft_state);
            fs::write(config_file(id), config.to_toml())?;
        }
        let client = ClientConfig {
            cluster_id: CLUSTER.to_owned(),
            deadline: kv_service::config::default_deadline(),
            tls: absolute(dir.path(), write_tls(dir.path(), "client", &ca.issue_client("bench")?)?),
            nodes,
        };
        let mut processes = Processes::none();
        for id in 1..=setup.nodes {
            let mut command = Command::new(&binary);
            command.arg("serve").arg("--config").arg(config_file(id));
            processes.add(command, dir.path().join(format!("node{id}.log")))?;
        }
        let mut cluster = Self { processes, client, dir };
        cluster.settle().await?;
        Ok(cluster)
    }

    /// Waits until all nodes run, follow one leader, and have applied what it has committed.
    pub(crate) async fn settle(&mut self) -> anyhow::Result<()> {
        let client = self.connect_one()?.with_deadline(STATUS_DEADLINE);
        let settled = until(&mut self.processes, "the kv cluster is whole", async || {
            let Some(all) = statuses(&client).await else { return false };
            let Some(leader) = all.iter().find(|status| status.role == "leader") else {
                return false;
            };
            all.iter().all(|status| {
                status.leader_id == Some(leader.id) && status.last_applied >= leader.commit_index
            })
        });
        settled.await?;
        client.close().await;
        Ok(())
    }

    /// Returns the number of the node that leads now, counted from 0.
    pub(crate) async fn leader(&mut self) -> anyhow::Result<usize> {
        let client = self.connect_one()?.with_deadline(STATUS_DEADLINE);
        let mut leader = None;
        let found = until(&mut self.processes, "the kv cluster has a leader", async || {
            for id in client.nodes() {
                match client.status(*id).await {
                    Ok(status) if status.role == "leader" => leader = Some(status.id),
                    _ => {}
                }
            }
            leader.is_some()
        });
        found.await?;
        client.close().await;
        Ok(usize::try_from(leader.context("just found")? - 1)?)
    }

    pub(crate) async fn status(&self, number: usize) -> anyhow::Result<NodeStatus> {
        let client = self.connect_one()?;
        let status = client.status(number as u64 + 1).await;
        client.close().await;
        Ok(status?)
    }

    pub(crate) fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.pids()
    }

    /// Opens clients, each with a session and connections of its own.
    pub(crate) fn connect(&self, count: usize) -> anyhow::Result<Vec<KvStore>> {
        (0..count).map(|_| Ok(KvStore(self.connect_one()?))).collect()
    }

    fn connect_one(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.client)?)
    }

    /// Returns the bytes on the disk that the nodes take.
    pub(crate) fn disk_bytes(&self) -> anyhow::Result<u64> {
        bytes_below(self.dir.path())
    }
}

async fn statuses(client: &Client) -> Option<Vec<NodeStatus>> {
    let mut all = Vec::new();
    for id in client.nodes() {
        all.push(client.status(*id).await.ok()?);
    }
    Some(all)
}

fn bytes_below(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A running node may delete what was just listed.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += match metadata.is_dir() {
            true => bytes_below(&entry.path()).unwrap_or(0),
            false => metadata.len(),
        };
    }
    Ok(bytes)
}

/// Writes the files of one identity. Their names are relative to the directory, as in a node's
/// configuration file.
fn write_tls(dir: &Path, name: &str, tls: &TlsConfig) -> anyhow::Result<TlsFiles> {
    let files = TlsFiles {
        ca: "ca.pem".into(),
        cert: format!("{name}.pem").into(),
        key: format!("{name}.key").into(),
    };
    fs::write(dir.join(&files.ca), &tls.ca_pem)?;
    fs::write(dir.join(&files.cert), &tls.cert_pem)?;
    fs::write(dir.join(&files.key), &tls.key_pem)?;
    Ok(files)
}

fn absolute(dir: &Path, files: TlsFiles) -> TlsFiles {
    let TlsFiles { ca, cert, key } = files;
    TlsFiles { ca: dir.join(ca), cert: dir.join(cert), key: dir.join(key) }
}

/// Lets cargo build the binary as it is released. Returns the path that cargo reports.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    eprintln!("building kv (the first time takes 5 to 15 minutes: RocksDB is compiled)");
    let built = Command::new("cargo")
        .args(["build", "--release", "-p", "kv-service", "--features", "cli", "--bin", "kv"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(workspace)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(built.status.success(), "cargo did not build kv");
    let messages = String::from_utf8(built.stdout)?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    messages.lines().filter_map(executable).next_back().context("cargo does not say where kv is")
}

/// One client of the cluster, as an application has it.
#[derive(Clone)]
pub(crate) struct KvStore(Client);

impl KvStore {
    /// Returns the status of this node alone, counted from 0.
    pub(crate) async fn status(&self, number: usize) -> anyhow::Result<NodeStatus> {
        Ok(self.0.with_deadline(STATUS_DEADLINE).status(number as u64 + 1).await?)
    }

    /// Ends the client's session.
    pub(crate) async fn close(&self) {
        self.0.close().await;
    }
}

impl Store for KvStore {
    async fn put(&mut self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        self.0.put(key, value).await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes) -> anyhow::Result<bool> {
        Ok(self.0.get(key).await?.is_some())
    }
}
