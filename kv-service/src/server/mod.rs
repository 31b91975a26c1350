//! One node of the store: the replicated state machine, and the service that clients talk to.
//!
//! Limits are enforced on admission, for all clients together: connections, received bytes,
//! requests not answered yet, bytes of responses not sent yet. A request beyond a limit is answered
//! `Busy` or not read yet; nothing is shed silently. A client that sends or takes bytes below a
//! minimum rate loses its connection.
//!
//! [`Server::shutdown`] rejects new requests, answers those under way, hands leadership over, and
//! then stops the node.

mod account;
mod autopilot;
pub(crate) mod backends;
mod clock;
mod connection;
mod damage;
mod load;
mod members;
mod membership;
mod notices;
mod outbox;
mod pace;
mod receiving;
mod requests;
mod room;
mod shared;
mod story;
mod upgrade;
mod width;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use raft_core::driver::{Node, NodeConfig};
use raft_core::types::NodeId;
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::account::Accounts;
use self::autopilot::Autopilot;
use self::backends::{Backends, Network, Store};
use self::clock::ReplicatedClock;
use self::load::Load;
use self::membership::Membership;
use self::notices::NoticeBoard;
pub use self::room::IsLow;
use self::room::Room;
use self::shared::ServerShared;
use self::upgrade::Upgrade;
use crate::client::Client;
use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::log_limit::Complaints;
use crate::members::{ClusterReport, MemberAddress};
use crate::net::stream::{ConnectError, Connector, Stream, connect_local};
use crate::state::KvMachine;

/// How long a node that shuts down waits for responses under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Clients of this process that may wait to be accepted.
const BACKLOG: usize = 64;

/// A running node of the store. Cheap to clone; [`Server::shutdown`] stops it, dropping does not.
#[derive(Clone)]
pub struct Server {
    shared: Arc<ServerShared>,
    client: Client,
}

