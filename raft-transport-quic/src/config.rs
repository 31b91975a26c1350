//! The configuration of a node's transport, and all limits as named constants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use raft_core::types::NodeId;

use crate::error::QuicError;
use crate::names::Names;
use crate::protocol::{PEER_PROTOCOLS, PeerProtocol};
use crate::tls::{TlsConfig, TlsIdentity, check_cluster_id};

/// The settings of one node's transport.
///
/// ```
/// use std::time::Duration;
///
/// use raft_transport_quic::{DevCa, QuicConfig};
///
/// # fn main() -> Result<(), raft_transport_quic::QuicError> {
/// let tls = DevCa::create("example")?.issue_node(1)?;
/// let peers = [(2, "node2:7400".to_owned()), (3, "node3:7400".to_owned())].into();
/// let listen = ([0, 0, 0, 0], 7400).into();
/// let mut config = QuicConfig::new("example", 1, 7, listen, peers, tls, [0; 64]);
/// config.idle_timeout = Duration::from_secs(5);
/// config.client_connections_max = 100;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct QuicConfig {
    /// Name of the cluster, one DNS label. Nodes and clients of another cluster are refused.
    pub cluster_id: String,
    /// Id of this node. Must be the one in the certificate.
    pub node_id: NodeId,
    /// Incarnation of this node's data directory: a number drawn at random when the directory was
    /// made, and stored in it; the same as
    /// [`Config::incarnation`](raft_core::consensus::Config::incarnation). While a peer is
    /// connected to one incarnation of this node, it refuses every other one, so that two nodes
    /// with one id do not replace each other's connections in turn. A new connection of the same
    /// incarnation is a restart, and replaces the old one. Once the members have recorded an
    /// incarnation of this node, another one is not counted: a number that is drawn anew at each
    /// start must not be given here, but 0.
    pub incarnation: u64,
    /// UDP address on which this node listens for peers and clients. Port 0 takes any free port.
    pub listen: SocketAddr,
    /// Addresses of the other members, `host:port`. No other node is accepted as a peer. An entry
    /// for this node itself is allowed and ignored. A peer whose own list has other ids is refused:
    /// two lists mean two definitions of a majority.
    pub peers: BTreeMap<NodeId, String>,
    /// True if the members come from the replicated log, and `peers` only says where to find some
    /// of them, as for a node that joins a cluster. Then lists are not compared. See
    /// [`QuicTransport::set_peers`](crate::QuicTransport::set_peers).
    pub members_from_log: bool,
    /// Random id of the cluster, drawn when it was founded; 0 while it has none. A peer with
    /// another id is refused, because two clusters may have the same name. An id of 0 on either
    /// side matches all.
    pub cluster_uid: u128,
    /// The oldest and the newest cluster version (formats of log and snapshots) that this program
    /// supports, as in `raft_core::consensus::Config`. A peer that shares none of them is refused.
    pub cluster_versions: (u32, u32),
    /// Certificates and key of this node.
    pub tls: TlsConfig,
    /// Key of QUIC stateless resets. Secret. Store it with the node's data: if a restarted node has
    /// the same key, its peers learn within milliseconds that their old connections are gone.
    pub reset_key: [u8; 64],
    /// Most clients connected at one time. Further ones are refused as busy.
    pub client_connections_max: usize,
    /// Most bytes of control messages queued for one peer. A message that does not fit is dropped.
    pub control_bytes_max: u64,
    /// Most bytes of log messages queued for one peer. A message that does not fit is dropped.
    pub log_bytes_max: u64,
    /// Timeout of the first attempt to connect to a peer; it doubles with each failed attempt. It
    /// is short because an attempt that began before the peer was up notices late that the peer is
    /// up.
    pub dial_timeout: Duration,
    /// Upper bound of that timeout, however many attempts have failed.
    pub dial_timeout_max: Duration,
    /// A connection to a peer is given up after this long without a packet from the peer.
    pub idle_timeout: Duration,
    /// Timeout of the exchange of hellos on a new connection to a peer. It doubles with each
    /// failure of that peer, up to 8 times this value, so that a distant peer can connect as well.
    pub hello_timeout: Duration,
    /// Timeout of an incoming handshake, from its first packet until the other side is identified.
    pub handshake_timeout: Duration,
    /// A client's connection is given up after this long without a packet from the client.
    pub client_idle_timeout: Duration,
    /// Handshakes per second from addresses that are not peers', at least 2. One source gets at
    /// most half of them. Handshakes beyond the rate are refused or ignored before they cost any
    /// asymmetric cryptography.
    pub handshakes_per_second: u32,
    /// How often certificates are read again, if they come from files ([`TlsConfig::read`]).
    pub tls_poll_interval: Duration,
    pub(crate) names: Names,
    /// Newest first. A test adds versions that do not exist yet.
    pub(crate) peer_protocols: Vec<PeerProtocol>,
}

