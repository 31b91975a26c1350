//! The accept loop: incoming handshakes of peers, clients and strangers.
//!
//! Each handshake runs in a task of its own, bounded in time and number, so that none holds up
//! another. The [gate](crate::gate) decides about each before it costs any asymmetric cryptography.
//! Nothing is granted before the certificate is verified and fits the protocol.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quinn::{Connection, Incoming, VarInt};
use raft_core::types::NodeId;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use crate::client::ClientConnection;
use crate::credentials::Verified;
use crate::endpoint::{admit_client, admit_peer};
use crate::error::{close, describe};
use crate::gate::{Load, Request, Verdict, source_of};
use crate::link::PeerLink;
use crate::peer::Peer;
use crate::protocol::{PeerProtocol, Spoken, agreed};
use crate::shared::{Refused, TransportShared, canonical};
use crate::tls::{Side, TlsIdentity};

/// Accepts handshakes until the endpoint is closed. Admitted clients are sent to `clients`, a
/// channel with room for [`client_connections_max`](crate::QuicConfig::client_connections_max) of
/// them.
pub(crate) async fn accept_all(
    shared: Arc<TransportShared>,
    clients: mpsc::Sender<ClientConnection>,
) {
    let mut handshakes = JoinSet::new();
    let mut sources: BTreeMap<Id, IpAddr> = BTreeMap::new();
    while let Some(incoming) = shared.opened.endpoint.accept().await {
        while let Some(ended) = handshakes.try_join_next_with_id() {
            sources.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
        let from = incoming.remote_address();
        let ip = from.ip().to_canonical();
        let source = source_of(ip);
        let load = Load {
            all: handshakes.len(),
            of_this_source: sources.values().filter(|other| **other == source).count(),
        };
        let request = Request {
            ip,
            is_proven: incoming.remote_address_validated(),
            origin: shared.origin(from),
        };
        let verdict = shared.gate.decide(&request, load);
        shared.handshakes.count(verdict);
        match verdict {
            Verdict::Refuse => incoming.refuse(),
            Verdict::Ignore => incoming.ignore(),
            // `retry` fails only for a proven address, and the gate never demands a proof from one.
            Verdict::Prove => drop(incoming.retry()),
            Verdict::Admit => {
                let (shared, clients) = (shared.clone(), clients.clone());
                let task = handshakes.spawn(async move {
                    if let Err((what, reason)) = admit(&shared, incoming, &clients).await {
                        shared.note_refusal(from, what, &reason);
                    }
                });
                sources.insert(task.id(), source);
            }
        }
        // During a flood the loop must yield to the handshake tasks that it has spawned.
        tokio::task::consume_budget().await;
    }
    handshakes.shutdown().await;
}

/// Completes the handshake, identifies the other side, and passes the connection on. Returns the
/// reason of a refusal.
async fn admit(
    shared: &TransportShared,
    incoming: Incoming,
    clients: &mpsc::Sender<ClientConnection>,
) -> Result<(), (Refused, String)> {
    let strange = |reason: String| (Refused::Handshake, reason);
    let exchange_count = shared.credentials.exchange_count();
    let verified = Verified { side: Side::Dialling, exchange_count };
    let connecting = incoming.accept().map_err(|error| strange(describe(&error)))?;
    let connection = timeout(shared.config.handshake_timeout, connecting)
        .await
        .map_err(|_| strange("the handshake takes too long".to_owned()))?
        .map_err(|error| strange(describe(&error)))?;
    let refused = |reason: String| {
        connection.close(close::REFUSED, reason.as_bytes());
        (Refused::Identity, reason)
    };
    let (identity, alpn) =
        TlsIdentity::of_connection(&connection, &shared.config.cluster_id).map_err(refused)?;
    match (agreed(&shared.config.peer_protocols, &alpn).map_err(refused)?, identity) {
        (Spoken::Peer(protocol), TlsIdentity::Node(id)) => {
            let from = canonical(connection.remote_address());
            let peer = peer_of(shared, id, from).map_err(|(code, reason)| {
                connection.close(code, reason.as_bytes());
                (Refused::Identity, reason)
            })?;
            admit_as_peer(shared, connection.clone(), &peer, protocol, verified).await;
            Ok(())
        }
        (Spoken::Peer(_), TlsIdentity::Client) => {
            Err(refused("a client's certificate does not make a peer".to_owned()))
        }
        (Spoken::Client, TlsIdentity::Node(id))
            if id != shared.config.node_id && shared.peers.is_removed(id) =>
        {
            let (code, reason) = removed(id);
            connection.close(code, reason.as_bytes());
            Err((Refused::Identity, reason))
        }
        (Spoken::Client, _) => admit_as_client(shared, connection.clone(), clients, exchange_count)
            .await
            .map_err(|reason| (Refused::Busy, reason)),
    }
}

/// The peer that dials this node, if it may. A peer with a higher id dials only to show its
/// address.
fn peer_of(
    shared: &TransportShared,
    id: NodeId,
    from: SocketAddr,
) -> Result<Arc<Peer>, (VarInt, String)> {
    let own_id = shared.config.node_id;
    let refused = |reason: String| Err((close::REFUSED, reason));
    match shared.peers.get(id) {
        None if shared.peers.is_removed(id) => Err(removed(id)),
        None if shared.peers.follows_log() => {
            // If the channel is full, the guest comes again.
            let _ = shared.guests.try_send((id, from));
            refused(format!("node {own_id} does not know node {id} yet; come again"))
        }
        None => refused(format!(
            "node {id} is not among the peers of node {own_id}; add it to the configuration"
        )),
        Some(peer) if id > own_id => {
            peer.note_address(from);
            refused(format!("node {own_id} dials node {id}, not the other way round"))
        }
        Some(peer) => Ok(peer),
    }
}

/// The refusal of a node that was removed, whether it comes as a peer or as a client.
fn removed(id: NodeId) -> (VarInt, String) {
    let reason = format!(
        "node {id} was removed from the cluster; its id is never used again. Wipe its data \
         directory, and add it as a new member"
    );
    (close::REMOVED, reason)
}

async fn admit_as_peer(
    shared: &TransportShared,
    connection: Connection,
    peer: &Peer,
    protocol: PeerProtocol,
    verified: Verified,
) {
    admit_peer(&connection);
    match PeerLink::establish(shared, connection, peer, protocol, verified).await {
        Ok(link) => peer.hand_over(link).await,
        // The certificate has proven the peer, so the failure is the peer's, whatever address it
        // dialled from.
        Err(reason) => peer.failed(&reason),
    }
}

async fn admit_as_client(
    shared: &TransportShared,
    connection: Connection,
    clients: &mpsc::Sender<ClientConnection>,
    exchange_count: u64,
) -> Result<(), String> {
    let Ok(place) = shared.client_places.clone().try_acquire_owned() else {
        let reason = format!(
            "node {} has {} clients and takes no more; try another node, or later",
            shared.config.node_id, shared.config.client_connections_max
        );
        connection.close(close::BUSY, reason.as_bytes());
        return Err(reason);
    };
    admit_client(&connection);
    let client = ClientConnection::new(connection, place, Arc::clone(&shared.gate));
    client.watch(&shared.credentials, exchange_count)?;
    match timeout(shared.config.handshake_timeout, client.greet()).await {
        Ok(Ok(())) => {
            if clients.try_send(client).is_err() {
                debug!("a client came while the node is closing");
            }
        }
        // A client may leave at any time.
        Ok(Err(_)) | Err(_) => debug!("a client left before it was greeted"),
    }
    Ok(())
}
