//! The port to the network.
//!
//! A transport takes messages and may lose, repeat, delay and reorder them; the core is made for
//! that. It must not wait, grow without bound, or name a wrong sender. The contract, checked by
//! [`crate::testing::transport`]:
//!
//! * [`Transport::send`] returns at once. Each peer and class has a mailbox bounded in bytes; what
//!   does not fit is dropped. A transport may count it for its own status.
//! * Messages of one class arrive in order or not at all while a connection lasts; one class never
//!   waits behind another, nor either behind a bulk stream.
//! * Dropping a transport ends it, as [`Transport::close`] does, without waiting.
//! * A peer that comes back with another disk is a new incarnation: no message that it sent from
//!   the old disk arrives after those that it sends from the new one, and no message for the old
//!   one reaches the new one.
//! * [`Inbound`] learns the peer's authenticated identity. A message reaches it only if it keeps
//!   the rules of [`codec::check`](crate::codec::check), which the decoder of [`crate::codec`]
//!   enforces.

pub mod channel;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::types::{Message, NodeId};

/// The largest frame of a bulk stream, in bytes.
pub const BULK_FRAME_BYTES_MAX: usize = 1 << 20;

/// Sends to peers. See the module for the contract.
///
/// ```
/// use std::sync::Arc;
///
/// use raft_core::transport::channel::ChannelNetwork;
/// use raft_core::transport::{BulkStream, Inbound, Transport};
/// use raft_core::types::{Message, MessageBody, NodeId};
///
/// struct Printer;
///
/// impl Inbound for Printer {
///     fn on_message(&self, from: NodeId, message: Message) {
///         println!("{from}: {message:?}");
///     }
///     fn on_bulk(&self, _: NodeId, _: Box<dyn BulkStream>) {}
///     fn on_unreachable(&self, _: NodeId) {}
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let network = ChannelNetwork::new(1);
/// let (one, two) = (network.transport(1), network.transport(2));
/// one.start(Arc::new(Printer));
/// two.start(Arc::new(Printer));
/// assert!(one.reachability(2).is_ok());
/// one.send(2, Message::new(7, MessageBody::ReadIndex { id: 1 }));
/// assert_eq!(network.stats().delivered, 1);
///
/// two.close().await;
/// assert!(one.reachability(2).is_err());
/// # }
/// ```
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Starts delivering what arrives. Called once; before it, what arrives is dropped.
    fn start(&self, inbound: Arc<dyn Inbound>);

    /// Takes the message and returns. The class is [`Message::class`].
    fn send(&self, to: NodeId, message: Message);

    /// The largest entry that reaches a peer, in bytes as
    /// [`Entry::size_bytes`](crate::types::Entry::size_bytes) counts them. A node does not start if
    /// its limit for commands allows more: a larger entry would be appended, never be replicated,
    /// and hold up all later ones.
    fn entry_bytes_max(&self) -> u64;

    /// Opens a stream for a snapshot. It yields to the other classes.
    ///
    /// # Errors
    /// If the peer cannot be reached now.
    async fn open_bulk(&self, to: NodeId) -> Result<Box<dyn BulkStream>, TransportError>;

    /// Returns `Ok` if messages of the peer arrive, whichever side connected, or else the reason
    /// why they do not. For status pages.
    fn reachability(&self, peer: NodeId) -> Result<(), TransportError>;

    /// Closes all connections and stops delivering. Returns once all tasks of the transport have
    /// ended.
    async fn close(&self);
}

/// Receives from peers. Implementations return at once and drop what they have no room for, also
/// the stream that they are given: a transport holds no lock meanwhile that the stream's `Drop`
/// takes.
pub trait Inbound: Send + Sync {
    /// A message arrived from a peer, whose identity is authenticated.
    fn on_message(&self, from: NodeId, message: Message);

    /// A peer opened a bulk stream to this node.
    fn on_bulk(&self, from: NodeId, stream: Box<dyn BulkStream>);

    /// The messages of the peer that arrive from now on come from the disk with this incarnation
    /// ([`Config::incarnation`](crate::consensus::Config::incarnation)). A transport calls this
    /// before it delivers the first message of a connection, or never, if it does not know the
    /// incarnations of its peers. Then an old disk of a node that comes back is not recognised.
    fn on_connected(&self, _peer: NodeId, _incarnation: u64) {}

    /// The connection to the peer was lost, as when it restarts: messages that it has not
    /// acknowledged are probably lost, and it may have to be told again what is committed.
    fn on_unreachable(&self, peer: NodeId);
}

/// A two-way stream of frames, reliable and in order while it lasts. Dropping it aborts it.
#[async_trait]
pub trait BulkStream: Send {
    /// Waits until the frame fits into the send buffer, which holds at least one frame of
    /// [`BULK_FRAME_BYTES_MAX`] bytes. The frame has 1 to that many bytes.
    ///
    /// If the future of this call or of [`BulkStream::receive`] is dropped before it completes, the
    /// only thing that is still done with the stream is to drop it.
    async fn send(&mut self, frame: Bytes) -> Result<(), TransportError>;

    /// Returns the next frame; `None` when the other side has finished sending in good order.
    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError>;

    /// Ends the sending direction, and waits until the frames sent before have left or the stream
    /// broke.
    async fn finish(&mut self) -> Result<(), TransportError>;
}

/// Why a peer cannot be reached or a stream broke; the text is for an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

impl TransportError {
    /// An error with this text.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}
