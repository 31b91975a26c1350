//! A two-way stream of bytes between a client and a node, over any network.

use std::any::Any;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use raft_core::types::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Bytes under way in one direction of a connection within this process.
const PIPE_BYTES: usize = 256 << 10;

/// A two-way stream. Dropping it ends the connection.
#[non_exhaustive]
pub struct Stream {
    /// Bytes from the other side.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Bytes to the other side.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Dropped with the stream: its connection, and its place in the limits on connections.
    pub guard: Box<dyn Any + Send + Sync>,
    /// Address of the other side; `None` within this process.
    pub from: Option<IpAddr>,
    /// Identity of the other side, as its certificate proves it: bounds the sessions that it may
    /// have. Empty within this process.
    pub principal: Bytes,
    /// Raises the flow-control windows of the connection, which begins with small ones. Called at
    /// most once, and only for as many connections as the node has memory for.
    pub widen: Option<Box<dyn FnOnce() + Send>>,
}

impl Stream {
    /// A stream whose other side has no address, and whose windows are fixed.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        guard: impl Any + Send + Sync,
    ) -> Self {
        let (reader, writer) = (Box::new(reader), Box::new(writer));
        let guard = Box::new(guard);
        Self { reader, writer, guard, from: None, principal: Bytes::new(), widen: None }
    }
}

/// Connects a client to the nodes of its cluster.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Every node of the cluster, in ascending order.
    fn nodes(&self) -> Vec<NodeId>;

    /// Opens a stream to the node.
    ///
    /// # Errors
    /// The node cannot be reached now; the text says why, for people.
    async fn connect(&self, node: NodeId) -> Result<Stream, String>;

    /// Closes everything that the connector keeps open. Its streams break.
    async fn close(&self);
}

/// Opens a stream, within this process, to the node that accepts the streams sent to `accept_sender`.
pub(crate) async fn connect_local(accept_sender: &mpsc::Sender<Stream>) -> Result<Stream, String> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let closed = |_| "the node has stopped".to_owned();
    accept_sender.send(split(theirs)).await.map_err(closed)?;
    Ok(split(ours))
}

fn split(pipe: tokio::io::DuplexStream) -> Stream {
    let (reader, writer) = tokio::io::split(pipe);
    Stream::new(reader, writer, ())
}
