//! A two-way stream of bytes between a client and a node, over any network.

use std::any::Any;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use raft_core::types::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::members::MemberAddress;

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
    /// Tells the network that the node ends this stream for a fault of the other side, which should
    /// not be able to open many more at once.
    pub slow_down_source: Option<Box<dyn FnOnce() + Send>>,
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
        Self {
            reader,
            writer,
            guard,
            from: None,
            principal: Bytes::new(),
            widen: None,
            slow_down_source: None,
        }
    }
}

/// The reason why no stream to a node can be opened now. Nothing was sent to the node.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The connector has no address of this node.
    #[error("no such node")]
    UnknownNode,
    /// The node does not run in this process.
    #[error("the node does not run in this process")]
    NotRunning,
    /// The link between the client and the node is partitioned.
    #[error("the link to the node is partitioned")]
    Partitioned,
    /// The node stopped before it accepted the stream.
    #[error("the node has stopped")]
    Stopped,
    /// The network failed; its own error is the source.
    #[error(transparent)]
    Network(Arc<dyn Error + Send + Sync>),
}

impl ConnectError {
    /// An error of the network, or a text that says what failed.
    pub fn network(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Network(Arc::from(error.into()))
    }
}

/// Connects a client to the nodes of its cluster.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// The nodes that the client asks first, in ascending order.
    fn nodes(&self) -> Vec<NodeId>;

    /// Takes note of the members of the cluster, which have changed. Returns false if the client is
    /// to keep to [`Connector::nodes`], as by default.
    fn learn(&self, members: &[MemberAddress]) -> bool {
        let _ = members;
        false
    }

    /// Opens a stream to the node.
    ///
    /// # Errors
    /// The node cannot be reached now. The client tries again, or asks another node.
    async fn connect(&self, node: NodeId) -> Result<Stream, ConnectError>;

    /// Returns true if the node proves that it runs at this address. By default false: the nodes of
    /// this network have no addresses.
    async fn finds(&self, node: NodeId, address: &str) -> bool {
        let _ = (node, address);
        false
    }

    /// Closes everything that the connector keeps open. Its streams break.
    async fn close(&self);
}

/// Opens a stream, within this process, to the node that accepts the streams sent to
/// `accept_sender`.
pub(crate) async fn connect_local(
    accept_sender: &mpsc::Sender<Stream>,
) -> Result<Stream, ConnectError> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    accept_sender.send(split(theirs)).await.map_err(|_| ConnectError::Stopped)?;
    Ok(split(ours))
}

fn split(pipe: tokio::io::DuplexStream) -> Stream {
    let (reader, writer) = tokio::io::split(pipe);
    Stream::new(reader, writer, ())
}
