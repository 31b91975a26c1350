//! The adapter for the network port: QUIC with mutual TLS, peers and clients on one UDP socket.

mod client;
mod config;
mod dev_ca;
mod endpoint;
mod error;
mod tls;
mod transport;

pub use client::{ClientConnection, ClientEndpoint};
pub use config::QuicConfig;
pub use dev_ca::DevCa;
pub use error::QuicError;
pub use quinn::{RecvStream, SendStream};
pub use tls::{ALPN_KV, ALPN_RAFT, TlsConfig, check_cluster_id, client_name, node_name};
pub use transport::QuicTransport;
