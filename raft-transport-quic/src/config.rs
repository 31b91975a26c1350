//! The configuration of a node's transport, and every limit with its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use raft_core::types::NodeId;

use crate::error::QuicError;
use crate::names::Names;
use crate::protocol::{PEER_PROTOCOLS, PeerProtocol};
use crate::tls::{Identity, TlsConfig, check_cluster_id};

/// The settings of one node's transport.
#[derive(Clone)]
pub struct QuicConfig {
    /// Nodes and clients of another cluster are refused. One DNS label.
    pub cluster_id: String,
    /// Must be what the certificate says.
    pub node_id: NodeId,
    /// Which data this node has: a number drawn at random when its directory was made, and kept with
    /// it. While a peer is connected to one, it refuses another one, so that two nodes that run under
    /// one name do not take turns; the same one again is a restart, and replaces the old connection.
    pub incarnation: u64,
    /// The UDP address for peers and clients. Port 0 takes any that is free.
    pub listen: SocketAddr,
    /// Where the other members listen, `host:port`. Only these are talked to; this node itself may be
    /// among them and is passed over. A peer whose own list has other ids is refused: two lists mean
    /// two ideas of a majority.
    pub peers: BTreeMap<NodeId, String>,
    /// 128 random bits of the cluster, drawn when it was founded; 0 while there are none. A peer with
    /// other ones is refused: two clusters may have one name.
    pub cluster_uid: u128,
    /// The oldest and the newest cluster version (formats of log and snapshots) that this program
    /// supports, as `raft_core::consensus::Config` has them. A peer that shares none is refused.
    pub cluster_versions: (u32, u32),
    pub tls: TlsConfig,
    /// Keep it with the node's data: with the same key after a restart, peers learn within
    /// milliseconds that their old connections are gone. Secret.
    pub reset_key: [u8; 64],
    /// Clients connected at one time. Beyond it they are refused as busy.
    pub client_connections_max: usize,
    /// Bytes of control messages that may wait for one peer. What does not fit is dropped.
    pub control_bytes_max: u64,
    /// Bytes of log messages that may wait for one peer. What does not fit is dropped.
    pub log_bytes_max: u64,
    /// How long the first attempt to reach a peer may take; it doubles with each that fails.
    /// Short, because an attempt that began before the peer was up notices only late that it is.
    pub dial_timeout: Duration,
    /// No attempt to reach a peer takes longer, however many have failed.
    pub dial_timeout_max: Duration,
    /// After this long without a sign of life a connection to a peer is given up.
    pub idle_timeout: Duration,
    /// How long a peer may take to introduce itself on a new connection. It doubles with each failure of
    /// that peer, up to 8 times as much, so that a peer far away gets in as well.
    pub hello_timeout: Duration,
    /// From the first packet of one who dials this node until the other side is known.
    pub handshake_timeout: Duration,
    /// After this long without a sign of life a client's connection is given up.
    pub client_idle_timeout: Duration,
    /// Handshakes a second of addresses that are not peers', at least 2; half of them of one source. What
    /// exceeds it is refused or ignored before it costs any cryptography.
    pub handshakes_per_second: u32,
    /// How often certificates are read again, if they come from files ([`TlsConfig::read`]).
    pub tls_poll_interval: Duration,
    pub(crate) names: Names,
    /// The newest first. A test adds versions that are not there yet.
    pub(crate) peer_protocols: Vec<PeerProtocol>,
}

impl QuicConfig {
    /// With the default limits.
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

