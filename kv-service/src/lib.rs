//! A linearizable, exactly-once, replicated key-value store to link into an application.
//!
//! A [`Server`] is one node of a cluster; a [`Client`] talks to all of its nodes. Both are made
//! from a configuration ([`ServerConfig`], [`ClientConfig`]), and [`Server::client`] is the client
//! within a node's process. A write takes effect once, however often the client sends it; a read
//! reflects every write that completed before it began ([`Consistency`]). Every error says if the
//! operation may have been executed ([`Outcome`]).
//!
//! Cargo features select where a node keeps its data (`rocksdb`, `memory`) and how nodes and
//! clients talk (`quic`, `channel`). An application with a storage or a network of its own passes
//! them as [`Backends`]. Feature `sim` runs whole clusters in virtual time, for tests.
//!
//! # Example
//!
//! A cluster of three nodes within one process, without files and sockets (features `memory` and
//! `channel`):
//!
//! ```
//! use kv_service::{LocalNetwork, MemoryDisk, Network, Server, ServerConfig, Store};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let network = LocalNetwork::new(1);
//!     let mut servers = Vec::new();
//!     for id in 1..=3 {
//!         let config = ServerConfig::in_process(id, 1..=3);
//!         let store = Store::Memory(MemoryDisk::of_new_member());
//!         let network = Network::Channel(network.clone());
//!         servers.push(Server::start_with(config, store, network).await?);
//!     }
//!
//!     let client = network.client(1..=3);
//!     client.put("greeting", "hello").await?;
//!     let record = client.get("greeting").await?.ok_or("just put")?;
//!     assert_eq!((&record.value[..], record.version), (&b"hello"[..], 1));
//!
//!     for server in servers {
//!         server.shutdown().await;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! In production each process runs one node, with a data directory and certificates:
//! [`Server::init`] once in the life of a cluster, then [`Server::start`].

#![warn(missing_docs)]

#[doc(hidden)]
#[cfg(any(feature = "cli", feature = "fuzzing"))]
pub mod batch;
mod client;
pub mod config;
mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod log_limit;
pub mod members;
pub mod net;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, reason = "open to tests: feature `internals`")]
mod protocol;
#[doc(hidden)]
#[cfg(feature = "internals")]
pub mod protocol;
mod rng;
mod server;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(not(feature = "internals"))]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "open to tests: feature `internals`")]
mod state;
#[doc(hidden)]
#[cfg(feature = "internals")]
pub mod state;

pub use client::{Client, ClientError, Cluster, Outcome, Reason};
pub use config::{ClientConfig, ConfigError, ServerConfig};
pub use error::{ServerError, Unavailable};
#[cfg(feature = "quic")]
pub use net::ClientSetupError;
#[cfg(feature = "channel")]
pub use net::LocalNetwork;
pub use net::{ConnectError, Connector, PeerBook, Stream};
pub use protocol::operation::{
    Answer, Consistency, Expect, Operation, Query, Record, Revision, ScanPage, WriteResponse,
};
pub use protocol::version::{VERSION_MAX, VERSION_MIN};
pub use protocol::{
    FOUNDING, NOT_INITIALISED, NodeStatus, PeerReachability, RECOVERING, UpgradeOrder, Versions,
};
pub use raft_core::driver::Node;
pub use raft_core::error::{Fatal, Rejected};
pub use raft_core::storage::{Storage, StorageError};
pub use raft_core::transport::Transport;
pub use raft_core::types::{Index, NodeId, Term};
#[cfg(feature = "memory")]
pub use raft_storage::memory::MemoryDisk;
pub use server::backends::{Backends, Network, Store};
pub use server::{IsLow, Server};
pub use state::KvMachine;
#[cfg(feature = "rocksdb")]
pub use state::RocksStateOptions;

/// Compiles the code of the README files.
#[cfg(doctest)]
mod readme {
    #[doc = include_str!("../../README.md")]
    struct OfTheProject;

    #[doc = include_str!("../README.md")]
    struct OfTheCrate;
}
