//! Certificates in use: loaded at the start, exchanged when their files change, and checked against
//! the open connections.
//!
//! A renewal needs no restart: the files are read every few seconds and on request, and compared by
//! content. Certificate, key and CA are exchanged together, and only if they fit each other and
//! this node. A set that does not fit changes nothing, and the operator is warned of it once.
//!
//! A connection does not outlive the trust in the other side. It is closed when a certificate of
//! the other side's chain expires, and when the CA in use after an exchange has not issued that
//! chain. So the answer to a leaked key is a new CA: it takes effect at once, without a restart.
//! Certificate revocation lists are not supported.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use ring::digest::{Context, SHA256};
use rustls_pki_types::CertificateDer;
use tracing::{info, warn};

use crate::certificate_info::expiry;
use crate::error::{QuicError, close, printable};
use crate::tls::{Side, TlsConfig, Verifiers, wall_clock};

/// A certificate of this side that expires within this time is warned of once a day.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 60 * 60;

/// One set of certificates in the form that QUIC needs.
pub(crate) struct Built {
    /// For incoming connections; `None` for a client.
    pub(crate) server: Option<ServerConfig>,
    pub(crate) dialling: ClientConfig,
}

/// Checks that a set fits this node, and builds the QUIC configurations from it.
type Build = Box<dyn Fn(&TlsConfig) -> Result<Built, QuicError> + Send + Sync>;

pub(crate) struct Credentials {
    build: Build,
    current: RwLock<Current>,
    watched: Mutex<VecDeque<Watched>>,
    /// Number of exchanges so far.
    exchanges: AtomicU64,
    /// The last failure that was logged, so that each failure is logged once and not at each poll.
    logged: Mutex<Option<String>>,
}

struct Current {
    tls: TlsConfig,
    fingerprint: [u8; 32],
    dialling: ClientConfig,
    verifiers: Verifiers,
    /// Day (since 1970) of the last warning that this side's certificate expires soon.
    warned_on: Option<u64>,
}

/// How a handshake has verified the other side.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) side: Side,
    /// [`Credentials::exchange_count`] when the handshake began.
    pub(crate) exchange_count: u64,
}

/// Connections that are checked before the task yields.
const CHECKED_AT_ONCE: usize = 16;

/// An open connection, and the certificate chain that the other side presented.
struct Watched {
    connection: Weak<Connection>,
    chain: Vec<CertificateDer<'static>>,
    side: Side,
    expires_at: SystemTime,
}

impl Watched {
    /// Returns true if the connection is still trusted, and closes it otherwise. Returns false for
    /// a connection that is gone. With `verify` the chain is verified again, and not only its
    /// expiry.
    fn is_trusted(&self, verifiers: &Verifiers, verify: bool) -> bool {
        let Some(connection) = self.connection.upgrade() else { return false };
        let reason = if self.expires_at <= wall_clock() {
            "the certificate has expired; issue a new one".to_owned()
        } else if verify && let Err(error) = verifiers.verify(&self.side, &self.chain) {
            format!("the certificate is no longer trusted: {}", printable(&error.to_string()))
        } else {
            return true;
        };
        warn!(address = %connection.remote_address(), "closing a connection: {reason}");
        connection.close(close::REFUSED, reason.as_bytes());
        false
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Returns the credentials, and the server configuration for incoming connections.
    pub(crate) fn new(
        tls: TlsConfig,
        build: Build,
    ) -> Result<(Self, Option<ServerConfig>), QuicError> {
        let Built { server, dialling } = build(&tls)?;
        let current = Current::new(tls, dialling)?;
        let credentials = Self {
            build,
            current: RwLock::new(current),
            watched: Mutex::default(),
            exchanges: AtomicU64::new(0),
            logged: Mutex::default(),
        };
        credentials.warn_of_expiry();
        Ok((credentials, server))
    }

    /// The client configuration for new outgoing connections.
    pub(crate) fn dialling(&self) -> ClientConfig {
        self.current.read().unwrap_or_else(PoisonError::into_inner).dialling.clone()
    }

    /// Reads the files again, and uses their content if it has changed. Returns true if it had.
    /// Returns false if it had not, or if the certificates do not come from files.
    ///
    /// # Errors
    /// The set cannot be read or does not fit; the certificates in use stay in use.
    pub(crate) async fn reload(&self, endpoint: &Endpoint) -> Result<bool, QuicError> {
        let (files, fingerprint) = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            (current.tls.files().cloned(), current.fingerprint)
        };
        let Some(files) = files else { return Ok(false) };
        let reading = tokio::task::spawn_blocking(move || files.read());
        let tls = reading.await.map_err(|error| QuicError::Tls(error.to_string()))??;
        if fingerprint_of(&tls) == fingerprint {
            return Ok(false);
        }
        let Built { server, dialling } = (self.build)(&tls)?;
        let taken = Current::new(tls, dialling)?;
        if server.is_some() {
            endpoint.set_server_config(server);
        }
        {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            *current = taken;
            self.exchanges.fetch_add(1, Ordering::SeqCst);
        }
        info!("new certificates are in use");
        self.close_untrusted(true).await;
        Ok(true)
    }

