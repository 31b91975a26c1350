//! A cluster of etcd processes in its best shape for this comparison: defaults for everything that
//! touches speed or safety, a quota that a run cannot reach, no TLS, and a quiet log.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use etcd_client::{Client, ConnectOptions, KvClient};
use tempfile::TempDir;
use tokio::time::sleep;

use super::{Processes, scratch, until};
use crate::load::Store;

/// etcd stops taking writes when its database reaches the quota; 8 GiB is the largest that it
/// recommends.
const QUOTA_BYTES: u64 = 8 << 30;
/// How long a member may take to return its status.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// Longer than the 100 ms between two commits of etcd's backend.
const COMMIT_INTERVAL: Duration = Duration::from_millis(150);

#[derive(Clone, Debug, clap::Args, serde::Serialize)]
pub(crate) struct EtcdArgs {
    /// The etcd binary (Debian: etcd-server)
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    pub(crate) etcd: PathBuf,
    /// Ports from this one on
    #[arg(long, value_name = "PORT", default_value_t = 17_600)]
    pub(crate) etcd_base_port: u16,
}

#[derive(Debug)]
pub(crate) struct EtcdCluster {
    processes: Processes,
    endpoints: Vec<String>,
    _dir: TempDir,
}

impl EtcdCluster {
    /// Starts three members and waits until they have a leader.
    pub(crate) async fn start(args: &EtcdArgs, parent: &Path) -> anyhow::Result<Self> {
        let dir = scratch(parent)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let client = |number: u16| url(args.etcd_base_port + number);
        let peer = |number: u16| url(args.etcd_base_port + 10 + number);
        let member = |number: u16| format!("m{number}={}", peer(number));
        let all = (0..3).map(member).collect::<Vec<_>>().join(",");
        let mut processes = Processes::none();
        for number in 0..3 {
            let name = format!("m{number}");
            let mut command = Command::new(&args.etcd);
            command
                .args(["--name", &name, "--data-dir"])
                .arg(dir.path().join(&name))
                .args(["--listen-client-urls", &client(number)])
                .args(["--advertise-client-urls", &client(number)])
                .args(["--listen-peer-urls", &peer(number)])
                .args(["--initial-advertise-peer-urls", &peer(number)])
                .args(["--initial-cluster", &all, "--initial-cluster-state", "new"])
                .args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()])
                .args(["--logger", "zap", "--log-level", "error"]);
            processes.add(command, dir.path().join(format!("{name}.log")))?;
        }
        let mut cluster = Self { processes, endpoints: (0..3).map(client).collect(), _dir: dir };
        cluster.settle().await?;
        Ok(cluster)
    }

    /// Returns the name and version that the binary prints.
    pub(crate) fn version(args: &EtcdArgs) -> anyhow::Result<String> {
        let output = Command::new(&args.etcd).arg("--version").output();
        let output = output.with_context(|| {
            format!("cannot run {} (Debian: apt install etcd-server)", args.etcd.display())
        })?;
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said.lines().next().unwrap_or("etcd of an unknown version").to_owned())
    }

    /// Waits until all members run and follow one leader.
    pub(crate) async fn settle(&mut self) -> anyhow::Result<()> {
        let endpoints = self.endpoints.clone();
        until(&mut self.processes, "the etcd cluster is whole", async || {
            let mut leaders = Vec::new();
            let mut applied = Vec::new();
            for endpoint in &endpoints {
                let Some((_, leader, index)) = status(endpoint).await else { return false };
                leaders.push(leader);
                applied.push(index);
            }
            let lag = applied.iter().max().zip(applied.iter().min()).map(|(max, min)| max - min);
            leaders[0] != 0 && leaders.iter().all(|one| *one == leaders[0]) && lag <= Some(10)
        })
        .await
    }

    /// Returns the number of the member that leads now.
    pub(crate) async fn leader(&mut self) -> anyhow::Result<usize> {
        let endpoints = self.endpoints.clone();
        let mut leader = None;
        until(&mut self.processes, "the etcd cluster has a leader", async || {
            for (number, endpoint) in endpoints.iter().enumerate() {
                if let Some((member, leader_id, _)) = status(endpoint).await
                    && member == leader_id
                {
                    leader = Some(number);
                }
            }
            leader.is_some()
        })
        .await?;
        leader.context("just found")
    }

    pub(crate) fn processes(&mut self) -> &mut Processes {
        &mut self.processes
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.pids()
    }

    /// Opens connections, all to the leader: a follower would only forward writes, and ask the
    /// leader before each read.
    pub(crate) async fn connect(&mut self, count: usize) -> anyhow::Result<Vec<EtcdStore>> {
        let leader = self.leader().await?;
        let mut stores = Vec::new();
        for _ in 0..count {
            stores.push(EtcdStore(
                Client::connect([&self.endpoints[leader]], None).await?.kv_client(),
            ));
        }
        Ok(stores)
    }

    /// Opens connections to all members in turn, for clients that go on when one of them dies.
    pub(crate) async fn connect_to_each(&self, count: usize) -> anyhow::Result<Vec<EtcdStore>> {
        let mut stores = Vec::new();
        for number in 0..count {
            let endpoint = &self.endpoints[number % self.endpoints.len()];
            stores.push(EtcdStore(Client::connect([endpoint], None).await?.kv_client()));
        }
        Ok(stores)
    }

    /// Lets etcd shrink its read buffers. After a burst of writes, etcd 3.4 keeps a read buffer of
    /// that size and copies it on each read, until two commits have passed that leave the keys
    /// alone. Granting a lease makes such a commit.
    pub(crate) async fn clear_read_buffers(&self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.endpoints[..], None).await?;
        for _ in 0..3 {
            sleep(COMMIT_INTERVAL).await;
            let lease = client.lease_grant(600, None).await?;
            ensure!(lease.id() != 0, "etcd granted no lease");
        }
        sleep(COMMIT_INTERVAL).await;
        Ok(())
    }
}

/// Returns the member's id, its leader's id (0: none), and its applied index.
async fn status(endpoint: &str) -> Option<(u64, u64, u64)> {
    let options = ConnectOptions::new().with_timeout(STATUS_TIMEOUT);
    let mut client = Client::connect([endpoint], Some(options)).await.ok()?;
    let status = client.status().await.ok()?;
    let member = status.header()?.member_id();
    Some((member, status.leader(), status.raft_applied_index()))
}

#[derive(Clone)]
pub(crate) struct EtcdStore(KvClient);

impl Store for EtcdStore {
    async fn put(&mut self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        self.0.put(key, value, None).await?;
        Ok(())
    }

    async fn get(&mut self, key: Bytes) -> anyhow::Result<bool> {
        Ok(!self.0.get(key, None).await?.kvs().is_empty())
    }
}
