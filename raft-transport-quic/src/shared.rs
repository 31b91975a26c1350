//! What the tasks of one transport share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use quinn::ClientConfig;
use raft_core::transport::Inbound;
use raft_core::types::NodeId;
use tokio::sync::Semaphore;
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
    pub(crate) fn note_refusal(&self, from: SocketAddr, reason: &str) {
        let expected = |peer: &&Arc<Peer>| peer.address.parse() == Ok(from);
        match self.peers.values().find(expected) {
            Some(peer) => peer.failed(reason),
            None => self.refusals.note(from.ip(), reason),
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

/// Logs each reason for a refusal once, so that somebody who tries again and again fills no disk.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeSet<(IpAddr, String)>>);

/// Distinct refusals that are remembered. When so many have been logged, later ones are not.
const REFUSALS_MAX: usize = 256;

impl Refusals {
    fn note(&self, from: IpAddr, reason: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < REFUSALS_MAX && known.insert((from, reason.to_owned())) {
            warn!(%from, "connection refused: {reason}");
        } else {
            debug!(%from, "connection refused: {reason}");
        }
    }
}
