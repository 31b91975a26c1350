//! State that the tasks of one transport share.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use raft_core::transport::Inbound;
use raft_core::types::NodeId;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::QuicConfig;
use crate::credentials::Credentials;
use crate::endpoint::Opened;
use crate::gate::{Origin, SharedGate, Verdict};
use crate::peers::PeerTable;
use crate::removal::Removal;

#[derive(Debug)]
pub(crate) struct TransportShared {
    pub(crate) config: QuicConfig,
    pub(crate) opened: Opened,
    pub(crate) credentials: Credentials,
    pub(crate) peers: PeerTable,
    /// Nodes that are not known as members, and the addresses from which they came.
    pub(crate) guests: mpsc::Sender<(NodeId, SocketAddr)>,
    pub(crate) removal: Removal,
    /// Random id of the cluster; 0 until it is known.
    pub(crate) cluster_uid: Mutex<u128>,
    pub(crate) inbound: Arc<InboundSlot>,
    /// Permits for connected clients.
    pub(crate) client_places: Arc<Semaphore>,
    pub(crate) gate: Arc<SharedGate>,
    pub(crate) handshakes: HandshakeCounters,
    pub(crate) refusals: Refusals,
}

impl TransportShared {
    pub(crate) fn cluster_uid(&self) -> u128 {
        *self.cluster_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relation of a handshake's source address to the peers.
    pub(crate) fn origin(&self, from: SocketAddr) -> Origin {
        let at = canonical(from);
        if let Some(peer) = self.peers.find(|peer| peer.is_at(at)) {
            return Origin::Peer(peer.id);
        }
        if self.peers.find(|peer| peer.is_near(at.ip())).is_some() {
            Origin::NearPeer
        } else {
            Origin::Stranger
        }
    }

    /// Records that an incoming connection was refused, by this node or by the other side. If it
    /// came from the address of a peer, it is recorded as that peer's failure.
    pub(crate) fn note_refusal(&self, from: SocketAddr, what: Refused, reason: &str) {
        match self.peers.find(|peer| peer.is_at(canonical(from))) {
            Some(peer) => peer.failed(reason),
            None => self.refusals.note(from.ip().to_canonical(), what, reason),
        }
    }
}

/// Turns an IPv4 address in its IPv6-mapped form into the IPv4 address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Handshakes that were requested since the start, by decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeCounts {
    /// The handshake was begun.
    pub admitted: u64,
    /// The sender had to prove its address first.
    pub proof_demanded: u64,
    /// The sender was told to come later.
    pub refused: u64,
    /// Nothing was sent in response.
    pub ignored: u64,
}

#[derive(Debug, Default)]
pub(crate) struct HandshakeCounters {
    admitted: AtomicU64,
    proof_demanded: AtomicU64,
    refused: AtomicU64,
    ignored: AtomicU64,
}

impl HandshakeCounters {
    pub(crate) fn count(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Admit => &self.admitted,
            Verdict::Prove => &self.proof_demanded,
            Verdict::Refuse => &self.refused,
            Verdict::Ignore => &self.ignored,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> HandshakeCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HandshakeCounts {
            admitted: read(&self.admitted),
            proof_demanded: read(&self.proof_demanded),
            refused: read(&self.refused),
            ignored: read(&self.ignored),
        }
    }
}

/// The receiver of incoming messages; there is none before the start and after the end.
#[derive(Default)]
pub(crate) struct InboundSlot(RwLock<Option<Arc<dyn Inbound>>>);

impl InboundSlot {
    pub(crate) fn current(&self) -> Option<Arc<dyn Inbound>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, inbound: Option<Arc<dyn Inbound>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = inbound;
    }
}

impl fmt::Debug for InboundSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InboundSlot")
    }
}

/// The kind of a refusal of an incoming connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    /// The handshake failed. The sender is unknown, and its address may be forged.
    Handshake,
    /// The cluster's CA has issued the certificate, but not for this use.
    Identity,
    /// There are too many clients.
    Busy,
    /// Another directory of this node is connected.
    Duplicate(NodeId),
}

/// Logs each kind of refusal once per address and [`FORGOTTEN_AFTER`], so that repeated attempts do
/// not fill the disk. Refusals of strangers are remembered separately: they cannot keep the
/// refusals of others out of the log.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    strangers: Mutex<Noted>,
    known: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    /// When the current period began.
    since: Option<Instant>,
    noted: BTreeSet<(IpAddr, Refused)>,
}

/// Most refusals that are remembered. The next one is logged as the last, and later ones are not
/// logged.
const REFUSALS_MAX: usize = 128;

/// After this time a refusal is logged again if it still happens.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

impl Refusals {
    pub(crate) fn note(&self, from: IpAddr, what: Refused, reason: &str) {
        let memory = if what == Refused::Handshake { &self.strangers } else { &self.known };
        let first = {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.is_new(from, what, Instant::now())
        };
        match first {
            Some(count) if count <= REFUSALS_MAX => warn!(%from, "connection refused: {reason}"),
            Some(_) => {
                warn!("so many connections are refused that others are not logged for a while")
            }
            None => debug!(%from, "connection refused: {reason}"),
        }
    }
}

impl Noted {
    /// Records a refusal. Returns its number if it is new and there is room for it.
    fn is_new(&mut self, from: IpAddr, what: Refused, now: Instant) -> Option<usize> {
        if self.since.is_none_or(|since| now.duration_since(since) > FORGOTTEN_AFTER) {
            *self = Self { since: Some(now), noted: BTreeSet::new() };
        }
        let new = self.noted.len() <= REFUSALS_MAX && self.noted.insert((from, what));
        new.then_some(self.noted.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_refusal_is_noted_once_per_address_and_time() {
        let mut noted = Noted::default();
        let start = Instant::now();
        let ip = |last: usize| IpAddr::from([10, 0, 0, last as u8]);
        assert_eq!(noted.is_new(ip(1), Refused::Handshake, start), Some(1));
        assert_eq!(noted.is_new(ip(1), Refused::Handshake, start), None);
        assert_eq!(noted.is_new(ip(1), Refused::Identity, start), Some(2));
        for count in 3..=REFUSALS_MAX + 1 {
            assert_eq!(noted.is_new(ip(count), Refused::Handshake, start), Some(count));
        }
        assert_eq!(noted.is_new(ip(200), Refused::Handshake, start), None, "it is full");
        let later = start + FORGOTTEN_AFTER + Duration::from_secs(1);
        assert_eq!(noted.is_new(ip(1), Refused::Handshake, later), Some(1));
    }
}
