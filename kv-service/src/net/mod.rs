//! Streams between clients and nodes: over QUIC, or within a process.
//!
//! A [`Connector`] opens a [`Stream`] to a node. QUIC's is made by
//! [`Client::connect`](crate::Client::connect), the in-process one by `LocalNetwork`; an
//! application with a network of its own implements the trait.

#[cfg(feature = "channel")]
pub(crate) mod local;
pub(crate) mod peers;
#[cfg(feature = "quic")]
pub(crate) mod quic;
pub(crate) mod stream;
#[cfg(feature = "quic")]
pub mod tls;

#[cfg(feature = "channel")]
pub use self::local::{Chunk, ClientId, LocalNetwork, StreamFaults};
pub use self::peers::PeerBook;
#[cfg(feature = "quic")]
pub use self::quic::ClientSetupError;
pub use self::stream::{ConnectError, Connector, Stream};
#[cfg(feature = "channel")]
pub use raft_core::transport::channel::{ChannelNetwork, LinkFaults};
