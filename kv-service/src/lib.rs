//! A linearizable, exactly-once, replicated key-value store to link into an application.
//!
//! A [`Server`] is one node of a cluster; a [`Client`] talks to all of its nodes. Both are made
//! from a configuration ([`ServerConfig`], [`ClientConfig`]).

mod client;
pub mod config;
mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod log_limit;
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
#[allow(dead_code, unreachable_pub, reason = "open to tests: feature `internals`")]
mod state;
#[doc(hidden)]
#[cfg(feature = "internals")]
pub mod state;

pub use client::{Client, ClientError, Outcome, Reason};
pub use config::{ClientConfig, ConfigError, ServerConfig};
pub use error::{ServerError, Unavailable};
#[cfg(feature = "quic")]
pub use net::ClientSetupError;
#[cfg(feature = "channel")]
pub use net::LocalNetwork;
pub use net::{ConnectError, Connector, Stream};
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
