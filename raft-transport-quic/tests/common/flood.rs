//! A flood of first packets of handshakes, as a stranger without a certificate sends it.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "shared by a test and an example")]
#![allow(clippy::disallowed_methods, reason = "a thread of its own keeps to a rate by sleeping")]

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use raft_transport_quic::DevCa;
use tokio::time::Instant;

/// Number of different handshakes whose first packets are sent in turn.
const PACKETS: usize = 1_000;

const SOCKETS: usize = 16;

/// Genuine first packets of handshakes, as a stranger without a certificate sends them.
pub async fn first_packets() -> Vec<Vec<u8>> {
    let ca = DevCa::create("test").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let der = rustls_pki_types::pem::PemObject::from_pem_slice(ca.cert_pem().as_bytes()).unwrap();
    roots.add(der).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"kv/2".to_vec()];
    let config = QuicClientConfig::try_from(config).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = sink.local_addr().unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut packets = Vec::new();
    let mut buffer = vec![0; 2_000];
    while packets.len() < PACKETS {
        let connecting = endpoint.connect_with(config.clone(), to, "node-2.test.raft").unwrap();
        let (length, _) = sink.recv_from(&mut buffer).await.unwrap();
        packets.push(buffer[..length].to_vec());
        drop(connecting);
    }
    packets
}

/// Sends the packets at a rate, from a thread of its own, until it is dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    pub sent: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    pub fn start(packets: Vec<Vec<u8>>, to: String, per_second: u64) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            // A client that shares the address of a flood shares its budget. On Linux the flood has
            // an address of its own.
            let from = if cfg!(target_os = "linux") { "127.77.0.1:0" } else { "127.0.0.1:0" };
            let sockets: Vec<_> = (0..SOCKETS).map(|_| UdpSocket::bind(from).unwrap()).collect();
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let due = start.elapsed().as_millis() as u64 * per_second / 1_000;
                let number = count.load(Ordering::Relaxed);
                if number >= due {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let packet = &packets[number as usize % packets.len()];
                // A full socket buffer is a lost packet, as in any network.
                let _ = sockets[number as usize % SOCKETS].send_to(packet, &to);
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        Self { stop, sent, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}
