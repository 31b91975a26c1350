//! Streams between clients and nodes: over QUIC, or within a process.

#[cfg(feature = "channel")]
pub mod local;
#[cfg(feature = "quic")]
pub mod quic;
pub mod stream;
#[cfg(feature = "quic")]
pub mod tls;
