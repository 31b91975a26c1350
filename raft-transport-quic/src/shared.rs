//! What the tasks of one transport share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quinn::ClientConfig;
use raft_core::transport::Inbound;
use raft_core::types::NodeId;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::QuicConfig;
use crate::endpoint::Opened;
use crate::peer::Peer;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: QuicConfig,
    pub(crate) opened: Opened,
    /// How peers are dialled.
    pub(crate) peer_client: ClientConfig,
    pub(crate) peers: BTreeMap<NodeId, Arc<Peer>>,
    pub(crate) inbound: Arc<InboundSlot>,
    /// Places for clients.
    pub(crate) client_places: Arc<Semaphore>,
    pub(crate) refusals: Refusals,
}

impl Shared {
    /// One of the configured peers.
    pub(crate) fn peer(&self, id: NodeId) -> Arc<Peer> {
        self.peers[&id].clone()
    }

    /// Notes that somebody who dialled in was refused, or refused us. If it came from where a
    /// peer is expected, that is the peer's failure.
    pub(crate) fn note_refusal(&self, from: SocketAddr, what: Refused, reason: &str) {
        let expected = |peer: &&Arc<Peer>| peer.address.parse() == Ok(from);
        match self.peers.values().find(expected) {
            Some(peer) => peer.failed(reason),
            None => self.refusals.note(from.ip().to_canonical(), what, reason),
        }
    }
}

/// Where messages go: nowhere before the start and after the end.
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

/// What somebody who dialled in was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    /// No handshake came about; it may be anybody, from anywhere.
    Handshake,
    /// The certificate is of the cluster's CA, and not for what it was used.
    Identity,
    /// There are too many clients.
    Busy,
    /// Another directory of this node is connected.
    Duplicate(NodeId),
}

/// Logs each kind of refusal once per address and time, so that somebody who tries again and again fills
/// no disk. Strangers have a memory of their own: they cannot keep what others do out of the log.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    strangers: Mutex<Noted>,
    known: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    /// When this memory began.
    since: Option<Instant>,
    noted: BTreeSet<(IpAddr, Refused)>,
}

/// Refusals that are remembered. The one after them is said to be the last, and later ones are not logged.
const REFUSALS_MAX: usize = 128;

/// What was logged is then logged again if it still happens.
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
    /// If it has not been noted, which one it is.
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
