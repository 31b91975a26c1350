//! A transport over plain TCP, for nodes that trust each other and know each other's addresses.
//!
//! A node connects to each peer twice, once for each class of messages, and once more for each bulk
//! stream. A connection for messages carries them in one direction and has a mailbox of its own,
//! which is dropped with the connection: no message reaches another process of the peer than it was
//! meant for. Without a connection, messages are dropped.
//!
//! Left out: authentication. A node is taken for the one that it claims to be; TLS would go below
//! [`wire`].

mod links;
mod peer;
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use raft_core::codec::ENTRY_BYTES_MAX;
use raft_core::transport::{BulkStream, Inbound, Transport, TransportError};
use raft_core::types::{Class, Message, NodeId};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use links::{accept, keep_connected};
use peer::Peer;
use wire::{Bulk, Purpose, Wire};

/// The pause before a node connects to a peer again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The transport of one process. Dropping it ends it, like a crash.
pub(crate) struct TcpTransport {
    shared: Arc<Shared>,
    listener: Mutex<Option<TcpListener>>,
    running: Mutex<Option<Running>>,
}

/// The task that owns all others. It ends when the sender is dropped.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Shared {
    id: NodeId,
    process: u64,
    peers: BTreeMap<NodeId, Peer>,
    /// The open bulk streams; `None` once the transport is closed.
    bulks: Mutex<Option<Vec<Weak<std::net::TcpStream>>>>,
    dropped_count: AtomicU64,
}

impl TcpTransport {
    /// Binds the node's address. The clock numbers the processes of the node, so it must not have
    /// been set back since the last start.
    pub(crate) async fn bind(
        id: NodeId,
        addresses: &BTreeMap<NodeId, SocketAddr>,
    ) -> io::Result<Arc<Self>> {
        let listener = TcpListener::bind(addresses[&id]).await?;
        let age = SystemTime::UNIX_EPOCH.elapsed().map_err(io::Error::other)?;
        let peers = addresses.iter().filter(|(peer, _)| **peer != id);
        let shared = Shared {
            id,
            process: age.as_nanos() as u64,
            peers: peers.map(|(peer, address)| (*peer, Peer::at(*address))).collect(),
            bulks: Mutex::new(Some(Vec::new())),
            dropped_count: AtomicU64::new(0),
        };
        Ok(Arc::new(Self {
            shared: Arc::new(shared),
            listener: Mutex::new(Some(listener)),
            running: Mutex::default(),
        }))
    }

    /// Messages that were dropped for lack of a connection or of room.
    pub(crate) fn dropped_count(&self) -> u64 {
        self.shared.dropped_count.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Transport for TcpTransport {
    fn start(&self, inbound: Arc<dyn Inbound>) {
        if let Some(listener) = lock(&self.listener).take() {
            let (stop, stopped) = oneshot::channel();
            let task = tokio::spawn(run(Arc::clone(&self.shared), listener, inbound, stopped));
            *lock(&self.running) = Some(Running { stop, task });
        }
    }

    fn send(&self, to: NodeId, message: Message) {
        let peer = self.shared.peers.get(&to);
        if !peer.is_some_and(|peer| peer.post(message)) {
            self.shared.dropped_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn entry_bytes_max(&self) -> u64 {
        ENTRY_BYTES_MAX
    }

    async fn open_bulk(&self, to: NodeId) -> Result<Box<dyn BulkStream>, TransportError> {
        self.reachability(to)?;
        let wire = self.shared.connect(to, Purpose::Bulk).await?;
        Ok(Box::new(self.shared.bulk(wire)?))
    }

    fn reachability(&self, peer: NodeId) -> Result<(), TransportError> {
        let peer =
            self.shared.peers.get(&peer).ok_or_else(|| TransportError::new("unknown node"))?;
        for mailbox in peer.mailboxes.values() {
            lock(mailbox).as_ref().map_err(Clone::clone)?;
        }
        Ok(())
    }

    async fn close(&self) {
        lock(&self.listener).take();
        let running = lock(&self.running).take();
        if let Some(Running { stop, task }) = running {
            drop(stop);
            task.await.expect("no task of the transport panics");
        }
    }
}

/// Connects to the peers and accepts their connections, until it is stopped.
async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    inbound: Arc<dyn Inbound>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut tasks = JoinSet::new();
    for peer in shared.peers.keys() {
        for class in Class::ALL {
            tasks.spawn(keep_connected(Arc::clone(&shared), *peer, class, Arc::clone(&inbound)));
        }
    }
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(ended) = tasks.join_next() => ended.expect("no task of the transport panics"),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (shared, inbound) = (Arc::clone(&shared), Arc::clone(&inbound));
                    // The side that made the connection reports why it ended.
                    tasks.spawn(async move { drop(accept(shared, stream, inbound).await) });
                }
                // Out of file descriptors, perhaps: other connections may end meanwhile.
                Err(_) => sleep(RETRY_INTERVAL).await,
            },
        }
    }
    tasks.shutdown().await;
    shared.close();
}

impl Shared {
    fn bulk(&self, wire: Wire) -> Result<Bulk, TransportError> {
        let (bulk, socket) = Bulk::new(wire)?;
        let mut bulks = lock(&self.bulks);
        let bulks = bulks.as_mut().ok_or_else(|| TransportError::new("the transport is closed"))?;
        bulks.retain(|open| open.strong_count() > 0);
        bulks.push(Arc::downgrade(&socket));
        Ok(bulk)
    }

    /// Breaks the bulk streams, which their users still hold. All tasks have ended.
    fn close(&self) {
        for mailbox in self.peers.values().flat_map(|peer| peer.mailboxes.values()) {
            *lock(mailbox) = Err(TransportError::new("the transport is closed"));
        }
        for socket in lock(&self.bulks).take().iter().flatten().filter_map(Weak::upgrade) {
            // This fails if the peer has closed the connection first.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under the lock")
}
