//! The whole store: servers with sessions, clients that retry, and faults of both.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use raft_core::types::NodeId;
use raft_storage::memory::{Latency, MemoryDisk, Operation};

use super::Trace;
use super::leadership::leader_of;
use crate::client::Client;
use crate::config::ServerConfig;
use crate::net::local::{Chunk, ClientId, LocalNetwork};
use crate::protocol::operation::{Answer, Query, Record, ScanPage};
use crate::server::Server;
use crate::server::backends::{Network, Store};
use crate::state::{MachineQuery, QueryOutput};

/// Servers 1 to n of one store, on disks in memory, and the network between them and their clients.
/// Must be made within [`run`](super::run) or another runtime with a paused clock.
///
/// A delay costs only time of the paused clock. Without any delay, neither disk nor network takes
/// time, and a client in a loop works without the clock ever advancing: give the network a delay
/// ([`LocalNetwork::set_stream_faults`]) where time matters.
///
/// ```
/// use std::time::Duration;
///
/// use kv_service::net::StreamFaults;
/// use kv_service::sim::{LinkFaults, Service, run};
///
/// let survives = async |seed| {
///     let mut service = Service::new(seed, 3).await;
///     let ms = Duration::from_millis(1);
///     service
///         .network
///         .peers()
///         .set_default_faults(LinkFaults::none().losing(0.1).delaying(ms, 5 * ms));
///     service.network.set_stream_faults(StreamFaults {
///         loss: 0.1,
///         delay_max: 5 * ms,
///         ..StreamFaults::default()
///     });
///     let client = service.client(1).with_deadline(Duration::from_secs(60));
///     for number in 0..20 {
///         client.append("numbers", format!("{number},")).await.unwrap();
///         if number == 10 {
///             let leader = service.leader().await;
///             service.crash(leader);
///         }
///     }
///     let record = client.get("numbers").await.unwrap().unwrap();
///     assert_eq!(record.version, 20, "each append took effect once");
///     service.trace.digest()
/// };
/// assert_eq!(run(17, survives), run(17, survives), "a seed is a run");
/// ```
pub struct Service {
    /// The network. It can delay, lose and partition messages between nodes, and streams between
    /// clients and nodes.
    pub network: LocalNetwork,
    /// The running servers.
    pub servers: BTreeMap<NodeId, Server>,
    /// Every message between nodes, and every chunk that is written between clients and nodes.
    pub trace: Trace,
    disks: BTreeMap<NodeId, MemoryDisk>,
    configure: Box<dyn Fn(&mut ServerConfig)>,
}

impl Service {
    /// Starts servers 1 to `size` with the defaults of [`ServerConfig::in_process`].
    pub async fn new(seed: u64, size: u64) -> Self {
        Self::with_config(seed, size, |_| {}).await
    }

    /// Starts a store like [`Service::new`], after `configure` has changed each server's defaults.
    pub async fn with_config(
        seed: u64,
        size: u64,
        configure: impl Fn(&mut ServerConfig) + 'static,
    ) -> Self {
        let mut service = Self {
            network: LocalNetwork::new(seed),
            servers: BTreeMap::new(),
            trace: Trace::new(),
            disks: (1..=size).map(|id| (id, MemoryDisk::of_new_member())).collect(),
            configure: Box::new(configure),
        };
        service.trace.listen_to(service.network.peers());
        let trace = service.trace.clone();
        service.network.listen(move |Chunk { client, node, to_node, bytes, lost }| {
            let way = if to_node { "->" } else { "<-" };
            let lost = if lost { " lost" } else { "" };
            let text = bytes.escape_ascii();
            trace.note(format_args!("client {client} {way} {node}{lost} {text}"));
        });
        for id in service.ids() {
            service.start(id).await;
        }
        service
    }