impl QuicConfig {
    /// Returns a configuration with the default limits and without a cluster uid.
    pub fn new(
        cluster_id: impl Into<String>,
        node_id: NodeId,
        incarnation: u64,
        listen: SocketAddr,
        peers: BTreeMap<NodeId, String>,
        tls: TlsConfig,
        reset_key: [u8; 64],
    ) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            node_id,
            incarnation,
            listen,
            peers,
            members_from_log: false,
            cluster_uid: 0,
            cluster_versions: (0, 1),
            tls,
            reset_key,
            client_connections_max: 1024,
            control_bytes_max: 1 << 20,
            log_bytes_max: 64 << 20,
            dial_timeout: Duration::from_millis(200),
            dial_timeout_max: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(1),
            hello_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            client_idle_timeout: CLIENT_IDLE,
            handshakes_per_second: 200,
            tls_poll_interval: TLS_POLL_INTERVAL,
            names: Names::System,
            peer_protocols: PEER_PROTOCOLS.to_vec(),
        }
    }

    /// The ids of all members, this node's included.
    pub(crate) fn member_ids(&self) -> BTreeSet<NodeId> {
        self.peers.keys().copied().chain([self.node_id]).collect()
    }

    pub(crate) fn check(&self) -> Result<(), QuicError> {
        check_cluster_id(&self.cluster_id)?;
        if self.node_id == 0 || self.peers.contains_key(&0) {
            return Err(QuicError::Config("node ids start at 1; give every node its own".into()));
        }
        let (version_min, version_max) = self.cluster_versions;
        if version_min > version_max {
            return Err(QuicError::Config(format!(
                "the oldest cluster version {version_min} is later than the newest {version_max}"
            )));
        }
        if self.client_connections_max > CLIENT_CONNECTIONS_CEILING {
            return Err(QuicError::Config(format!(
                "client_connections_max is more than {CLIENT_CONNECTIONS_CEILING}; choose less"
            )));
        }
        if self.handshakes_per_second < 2 {
            return Err(QuicError::Config("handshakes_per_second must be at least 2".into()));
        }
        self.check_identity(&self.tls)
    }

    /// Checks that the certificate is this node's.
    pub(crate) fn check_identity(&self, tls: &TlsConfig) -> Result<(), QuicError> {
        match tls.identity(&self.cluster_id)? {
            TlsIdentity::Node(id) if id == self.node_id => Ok(()),
            TlsIdentity::Node(id) => Err(QuicError::Tls(format!(
                "our own certificate is for node {id}, but this is node {}; use its own certificate",
                self.node_id
            ))),
            TlsIdentity::Client => Err(QuicError::Tls(
                "our own certificate is a client's; a node needs one issued to it".into(),
            )),
        }
    }
}

impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig")
            .field("cluster_id", &self.cluster_id)
            .field("node_id", &self.node_id)
            .field("incarnation", &self.incarnation)
            .field("listen", &self.listen)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

/// Upper bound of [`QuicConfig::client_connections_max`]: each client may fill
/// [`CLIENT_WINDOW_BYTES`].
pub(crate) const CLIENT_CONNECTIONS_CEILING: usize = 1 << 16;

/// Most handshakes in progress at one time.
pub(crate) const HANDSHAKES_MAX: usize = 256;

/// Most handshakes in progress from one source while at least half of [`HANDSHAKES_MAX`] are in
/// use.
pub(crate) const HANDSHAKES_PER_SOURCE_MAX: usize = 16;

/// Burst of handshakes beyond their rate.
pub(crate) const HANDSHAKE_BURST: u32 = 64;

/// Part of [`HANDSHAKES_MAX`] that is reserved for the addresses of peers.
pub(crate) const HANDSHAKES_FOR_PEERS: usize = 32;

