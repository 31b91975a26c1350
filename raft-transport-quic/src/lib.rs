//! The adapter for the network port of `raft-core`: QUIC with mutual TLS, peers and clients on one
//! UDP socket per node.
//!
//! * Peers speak `raft/2`: one connection per pair, a stream per class and direction for messages,
//!   and a stream per snapshot. [`QuicTransport`] implements
//!   [`Transport`](raft_core::transport::Transport) and keeps its contract.
//! * Clients speak `kv/2`: [`ClientEndpoint`] connects, [`QuicTransport::accept_client`] returns
//!   the admitted clients, and both sides get a [`ClientConnection`] with streams. Other crates
//!   define the content of these streams.
//! * Both sides always present a certificate of the cluster's CA. [`DevCa`] issues them for
//!   development.
//!
//! It deliberately leaves out some things: it resends no dropped message, resumes no sessions,
//! sends nothing before the other side is known, and revokes no certificates. `docs/wire.md` draws
//! the bytes on the wire.
//!
//! The tasks; each one ends with the task that has started it:
//!
//! ```text
//!   QuicTransport ─┬─ accept loop ── a handshake each ─▶ clients (accept_client)
//!                  │                      │ links (hello exchanged)
//!                  │                      ▼
//!                  └─ supervisor per peer ─┬─ writer per class ◀─ mailbox
//!                     (dials, or is handed ├─ reader per class ─▶ Inbound
//!                      a link)             └─ bulk streams     ─▶ Inbound
//! ```
//!
//! # Example
//!
//! A node that listens on any free port:
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use raft_transport_quic::{DevCa, QuicConfig, QuicTransport};
//!
//! # async fn example() -> Result<(), raft_transport_quic::QuicError> {
//! let ca = DevCa::create("example")?;
//! let listen = ([127, 0, 0, 1], 0).into();
//! let config =
//!     QuicConfig::new("example", 1, 7, listen, BTreeMap::new(), ca.issue_node(1)?, [0; 64]);
//! let node = QuicTransport::bind(config).await?;
//! assert_ne!(node.local_addr().port(), 0, "any free port");
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

#![warn(missing_docs)]

mod accept;
mod bulk;
mod certificate_info;
mod client;
mod config;
mod credentials;
mod dev_ca;
mod dial;
mod endpoint;
mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gate;
mod link;
mod mailbox;
mod names;
mod peer;
mod peers;
mod protocol;
mod removal;
mod shared;
mod socket;
mod tls;
mod transport;
mod wire;

pub use certificate_info::CertificateInfo;
pub use client::{ClientConnection, ClientEndpoint};
pub use config::QuicConfig;
pub use dev_ca::{DevCa, LEAF_LIFETIME};
pub use error::QuicError;
pub use protocol::{ALPN_KV, ALPN_RAFT};
pub use quinn::{RecvStream, SendStream};
pub use shared::HandshakeCounts;
pub use tls::{TlsConfig, check_cluster_id, client_name, node_name};
pub use transport::QuicTransport;
