//! Whoever dials in: a peer, a client, or somebody who has no business here.
//!
//! Each handshake runs in a task of its own, bounded in time and number, so nobody holds up another.
//! Past half of the bound, senders must first prove that their address is theirs; past all of it they
//! are refused. Nothing is granted before the certificate is verified and fits the protocol.

use std::sync::Arc;

use quinn::{Connection, Incoming};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use crate::client::ClientConnection;
use crate::config::{HANDSHAKE_TIMEOUT, HANDSHAKES_MAX};
use crate::endpoint::{admit_client, admit_peer};
use crate::error::{close, describe};
use crate::link::Link;
use crate::shared::Shared;
use crate::tls::{ALPN_KV, ALPN_RAFT, Identity};

/// Runs until the endpoint is closed. `clients` are those that are admitted; it has room for as many
/// as may be connected.
pub(crate) async fn accept_all(shared: Arc<Shared>, clients: mpsc::Sender<ClientConnection>) {
    let mut handshakes = JoinSet::new();
    while let Some(incoming) = shared.opened.endpoint.accept().await {
        while handshakes.try_join_next().is_some() {}
        if handshakes.len() >= HANDSHAKES_MAX {
            incoming.refuse();
        } else if handshakes.len() >= HANDSHAKES_MAX / 2 && incoming.may_retry() {
            // It may retry, so this cannot fail.
            let _ = incoming.retry();
        } else {
            let (shared, clients) = (shared.clone(), clients.clone());
            handshakes.spawn(async move {
                let from = incoming.remote_address();
                if let Err(reason) = admit(&shared, incoming, &clients).await {
                    shared.note_refusal(from, &reason);
                }
            });
        }
    }
    handshakes.shutdown().await;
}

/// Finds out who it is and hands it on, or says why not.
async fn admit(
    shared: &Shared,
    incoming: Incoming,
    clients: &mpsc::Sender<ClientConnection>,
) -> Result<(), String> {
    let connecting = incoming.accept().map_err(|error| describe(&error))?;
    let connection = timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| "the handshake takes too long".to_owned())?
        .map_err(|error| describe(&error))?;
    let refused = |reason: String| {
        connection.close(close::REFUSED, reason.as_bytes());
        reason
    };
    let (identity, protocol) =
        Identity::of_connection(&connection, &shared.config.cluster_id).map_err(refused)?;
    match (protocol.as_slice(), identity) {
        (ALPN_RAFT, Identity::Node(id)) => {
            check_peer(shared, id).map_err(refused)?;
            admit_as_peer(shared, connection.clone(), id).await
        }
        (ALPN_RAFT, Identity::Client) => {
            Err(refused("a client's certificate does not make a peer".to_owned()))
        }
        (ALPN_KV, _) => admit_as_client(shared, connection.clone(), clients).await,
        _ => Err(refused("this protocol is not spoken here".to_owned())),
    }
}

fn check_peer(shared: &Shared, id: u64) -> Result<(), String> {
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

async fn admit_as_peer(shared: &Shared, connection: Connection, id: u64) -> Result<(), String> {
    let peer = shared.peer(id);
    admit_peer(&connection);
    match Link::establish(shared, connection, id).await {
        Ok(link) => peer.hand_over(link).await,
        // It has proven who it is, so this is about the peer, wherever it came from.
        Err(reason) => peer.failed(&reason),
    }
    Ok(())
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