/// Interval at which the names of peers are looked up again.
pub(crate) const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// Timeout of one look-up.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often certificates are read again.
pub(crate) const TLS_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Pause between two attempts to connect to a peer: doubles from `BACKOFF_MIN` to `BACKOFF_MAX`.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(20);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// A quiet connection to a peer sends a ping this often.
pub(crate) const PEER_KEEP_ALIVE: Duration = Duration::from_millis(100);

/// A quiet connection of a client sends a ping this often.
pub(crate) const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A client's connection is given up after this long without a packet from the client.
pub(crate) const CLIENT_IDLE: Duration = Duration::from_secs(5);

/// Timeout of one attempt to connect. Callers have shorter timeouts of their own, which adapt to
/// the round trip; this one ends an attempt that its caller has forgotten.
pub(crate) const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Round trip that a client assumes before it has measured one: a lost first packet is sent again
/// after three times as long.
pub(crate) const CLIENT_INITIAL_RTT: Duration = Duration::from_millis(100);

/// How long closing waits for tasks before it aborts them.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long closing then waits for the close packets to leave. Each is sent once. A peer that
/// misses it learns of the end from a stateless reset, or from the idle timeout.
pub(crate) const FAREWELL_TIMEOUT: Duration = Duration::from_millis(250);

/// The same for a client: enough to send one packet on each connection. No node waits for a
/// response from the client.
pub(crate) const CLIENT_FAREWELL_TIMEOUT: Duration = Duration::from_millis(5);

/// Streams that one client may have open at one time; further ones wait.
pub(crate) const CLIENT_STREAMS_MAX: u32 = 64;

/// Bulk streams that a peer may have open to this node at one time; further ones wait.
pub(crate) const BULK_STREAMS_MAX: u32 = 8;

/// Flow-control window of one stream: bytes in flight or unread. It bounds the bytes ahead of a
/// control message at the receiver. Divided by the round trip, it bounds the throughput of one
/// stream: 40 MB/s over 50 ms.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Flow-control window of all streams of one client together, until its connection is widened. It
/// is small because each client can fill it: 4,096 connections hold 256 MiB.
pub(crate) const CLIENT_WINDOW_BYTES: u32 = 64 << 10;

/// Most bytes sent to one client and not acknowledged, until its connection is widened. It exceeds
/// [`INITIAL_WINDOW_BYTES`], below which a sender would wait for [`ACK_DELAY`].
pub(crate) const CLIENT_SEND_WINDOW_BYTES: u64 = 96 << 10;

/// The same two for a widened connection: 20 MB/s each way over a round trip of 50 ms.
pub(crate) const CLIENT_WIDE_WINDOW_BYTES: u32 = 1 << 20;
pub(crate) const CLIENT_WIDE_SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Flow-control window of a connection to a peer: the sum of the windows of its streams (two
/// message streams, and the bulk streams opened by either side). So an unread stream can never hold
/// up another one.
pub(crate) const PEER_WINDOW_BYTES: u32 = (2 + 2 * BULK_STREAMS_MAX) * STREAM_WINDOW_BYTES;

/// Most bytes sent to a peer and not acknowledged. Twice the flow-control window, because bytes
/// that the peer has read may not be acknowledged yet. So the limit that binds is the window of
/// each stream, and never this sum.
pub(crate) const PEER_SEND_WINDOW_BYTES: u64 = 2 * PEER_WINDOW_BYTES as u64;

/// The largest datagram tried, in bytes. Ten of them leave in one batch (GSO), which must stay
/// below 64 KiB.
pub(crate) const MTU_MAX: u16 = 6500;

/// Packets that a receiver may leave unacknowledged for [`ACK_DELAY`]. A response sent within that
/// time carries the acknowledgement, which saves a packet, a system call and a wake-up. Packets out
/// of order are acknowledged at once, so losses are detected as early as without the delay.
pub(crate) const UNACKNOWLEDGED_PACKETS: u32 = 8;
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(5);

/// Bytes sent on a new connection before anything is acknowledged. Not less than the bytes that may
/// stay unacknowledged, or a sender would wait for [`ACK_DELAY`].
pub(crate) const INITIAL_WINDOW_BYTES: u64 = (UNACKNOWLEDGED_PACKETS as u64 + 1) * MTU_MAX as u64;

/// Bytes that the UDP socket is asked to buffer in each direction; the system may grant less.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;
