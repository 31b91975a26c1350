//! UDP sockets and the settings of QUIC.
//!
//! The settings that matter were measured: datagrams as large as the path allows (discovered, on
//! loopback 6500 bytes instead of 1200) and batches of them in one system call halve the cost of a
//! message.
//!
//! Until the other side is known, a connection grants no streams and little memory; [`admit_peer`]
//! and [`admit_client`] raise these limits afterwards.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint,
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use crate::config::*;
use crate::error::{QuicError, close};
use crate::socket::ReleasableSocket;

/// An endpoint and its socket.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: Arc<ReleasableSocket>,
}

impl Opened {
    /// Closes all connections, waits up to `patience` for the close packets to leave, and frees the
    /// port.
    pub(crate) async fn close(&self, reason: &str, patience: Duration) {
        self.endpoint.close(close::DONE, reason.as_bytes());
        let _ = timeout(patience, self.endpoint.wait_idle()).await;
        self.socket.release();
    }
}

/// The endpoint of a node: accepts peers and clients, and dials peers.
pub(crate) fn node_endpoint(
    config: &QuicConfig,
    server: Option<ServerConfig>,
) -> Result<Opened, QuicError> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &config.reset_key);
    let mut endpoint_config = EndpointConfig::new(Arc::new(key));
    endpoint_config
        .cid_generator(|| Box::new(RandomIds))
        .max_udp_payload_size(MTU_MAX)
        .expect("a valid datagram size");

    open(config.listen, endpoint_config, server)
}

/// The server configuration of a node, for incoming connections.
pub(crate) fn node_server(config: &QuicConfig, tls: QuicServerConfig) -> ServerConfig {
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server
        .transport_config(Arc::new(accepting_transport(config)))
        .migration(false)
        .max_incoming(2 * HANDSHAKES_MAX)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(8 << 20);
    server
}

/// Random connection ids, without a mark of the process that drew them. After a restart, a node
/// would ignore packets for quinn's usual ids. It answers packets for these ids with a stateless
/// reset, which tells peers that the node has restarted.
struct RandomIds;

const CONNECTION_ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        getrandom::fill(&mut id).expect("the system's entropy does not fail once it was there");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The endpoint of a client: dials only. Its socket takes both address families if the system
/// allows.
pub(crate) fn client_endpoint() -> Result<Opened, QuicError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MTU_MAX).expect("a valid datagram size");
    let any_v6 = SocketAddr::from(([0u16; 8], 0));
    let any_v4 = SocketAddr::from(([0u8; 4], 0));
    open(any_v6, config.clone(), None).or_else(|_| open(any_v4, config, None))
}

fn open(
    address: SocketAddr,
    config: EndpointConfig,
    server: Option<ServerConfig>,
) -> Result<Opened, QuicError> {
    let bind = || {
        let runtime = quinn::default_runtime()
            .ok_or_else(|| std::io::Error::other("there is no tokio runtime here"))?;
        let socket = Arc::new(ReleasableSocket::new(socket(address)?, &*runtime)?);
        let shared = socket.clone();
        let endpoint = Endpoint::new_with_abstract_socket(config, server, shared, runtime)?;
        Ok(Opened { endpoint, socket })
    };
    bind().map_err(|source| QuicError::Bind { address, source })
}

fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the system may have a lower ceiling, and QUIC copes with losses.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The client configuration for connections to peers.
pub(crate) fn peer_client(config: &QuicConfig, tls: QuicClientConfig) -> ClientConfig {
    let mut transport = transport(config.idle_timeout);
    transport
        .keep_alive_interval(Some(PEER_KEEP_ALIVE))
        .max_concurrent_uni_streams(2u32.into())
        .max_concurrent_bidi_streams(BULK_STREAMS_MAX.into())
        .receive_window(PEER_WINDOW_BYTES.into())
        .send_window(PEER_SEND_WINDOW_BYTES);
    let mut client = ClientConfig::new(Arc::new(tls));
    client.transport_config(Arc::new(transport));
    client
}

/// The client configuration for a client's connections to nodes.
pub(crate) fn client_client(tls: QuicClientConfig) -> ClientConfig {
    let mut transport = transport(CLIENT_IDLE);
    transport
        .initial_rtt(CLIENT_INITIAL_RTT)
        .keep_alive_interval(Some(CLIENT_KEEP_ALIVE))
        .max_concurrent_uni_streams(1u32.into())
        .max_concurrent_bidi_streams(CLIENT_STREAMS_MAX.into())
        .receive_window((2 * STREAM_WINDOW_BYTES).into())
        .send_window(u64::from(2 * STREAM_WINDOW_BYTES));
    let mut client = ClientConfig::new(Arc::new(tls));
    client.transport_config(Arc::new(transport));
    client
}

/// Settings of an incoming connection until the other side is known. The dialling side sends the
/// pings.
fn accepting_transport(config: &QuicConfig) -> TransportConfig {
    let mut transport = transport(config.client_idle_timeout);
    transport
        .max_concurrent_uni_streams(0u32.into())
        .max_concurrent_bidi_streams(0u32.into())
        .receive_window(CLIENT_WINDOW_BYTES.into())
        .send_window(CLIENT_SEND_WINDOW_BYTES);
    transport
}

fn transport(idle: Duration) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU_MAX);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(UNACKNOWLEDGED_PACKETS.into()).max_ack_delay(Some(ACK_DELAY));
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let mut transport = TransportConfig::default();
    transport
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(congestion))
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).unwrap_or(VarInt::MAX.into())))
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None);
    transport
}

/// Raises the limits of an accepted connection to those of a peer.
pub(crate) fn admit_peer(connection: &Connection) {
    connection.set_receive_window(PEER_WINDOW_BYTES.into());
    connection.set_send_window(PEER_SEND_WINDOW_BYTES);
    connection.set_max_concurrent_uni_streams(2u32.into());
    connection.set_max_concurrent_bi_streams(BULK_STREAMS_MAX.into());
}

/// Raises the limits of an accepted connection to those of a client.
pub(crate) fn admit_client(connection: &Connection) {
    connection.set_max_concurrent_bi_streams(CLIENT_STREAMS_MAX.into());
}
