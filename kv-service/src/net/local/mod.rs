//! Nodes and clients in one process, without sockets: for tests, and for applications that want a
//! cluster within themselves.
//!
//! There are two kinds of links. Those between nodes carry messages ([`LocalNetwork::peers`]);
//! those between clients and nodes carry streams. Both can be made slow, lossy, or partitioned. All
//! random choices, including those of clients and nodes, come from one seed, so that on a
//! single-threaded runtime with a paused clock equal seeds give equal runs.

mod links;
mod pipe;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use raft_core::transport::Transport;
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;
use tokio::sync::mpsc;
use tokio::time::sleep;

use self::links::LocalLinks;
pub use self::links::{Chunk, ClientId, StreamFaults};
use self::pipe::Side;
use crate::client::Client;
use crate::config::{ServerConfig, default_deadline};
use crate::members::MemberAddress;
use crate::net::stream::{ConnectError, Connector, Stream};

/// The id of all clients that were given no name.
const NAMELESS: ClientId = 0;

/// The network of the nodes and clients of one process. Clones are the same network.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use kv_service::net::{LinkFaults, StreamFaults};
/// use kv_service::{LocalNetwork, MemoryDisk, Network, Server, ServerConfig, Store};
///
/// let network = LocalNetwork::new(17);
/// let ms = Duration::from_millis(1);
/// network.peers().set_default_faults(LinkFaults::none().losing(0.1).delaying(ms, 5 * ms));
/// network.set_stream_faults(StreamFaults { delay_max: 5 * ms, ..StreamFaults::default() });
/// for id in 1..=3 {
///     let store = Store::Memory(MemoryDisk::of_new_member());
///     let config = ServerConfig::in_process(id, 1..=3);
///     Server::start_with(config, store, Network::Channel(network.clone())).await?;
/// }
/// let client = network.client_as(1, 1..=3);
/// let leader = network.client(1..=3).cluster().members().await?.node_id;
/// network.cut_client(1, &[leader % 3 + 1]);
/// client.append("numbers", "1,").await?;
/// network.heal();
/// client.append("numbers", "2,").await?;
/// let record = client.get("numbers").await?.ok_or("just written")?;
/// assert_eq!(record.version, 2, "each append took effect once");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LocalNetwork {
    peers: ChannelNetwork,
    links: Arc<LocalLinks>,
    doors: Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<Stream>>>>,
}

impl LocalNetwork {
    /// Creates a network without faults. `seed` decides which faults happen once they are asked
    /// for, when nodes campaign, and how long clients pause.
    pub fn new(seed: u64) -> Self {
        Self {
            peers: ChannelNetwork::new(seed),
            links: Arc::new(LocalLinks::new(seed)),
            doors: Arc::default(),
        }
    }

    /// The network between the nodes, which can lose and delay messages, and partition nodes.
    pub fn peers(&self) -> &ChannelNetwork {
        &self.peers
    }

    /// Returns a client of the nodes with these ids, which asks no other ones.
    pub fn client(&self, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        self.client_as(NAMELESS, nodes)
    }

    /// Returns a client like [`LocalNetwork::client`], with a name by which it can be partitioned
    /// from nodes. Clients of the same name share their partitions.
    pub fn client_as(&self, client: ClientId, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        let connector = self.connector(client, nodes);
        Client::with_seed(Arc::new(connector), default_deadline(), self.links.next_seed())
    }

    /// Returns a client that asks these nodes first, and then follows the members of the cluster.
    pub fn client_of_members(&self, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        let connector = LocalConnector { learns: true, ..self.connector(NAMELESS, nodes) };
        Client::with_seed(Arc::new(connector), default_deadline(), self.links.next_seed())
    }

    /// Opens a stream to a node, for a caller that speaks the protocol without a [`Client`].
    ///
    /// # Errors
    /// No such node runs ([`ConnectError::NotRunning`]), or it is stopping.
    pub async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError> {
        self.connect_as(NAMELESS, node).await
    }

    /// Sets the faults of all streams between clients and nodes from now on. Chunks that are under
    /// way keep the faults they were given.
    ///
    /// # Panics
    /// If a probability or a delay makes no sense.
    pub fn set_stream_faults(&self, faults: StreamFaults) {
        self.links.set_faults(faults);
    }

