//! The adapter for the network port: QUIC with mutual TLS, peers and clients on one UDP socket.

mod accept;
mod bulk;
mod client;
mod config;
mod dev_ca;
mod endpoint;
mod error;
mod link;
mod mailbox;
mod peer;
mod shared;
mod socket;
mod tls;
mod transport;
mod wire;

pub use client::{ClientConnection, ClientEndpoint};
pub use config::QuicConfig;
pub use dev_ca::DevCa;
pub use error::QuicError;
pub use quinn::{RecvStream, SendStream};
pub use tls::{ALPN_KV, ALPN_RAFT, TlsConfig, check_cluster_id, client_name, node_name};
pub use transport::QuicTransport;
