//! The link of a group of clients to one node: a front socket that all of them see, and behind it
//! one socket for each client, by which the node tells them apart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::line::{Entrance, Parcel, relay};
use super::socket;

/// A client that has sent nothing for this long is gone: a live one sends more often.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

struct Way {
    socket: Arc<UdpSocket>,
    used_at: Instant,
    returning: AbortHandle,
}

/// Puts the datagrams of clients on the line to the node at `node`, and its responses on the line
/// `back`.
pub(super) async fn serve(
    front: Arc<UdpSocket>,
    node: SocketAddr,
    there: Entrance,
    back: Entrance,
) {
    let mut ways: HashMap<SocketAddr, Way> = HashMap::new();
    let mut returning = JoinSet::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        // The error belongs to an earlier datagram whose target was not there.
        let Ok((length, client)) = front.recv_from(&mut buffer).await else { continue };
        if !ways.contains_key(&client) {
            ways.retain(|_, way| {
                let is_used = way.used_at.elapsed() < FORGOTTEN_AFTER;
                if !is_used {
                    way.returning.abort();
                }
                is_used
            });
            while returning.try_join_next().is_some() {}
            let socket = socket(node.ip()).await;
            let answers =
                relay(Arc::clone(&socket), node, Arc::clone(&front), client, back.clone());
            let returning = returning.spawn(answers);
            ways.insert(client, Way { socket, used_at: Instant::now(), returning });
        }
        let way = ways.get_mut(&client).expect("it was there or was made just now");
        way.used_at = Instant::now();
        let bytes = buffer[..length].to_vec();
        let parcel = Parcel { bytes, leaves: Arc::clone(&way.socket), target: node };
        if there.send(parcel).await.is_err() {
            // The network is gone.
            return;
        }
    }
}
