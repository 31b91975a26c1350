//! A linearizable, exactly-once, replicated key-value store to link into an application.
//!
//! A [`Server`] is one node of a cluster; a [`Client`] talks to all of its nodes. Both are made
//! from a configuration ([`config`]). Cargo features select the storage and network backends of a
//! node, and [`wiring`] assembles them.

mod chance;
pub mod client;
mod complaints;
pub mod config;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(feature = "channel")]
pub mod local;
pub mod machine;
pub mod operation;
pub mod protocol;
#[cfg(feature = "quic")]
pub mod quic;
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
pub mod stream;
#[cfg(feature = "quic")]
pub mod tls;
pub mod units;
pub mod version;
pub mod wiring;

pub use client::{Client, ClientError, Outcome};
pub use config::{ClientConfig, ServerConfig};
pub use operation::{Consistency, Expect, Operation, Record, WriteAnswer};
pub use server::{Server, ServerError};
