//! Hostile clients and strangers, and the measurement of the clients beside them.
//!
//! ```text
//!   bystanders   honest clients, and the latencies that they see
//!   stall        connections of one certificate that take memory and give nothing (S11)
//!   strangers    handshakes without a certificate, thousands a second (S12)
//! ```
//!
//! An attacker runs on a thread of its own, speaks QUIC without the client library, and follows
//! none of the rules that the library follows.

pub mod bystanders;
pub mod stall;
pub mod strangers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use kv_service::net::tls::TlsConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The protocol names that an attacker offers.
const PROTOCOLS: [&[u8]; 2] = [b"kv/2", b"kv/1"];

/// A node under attack.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// The name in its certificate.
    pub name: String,
}

/// A thread with a runtime of its own, which ends when this is dropped.
pub(crate) struct Attacker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Attacker {
    /// Runs `attack` until it ends or the attacker is dropped.
    fn spawn<F: Future<Output = ()>>(
        attack: impl FnOnce(Arc<AtomicBool>) -> F + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let run = move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("a runtime");
            runtime.block_on(attack(seen));
        };
        let thread = std::thread::Builder::new().name("attacker".to_owned()).spawn(run);
        Self { stop, thread: Some(thread.expect("a thread")) }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("taken here only").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the attacker panicked");
    }
}

/// TLS of a client that trusts the cluster's CA, with or without a certificate of its own.
fn client_tls(tls: &TlsConfig, shows_certificate: bool) -> QuicClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&tls.ca_pem) {
        roots.add(certificate.expect("a CA's certificate")).expect("a usable one");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is built in")
        .with_root_certificates(roots);
    let mut config = if shows_certificate {
        let chain = CertificateDer::pem_slice_iter(&tls.cert_pem).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(&tls.key_pem).expect("a key");
        builder.with_client_auth_cert(chain.expect("a chain"), key).expect("they fit")
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    QuicClientConfig::try_from(config).expect("TLS 1.3 serves QUIC")
}
