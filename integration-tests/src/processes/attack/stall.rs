//! One certificate, thousands of connections, and on each an attack that makes a node keep bytes:
//! frames that never end, responses that are never read, streams that no request needs. A
//! connection that the node closes is opened again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use kv_service::net::tls::TlsConfig;
use kv_service::protocol::{Greeting, Request, RequestKind, push_frame};
use kv_service::{Consistency, Query};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Attacker, Target, client_tls};

/// Handshakes under way at a time. More would only wait for each other.
const CONNECTING_AT_ONCE: usize = 16;
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Pause before a connection that was closed is opened again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// A write without progress for this long will not get on: the flow-control window is full.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// Length that an unfinished frame announces: as much as the largest value takes.
const FRAME_BYTES: u32 = (1 << 20) + 1000;
/// Reads of a large value whose responses are never read.
const READS: u64 = 64;
/// Requests with small responses that are never read.
const SMALL_REQUESTS: u64 = 4096;
const STREAMS: usize = 63;
/// The attacker's receive window: the smaller, the more of a response stays at the node.
const WINDOW_BYTES: u32 = 4 << 10;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Key of a value as large as a frame, which must exist before the attack.
pub const LARGE_KEY: &str = "attack/large";

/// Connections that stall until this is dropped.
pub struct Stalled {
    _attacker: Attacker,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    /// Connections whose first attempt has succeeded or failed.
    tried: AtomicUsize,
}

impl Stalled {
    /// Opens this many connections to each target.
    pub fn start(tls: &TlsConfig, targets: Vec<Target>, connections: usize) -> Self {
        let counts = Arc::<Counts>::default();
        let (tls, seen) = (tls.clone(), Arc::clone(&counts));
        let attack = move |stop| attack(tls, targets, connections, seen, stop);
        Self { _attacker: Attacker::spawn(attack), counts }
    }

    /// Connections that are open.
    pub fn open_count(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Connections that were tried at least once.
    pub fn tried_count(&self) -> usize {
        self.counts.tried.load(Ordering::Relaxed)
    }
}

async fn attack(
    tls: TlsConfig,
    targets: Vec<Target>,
    connections: usize,
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
) {
    let from = SocketAddr::new(IpAddr::from(Ipv4Addr::new(127, 66, 66, 1)), 0);
    let mut endpoint = Endpoint::client(from).expect("a socket");
    endpoint.set_default_client_config(config(&tls));
    let turns = Arc::new(tokio::sync::Semaphore::new(CONNECTING_AT_ONCE));
    let mut stalled = JoinSet::new();
    for number in 0..connections {
        for target in &targets {
            let how = How::ALL[number % How::ALL.len()];
            let (endpoint, target) = (endpoint.clone(), target.clone());
            let (turns, counts) = (Arc::clone(&turns), Arc::clone(&counts));
            stalled.spawn(async move {
                let mut first = true;
                loop {
                    let turn = turns.acquire().await.expect("never closed");
                    let connected = connect(&endpoint, &target).await;
                    drop(turn);
                    counts.tried.fetch_add(usize::from(first), Ordering::Relaxed);
                    first = false;
                    if let Some(connection) = connected {
                        counts.open.fetch_add(1, Ordering::Relaxed);
                        how.stall(&connection).await;
                        counts.open.fetch_sub(1, Ordering::Relaxed);
                    }
                    sleep(AGAIN_AFTER).await;
                }
            });
        }
    }
    while !stop.load(Ordering::Relaxed) {
        sleep(LOOK_AGAIN_AFTER).await;
    }
    stalled.abort_all();
    endpoint.close(0u32.into(), b"");
}

fn config(tls: &TlsConfig) -> ClientConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .stream_receive_window(WINDOW_BYTES.into())
        .receive_window(WINDOW_BYTES.into());
    let mut config = ClientConfig::new(Arc::new(client_tls(tls, true)));
    config.transport_config(Arc::new(transport));
    config
}

async fn connect(endpoint: &Endpoint, target: &Target) -> Option<Connection> {
    let connecting = endpoint.connect(target.address, &target.name).ok()?;
    timeout(CONNECT_PATIENCE, connecting).await.ok()?.ok()
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// A frame that lacks its last byte.
    HalfFrame,
    LargeAnswersUnread,
    SmallAnswersUnread,
    /// A greeting that lacks its last byte.
    HalfGreeting,
    /// Many streams, full of bytes that no request needs.
    IdleStreams,
}

impl How {
    const ALL: [How; 5] = [
        How::HalfFrame,
        How::LargeAnswersUnread,
        How::SmallAnswersUnread,
        How::HalfGreeting,
        How::IdleStreams,
    ];

    /// Stalls until the node closes the connection.
    async fn stall(self, connection: &Connection) {
        // Held: dropping a stream tells the node that it is not read, and the node would end it.
        let _streams = self.begin(connection).await;
        connection.closed().await;
    }

    /// Returns `None` if the connection was closed meanwhile.
    async fn begin(self, connection: &Connection) -> Option<Vec<(SendStream, RecvStream)>> {
        let (mut stream, unread) = connection.open_bi().await.ok()?;
        let mut bytes = BytesMut::new();
        push_frame(&mut bytes, &Greeting::new(format!("{self:?}")));
        match self {
            How::HalfFrame => {
                bytes.extend(FRAME_BYTES.to_be_bytes());
                bytes.extend(std::iter::repeat_n(7, FRAME_BYTES as usize - 1));
            }
            How::LargeAnswersUnread => {
                let query = Query::Get { key: LARGE_KEY.into() };
                for id in 1..=READS {
                    let consistency = Consistency::Stale;
                    let kind = RequestKind::Read { query: query.clone(), consistency };
                    push_frame(&mut bytes, &Request::new(id, kind));
                }
            }
            How::SmallAnswersUnread => {
                for id in 1..=SMALL_REQUESTS {
                    push_frame(&mut bytes, &Request::new(id, RequestKind::Status));
                }
            }
            How::HalfGreeting => bytes.truncate(bytes.len() - 1),
            How::IdleStreams => {}
        }
        push(&mut stream, &bytes).await;
        let mut streams = vec![(stream, unread)];
        if matches!(self, How::IdleStreams) {
            while streams.len() < STREAMS {
                let opened = timeout(STUCK_AFTER, connection.open_bi()).await.ok()?;
                let (mut stream, unread) = opened.ok()?;
                push(&mut stream, &[7; 32 << 10]).await;
                streams.push((stream, unread));
            }
        }
        Some(streams)
    }
}

/// Sends as many of the bytes as the node takes.
async fn push(stream: &mut SendStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match timeout(STUCK_AFTER, stream.write(bytes)).await {
            Ok(Ok(written)) => bytes = &bytes[written..],
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
