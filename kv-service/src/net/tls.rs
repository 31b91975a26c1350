//! Certificates: read from files, or made on the spot for development.

pub use raft_transport_quic::{DevCa, QuicError, TlsConfig};
