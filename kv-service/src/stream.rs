//! A two-way stream of bytes between a client and a node, whatever carries it.

use std::any::Any;

use async_trait::async_trait;
use raft_core::types::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Bytes under way in one direction of a connection within this process.
const PIPE_BYTES: usize = 256 << 10;

/// Both directions. Dropping it ends the connection.
pub struct Stream {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// What has to live as long as the stream: its connection, its place among those allowed.
    pub guard: Box<dyn Any + Send + Sync>,
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

/// Connects, within this process, to whoever accepts behind the door.
pub(crate) async fn knock(door: &mpsc::Sender<Stream>) -> Result<Stream, String> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let closed = |_| "the node has stopped".to_owned();
    door.send(split(theirs)).await.map_err(closed)?;
    Ok(split(ours))
}

fn split(pipe: tokio::io::DuplexStream) -> Stream {
    let (reader, writer) = tokio::io::split(pipe);
    Stream { reader: Box::new(reader), writer: Box::new(writer), guard: Box::new(()) }
}
