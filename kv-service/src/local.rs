//! Nodes and clients in one process, without sockets: for tests, and for applications that want a
//! cluster within themselves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use raft_core::transport::Transport;
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::NodeId;
use tokio::sync::mpsc;

use crate::client::Client;
use crate::config::{ServerConfig, default_deadline};
use crate::stream::{Connector, Stream, knock};

/// What the nodes of one process talk over. Clones are the same network.
#[derive(Clone)]
pub struct LocalNetwork {
    peers: ChannelNetwork,
    doors: Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<Stream>>>>,
}

impl LocalNetwork {
    /// `seed` decides whatever faults are asked for.
    pub fn new(seed: u64) -> Self {
        Self { peers: ChannelNetwork::new(seed), doors: Arc::default() }
    }

    /// The network between the nodes, where messages can be lost, delayed and cut.
    pub fn peers(&self) -> &ChannelNetwork {
        &self.peers
    }

    /// A client of the nodes with these ids.
    pub fn client(&self, nodes: impl IntoIterator<Item = NodeId>) -> Client {
        Client::new(Arc::new(self.connector(nodes)), default_deadline())
    }

    /// A stream to a node, for whoever speaks the protocol without a [`Client`].
    ///
    /// # Errors
    /// No such node runs.
    pub async fn connect(&self, node: NodeId) -> Result<Stream, String> {
        let door = self.doors().get(&node).cloned();
        let door = door.ok_or_else(|| "the node does not run in this process".to_owned())?;
        knock(&door).await
    }

    fn connector(&self, nodes: impl IntoIterator<Item = NodeId>) -> LocalConnector {
        let nodes: std::collections::BTreeSet<NodeId> = nodes.into_iter().collect();
        LocalConnector { nodes: nodes.into_iter().collect(), network: self.clone() }
    }

    /// Puts a node on the network; its clients come in through `door`.
    pub(crate) fn join(
        &self,
        config: &ServerConfig,
        door: mpsc::Sender<Stream>,
    ) -> (Arc<dyn Transport>, Arc<dyn Connector>) {
        self.doors().insert(config.node_id, door);
        let transport = self.peers.transport(config.node_id);
        (transport, Arc::new(self.connector(config.nodes.iter().map(|node| node.id))))
    }

    fn doors(&self) -> MutexGuard<'_, BTreeMap<NodeId, mpsc::Sender<Stream>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct LocalConnector {
    nodes: Vec<NodeId>,
    network: LocalNetwork,
}

#[async_trait]
impl Connector for LocalConnector {
    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.clone()
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, String> {
        self.network.connect(node).await
    }

    async fn close(&self) {}
}
