//! The transport of one node: binds the socket, starts the tasks, and implements the port's calls.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use quinn::ServerConfig;
use raft_core::codec::ENTRY_BYTES_MAX;
use raft_core::transport::{BulkStream, Inbound, Transport, TransportError};
use raft_core::types::{Class, Message, MessageBody, NodeId, Position};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::accept::accept_all;
use crate::bulk::{QuicBulk, bulk_priority};
use crate::client::ClientConnection;
use crate::config::{CLOSE_TIMEOUT, FAREWELL_TIMEOUT, QuicConfig};
use crate::credentials::{Built, Credentials};
use crate::endpoint::{node_endpoint, node_server, peer_client};
use crate::error::{QuicError, close};
use crate::gate::SharedGate;
use crate::link::PeerLink;
use crate::peer::{Peer, Supervisor};
use crate::peers::PeerTable;
use crate::protocol::offered_by_node;
use crate::removal::Removal;
use crate::shared::{HandshakeCounters, HandshakeCounts, InboundSlot, Refusals, TransportShared};
use crate::tls::{TlsConfig, TlsIdentity};

/// How long opening a bulk stream waits while as many are open as are allowed.
const OPEN_BULK_TIMEOUT: Duration = Duration::from_secs(1);

/// Unknown nodes that wait to be added; a further one comes again.
const GUESTS_WAITING_MAX: usize = 16;

/// Close reason for a peer that has left the cluster.
const NO_MEMBER: &str = "the other node is no member of the cluster, as far as this node knows";

/// Close reason for peers and clients at the end.
const STOPPING: &str = "the node is stopping";

/// One node's connections to its peers and from its clients. [`Transport::close`] closes it in good
/// order; dropping it closes it at once.
#[derive(Debug)]
pub struct QuicTransport {
    pub(crate) shared: Arc<TransportShared>,
    local_addr: SocketAddr,
    clients: tokio::sync::Mutex<mpsc::Receiver<ClientConnection>>,
    closing: watch::Sender<bool>,
    /// The accept loop, the poll of the certificates, and a supervisor per peer. All other tasks
    /// belong to one of these.
    tasks: Mutex<JoinSet<()>>,
}

impl QuicTransport {
    /// Opens the socket and begins to connect to the peers. Incoming messages are dropped until
    /// [`Transport::start`].
    ///
    /// # Errors
    /// [`QuicError::Bind`] if the address cannot be used; [`QuicError::ClusterId`],
    /// [`QuicError::Config`] or [`QuicError::Tls`] if the configuration cannot.
    pub async fn bind(config: QuicConfig) -> Result<Arc<Self>, QuicError> {
        config.check()?;
        let (credentials, server) = credentials(&config)?;
        let opened = node_endpoint(&config, server)?;
        let local_addr = opened
            .endpoint
            .local_addr()
            .map_err(|source| QuicError::Bind { address: config.listen, source })?;

        let (guests, guests_out) = mpsc::channel(GUESTS_WAITING_MAX);
        let (clients_in, clients) = mpsc::channel(config.client_connections_max.max(1));
        let shared = Arc::new(TransportShared {
            credentials,
            opened,
            peers: PeerTable::new(config.members_from_log),
            guests,
            removal: Removal::default(),
            cluster_uid: Mutex::new(config.cluster_uid),
            inbound: Arc::new(InboundSlot::default()),
            client_places: Arc::new(Semaphore::new(config.client_connections_max)),
            gate: Arc::new(SharedGate::new(config.handshakes_per_second)),
            handshakes: HandshakeCounters::default(),
            refusals: Refusals::default(),
            config,
        });

        let (closing, closed) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (id, address) in &shared.config.peers {
            add_peer(&shared, &mut tasks, &closed, *id, std::slice::from_ref(address));
            shared.peers.with(*id, Peer::confirm);
        }
        tasks.spawn(accept_all(shared.clone(), clients_in));
        tasks.spawn(keep_current(shared.clone(), closed.clone()));
        tasks.spawn(host_guests(shared.clone(), guests_out, closed));
        Ok(Arc::new(Self {
            shared,
            local_addr,
            clients: tokio::sync::Mutex::new(clients),
            closing,
            tasks: Mutex::new(tasks),
        }))
    }

