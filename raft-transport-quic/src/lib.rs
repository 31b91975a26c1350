//! The adapter for the network port of `raft-core`: QUIC with mutual TLS, peers and clients on one UDP
//! socket per node.
//!
//! * Peers speak `raft/2`: one connection per pair, a stream per class and direction for messages, and a
//!   stream per snapshot. [`QuicTransport`] implements
//!   [`Transport`](raft_core::transport::Transport) and keeps its contract.
//! * Clients speak `kv/2`: [`ClientEndpoint`] connects, [`QuicTransport::accept_client`] yields those that
//!   were admitted, and both sides see a [`ClientConnection`] with streams. What is said on them is for
//!   others.
//! * Both sides show a certificate of the cluster's CA, always. [`DevCa`] makes them on the spot.
//!
//! It deliberately leaves out some things: it repeats no message, learns no addresses beyond its
//! configuration, resumes no sessions, sends nothing before the other side is known, and revokes no
//! certificates. `docs/wire.md` draws what is on the wire.
//!
//! How the tasks hang together; each box is a task, and what it starts ends with it:
//!
//! ```text
//!   QuicTransport ─┬─ accept loop ─── a handshake each ──▶ clients (accept_client)
//!                  │                       │ links (hello exchanged)
//!                  │                       ▼
//!                  └─ supervisor per peer (dials, or is handed a link) ─┬─ writer per class ◀─ mailbox
//!                                                                       ├─ reader per class ─▶ Inbound
//!                                                                       └─ bulk streams     ─▶ Inbound
//! ```

mod accept;
mod bulk;
mod client;
mod config;
mod credentials;
mod dev_ca;
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
mod protocol;
mod shared;
mod socket;
mod tls;
mod transport;
mod wire;

pub use client::{ClientConnection, ClientEndpoint};
pub use config::QuicConfig;
pub use dev_ca::{DevCa, LEAF_LIFETIME};
pub use error::QuicError;
pub use protocol::{ALPN_KV, ALPN_RAFT};
pub use quinn::{RecvStream, SendStream};
pub use shared::HandshakeCounts;
pub use tls::{TlsConfig, check_cluster_id, client_name, node_name};
pub use transport::QuicTransport;
