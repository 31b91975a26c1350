//! Every combination of backends in the same short story: write, kill the leader, repeat a request,
//! kill all nodes, catch up by snapshot.
//!
//! Each node has a runtime of its own, and is killed by dropping it: no farewell, no shutdown,
//! nothing awaited. (The `kv` binary's tests kill processes by signal.)

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_service::config::{
    ByteSize, KEY_BYTES_CEILING, Limits, NodeAddress, TlsFiles, VALUE_BYTES_CEILING,
};
use kv_service::net::tls::{DevCa, TlsConfig};
use kv_service::protocol::operation::Nonce;
use kv_service::state::{Action, Command, MachineQuery, Opening, Output, QueryOutput, WriteLimits};
use kv_service::{
    Answer, Client, ClientConfig, Expect, LocalNetwork, Network, Operation, Query, Server,
    ServerConfig, ServerError, Store, VERSION_MIN,
};
use raft_core::testing::free_ports;
use raft_storage::memory::MemoryDisk;
use tokio::runtime::Runtime;
use tokio::time::Instant;

/// Longer than any step here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

const NODES: std::ops::RangeInclusive<u64> = 1..=3;

#[derive(Clone, Copy)]
enum Persistence {
    Memory,
    RocksDb,
}

#[derive(Clone, Copy)]
enum Networking {
    Channel,
    Quic,
}

struct Running {
    runtime: Runtime,
    server: Server,
}

struct Cluster {
    dir: tempfile::TempDir,
    persistence: Persistence,
    local: Option<LocalNetwork>,
    disks: BTreeMap<u64, MemoryDisk>,
    ports: BTreeMap<u64, u16>,
    running: BTreeMap<u64, Running>,
    /// The limits of all nodes.
    limits: Limits,
}

impl Cluster {
    fn new(persistence: Persistence, networking: Networking, limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let local = match networking {
            Networking::Channel => Some(LocalNetwork::new(1)),
            Networking::Quic => None,
        };
        let ca = DevCa::create("matrix").expect("a development authority");
        for id in NODES {
            write_tls(&ca.issue_node(id).expect("a certificate"), dir.path(), &format!("node{id}"));
        }
        write_tls(&ca.issue_client("test").expect("a certificate"), dir.path(), "client");
        let disks = NODES.map(|id| (id, MemoryDisk::of_new_member())).collect();
        let running = BTreeMap::new();
        let ports = NODES.zip(free_ports(3)).collect();
        let mut cluster = Self { dir, persistence, local, disks, ports, running, limits };
        cluster.start_all();
        cluster
    }

    fn start_all(&mut self) {
        NODES.for_each(|id| self.start(id));
    }