    /// Partitions a client from these nodes, in both directions and silently. Written bytes are
    /// held, and arrive late if the partition heals before either side gives up. A new connection
    /// cannot be made.
    pub fn cut_client(&self, client: ClientId, nodes: &[NodeId]) {
        self.links.set_cut(&nodes.iter().map(|node| (client, *node)).collect::<Vec<_>>(), true);
    }

    /// Undoes [`LocalNetwork::cut_client`].
    pub fn mend_client(&self, client: ClientId, nodes: &[NodeId]) {
        self.links.set_cut(&nodes.iter().map(|node| (client, *node)).collect::<Vec<_>>(), false);
    }

    /// Heals all partitions, those between nodes too. Faults stay.
    pub fn heal(&self) {
        self.peers.heal();
        self.links.heal();
    }

    /// Cuts a node's power: from now on nothing that it sends arrives, and no client can connect to
    /// it. A connected client finds out when the node comes back, as over a real network, or by its
    /// own timeout. Stopping the node's tasks is left to the caller.
    pub fn power_off(&self, node: NodeId) {
        self.doors().remove(&node);
        self.links.silence(node);
        // A new transport replaces the old one, whose messages are no longer delivered.
        drop(self.peers.transport(node));
    }

    /// Shows the listener every chunk that is written between clients and nodes from now on. The
    /// listener must not use the network itself. See also [`ChannelNetwork`] for the traffic
    /// between nodes.
    pub fn listen(&self, listener: impl FnMut(Chunk<'_>) + Send + 'static) {
        self.links.listen(Box::new(listener));
    }

    fn connector(
        &self,
        client: ClientId,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> LocalConnector {
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        let nodes = nodes.into_iter().collect();
        LocalConnector { client, nodes, learns: false, network: self.clone() }
    }

    async fn connect_as(&self, client: ClientId, node: NodeId) -> Result<Stream, ConnectError> {
        let accept_sender = self.doors().get(&node).cloned();
        let Some(accept_sender) = accept_sender else {
            sleep(self.links.refusal_delay(client, node)).await;
            return Err(ConnectError::NotRunning);
        };
        let pipe = match self.links.open(client, node) {
            Ok(pipe) => pipe,
            Err(delay) => {
                sleep(delay).await;
                return Err(ConnectError::Partitioned);
            }
        };
        let stopped = |_| ConnectError::Stopped;
        accept_sender.send(pipe.end(Side::Node)).await.map_err(stopped)?;
        Ok(pipe.end(Side::Client))
    }

    /// Puts a node with a disk of this identity on the network. Its clients come in through
    /// `accept_sender`. The returned seed is for the node's own random choices.
    pub(crate) fn join(
        &self,
        config: &ServerConfig,
        incarnation: u64,
        accept_sender: mpsc::Sender<Stream>,
    ) -> Joined {
        let node = config.node_id;
        self.doors().insert(node, accept_sender);
        // Clients that were connected to an earlier run of the node learn that their connections
        // broke.
        self.links.reset(node);
        let connector = self.connector(NAMELESS, config.nodes.iter().map(|node| node.id));
        Joined {
            transport: self.peers.transport_on(node, incarnation),
            connector: Arc::new(LocalConnector { learns: true, ..connector }),
            seed: self.links.next_seed(),
        }
    }

    /// A number that is not given out again.
    #[allow(dead_code, reason = "only disks in memory ask for it")]
    pub(crate) fn fresh_number(&self) -> u64 {
        self.links.next_number()
    }

    fn doors(&self) -> MutexGuard<'_, BTreeMap<NodeId, mpsc::Sender<Stream>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node's place on the network.
pub(crate) struct Joined {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) seed: u64,
}

struct LocalConnector {
    client: ClientId,
    nodes: Vec<NodeId>,
    /// Follows the members; otherwise only `nodes` are asked.
    learns: bool,
    network: LocalNetwork,
}

#[async_trait]
impl Connector for LocalConnector {
    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.clone()
    }

    fn learn(&self, _members: &[MemberAddress]) -> bool {
        self.learns
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError> {
        self.network.connect_as(self.client, node).await
    }

    async fn close(&self) {}
}