    /// Address on which this node listens, with the actual port if port 0 was configured.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Follows a change of the members: connects to peers that are new, closes the connections to
    /// those that are not named, and uses changed addresses from the next attempt to connect on.
    /// The addresses of a peer are tried in turn. A peer without one is waited for: it shows its
    /// address to this node. An entry for this node itself is ignored.
    ///
    /// From the first call on, the members are those of the replicated log: this node no longer
    /// compares its list with those of its peers, and admits a node of the cluster that it does not
    /// know yet, unless the node's id is below `next_id` and not named: then it was removed.
    pub fn set_peers(&self, peers: &BTreeMap<NodeId, Vec<String>>, next_id: NodeId) {
        let shared = &self.shared;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let closing = self.closing.subscribe();
        if *closing.borrow() {
            return;
        }
        shared.peers.follow_log();
        for (id, addresses) in peers {
            if shared.peers.with(*id, |peer| peer.set_addresses(addresses)).is_none() {
                add_peer(shared, &mut tasks, &closing, *id, addresses);
            }
            shared.peers.with(*id, Peer::confirm);
        }
        // A guest with a later id may be a member whose admission has not arrived here.
        for peer in shared.peers.take_gone(|id| peers.contains_key(&id) || id >= next_id) {
            peer.leave();
        }
        shared.peers.raise_next_id(next_id);
        // Supervisors of peers that have left.
        while tasks.try_join_next().is_some() {}
    }

    /// Notes the random id of the cluster, once the replicated log has shown it
    /// ([`QuicConfig::cluster_uid`]). It is compared on each connection that is made from now on.
    pub fn set_cluster_uid(&self, uid: u128) {
        *self.shared.cluster_uid.lock().unwrap_or_else(PoisonError::into_inner) = uid;
    }

    /// Waits until a majority of the other members has refused this node because this node was
    /// removed from the cluster. A node may learn this way of a removal that took place while it
    /// was away. A single peer is not believed: it may be mistaken, or belong to an older cluster.
    /// Never returns if that does not happen.
    pub async fn removed(&self) {
        self.shared.removal.known().await;
    }

    /// Waits for the next admitted client; `None` after closing.
    pub async fn accept_client(&self) -> Option<ClientConnection> {
        self.clients.lock().await.recv().await
    }

    /// Reads the certificates again at once, if they come from files ([`TlsConfig::read`]). Returns
    /// true if they had changed. They are read every [`QuicConfig::tls_poll_interval`] as well.
    /// Connections whose other side the new CA does not trust are closed.
    ///
    /// # Errors
    /// [`QuicError::Read`] or [`QuicError::Tls`] if the files cannot be read, or do not fit each
    /// other or this node; the certificates in use stay in use.
    ///
    /// [`TlsConfig::read`]: crate::TlsConfig::read
    pub async fn reload(&self) -> Result<bool, QuicError> {
        self.shared.credentials.reload(&self.shared.opened.endpoint).await
    }

    /// Handshakes that were requested since the start, by decision.
    pub fn handshake_counts(&self) -> HandshakeCounts {
        self.shared.handshakes.read()
    }

    /// Messages for the peer that were dropped since the start, by class; 0 if the node is not a
    /// peer.
    pub fn dropped_count(&self, peer: NodeId, class: Class) -> u64 {
        self.shared.peers.with(peer, |peer| peer.mailbox(class).dropped_count()).unwrap_or(0)
    }

    /// The protocol version in use with the peer, as its ALPN; `None` while there is no connection.
    pub fn protocol_with(&self, peer: NodeId) -> Option<String> {
        let connection = self.shared.peers.get(peer)?.connection().ok()?;
        let (_, alpn) =
            TlsIdentity::of_connection(&connection, &self.shared.config.cluster_id).ok()?;
        Some(String::from_utf8_lossy(&alpn).into_owned())
    }

    /// The present connection to a peer.
    fn connection(&self, id: NodeId) -> Result<quinn::Connection, TransportError> {
        let Some(peer) = self.shared.peers.get(id) else {
            let text = format!("node {id} has no address here; add it to the peers");
            return Err(TransportError::new(text));
        };
        peer.connection().map_err(TransportError::new)
    }
}

/// Builds the credentials for dialling peers, and the server configuration for incoming
/// connections.
fn credentials(config: &QuicConfig) -> Result<(Credentials, Option<ServerConfig>), QuicError> {
    let of = config.clone();
    let build = move |tls: &TlsConfig| {
        of.check_identity(tls)?;
        let dialled = tls.server(offered_by_node(&of.peer_protocols))?;
        let offered = of.peer_protocols.iter().map(|protocol| protocol.alpn.to_vec()).collect();
        Ok(Built {
            server: Some(node_server(&of, dialled)),
            dialling: peer_client(&of, tls.client(offered)?),
        })
    };
    Credentials::new(config.tls.clone(), Box::new(build))
}

