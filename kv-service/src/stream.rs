//! A two-way stream of bytes between a client and a node, whatever carries it.

use async_trait::async_trait;
use raft_core::types::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Bytes under way in one direction of a connection within this process.
const PIPE_BYTES: usize = 256 << 10;

/// Both directions. Dropping them ends the connection.
pub struct Stream {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// How a client gets to a node.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Every node of the cluster, in ascending order.
    fn nodes(&self) -> Vec<NodeId>;

    /// # Errors
    /// Why the node cannot be reached now, for people.
    async fn connect(&self, node: NodeId) -> Result<Stream, String>;

    /// Ends what it keeps open. Streams break.
    async fn close(&self);
}

/// Where a node hears of new clients.
#[async_trait]
pub trait Acceptor: Send + Sync + 'static {
    /// The next client; `None` when no more will come.
    async fn accept(&self) -> Option<Stream>;
}

/// Connects, within this process, to whoever accepts behind the door.
pub(crate) async fn knock(door: &mpsc::Sender<Stream>) -> Result<Stream, String> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let closed = |_| "the node has stopped".to_owned();
    door.send(split(theirs)).await.map_err(closed)?;
    Ok(split(ours))
}

fn split(pipe: tokio::io::DuplexStream) -> Stream {
    let (reader, writer) = tokio::io::split(pipe);
    Stream { reader: Box::new(reader), writer: Box::new(writer) }
}