impl Server {
    /// Starts a node as its configuration says; returns when it takes part in the cluster.
    ///
    /// # Errors
    /// The configuration makes no sense, the data directory is refused or damaged, the address is
    /// taken, or a certificate does not fit. What was stored is unchanged then.
    ///
    /// ```no_run
    /// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
    /// use kv_service::{Server, ServerConfig};
    ///
    /// let server = Server::start(ServerConfig::read("node1.toml")?).await?;
    /// server.client().put("greeting", "hello").await?;
    /// // Returns when the node stops: by itself, or after a shutdown elsewhere.
    /// server.stopped().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start(config: ServerConfig) -> Result<Self, ServerError> {
        let (store, network) = backends::by_default(&config)?;
        Self::start_with(config, store, network).await
    }

    /// Makes the data directory of a node of a cluster that has never existed. Such a node may
    /// found the cluster with the other new nodes, once all of them have met. Without it,
    /// [`Server::start`] starts a node of unknown past, which waits for a leader to give it all
    /// data: so no empty cluster appears where disks were lost.
    ///
    /// # Errors
    /// The configuration makes no sense, or the directory holds a node's data. Nothing was changed
    /// then.
    ///
    /// ```no_run
    /// # fn init() -> Result<(), Box<dyn std::error::Error>> {
    /// use kv_service::{Server, ServerConfig};
    ///
    /// // On each node, once in the life of a cluster, because an operator asks for it.
    /// Server::init(&ServerConfig::read("node1.toml")?)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn init(config: &ServerConfig) -> Result<(), ServerError> {
        config.check()?;
        backends::init(config)
    }

    /// Starts a node like [`Server::start`], on a store and a network of the caller's choice.
    ///
    /// # Errors
    /// The same as those of [`Server::start`].
    pub async fn start_with(
        config: ServerConfig,
        store: Store,
        network: Network,
    ) -> Result<Self, ServerError> {
        config.check()?;
        let (accept_sender, clients) = mpsc::channel(BACKLOG);
        let backends = backends::build(&config, store, network, accept_sender.clone()).await?;
        Self::launch(config, backends, accept_sender, clients).await
    }

    /// Starts a node like [`Server::start`], on a storage and a transport that the caller
    /// implements. The caller passes each client's stream to [`Server::serve`].
    /// `kv-service/examples/own_backends.rs` is a longer example.
    ///
    /// # Errors
    /// The same as those of [`Server::start`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    ///
    /// use kv_service::net::ChannelNetwork;
    /// use kv_service::{
    ///     Backends, ConnectError, Connector, MemoryDisk, NodeId, Server, ServerConfig, Stream,
    /// };
    ///
    /// /// The only node of its cluster connects to no other.
    /// struct Alone;
    ///
    /// #[async_trait::async_trait]
    /// impl Connector for Alone {
    ///     fn nodes(&self) -> Vec<NodeId> {
    ///         vec![1]
    ///     }
    ///
    ///     async fn connect(&self, _node: NodeId) -> Result<Stream, ConnectError> {
    ///         Err(ConnectError::UnknownNode)
    ///     }
    ///
    ///     async fn close(&self) {}
    /// }
    ///
    /// let storage = Arc::new(MemoryDisk::of_new_member().storage());
    /// let transport = ChannelNetwork::new(1).transport(1);
    /// let backends = Backends::new(storage, transport, Arc::new(Alone))?;
    /// let server = Server::start_on(ServerConfig::in_process(1, [1]), backends).await?;
    /// server.client().put("greeting", "hello").await?;
    /// server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn start_on(config: ServerConfig, backends: Backends) -> Result<Self, ServerError> {
        config.check()?;
        let (accept_sender, clients) = mpsc::channel(BACKLOG);
        Self::launch(config, backends, accept_sender, clients).await
    }

    async fn launch(
        config: ServerConfig,
        backends: Backends,
        accept_sender: mpsc::Sender<Stream>,
        clients: mpsc::Receiver<Stream>,
    ) -> Result<Self, ServerError> {
        let Backends { storage, machine, transport, connector, seed, rng, is_low, .. } = backends;
        let Backends { peer_book, incarnation, directory, cluster_uid, versions, .. } = backends;
        assert!(versions.0 <= versions.1, "a program supports at least one cluster version");
        let mut node = node_config(&config, seed, versions);
        node.raft.incarnation = incarnation;
        let node = Node::start(node, storage, Arc::clone(&transport), machine).await;
        let node = match node {
            Ok(node) => node,
            Err(fatal) => {
                transport.close().await;
                return Err(fatal.into());
            }
        };
        let load = Load::new(&config.limits);
        let upgrade = Upgrade::new(config.upgrade, config.upgrade_delay, versions.1);
        let shared = Arc::new(ServerShared {
            config,
            transport,
            node,
            clock: ReplicatedClock::default(),
            rng,
            accounts: Accounts::new(Arc::clone(&load)),
            load,
            complaints: Complaints::default(),
            damage: Arc::default(),
            room: Room::default(),
            versions,
            upgrade,
            membership: Membership::new(peer_book, directory, incarnation, cluster_uid),
            draining: AtomicBool::new(false),
            autopilot: Autopilot::default(),
            notices: NoticeBoard::default(),
        });
        tokio::spawn(accept(Arc::clone(&shared), clients));
        tokio::spawn(close_with_node(Arc::clone(&shared)));
        let own_id = shared.config.node_id;
        let connector = Arc::new(PreferLocal { own_id, accept_sender, others: connector });
        let client = Client::of_node(connector, own_id, seed);
        tokio::spawn(follow_node(Arc::clone(&shared), client.clone(), is_low));
        Ok(Self { shared, client })
    }

    /// Serves one client that connected over a network of the caller's own ([`Server::start_on`]),
    /// until the client leaves. The caller authenticates clients and limits their number.
    pub fn serve(&self, stream: Stream) {
        tokio::spawn(connection::serve(Arc::clone(&self.shared), stream));
    }

    /// Returns a client of this node's cluster. It talks to this node without a network.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns this node's role, positions and versions, and the reachability of its peers.
    pub fn status(&self) -> crate::protocol::NodeStatus {
        self.shared.status()
    }

    /// Returns the members of the cluster, as this node knows them.
    pub fn members(&self) -> ClusterReport {
        self.shared.cluster_report()
    }

    /// Returns the underlying Raft node, whose leadership and status can be watched.
    pub fn node(&self) -> &Node<KvMachine> {
        &self.shared.node
    }

    /// Resolves when the node has stopped: `Ok` after a shutdown.
    ///
    /// # Errors
    /// The reason why it stopped by itself. Nothing was acknowledged that rests on what failed.
    pub async fn stopped(&self) -> Result<(), ServerError> {
        self.shared.node.stopped().await.map_err(ServerError::Fatal)?;
        if let Some(end) = self.shared.membership.end() {
            return Err(end.error(&self.shared.config));
        }
        self.shared.damage.known().map_or(Ok(()), |fatal| Err(ServerError::Fatal(fatal)))
    }

    /// Closes this node's own client, answers requests under way, hands leadership over, and stops.
    /// Returns when the node has stopped; tasks that serve connections may end a moment later. A
    /// response that no longer reaches its client is not lost: the client retries elsewhere, and a
    /// write is not executed twice.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        self.client.close().await;
        shared.draining.store(true, Ordering::Relaxed);
        // A client whose request is not answered in time learns that its outcome is unknown, and
        // retries elsewhere.
        let _ = timeout(DRAIN_TIMEOUT, shared.load.quiet()).await;
        shared.node.shutdown().await;
        shared.close();
    }
}

