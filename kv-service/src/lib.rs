//! A linearizable, exactly-once, replicated key-value store to link into an application.
//!
//! A [`Server`] is one node of a cluster; a [`Client`] talks to all of its nodes. Both are made
//! from a configuration ([`config`]). Cargo features select the storage and network backends of a
//! node, and [`server::backends`] assembles them.

#[doc(hidden)]
#[cfg(any(feature = "cli", feature = "fuzzing"))]
pub mod batch;
pub mod client;
pub mod config;
mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod log_limit;
pub mod net;
pub mod protocol;
mod rng;
pub mod server;
#[cfg(feature = "sim")]
pub mod sim;
pub mod state;

pub use client::{Client, ClientError, Outcome};
pub use config::{ClientConfig, ServerConfig};
pub use error::ServerError;
pub use protocol::operation::{Consistency, Expect, Operation, Record, WriteResponse};
pub use server::Server;
