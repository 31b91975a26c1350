//! Connections of the client protocol, on both sides: they are made, admitted, greeted and closed
//! here. Other crates define the content of their streams.
//!
//! In TLS 1.3 a client's handshake completes before the node has checked the client's certificate.
//! Therefore the node greets each admitted client with one byte on a stream of its own, and
//! `connect` succeeds when that byte has arrived.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quinn::{Connection, RecvStream, SendStream};
use raft_core::types::NodeId;
use ring::digest;
use rustls_pki_types::CertificateDer;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::config::{
    CLIENT_CONNECT_TIMEOUT, CLIENT_FAREWELL_TIMEOUT, CLIENT_WIDE_SEND_WINDOW_BYTES,
    CLIENT_WIDE_WINDOW_BYTES, TLS_POLL_INTERVAL,
};
use crate::credentials::{Built, Credentials};
use crate::endpoint::{Opened, client_client, client_endpoint};
use crate::error::{QuicError, close, describe};
use crate::gate::SharedGate;
use crate::names::Names;
use crate::protocol::CLIENT_PROTOCOLS;
use crate::tls::{Side, TlsConfig, check_cluster_id, node_name};

/// The greeting of a node to an admitted client.
const GREETING: &[u8] = b"k";

/// One connection of the client protocol (ALPN `kv/2`), on either side. Cheap to clone; the
/// connection closes when the last clone and the last stream are dropped.
#[derive(Clone)]
pub struct ClientConnection {
    connection: Arc<Connection>,
    /// On the node's side only.
    admission: Option<Arc<Admission>>,
}

/// The node's side of an admitted client.
struct Admission {
    /// One of `client_connections_max`.
    _place: OwnedSemaphorePermit,
    gate: Arc<SharedGate>,
}

impl std::fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClientConnection").field(&self.remote_address()).finish()
    }
}

impl ClientConnection {
    /// Wraps the connection of an admitted client that has not been greeted yet.
    pub(crate) fn new(
        connection: Connection,
        place: OwnedSemaphorePermit,
        gate: Arc<SharedGate>,
    ) -> Self {
        let admission = Admission { _place: place, gate };
        Self { connection: Arc::new(connection), admission: Some(Arc::new(admission)) }
    }

    /// Registers the connection, so that it is closed when its certificate is no longer trusted.
    /// Fails with the reason if that is so already.
    pub(crate) fn watch(
        &self,
        credentials: &Credentials,
        exchange_count: u64,
    ) -> Result<(), String> {
        credentials.watch(&self.connection, Side::Dialling, exchange_count)
    }

    /// Greets an admitted client. Fails if the client has gone.
    pub(crate) async fn greet(&self) -> Result<(), QuicError> {
        let mut greeting = self.connection.open_uni().await.map_err(lost)?;
        greeting.write_all(GREETING).await.map_err(|error| QuicError::Lost(error.to_string()))?;
        // Dropping the stream finishes it.
        drop(greeting);
        Ok(())
    }

    /// Waits for the greeting of the node.
    async fn greeted(connection: Connection) -> Result<Self, String> {
        let mut greeting = connection.accept_uni().await.map_err(|error| describe(&error))?;
        match greeting.read_to_end(GREETING.len()).await {
            Ok(said) if said == GREETING => {
                Ok(Self { connection: Arc::new(connection), admission: None })
            }
            Ok(_) => Err("the node greets in a way we do not know; use equal versions".into()),
            Err(error) => Err(connection
                .close_reason()
                .map_or_else(|| error.to_string(), |reason| describe(&reason))),
        }
    }