    fn start(&mut self, id: u64) {
        let tls = tls_files(self.dir.path(), &format!("node{id}"));
        let data_dir = self.dir.path().join(id.to_string());
        let mut config = ServerConfig::new("matrix", id, data_dir, tls, self.addresses());
        config.max_raft_state = ByteSize(64 << 10);
        config.limits = self.limits.clone();
        let is_durable = matches!(self.persistence, Persistence::RocksDb);
        if is_durable && !config.data_dir.exists() {
            Server::init(&config).expect("a new directory");
        }
        let store = match self.persistence {
            Persistence::Memory => Store::Memory(self.disks[&id].clone()),
            Persistence::RocksDb => Store::RocksDb,
        };
        let network = match &self.local {
            Some(local) => Network::Channel(local.clone()),
            None => Network::Quic,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        // The threads of a node that was killed release its directory when they notice.
        let since = Instant::now();
        let server = loop {
            let start = Server::start_with(config.clone(), store.clone(), network.clone());
            match runtime.block_on(start) {
                Err(ServerError::Storage(error))
                    if error.to_string().contains("in use") && since.elapsed() < PATIENCE =>
                {
                    std::thread::yield_now();
                }
                started => break started.expect("the node starts"),
            }
        };
        self.running.insert(id, Running { runtime, server });
    }

    fn addresses(&self) -> Vec<NodeAddress> {
        let address = |(id, port): (&u64, &u16)| NodeAddress {
            id: *id,
            address: format!("127.0.0.1:{port}"),
        };
        self.ports.iter().map(address).collect()
    }

    fn kill(&mut self, id: u64) {
        let Running { runtime, server } = self.running.remove(&id).expect("it runs");
        self.disks[&id].crash();
        // The runtime first, so that the node can do nothing more when it is dropped.
        runtime.shutdown_timeout(PATIENCE);
        drop(server);
    }

    /// The client lives in the runtime of the caller.
    fn client(&self) -> Client {
        if let Some(local) = &self.local {
            return local.client(NODES).with_deadline(PATIENCE);
        }
        let tls = tls_files(self.dir.path(), "client");
        let config = ClientConfig::new("matrix", tls, self.addresses());
        Client::connect(&config).expect("a client").with_deadline(PATIENCE)
    }

    async fn leader(&self) -> u64 {
        let server = &self.running.values().next().expect("a node runs").server;
        let mut watch = server.node().watch();
        let known = watch.wait_for(|leadership| {
            leadership.leader.is_some_and(|leader| self.running.contains_key(&leader))
        });
        let leadership = tokio::time::timeout(PATIENCE, known).await.expect("a leader in time");
        leadership.expect("the node runs").leader.expect("just seen")
    }
}

fn tls_files(dir: &Path, name: &str) -> TlsFiles {
    let path = |kind: &str| dir.join(format!("{name}.{kind}.pem"));
    TlsFiles { ca: path("ca"), cert: path("cert"), key: path("key") }
}

fn write_tls(tls: &TlsConfig, dir: &Path, name: &str) {
    let files = tls_files(dir, name);
    for (path, pem) in
        [(&files.ca, &tls.ca_pem), (&files.cert, &tls.cert_pem), (&files.key, &tls.key_pem)]
    {
        std::fs::write(path, pem).expect("the directory is ours");
    }
}

fn story(persistence: Persistence, networking: Networking) {
    let mut cluster = Cluster::new(persistence, networking, Limits::default());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = Arc::new(runtime.expect("a runtime"));
    let handle = Arc::clone(&runtime);
    let run = |future: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| handle.block_on(future);
    let client = {
        let _inside = runtime.enter();
        cluster.client()
    };

    run(Box::pin(put_get_append(&client)));

    // The leader dies in the middle of appends.
    let appending = {
        let client = client.clone();
        runtime.spawn(async move {
            for number in 0..300 {
                client.append("log", format!("{number},")).await.expect("within the deadline");
            }
        })
    };
    let leader = runtime.block_on(cluster.leader());
    let mut status = cluster.running[&leader].server.node().watch_status();
    let from = status.borrow().last_applied;
    runtime.block_on(async {
        status.wait_for(|status| status.last_applied > from + 20).await.expect("the node runs");
    });
    cluster.kill(leader);
    runtime.block_on(appending).expect("no append failed");
    let expected: String = (0..300).map(|number| format!("{number},")).collect();
    run(Box::pin(holds(&client, "log", &expected)));
    cluster.start(leader);

    run(Box::pin(repeat(&cluster, &client)));

    for id in NODES {
        cluster.kill(id);
    }
    cluster.start_all();
    run(Box::pin(holds(&client, "log", &expected)));

    let away = 1 + runtime.block_on(cluster.leader()) % 3;
    cluster.kill(away);
    run(Box::pin(async {
        for number in 0..600 {
            client
                .put(format!("key {number:03}"), vec![b'x'; 512])
                .await
                .expect("two of three run");
        }
    }));
    cluster.start(away);
    run(Box::pin(catch_up(&cluster, away)));

    let stopping: Vec<_> = cluster.running.values().map(|running| running.server.clone()).collect();
    runtime.block_on(async {
        client.close().await;
        for server in stopping {
            server.shutdown().await;
        }
    });
}

async fn put_get_append(client: &Client) {
    client.put("k", "1").await.expect("a cluster that has just started answers");
    client.append("k", "2").await.expect("it goes on answering");
    holds(client, "k", "12").await;
}

async fn holds(client: &Client, key: &'static str, expected: &str) {
    let record = client.get(key).await.expect("within the deadline").expect("it was written");
    assert_eq!(record.value, expected.to_owned());
}

/// The same request enters the log twice, through the current leader.
async fn repeat(cluster: &Cluster, client: &Client) {
    let opening = Opening {
        nonce: Nonce(7),
        ttl_ms: 3_600_000,
        window: 10,
        session_count_max: 1000,
        principal_session_count_max: 1000,
        principal: Bytes::new(),
    };
    let command = |action| Command { rules: VERSION_MIN, time_ms: 0, action };
    let opened = propose(cluster, command(Action::OpenSession(opening))).await;
    let Output::SessionOpened { session, .. } = opened else { panic!("a session is opened") };
    let append = command(Action::Write {
        session,
        sequence: 1,
        lowest_unanswered: 1,
        limits: WriteLimits {
            key_bytes_max: 1 << 10,
            value_bytes_max: 1 << 20,
            answer_bytes_max: 1 << 20,
        },
        operation: Operation::Append { key: "once".into(), value: "x".into() },
    });
    let first = propose(cluster, append.clone()).await;
    assert!(matches!(first, Output::Written(answer) if answer.version == 1), "{first:?}");
    assert_eq!(propose(cluster, append).await, first, "a repeated request gets its first answer");
    holds(client, "once", "x").await;
}

async fn propose(cluster: &Cluster, command: Command) -> Output {
    loop {
        let leader = cluster.leader().await;
        let node = cluster.running[&leader].server.node();
        match node.propose_and_wait(command.encode()).await {
            Ok(output) => return output,
            // The node no longer leads, or does not lead yet; every command here may be repeated.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// A node that is far behind gets a snapshot, and then holds the same as the others.
async fn catch_up(cluster: &Cluster, away: u64) {
    let leader = cluster.leader().await;
    let goal = cluster.running[&leader].server.node().status();
    assert!(goal.snapshot_index > 0 || goal.log_bytes < 300 << 10, "the log is kept short");
    let node = cluster.running[&away].server.node();
    let mut status = node.watch_status();
    let caught_up = status.wait_for(|status| status.last_applied >= goal.last_applied);
    let status =
        tokio::time::timeout(PATIENCE, caught_up).await.expect("in time").expect("it runs");
    assert!(status.snapshot_index > 0, "what it missed is in no log any more: {:?}", *status);
    drop(status);
    let scan = Query::Scan { start: "key ".into(), end: "key!".into(), limit: 10_000 };
    let answer = node.query_and_wait(MachineQuery::Read(scan), false).await.expect("it runs");
    let Ok(QueryOutput::Read(Answer::Scan(page))) = answer else {
        panic!("a page, not {answer:?}")
    };
    assert_eq!(page.records.len(), 600);
    assert!(page.records.iter().all(|(_, record)| record.value == vec![b'x'; 512]));
}

/// S5. The largest compare-and-swap that the limits allow, two values of 16 MiB and a key of 64
/// KiB, is replicated over QUIC, and so is a write behind it.
#[test]
fn s05_the_largest_swap_goes_over_quic() {
    let limits = Limits {
        key_bytes_max: KEY_BYTES_CEILING,
        value_bytes_max: ByteSize(VALUE_BYTES_CEILING),
        ..Limits::default()
    };
    let cluster = Cluster::new(Persistence::Memory, Networking::Quic, limits);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let client = cluster.client();
        let key = vec![b'k'; KEY_BYTES_CEILING.0 as usize];
        let value = |byte| Bytes::from(vec![byte; VALUE_BYTES_CEILING as usize]);
        client.put(key.clone(), value(b'1')).await.expect("the largest value");
        let expect = Expect::Value(value(b'1'));
        let swapped = client.compare_and_swap(key.clone(), expect, value(b'2')).await;
        assert!(swapped.expect("the largest swap").changed);
        client.put("behind", "it").await.expect("a write behind it");
        let record = client.get(key).await.expect("within the deadline").expect("it was written");
        assert!(record.value == value(b'2'));
        let goal = cluster.running[&cluster.leader().await].server.node().status().last_applied;
        for running in cluster.running.values() {
            let mut status = running.server.node().watch_status();
            let applied = status.wait_for(|status| status.last_applied >= goal);
            tokio::time::timeout(PATIENCE, applied).await.expect("in time").expect("it runs");
        }
        client.close().await;
    });
}

#[test]
fn memory_on_channel() {
    story(Persistence::Memory, Networking::Channel);
}

#[test]
fn memory_on_quic() {
    story(Persistence::Memory, Networking::Quic);
}

#[test]
fn rocksdb_on_channel() {
    story(Persistence::RocksDb, Networking::Channel);
}

#[test]
fn rocksdb_on_quic() {
    story(Persistence::RocksDb, Networking::Quic);
}
