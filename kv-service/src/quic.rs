//! Nodes and clients over QUIC.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use raft_core::transport::Transport;
use raft_core::types::NodeId;
use raft_transport_quic::{ClientEndpoint, QuicConfig, QuicTransport, TlsConfig};

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client::Client;
use crate::config::{ClientConfig, ServerConfig, TlsFiles};
use crate::server::ServerError;
use crate::stream::{Connector, Stream};

/// How long a client may take to open its stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a client cannot be made; nothing has been connected yet.
#[derive(Debug, thiserror::Error)]
pub enum ClientSetupError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Tls(#[from] raft_transport_quic::QuicError),
}

impl Client {
    /// A client as its configuration says; needs a tokio runtime. Nothing is connected before it is
    /// needed.
    ///
    /// # Errors
    /// The configuration makes no sense, or a certificate cannot be read.
    pub fn connect(config: &ClientConfig) -> Result<Client, ClientSetupError> {
        config.check()?;
        let TlsFiles { ca, cert, key } = &config.tls;
        let tls = TlsConfig::read(ca, cert, key)?;
        let addresses = config.nodes.iter().map(|node| (node.id, node.address.clone()));
        let endpoint = ClientEndpoint::new(&config.cluster_id, tls)?;
        let connector = QuicConnector { addresses: addresses.collect(), endpoint };
        Ok(Client::new(Arc::new(connector), config.deadline))
    }
}

struct QuicConnector {
    addresses: std::collections::BTreeMap<NodeId, String>,
    endpoint: ClientEndpoint,
}

#[async_trait]
impl Connector for QuicConnector {
    fn nodes(&self) -> Vec<NodeId> {
        self.addresses.keys().copied().collect()
    }

    async fn connect(&self, node: NodeId) -> Result<Stream, String> {
        let address = self.addresses.get(&node).ok_or_else(|| "no such node".to_owned())?;
        let connecting = self.endpoint.connect(node, address).await;
        let connection = connecting.map_err(|error| error.to_string())?;
        let (writer, reader) = connection.open_stream().await.map_err(|error| error.to_string())?;
        let (reader, writer) = (Box::new(reader), Box::new(writer));
        Ok(Stream { reader, writer, guard: Box::new(connection) })
    }

    async fn close(&self) {
        self.endpoint.close().await;
    }
}

/// Binds a node's socket; its clients come in through `door`.
pub(crate) async fn join(
    config: &ServerConfig,
    incarnation: u64,
    reset_key: [u8; 64],
    door: mpsc::Sender<Stream>,
) -> Result<(Arc<dyn Transport>, Arc<dyn Connector>), ServerError> {
    let network = |error: raft_transport_quic::QuicError| ServerError::Network(error.to_string());
    let TlsFiles { ca, cert, key } = &config.tls;
    let tls = TlsConfig::read(ca, cert, key).map_err(network)?;
    let mut peers = config.addresses();
    peers.remove(&config.node_id);
    let listen = config.listen_address()?;
    let cluster_id = config.cluster_id.clone();
    let mut quic = QuicConfig::new(
        cluster_id,
        config.node_id,
        incarnation,
        listen,
        peers,
        tls.clone(),
        reset_key,
    );
    quic.client_connections_max = config.limits.client_connections_max;
    let transport = QuicTransport::bind(quic).await.map_err(network)?;
    let endpoint = ClientEndpoint::new(&config.cluster_id, tls).map_err(network)?;
    let connector = QuicConnector { addresses: config.addresses(), endpoint };
    tokio::spawn(accept(Arc::clone(&transport), door));
    Ok((transport, Arc::new(connector)))
}

/// Each client opens one stream; one that takes its time holds up nobody.
async fn accept(transport: Arc<QuicTransport>, door: mpsc::Sender<Stream>) {
    while let Some(connection) = transport.accept_client().await {
        let door = door.clone();
        tokio::spawn(async move {
            let opened = timeout(OPEN_TIMEOUT, connection.accept_stream()).await;
            let Ok(Some((writer, reader))) = opened else {
                return connection.close("no stream was opened");
            };
            let (reader, writer) = (Box::new(reader), Box::new(writer));
            let stream = Stream { reader, writer, guard: Box::new(connection) };
            // The node is stopping if nobody takes it.
            let _ = door.send(stream).await;
        });
    }
}