/// Polls the certificates until the transport closes.
async fn keep_current(shared: Arc<TransportShared>, mut closing: watch::Receiver<bool>) {
    let looking = async {
        loop {
            sleep(shared.config.tls_poll_interval).await;
            shared.credentials.look(&shared.opened.endpoint).await;
        }
    };
    tokio::select! {
        () = looking => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}

/// Adds a peer and starts its supervisor. Does nothing for this node itself.
fn add_peer(
    shared: &Arc<TransportShared>,
    tasks: &mut JoinSet<()>,
    closing: &watch::Receiver<bool>,
    id: NodeId,
    addresses: &[String],
) {
    if id == shared.config.node_id {
        return;
    }
    let (peer, accepted) = Peer::new(id, addresses.to_vec(), &shared.config);
    let peer = Arc::new(peer);
    if shared.peers.insert(&peer) {
        tasks.spawn(supervise(shared.clone(), peer, accepted, closing.clone()));
    }
}

/// Adds the nodes that are not known as members, so that they can reach this node. The next change
/// of the members confirms them, or drops them.
async fn host_guests(
    shared: Arc<TransportShared>,
    mut guests: mpsc::Receiver<(NodeId, SocketAddr)>,
    closing: watch::Receiver<bool>,
) {
    let mut hosted = JoinSet::new();
    let mut closed = closing.clone();
    loop {
        let guest = tokio::select! {
            guest = guests.recv() => guest,
            _ = closed.wait_for(|closing| *closing) => None,
        };
        let Some((id, address)) = guest else { break };
        if !shared.peers.is_removed(id) {
            add_peer(&shared, &mut hosted, &closing, id, &[address.to_string()]);
        }
        while hosted.try_join_next().is_some() {}
    }
    while hosted.join_next().await.is_some() {}
}

/// Keeps one peer connected until it leaves the cluster or the transport closes.
async fn supervise(
    shared: Arc<TransportShared>,
    peer: Arc<Peer>,
    mut accepted: mpsc::Receiver<PeerLink>,
    mut closing: watch::Receiver<bool>,
) {
    let dials = shared.config.node_id < peer.id;
    let mut supervisor = Supervisor { shared: &shared, peer: &peer, running: None };
    let supervised = async {
        if dials { supervisor.dial().await } else { supervisor.accept(&mut accepted).await }
    };
    let reason = tokio::select! {
        () = supervised => STOPPING,
        () = peer.keep_resolved(&shared.config.names, &shared.opened.endpoint) => STOPPING,
        () = peer.has_left() => NO_MEMBER,
        _ = closing.wait_for(|closing| *closing) => STOPPING,
    };
    supervisor.stop(close::DONE, reason).await;
}

#[async_trait]
impl Transport for QuicTransport {
    fn start(&self, inbound: Arc<dyn Inbound>) {
        self.shared.inbound.set(Some(inbound));
    }

    fn send(&self, to: NodeId, message: Message) {
        let _ = self.shared.peers.with(to, |peer| peer.send(message));
    }

    fn entry_bytes_max(&self) -> u64 {
        // An entry must fit into a frame, and together with its message into an empty mailbox.
        let (previous, entries) = (Position::ZERO, Vec::new());
        let message =
            Message::new(0, MessageBody::AppendEntries { previous, entries, commit_index: 0 });
        let mailbox_bytes = self.shared.config.log_bytes_max.saturating_sub(message.size_bytes());
        ENTRY_BYTES_MAX.min(mailbox_bytes)
    }

    async fn open_bulk(&self, to: NodeId) -> Result<Box<dyn BulkStream>, TransportError> {
        let connection = self.connection(to)?;
        let (send, receive) = timeout(OPEN_BULK_TIMEOUT, connection.open_bi())
            .await
            .map_err(|_| TransportError::new("too many bulk streams to this peer; try later"))?
            .map_err(|error| TransportError::new(crate::error::describe(&error)))?;
        bulk_priority(&send);
        Ok(Box::new(QuicBulk::new(send, receive)))
    }

    fn reachability(&self, peer: NodeId) -> Result<(), TransportError> {
        self.connection(peer).map(drop)
    }

    async fn close(&self) {
        self.shared.inbound.set(None);
        self.closing.send_replace(true);
        self.shared.opened.endpoint.close(close::DONE, STOPPING.as_bytes());
        let mut tasks =
            std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        // The tasks are ending. Those that have not ended at the timeout are aborted.
        let ended = timeout(CLOSE_TIMEOUT, async { while tasks.join_next().await.is_some() {} });
        if ended.await.is_err() {
            tasks.shutdown().await;
        }
        self.shared.opened.close(STOPPING, FAREWELL_TIMEOUT).await;
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.inbound.set(None);
        self.shared.opened.endpoint.close(close::DONE, STOPPING.as_bytes());
    }
}