    /// Address of the other side.
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// SHA-256 of the certificate that the other side has proven to own.
    pub fn certificate_digest(&self) -> [u8; 32] {
        let identity = self.connection.peer_identity();
        let chain = identity.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        let leaf = chain.as_ref().and_then(|chain| chain.first());
        let digest = digest::digest(&digest::SHA256, leaf.map_or(&[][..], |leaf| leaf.as_ref()));
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Raises the flow-control windows of an admitted client to 1 MiB in each direction; they stay
    /// wide. They begin small (64 KiB to receive, 96 KiB to send), because a client that never
    /// reads, or is never read from, fills them. The caller bounds the number of connections with
    /// wide windows.
    pub fn widen(&self) {
        self.connection.set_receive_window(CLIENT_WIDE_WINDOW_BYTES.into());
        self.connection.set_send_window(CLIENT_WIDE_SEND_WINDOW_BYTES);
    }

    /// Lets the node admit fewer handshakes from the address of this client for some seconds. To be
    /// called when the node ends the connection for a fault of the client, which would otherwise
    /// come back at once and do the same again. The client's other connections stay. Does nothing
    /// on the client's side.
    pub fn slow_down_source(&self) {
        if let Some(admission) = &self.admission {
            // A node accepts no migration, so this is the address that the handshake has proven.
            admission.gate.charge(self.remote_address().ip().to_canonical());
        }
    }

    /// Closes the connection because a limit is reached; `reason` tells the client which one.
    pub fn refuse_busy(&self, reason: &str) {
        self.connection.close(close::BUSY, reason.as_bytes());
    }

    /// Opens a stream. Waits while the number of open streams is at the other side's limit. The
    /// other side learns of the stream when its first byte arrives.
    ///
    /// # Errors
    /// [`QuicError::Lost`] if the connection is gone; nothing was sent on this stream.
    pub async fn open_stream(&self) -> Result<(SendStream, RecvStream), QuicError> {
        self.connection.open_bi().await.map_err(lost)
    }

    /// Waits for the next stream that the other side opens; `None` when the connection is gone.
    pub async fn accept_stream(&self) -> Option<(SendStream, RecvStream)> {
        self.connection.accept_bi().await.ok()
    }

    /// Waits until the connection is gone, and returns the reason as text for an operator.
    pub async fn closed(&self) -> String {
        describe(&self.connection.closed().await)
    }

    /// Closes the connection at once. Data in flight is lost. The other side receives the reason.
    pub fn close(&self, reason: &str) {
        self.connection.close(close::DONE, reason.as_bytes());
    }
}

fn lost(error: quinn::ConnectionError) -> QuicError {
    QuicError::Lost(describe(&error))
}

/// A client's socket. Connects to any number of nodes of one cluster.
#[derive(Debug)]
pub struct ClientEndpoint {
    cluster_id: String,
    opened: Opened,
    credentials: Credentials,
    /// When the certificates were last read.
    looked_at: Mutex<Instant>,
    /// Failed attempts. After each failure the next attempt uses another address of the name.
    failed_count: AtomicUsize,
}

impl ClientEndpoint {
    /// Opens a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`QuicError::ClusterId`] if the name cannot be a cluster's, [`QuicError::Tls`] if the
    /// certificates cannot be used, or [`QuicError::Bind`] if there is no socket.
    pub fn new(cluster_id: &str, tls: TlsConfig) -> Result<Self, QuicError> {
        check_cluster_id(cluster_id)?;
        tls.identity(cluster_id)?;
        let of_cluster = cluster_id.to_owned();
        let build = move |tls: &TlsConfig| {
            tls.identity(&of_cluster)?;
            let offered = CLIENT_PROTOCOLS.iter().map(|alpn| alpn.to_vec()).collect();
            Ok(Built { server: None, dialling: client_client(tls.client(offered)?) })
        };
        let (credentials, _) = Credentials::new(tls, Box::new(build))?;
        Ok(Self {
            cluster_id: cluster_id.to_owned(),
            opened: client_endpoint()?,
            credentials,
            looked_at: Mutex::new(Instant::now()),
            failed_count: AtomicUsize::new(0),
        })
    }

    /// Reads the certificates again at once, if they come from files ([`TlsConfig::read`]). Returns
    /// true if they had changed. [`connect`](Self::connect) reads them as well if 10 seconds have
    /// passed since it last did.
    ///
    /// # Errors
    /// [`QuicError::Read`] or [`QuicError::Tls`] if the files cannot be read or do not fit; the
    /// certificates in use stay in use.
    pub async fn reload(&self) -> Result<bool, QuicError> {
        self.credentials.reload(&self.opened.endpoint).await
    }

    /// Connects to the node `node_id` at `address` (`host:port`), and verifies the node's identity.
    /// Gives up after 15 seconds.
    ///
    /// # Errors
    /// [`QuicError::Connect`] with the reason; the node has executed nothing.
    pub async fn connect(
        &self,
        node_id: NodeId,
        address: &str,
    ) -> Result<ClientConnection, QuicError> {
        let attempt = timeout(CLIENT_CONNECT_TIMEOUT, self.try_connect(node_id, address)).await;
        let result = attempt.unwrap_or_else(|_| Err(describe(&quinn::ConnectionError::TimedOut)));
        if result.is_err() {
            self.failed_count.fetch_add(1, Ordering::Relaxed);
        }
        result.map_err(|reason| QuicError::Connect { address: address.to_owned(), reason })
    }

    async fn try_connect(
        &self,
        node_id: NodeId,
        address: &str,
    ) -> Result<ClientConnection, String> {
        let is_due = {
            let mut looked_at = self.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = looked_at.elapsed() >= TLS_POLL_INTERVAL;
            if is_due {
                *looked_at = Instant::now();
            }
            is_due
        };
        if is_due {
            self.credentials.look(&self.opened.endpoint).await;
        }
        let found = Names::System.resolve(&self.opened.endpoint, address).await?;
        let to = found[self.failed_count.load(Ordering::Relaxed) % found.len()];
        let name = node_name(&self.cluster_id, node_id);
        let connection = self
            .opened
            .endpoint
            .connect_with(self.credentials.dialling(), to, &name)
            .map_err(|error| format!("not even tried: {error}"))?
            .await
            .map_err(|error| describe(&error))?;
        ClientConnection::greeted(connection).await
    }

    /// Closes all connections, and waits a few milliseconds until the close packets have left.
    pub async fn close(&self) {
        self.opened.close("the client is done", CLIENT_FAREWELL_TIMEOUT).await;
    }
}
