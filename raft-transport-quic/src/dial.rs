//! One attempt to connect to a peer.

use std::time::Duration;

use quinn::ConnectionError;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::credentials::Verified;
use crate::error::{close, describe};
use crate::link::PeerLink;
use crate::peer::Peer;
use crate::protocol::{Spoken, agreed};
use crate::shared::TransportShared;
use crate::tls::{Side, TlsIdentity, node_name};

/// A node shows its address to a peer that has not dialled it for so long; doubles with each
/// attempt up to [`SHOWN_AFTER_MAX`].
const SHOWN_AFTER: Duration = Duration::from_millis(500);
const SHOWN_AFTER_MAX: Duration = Duration::from_secs(2);

/// The address that an attempt uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The next one in turn.
    Nth(usize),
    /// The one that the peer has just shown.
    Shown,
}

/// Makes one attempt. Each attempt uses the next of the peer's addresses, because the first may
/// never answer.
pub(crate) async fn try_dial(
    shared: &TransportShared,
    peer: &Peer,
    patience: Duration,
    attempt: Attempt,
) -> Result<PeerLink, String> {
    let TransportShared { opened, config, .. } = shared;
    let endpoint = &opened.endpoint;
    let exchange_count = shared.credentials.exchange_count();
    let found = peer.addresses(&config.names, endpoint).await?;
    // The shown address is the last one.
    let to = match attempt {
        Attempt::Nth(attempt) => found[attempt % found.len()],
        Attempt::Shown => found[found.len() - 1],
    };
    let name = node_name(&config.cluster_id, peer.id);
    let connecting = endpoint
        .connect_with(shared.credentials.dialling(), to, &name)
        .map_err(|error| format!("cannot dial: {error}"))?;
    let connection = timeout(patience, connecting)
        .await
        .map_err(|_| describe(&ConnectionError::TimedOut))?
        .map_err(|error| describe(&error))?;
    let (_, alpn) = TlsIdentity::of_connection(&connection, &config.cluster_id)?;
    let spoken = agreed(&config.peer_protocols, &alpn)?;
    let Spoken::Peer(protocol) = spoken else {
        return Err("it has chosen the client protocol; run equal versions".to_owned());
    };
    let verified = Verified { side: Side::Dialled(name), exchange_count };
    let established =
        PeerLink::establish(shared, connection.clone(), peer, protocol, verified).await;
    match (&established, connection.close_reason()) {
        (Ok(_), _) => shared.removal.withdraw(peer.id),
        (Err(_), Some(ConnectionError::ApplicationClosed(closed)))
            if closed.error_code == close::REMOVED && peer.is_member() =>
        {
            shared.removal.note(peer.id, shared.peers.member_count());
        }
        (Err(_), _) => {}
    }
    established
}

/// Dials a peer that does not dial this node, so that the peer learns where this node is: its
/// address may be new, or the peer may not know of this member yet. The peer refuses the
/// connection, and then dials back.
pub(crate) async fn show_address(shared: &TransportShared, peer: &Peer, attempt: usize) {
    let doubled = |first: Duration, max: Duration| {
        let factor = 1u32.checked_shl(attempt as u32).unwrap_or(u32::MAX);
        first.saturating_mul(factor).min(max)
    };
    sleep(jittered(doubled(SHOWN_AFTER, SHOWN_AFTER_MAX))).await;
    if !shared.peers.follows_log() {
        return;
    }
    let patience = doubled(shared.config.dial_timeout, shared.config.dial_timeout_max);
    if let Err(refusal) = try_dial(shared, peer, patience, Attempt::Nth(attempt)).await {
        debug!(peer = peer.id, "showed the own address: {refusal}");
    }
}

/// A random pause between half of `pause` and all of it, so that two nodes do not keep missing each
/// other in step.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let chance = getrandom::u32().unwrap_or(0);
    pause / 2 + pause.mul_f64(0.5 * f64::from(chance) / f64::from(u32::MAX))
}
