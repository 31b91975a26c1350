//! Handshakes of strangers, made beforehand so that they cost the attacker next to nothing. Each is
//! a first packet, for which the node does all of its cryptography, and a packet that closes the
//! connection at once, so that the handshake takes none of the slots that the node has for
//! handshakes. Beside them, some strangers complete their handshakes up to the certificate that
//! they do not have.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_service::net::tls::TlsConfig;
use quinn::{ClientConfig, Endpoint};
use quinn_proto as proto;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{Attacker, Target, client_tls};

/// Seconds after which a handshake is sent again: later than a node forgets it. Until then each has
/// a connection id of its own.
const AGAIN_AFTER_S: u64 = 4;
const TICK: Duration = Duration::from_millis(2);
/// Number of addresses from which the packets come.
const SOURCES: u8 = 16;
/// Strangers that complete their handshakes, one after the other.
const PATIENT_STRANGERS: usize = 2;
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(2);

/// Handshakes with one node, as packets.
pub struct Prepared {
    handshakes: Vec<[Vec<u8>; 2]>,
    target: Target,
    tls: TlsConfig,
    per_second: u64,
}

/// Strangers that attack until this is dropped.
pub struct Strangers {
    _attacker: Attacker,
    sent_count: Arc<AtomicU64>,
    began: Instant,
}

impl Prepared {
    /// Makes the packets for this many handshakes a second. Only the CA of `tls` is used.
    ///
    /// # Panics
    /// If QUIC makes no first packet.
    pub fn new(tls: &TlsConfig, target: Target, per_second: u64) -> Self {
        let config = ClientConfig::new(Arc::new(client_tls(tls, false)));
        let endpoint_config = Arc::new(proto::EndpointConfig::default());
        let count = per_second * AGAIN_AFTER_S;
        let handshake = |_| {
            let mut endpoint = proto::Endpoint::new(Arc::clone(&endpoint_config), None, true, None);
            let now = Instant::now().into_std();
            let connecting = endpoint.connect(now, config.clone(), target.address, &target.name);
            let (_, mut connection) = connecting.expect("an address and a name");
            let hello = packet(&mut connection, now);
            connection.close(now, 0u32.into(), Bytes::new());
            [hello, packet(&mut connection, now)]
        };
        let handshakes = (0..count).map(handshake).collect();
        Self { handshakes, target, tls: tls.clone(), per_second }
    }
}

/// The next packet that the connection sends.
fn packet(connection: &mut proto::Connection, now: std::time::Instant) -> Vec<u8> {
    let mut packet = Vec::new();
    let sent = connection.poll_transmit(now, 1, &mut packet).expect("it has something to send");
    packet.truncate(sent.size);
    packet
}

impl Strangers {
    pub fn start(prepared: Prepared) -> Self {
        let sent_count = Arc::<AtomicU64>::default();
        let count = Arc::clone(&sent_count);
        let attacker = Attacker::spawn(move |stop| attack(prepared, count, stop));
        Self { _attacker: attacker, sent_count, began: Instant::now() }
    }

    /// Handshakes begun per second so far.
    pub fn rate(&self) -> f64 {
        self.sent_count.load(Ordering::Relaxed) as f64 / self.began.elapsed().as_secs_f64()
    }
}

async fn attack(prepared: Prepared, sent_count: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let sockets: Vec<UdpSocket> = (1..=SOURCES).map(socket).collect();
    let mut patient = JoinSet::new();
    for number in 0..PATIENT_STRANGERS {
        let config = ClientConfig::new(Arc::new(client_tls(&prepared.tls, false)));
        patient.spawn(knock(number as u8, config, prepared.target.clone()));
    }
    let began = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * prepared.per_second as f64) as u64;
        while sent < due {
            let socket = &sockets[sent as usize % sockets.len()];
            for packet in &prepared.handshakes[sent as usize % prepared.handshakes.len()] {
                // A full socket buffer loses the packet, as any network does.
                let _ = socket.send_to(packet, prepared.target.address);
            }
            sent += 1;
        }
        sent_count.store(sent, Ordering::Relaxed);
    }
    patient.abort_all();
}

fn socket(low: u8) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 77, 0, low), 0)).expect("a free port");
    socket.set_nonblocking(true).expect("a socket can be");
    socket
}

/// Makes one handshake after the other; each ends with the node's refusal.
async fn knock(number: u8, config: ClientConfig, target: Target) {
    let from = SocketAddr::from((Ipv4Addr::new(127, 78, 0, number + 1), 0));
    let mut endpoint = Endpoint::client(from).expect("a socket");
    endpoint.set_default_client_config(config);
    loop {
        let Ok(connecting) = endpoint.connect(target.address, &target.name) else { return };
        if let Ok(Ok(connection)) = timeout(HANDSHAKE_PATIENCE, connecting).await {
            // In TLS 1.3 the node's refusal comes after the client's side of the handshake has
            // ended.
            let _ = timeout(HANDSHAKE_PATIENCE, connection.closed()).await;
        }
        sleep(TICK).await;
    }
}