    /// The certificate is this node's.
    pub(crate) fn check_identity(&self, tls: &TlsConfig) -> Result<(), QuicError> {
        match tls.identity(&self.cluster_id)? {
            Identity::Node(id) if id == self.node_id => Ok(()),
            Identity::Node(id) => Err(QuicError::Tls(format!(
                "our own certificate is for node {id}, but this is node {}; use its own certificate",
                self.node_id
            ))),
            Identity::Client => Err(QuicError::Tls(
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

/// More clients than this are a mistake: each may fill [`CLIENT_WINDOW_BYTES`].
pub(crate) const CLIENT_CONNECTIONS_CEILING: usize = 1 << 16;

/// Handshakes under way at one time.
pub(crate) const HANDSHAKES_MAX: usize = 256;

/// Handshakes under way of one source when half of all places are taken.
pub(crate) const HANDSHAKES_PER_SOURCE_MAX: usize = 16;

/// Handshakes that may begin at once, beyond their rate.
pub(crate) const HANDSHAKE_BURST: u32 = 64;

/// The last places, which only the addresses of peers get.
pub(crate) const HANDSHAKES_FOR_PEERS: usize = 32;

/// How often the names of peers are looked up again.
pub(crate) const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long one look-up may take.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often certificates are read again.
pub(crate) const TLS_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Pause between two attempts to reach a peer: doubles from the first to the second.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(20);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// A connection to a peer that shows nothing sends a ping this often.
pub(crate) const PEER_KEEP_ALIVE: Duration = Duration::from_millis(100);

/// Likewise a client's.
pub(crate) const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// After this long without a sign of life a client's connection is given up.
pub(crate) const CLIENT_IDLE: Duration = Duration::from_secs(5);

/// How long a client waits for a connection at most. Callers have a patience of their own, which adapts to
/// the round trip; this ends what a caller has forgotten.
pub(crate) const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// A client assumes this round trip before it has measured one: a lost first packet is sent again after
/// three of them.
pub(crate) const CLIENT_INITIAL_RTT: Duration = Duration::from_millis(100);

/// How long closing waits for tasks before it cuts them off.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// And then for the last words to leave. They are said once; a peer that misses them learns it from a reset
/// or notices the silence.
pub(crate) const FAREWELL_TIMEOUT: Duration = Duration::from_millis(250);

/// A client's last words: enough to send a packet on each connection. A node does not miss the
/// response.
pub(crate) const CLIENT_FAREWELL_TIMEOUT: Duration = Duration::from_millis(5);

/// Streams that one client may have open at one time; further ones wait.
pub(crate) const CLIENT_STREAMS_MAX: u32 = 64;

/// Bulk streams that a peer may have open towards us at one time; further ones wait.
pub(crate) const BULK_STREAMS_MAX: u32 = 8;

/// Bytes on their way or unread in one stream. It bounds what a control message can find ahead of it at
/// the receiver, and, divided by the round trip, what one stream can carry: 40 MB/s over 50 ms.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes on their way or unread in all streams of one client, until its connection is widened. Memory that a
/// client can fill on each connection, so small: 4,096 of them hold 256 MiB.
pub(crate) const CLIENT_WINDOW_BYTES: u32 = 64 << 10;

/// Bytes sent to one client and not acknowledged, until its connection is widened. More than
/// [`INITIAL_WINDOW_BYTES`], below which a sender would wait for [`ACK_DELAY`].
pub(crate) const CLIENT_SEND_WINDOW_BYTES: u64 = 96 << 10;

/// The same two for a connection that was widened: 20 MB/s each way over a round trip of 50 ms.
pub(crate) const CLIENT_WIDE_WINDOW_BYTES: u32 = 1 << 20;
pub(crate) const CLIENT_WIDE_SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Two message streams, and bulk streams opened by either side. The window of a peer connection is the
/// sum of its streams' windows, so that a stream that is not read can never hold up another.
pub(crate) const PEER_WINDOW_BYTES: u32 = (2 + 2 * BULK_STREAMS_MAX) * STREAM_WINDOW_BYTES;

/// Bytes sent and not acknowledged. Twice the window, since what was read may not be acknowledged
/// yet; so it is the windows that bind, stream by stream, and never this sum.
pub(crate) const PEER_SEND_WINDOW_BYTES: u64 = 2 * PEER_WINDOW_BYTES as u64;

/// The largest datagram tried. Times the ten that leave in one batch (GSO) it must stay below 64 KiB.
pub(crate) const MTU_MAX: u16 = 6500;

/// Packets that may come in before they must be acknowledged: what is answered within [`ACK_DELAY`] carries the
/// acknowledgement along, and needs no packet, system call and wake-up for it. What comes out of order is
/// acknowledged at once, so losses are noticed as before.
pub(crate) const UNACKNOWLEDGED_PACKETS: u32 = 8;
pub(crate) const ACK_DELAY: Duration = Duration::from_millis(5);

/// Sent on a new connection before anything is acknowledged: not less than what may stay unacknowledged, or a
/// sender would wait for [`ACK_DELAY`].
pub(crate) const INITIAL_WINDOW_BYTES: u64 = (UNACKNOWLEDGED_PACKETS as u64 + 1) * MTU_MAX as u64;

/// Bytes that the UDP socket is asked to buffer in each direction; the system may grant less.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;
