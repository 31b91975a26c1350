//! Nodes and clients in one process, without sockets: for tests, and for applications that want a
//! cluster within themselves.
//!
//! There are two kinds of ways. Those between nodes carry messages ([`LocalNetwork::peers`]); those
//! between clients and nodes carry streams. Either can be made slow, lossy, or cut. What chance there
//! is, including that of clients and nodes, comes from one seed, so that on a single-threaded runtime
//! with a paused clock equal seeds give equal runs.

mod pipe;
#[cfg(test)]
mod tests;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use raft_core::transport::Transport;
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;
use tokio::sync::mpsc;
use tokio::time::sleep;

use self::pipe::Side;
use self::ways::Ways;
pub use self::ways::{ClientId, Piece, StreamFaults};
use crate::client::Client;
use crate::config::{ServerConfig, default_deadline};
use crate::stream::{Connector, Stream};

/// Who speaks to nodes without having been given a name.
const NAMELESS: ClientId = 0;

/// What the nodes of one process talk over. Clones are the same network.
#[derive(Clone)]
pub struct LocalNetwork {
    peers: ChannelNetwork,
    ways: Arc<Ways>,
    doors: Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<Stream>>>>,
}

impl LocalNetwork {
    /// `seed` decides whatever faults are asked for, when nodes campaign and how long clients pause.
    pub fn new(seed: u64) -> Self {
        Self {
            peers: ChannelNetwork::new(seed),
            ways: Arc::new(Ways::new(seed)),
            doors: Arc::default(),
        }
    }

    /// The network between the nodes, where messages can be lost, delayed and cut.
    pub fn peers(&self) -> &ChannelNetwork {
        &self.peers
    }

    /// A client of the nodes with these ids.
    pub fn client(&self, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        self.client_as(NAMELESS, nodes)
    }

    /// As [`LocalNetwork::client`], with a name by which its ways to the nodes can be cut. Clients of
    /// the same name share their fate.
    pub fn client_as(&self, client: ClientId, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        let connector = self.connector(client, nodes);
        Client::with_seed(Arc::new(connector), default_deadline(), self.ways.next_seed())
    }

    /// A stream to a node, for whoever speaks the protocol without a [`Client`].
    ///
    /// # Errors
    /// No such node runs.
    pub async fn connect(&self, node: NodeId) -> Result<Stream, String> {
        self.connect_as(NAMELESS, node).await
    }

    /// What all streams between clients and nodes suffer from now on; what is under way stays as it
    /// was.
    ///
    /// # Panics
    /// If a probability or a delay makes no sense.
    pub fn set_stream_faults(&self, faults: StreamFaults) {
        self.ways.set_faults(faults);
    }

    /// Cuts the ways between a client and these nodes, in both directions and silently: what is written
    /// is held, and arrives late if the way is mended before either side gives up. A new connection
    /// cannot be made.
    pub fn cut_client(&self, client: ClientId, nodes: &[NodeId]) {
        self.ways.set_cut(&nodes.iter().map(|node| (client, *node)).collect::<Vec<_>>(), true);
    }

    /// Undoes [`LocalNetwork::cut_client`].
    pub fn mend_client(&self, client: ClientId, nodes: &[NodeId]) {
        self.ways.set_cut(&nodes.iter().map(|node| (client, *node)).collect::<Vec<_>>(), false);
    }

    /// Undoes all cuts, those between nodes too. Faults stay.
    pub fn heal(&self) {
        self.peers.heal();
        self.ways.heal();
    }

    /// The node has lost power: from now on nothing that it says is heard by anybody, and nobody can
    /// connect to it. A client that is connected finds out when the node comes back, as over a real
    /// network, or by its patience. What the node's tasks still do is the caller's business.
    pub fn power_off(&self, node: NodeId) {
        self.doors().remove(&node);
        self.ways.silence(node);
        // A new transport replaces the old one, which is not heard any more.
        drop(self.peers.transport(node));
    }

    /// Shows the listener whatever is written between clients and nodes from now on. It must not use the
    /// network itself. See also [`ChannelNetwork`] for the traffic between nodes.
    pub fn listen(&self, listener: impl FnMut(Piece<'_>) + Send + 'static) {
        self.ways.listen(Box::new(listener));
    }

    fn connector(
        &self,
        client: ClientId,
        nodes: impl IntoIterator<Item = NodeId>,
    ) -> LocalConnector {
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        LocalConnector { client, nodes: nodes.into_iter().collect(), network: self.clone() }
    }

    async fn connect_as(&self, client: ClientId, node: NodeId) -> Result<Stream, String> {
        let door = self.doors().get(&node).cloned();
        let Some(door) = door else {
            sleep(self.ways.refusal_delay(client, node)).await;
            return Err("the node does not run in this process".to_owned());
        };
        let pipe = match self.ways.open(client, node) {
            Ok(pipe) => pipe,
            Err(delay) => {
                sleep(delay).await;
                return Err("the way to the node is cut".to_owned());
            }
        };
        let closed = |_| "the node has stopped".to_owned();
        door.send(pipe.end(Side::Node)).await.map_err(closed)?;
        Ok(pipe.end(Side::Client))
    }

    /// Puts a node on the network; its clients come in through `door`. The seed is for its own chance.
    pub(crate) fn join(&self, config: &ServerConfig, door: mpsc::Sender<Stream>) -> Joined {
        let node = config.node_id;
        self.doors().insert(node, door);
        // Whoever was connected to an earlier life of the node hears so.
        self.ways.reset(node);
        Joined {
            transport: self.peers.transport(node),
            connector: Arc::new(self.connector(NAMELESS, config.nodes.iter().map(|node| node.id))),
            seed: self.ways.next_seed(),
        }
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
    network: LocalNetwork,
}

#[async_trait]
impl Connector for LocalConnector {
    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.clone()
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, String> {
        self.network.connect_as(self.client, node).await
    }

    async fn close(&self) {}
}
