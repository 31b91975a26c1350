//! Whoever dials in: a peer, a client, or somebody who has no business here.
//!
//! Each handshake runs in a task of its own, bounded in time and number, so nobody holds up another.
//! Past half of the bound, or with some from their address, senders must first prove that it is theirs,
//! and an address has only a few; the last places are for the addresses of peers. Nothing is granted before the certificate is verified and fits the protocol.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use quinn::{Connection, Incoming};
use raft_core::types::NodeId;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use crate::client::ClientConnection;
use crate::config::{
    HANDSHAKE_TIMEOUT, HANDSHAKES_FOR_PEERS, HANDSHAKES_MAX, HANDSHAKES_PER_IP_MAX,
    HANDSHAKES_UNPROVEN_MAX,
};
use crate::endpoint::{admit_client, admit_peer};
use crate::error::{close, describe};
use crate::link::Link;
use crate::protocol::{PeerProtocol, Spoken, agreed};
use crate::shared::{Refused, Shared};
use crate::tls::Identity;

/// Runs until the endpoint is closed. `clients` are those that are admitted; it has room for as many
/// as may be connected.
pub(crate) async fn accept_all(shared: Arc<Shared>, clients: mpsc::Sender<ClientConnection>) {
    let mut handshakes = JoinSet::new();
    let mut sources: BTreeMap<Id, IpAddr> = BTreeMap::new();
    while let Some(incoming) = shared.opened.endpoint.accept().await {
        while let Some(ended) = handshakes.try_join_next_with_id() {
            sources.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
        let from = incoming.remote_address();
        let ip = from.ip().to_canonical();
        let load = Load {
            all: handshakes.len(),
            of_this_ip: sources.values().filter(|source| **source == ip).count(),
        };
        let is_peer = || shared.peers.values().any(|peer| peer.is_at(ip));
        match load.decide(incoming.may_retry(), is_peer) {
            Decision::Refuse => incoming.refuse(),
            // It may retry, so this cannot fail.
            Decision::Prove => drop(incoming.retry()),
            Decision::Admit => {
                let (shared, clients) = (shared.clone(), clients.clone());
                let task = handshakes.spawn(async move {
                    if let Err((what, reason)) = admit(&shared, incoming, &clients).await {
                        shared.note_refusal(from, what, &reason);
                    }
                });
                sources.insert(task.id(), ip);
            }
        }
    }
    handshakes.shutdown().await;
}

/// Handshakes under way.
struct Load {
    all: usize,
    of_this_ip: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Admit,
    /// Come back with a proof that the address is yours.
    Prove,
    Refuse,
}

impl Load {
    fn decide(&self, may_prove: bool, is_peer: impl Fn() -> bool) -> Decision {
        let crowded = self.all >= HANDSHAKES_MAX / 2;
        if self.all >= HANDSHAKES_MAX {
            Decision::Refuse
        } else if may_prove && (crowded || self.of_this_ip >= HANDSHAKES_UNPROVEN_MAX) {
            // Before anything is counted against the address: it may be somebody else's.
            Decision::Prove
        } else if crowded && self.of_this_ip >= HANDSHAKES_PER_IP_MAX
            || self.all >= HANDSHAKES_MAX - HANDSHAKES_FOR_PEERS && !is_peer()
        {
            Decision::Refuse
        } else {
            Decision::Admit
        }
    }
}

/// Finds out who it is and hands it on, or says why not.
async fn admit(
    shared: &Shared,
    incoming: Incoming,
    clients: &mpsc::Sender<ClientConnection>,
) -> Result<(), (Refused, String)> {
    let strange = |reason: String| (Refused::Handshake, reason);
    let connecting = incoming.accept().map_err(|error| strange(describe(&error)))?;
    let connection = timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| strange("the handshake takes too long".to_owned()))?
        .map_err(|error| strange(describe(&error)))?;
    let refused = |reason: String| {
        connection.close(close::REFUSED, reason.as_bytes());
        (Refused::Identity, reason)
    };
    let (identity, alpn) =
        Identity::of_connection(&connection, &shared.config.cluster_id).map_err(refused)?;
    match (agreed(&shared.config.peer_protocols, &alpn).map_err(refused)?, identity) {
        (Spoken::Peer(protocol), Identity::Node(id)) => {
            check_peer(shared, id).map_err(refused)?;
            admit_as_peer(shared, connection.clone(), id, protocol).await;
            Ok(())
        }
        (Spoken::Peer(_), Identity::Client) => {
            Err(refused("a client's certificate does not make a peer".to_owned()))
        }
        (Spoken::Client, _) => admit_as_client(shared, connection.clone(), clients)
            .await
            .map_err(|reason| (Refused::Busy, reason)),
    }
}

fn check_peer(shared: &Shared, id: NodeId) -> Result<(), String> {
    let own_id = shared.config.node_id;
    if !shared.peers.contains_key(&id) {
        Err(format!(
            "node {id} is not among the peers of node {own_id}; add it to the configuration"
        ))
    } else if id > own_id {
        Err(format!("node {own_id} dials node {id}, not the other way round; run equal versions"))
    } else {
        Ok(())
    }
}

async fn admit_as_peer(
    shared: &Shared,
    connection: Connection,
    id: NodeId,
    protocol: PeerProtocol,
) {
    let peer = shared.peer(id);
    admit_peer(&connection);
    match Link::establish(shared, connection, id, protocol).await {
        Ok(link) => peer.hand_over(link).await,
        // It has proven who it is, so this is about the peer, wherever it came from.
        Err(reason) => peer.failed(&reason),
    }
}

async fn admit_as_client(
    shared: &Shared,
    connection: Connection,
    clients: &mpsc::Sender<ClientConnection>,
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
    match timeout(HANDSHAKE_TIMEOUT, ClientConnection::greet(connection, place)).await {
        Ok(Ok(client)) => {
            if clients.try_send(client).is_err() {
                debug!("a client came while the node is closing");
            }
        }
        // It has gone, which is its right.
        Ok(Err(_)) | Err(_) => debug!("a client left before it was greeted"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_strangers_leaves_room_for_others() {
        let decide = |all, of_this_ip, may_prove, is_peer| {
            Load { all, of_this_ip }.decide(may_prove, || is_peer)
        };
        // While there is room, one address may have much of it, such as many clients on one machine.
        assert_eq!(decide(0, 0, true, false), Decision::Admit);
        assert_eq!(decide(100, 100, false, false), Decision::Admit);
        // Whose address it is has to be proven before it counts against the address.
        assert_eq!(decide(8, HANDSHAKES_UNPROVEN_MAX, true, true), Decision::Prove);
        assert_eq!(decide(HANDSHAKES_MAX / 2, 0, true, true), Decision::Prove);
        // In a crowd nobody has more than a few.
        let crowd = HANDSHAKES_MAX / 2;
        assert_eq!(decide(crowd, HANDSHAKES_PER_IP_MAX, false, false), Decision::Refuse);
        assert_eq!(decide(crowd, HANDSHAKES_UNPROVEN_MAX, false, false), Decision::Admit);
        // The last places are for peers.
        let last = HANDSHAKES_MAX - HANDSHAKES_FOR_PEERS;
        assert_eq!(decide(last, 0, false, false), Decision::Refuse);
        assert_eq!(decide(last, HANDSHAKES_UNPROVEN_MAX, false, true), Decision::Admit);
        assert_eq!(decide(HANDSHAKES_MAX, 0, true, true), Decision::Refuse);
    }
}