    /// The ids of all servers, running or not.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        1..=self.disks.len() as NodeId
    }

    /// The disk of a server, to inspect its content, or to make it slow, fail, or lose power at a
    /// chosen step.
    pub fn disk(&self, id: NodeId) -> &MemoryDisk {
        &self.disks[&id]
    }

    /// Returns a client that reaches all servers. Clients of one name share a place in the network:
    /// a partition hits all of them ([`Service::reach_only`]). Each has a session of its own.
    pub fn client(&self, name: ClientId) -> Client {
        self.network.client_as(name, self.ids())
    }

    /// Partitions the clients of this name from all servers but these, from now on.
    pub fn reach_only(&self, name: ClientId, servers: &[NodeId]) {
        self.trace.note(format_args!("client {name} reaches {servers:?} only"));
        let beyond: Vec<NodeId> = self.ids().filter(|id| !servers.contains(id)).collect();
        self.network.mend_client(name, servers);
        self.network.cut_client(name, &beyond);
    }

    /// Starts a server that does not run, on the content of its disk.
    ///
    /// # Panics
    /// If the server runs, or if its configuration or the content of its disk does not make sense
    /// to it.
    pub async fn start(&mut self, id: NodeId) {
        assert!(!self.servers.contains_key(&id), "server {id} runs");
        self.trace.note(format_args!("{id} starts"));
        let mut config = ServerConfig::in_process(id, self.ids());
        (self.configure)(&mut config);
        let store = Store::Memory(self.disks[&id].clone());
        let network = Network::Channel(self.network.clone());
        let server = Server::start_with(config, store, network).await;
        self.servers.insert(id, server.expect("a server of a healthy disk starts"));
    }

    /// Stops a server in good order: it answers its requests and hands leadership over.
    ///
    /// # Panics
    /// If the server does not run.
    pub async fn stop(&mut self, id: NodeId) {
        let server = self.servers.remove(&id).expect("it runs");
        self.trace.note(format_args!("{id} stops"));
        server.shutdown().await;
    }

    /// Cuts a server's power: writes that were not synced are lost, and nothing that the server
    /// sends arrives any longer. Its clients find out by their timeouts, or when the server is
    /// back.
    ///
    /// # Panics
    /// If the server does not run.
    pub fn crash(&mut self, id: NodeId) {
        self.trace.note(format_args!("{id} crashes"));
        let server = self.servers.remove(&id).expect("it runs");
        self.network.power_off(id);
        self.disks[&id].crash();
        // The rest of the server can neither write nor send. It is shut down, so that it does not
        // go on for the rest of the run.
        tokio::spawn(async move { server.node().shutdown().await });
    }

    /// Crashes a server like [`Service::crash`] and destroys its disk. The server's next start is
    /// on an empty disk, and it recovers with the data of the others.
    ///
    /// # Panics
    /// If the server does not run.
    pub fn lose_disk(&mut self, id: NodeId) {
        self.crash(id);
        self.trace.note(format_args!("{id} loses its disk"));
        self.disks.insert(id, MemoryDisk::new());
    }

    /// Partitions servers of different groups from each other, besides the partitions that exist
    /// already. Clients are not affected.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        self.trace.note(format_args!("partition {groups:?}"));
        self.network.peers().partition(groups);
    }

    /// Heals all partitions, those of clients too. Faults stay.
    pub fn heal(&self) {
        self.trace.note(format_args!("all ways are mended"));
        self.network.heal();
    }

    /// Makes every write of every server take this long, half of it after the write has taken
    /// effect.
    pub fn slow_disks(&self, latency: Duration) {
        let latency = Latency { before: latency / 2, after: latency / 2 };
        for disk in self.disks.values() {
            disk.set_latency(Operation::Persist, latency);
        }
    }

    /// Waits until a majority follows a running server, and returns that server.
    pub async fn leader(&self) -> NodeId {
        let ids: Vec<NodeId> = self.servers.keys().copied().collect();
        self.leader_among(&ids).await
    }

    /// Waits until one of these servers leads and is followed by so many of them that they are a
    /// majority of the cluster, and returns that server.
    ///
    /// # Panics
    /// If one of these servers does not run.
    pub async fn leader_among(&self, ids: &[NodeId]) -> NodeId {
        let nodes = ids.iter().map(|id| (*id, self.servers[id].node().watch())).collect();
        leader_of(nodes, self.disks.len()).await
    }

    /// Waits until all running servers have applied everything that is committed now, compares
    /// their records, and returns them. No client may write meanwhile, and no server may be
    /// partitioned.
    ///
    /// # Panics
    /// If two servers hold different records.
    pub async fn converged(&self) -> Vec<(Bytes, Record)> {
        let index = loop {
            let leader = self.leader().await;
            let node = self.servers[&leader].node();
            // A leader that was elected just now may not know yet what is committed.
            if node.query_and_wait(MachineQuery::ClockMs, true).await.is_ok() {
                break node.status().commit_index;
            }
        };
        let mut agreed: Option<Vec<(Bytes, Record)>> = None;
        for (id, server) in &self.servers {
            let mut status = server.node().watch_status();
            status.wait_for(|status| status.last_applied >= index).await.expect("it runs");
            let records = records_of(server).await;
            let agreed = agreed.get_or_insert_with(|| records.clone());
            assert!(*agreed == records, "server {id} differs: {records:?}, others: {agreed:?}");
        }
        agreed.expect("a leader runs")
    }
}

/// All records that a server holds, whether or not it is up to date.
async fn records_of(server: &Server) -> Vec<(Bytes, Record)> {
    let mut records = Vec::new();
    let mut start = Bytes::new();
    loop {
        let query = Query::Scan { start, end: Bytes::new(), limit: u32::MAX };
        let reply = server.node().query_and_wait(MachineQuery::Read(query), false).await;
        let Ok(Ok(QueryOutput::Read(Answer::Scan(page)))) = reply else {
            panic!("a running server answers a scan: {reply:?}");
        };
        let ScanPage { records: more, continue_at } = page;
        records.extend(more);
        match continue_at {
            Some(next) => start = next,
            None => return records,
        }
    }
}