/// Derives the driver's configuration from the service's.
fn node_config(config: &ServerConfig, seed: u64, versions: (u32, u32)) -> NodeConfig {
    // A node that joins learns from the leader who the members are.
    let voters = config.nodes.iter().map(|node| node.id).filter(|_| !config.join);
    let mut node = NodeConfig::new(config.node_id, voters, seed);
    node.raft.heartbeat_interval = config.timeouts.heartbeat;
    node.raft.election_timeout = config.timeouts.election;
    node.raft.promotion_delay = config.timeouts.stabilization;
    node.max_raft_state_bytes = config.max_raft_state.0;
    node.command_bytes_max = config.limits.command_bytes_max();
    node.requests_in_flight_max = config.limits.requests_max;
    (node.raft.version_min, node.raft.version_max) = versions;
    node
}

/// Keeps clock, log lines, room, cluster version and members in step with the node, until it is
/// closed.
async fn follow_node(shared: Arc<ServerShared>, client: Client, is_low: Option<IsLow>) {
    let members = async {
        members::follow(&shared, &client).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = shared.closed() => {}
        () = shared.clock.follow(&shared.node) => {}
        () = story::tell(&shared.node, shared.config.join) => {}
        () = shared.room.follow(is_low) => {}
        () = shared.upgrade.follow(&shared.node) => {}
        () = members::steer(&shared) => {}
        () = members => {}
    }
}

/// Closes the server when its node has stopped, and stops the node when a query found damage.
async fn close_with_node(shared: Arc<ServerShared>) {
    tokio::select! {
        // [`Server::stopped`] returns the reason.
        _ = shared.node.stopped() => {}
        fatal = shared.damage.found() => {
            tracing::error!("{fatal}; the node stops, so that another one answers");
            shared.node.shutdown().await;
        }
        end = shared.membership.ended() => {
            tracing::error!("the node stops for good: {}", end.error(&shared.config));
            shared.node.shutdown().await;
        }
    }
    shared.close();
}

/// The network limits the number of clients, because it can turn one away before that one costs
/// much.
async fn accept(shared: Arc<ServerShared>, mut clients: mpsc::Receiver<Stream>) {
    loop {
        let stream = tokio::select! {
            biased;
            () = shared.closed() => return,
            stream = clients.recv() => stream,
        };
        let Some(stream) = stream else { return };
        tokio::spawn(connection::serve(Arc::clone(&shared), stream));
    }
}

/// Connects to the node of this process without a network, to the others through one.
struct PreferLocal {
    own_id: NodeId,
    accept_sender: mpsc::Sender<Stream>,
    others: Arc<dyn Connector>,
}

#[async_trait]
impl Connector for PreferLocal {
    fn nodes(&self) -> Vec<NodeId> {
        self.others.nodes()
    }

    fn learn(&self, members: &[MemberAddress]) -> bool {
        self.others.learn(members)
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError> {
        if node == self.own_id {
            connect_local(&self.accept_sender).await
        } else {
            self.others.connect(node).await
        }
    }

    async fn finds(&self, node: NodeId, address: &str) -> bool {
        self.others.finds(node, address).await
    }

    async fn close(&self) {
        self.others.close().await;
    }
}