    /// Periodic poll: reloads the files, warns if they cannot be used, and closes expired
    /// connections.
    pub(crate) async fn look(&self, endpoint: &Endpoint) {
        let failure = match self.reload(endpoint).await {
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        self.warn_once(failure);
        self.warn_of_expiry();
        self.close_untrusted(false).await;
    }

    fn warn_once(&self, failure: Option<String>) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &failure
            && logged.as_ref() != Some(failure)
        {
            warn!(
                "the certificates in the files are not taken, and the earlier ones stay: {failure}"
            );
        }
        *logged = failure;
    }

    /// Number of exchanges so far. Read it before a handshake begins, for [`watch`](Self::watch).
    pub(crate) fn exchange_count(&self) -> u64 {
        self.exchanges.load(Ordering::SeqCst)
    }

    /// Watches a connection until it is no longer trusted. `exchange_count` is the number of
    /// exchanges before its handshake began. If there was another exchange since, the chain is
    /// verified again.
    ///
    /// # Errors
    /// The reason for which the connection is not trusted.
    pub(crate) fn watch(
        &self,
        connection: &Arc<Connection>,
        side: Side,
        exchange_count: u64,
    ) -> Result<(), String> {
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or("a certificate is needed")?;
        let expires_at = chain
            .iter()
            .map(|certificate| expiry(certificate))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .min()
            .ok_or("a certificate is needed")?;
        let connection = Arc::downgrade(connection);
        let watched = Watched { connection, chain: *chain, side, expires_at };
        // The lock is held until the connection is in the list. So an exchange comes either before,
        // and is counted, or after, and finds the connection in the list.
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let is_new = self.exchange_count() != exchange_count;
        if is_new && !watched.is_trusted(&current.verifiers, true) {
            return Err("the certificate is no longer trusted".to_owned());
        }
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push_back(watched);
        drop(current);
        Ok(())
    }

    /// Closes connections whose certificate has expired, and with `verify` those that the
    /// certificates in use do not trust. A check takes about 0.1 ms, so the task yields in between.
    async fn close_untrusted(&self, verify: bool) {
        let count = self.watched.lock().unwrap_or_else(PoisonError::into_inner).len();
        for batch in (0..count).step_by(CHECKED_AT_ONCE) {
            {
                let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
                let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
                for _ in batch..count.min(batch + CHECKED_AT_ONCE) {
                    let Some(next) = watched.pop_front() else { break };
                    if next.is_trusted(&current.verifiers, verify) {
                        watched.push_back(next);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    fn warn_of_expiry(&self) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let today = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY;
        let Ok(expires_at) = current.tls.expires_at() else { return };
        let left = expires_at.duration_since(wall_clock()).unwrap_or_default();
        if left < EXPIRES_SOON && current.warned_on != Some(today) {
            current.warned_on = Some(today);
            let days = left.as_secs() / DAY;
            warn!(
                "this side's certificate expires in {days} days, and no connection can be made after that; \
                 put a new one into its files, and it is taken without a restart"
            );
        }
    }
}

impl Current {
    fn new(tls: TlsConfig, dialling: ClientConfig) -> Result<Self, QuicError> {
        let fingerprint = fingerprint_of(&tls);
        let verifiers = tls.verifiers()?;
        Ok(Self { tls, fingerprint, dialling, verifiers, warned_on: None })
    }
}

fn fingerprint_of(tls: &TlsConfig) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for pem in [&tls.ca_pem, &tls.cert_pem, &tls.key_pem] {
        context.update(&(pem.len() as u64).to_be_bytes());
        context.update(pem);
    }
    context.finish().as_ref().try_into().expect("a SHA-256 has 32 bytes")
}
