//! Nodes and clients over QUIC.

mod addresses;
mod places;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use raft_core::types::NodeId;
use raft_transport_quic::{ClientEndpoint, QuicConfig, QuicError, QuicTransport, TlsConfig};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::addresses::AddressBook;
use self::places::Places;
use crate::client::Client;
use crate::config::{ClientConfig, ServerConfig, TlsFiles};
use crate::error::ServerError;
use crate::log_limit::{Complaints, Subject};
use crate::members::{ClusterUid, MemberAddress};
use crate::net::peers::{NodeIdentity, PeerBook};
use crate::net::stream::{ConnectError, Connector, Stream};
use crate::protocol::version::{VERSION_MAX, VERSION_MIN};

/// How long a client may take to open its stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a client cannot be made; nothing has been connected yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientSetupError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A certificate or key cannot be read, or the socket cannot be bound.
    #[error(transparent)]
    Tls(#[from] QuicError),
}

impl Client {
    /// Makes a client from its configuration; needs a tokio runtime. A connection is made when it
    /// is first needed.
    ///
    /// # Errors
    /// The configuration makes no sense, a certificate cannot be read, or the socket cannot be
    /// bound.
    pub fn connect(config: &ClientConfig) -> Result<Client, ClientSetupError> {
        config.check()?;
        let TlsFiles { ca, cert, key } = &config.tls;
        let tls = TlsConfig::read(ca, cert, key)?;
        let addresses = config.nodes.iter().map(|node| (node.id, node.address.clone()));
        let endpoint = ClientEndpoint::new(&config.cluster_id, tls)?;
        let book = AddressBook::new(addresses.collect(), config.fixed_nodes);
        let connector = QuicConnector { book, endpoint };
        Ok(Client::new(Arc::new(connector), config.deadline))
    }
}

struct QuicConnector {
    book: AddressBook,
    endpoint: ClientEndpoint,
}

#[async_trait]
impl Connector for QuicConnector {
    fn nodes(&self) -> Vec<NodeId> {
        self.book.ids()
    }

    fn learn(&self, members: &[MemberAddress]) -> bool {
        self.book.learn(members)
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError> {
        let address = self.book.address(node).ok_or(ConnectError::UnknownNode)?;
        // The caller may give up before the attempt ends.
        self.book.try_another_after(node, &address);
        let connecting = self.endpoint.connect(node, &address).await;
        let connection = connecting.map_err(ConnectError::network)?;
        self.book.found_at(node, &address);
        let (writer, reader) = connection.open_stream().await.map_err(ConnectError::network)?;
        Ok(Stream::new(reader, writer, connection))
    }

    async fn finds(&self, node: NodeId, address: &str) -> bool {
        self.endpoint.connect(node, address).await.is_ok()
    }

    async fn close(&self) {
        self.endpoint.close().await;
    }
}

/// Binds a node's socket. Its clients come in through `accept_sender`.
pub(crate) async fn join(
    config: &ServerConfig,
    identity: &NodeIdentity,
    accept_sender: mpsc::Sender<Stream>,
) -> Result<(Arc<QuicTransport>, Arc<dyn Connector>), ServerError> {
    let network = |error: QuicError| ServerError::Network(Arc::new(error));
    let TlsFiles { ca, cert, key } = &config.tls;
    let tls = TlsConfig::read(ca, cert, key).map_err(network)?;
    let mut peers = config.addresses();
    peers.remove(&config.node_id);
    let listen = config.listen_address()?;
    let cluster_id = config.cluster_id.clone();
    let mut quic = QuicConfig::new(
        cluster_id,
        config.node_id,
        identity.incarnation,
        listen,
        peers,
        tls.clone(),
        identity.reset_key,
    );
    quic.client_connections_max = config.limits.client_connections_max;
    quic.idle_timeout = config.timeouts.peer_idle;
    quic.hello_timeout = config.timeouts.peer_hello;
    quic.client_idle_timeout = config.timeouts.client_idle;
    quic.cluster_versions = (VERSION_MIN, VERSION_MAX);
    quic.cluster_uid = identity.cluster_uid.map_or(0, ClusterUid::number);
    quic.members_from_log = config.join || !identity.is_founder;
    let transport = QuicTransport::bind(quic).await.map_err(network)?;
    let endpoint = ClientEndpoint::new(&config.cluster_id, tls).map_err(network)?;
    let book = AddressBook::new(config.addresses(), config.fixed_addresses);
    let connector = QuicConnector { book, endpoint };
    let places = Places::new(
        config.limits.certificate_connections_max,
        config.limits.address_connections_max,
    );
    tokio::spawn(accept(Arc::clone(&transport), places, accept_sender));
    Ok((transport, Arc::new(connector)))
}

#[async_trait]
impl PeerBook for QuicTransport {
    fn set_peers(&self, peers: &BTreeMap<NodeId, Vec<String>>, next_id: NodeId) {
        QuicTransport::set_peers(self, peers, next_id);
    }

    fn set_cluster_uid(&self, uid: u128) {
        QuicTransport::set_cluster_uid(self, uid);
    }

    async fn removed(&self) {
        QuicTransport::removed(self).await;
    }
}

/// Accepts clients. Each opens one stream; a client that takes its time delays no other.
async fn accept(
    transport: Arc<QuicTransport>,
    places: Arc<Places>,
    accept_sender: mpsc::Sender<Stream>,
) {
    let complaints = Complaints::default();
    while let Some(connection) = transport.accept_client().await {
        let from = connection.remote_address().ip().to_canonical();
        let certificate = connection.certificate_digest();
        let place = match places.take(certificate, from) {
            Ok(place) => place,
            Err(reason) => {
                complaints.note(Some(from), Subject::Refused, &reason);
                connection.slow_down_source();
                connection.refuse_busy(&reason);
                continue;
            }
        };
        let accept_sender = accept_sender.clone();
        tokio::spawn(async move {
            let opened = timeout(OPEN_TIMEOUT, connection.accept_stream()).await;
            let (writer, reader) = match opened {
                Ok(Some(stream)) => stream,
                // The client has left.
                Ok(None) => return,
                Err(_) => {
                    connection.slow_down_source();
                    return connection.close("no stream was opened");
                }
            };
            let (wide, ended) = (connection.clone(), connection.clone());
            let mut stream = Stream::new(reader, writer, (connection, place));
            stream.from = Some(from);
            // All clients of a cluster have the same name; half of their certificate's digest tells
            // them apart.
            stream.principal = Bytes::copy_from_slice(&certificate[..certificate.len() / 2]);
            stream.widen = Some(Box::new(move || wide.widen()));
            stream.slow_down_source = Some(Box::new(move || ended.slow_down_source()));
            // An error means that the node is stopping.
            let _ = accept_sender.send(stream).await;
        });
    }
}
