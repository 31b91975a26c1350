//! Storage for the log, the hard state and the snapshots of one node: the adapters of
//! [`raft_core::storage::Storage`].
//!
//! * [`memory`] is the reference for behaviour. It is deterministic, and injects faults.
//! * [`rocksdb`] is durable: a RocksDB instance of its own for log, hard state and metadata, and
//!   checksummed snapshot files beside it.
//! * [`DataDir`] is the directory of one node: its identity, its lock, and its subdirectories for
//!   log, state and snapshots. A state machine that keeps its own files has them in the same
//!   directory.
//!
//! Both backends pass the suite of [`raft_core::testing::storage`], with a crash at every [`Step`].
//! The layout on disk is drawn in `docs/format.md`.
//!
//! # Example
//!
//! ```
//! # #[cfg(feature = "rocksdb")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use raft_core::storage::Storage;
//! use raft_core::types::{Batch, HardState};
//! use raft_storage::DataDir;
//! use raft_storage::rocksdb::{RocksOptions, RocksStorage};
//!
//! let directory = tempfile::tempdir()?;
//! let hard_state = HardState { term: 1, voted_for: Some(1), ..HardState::INITIAL };
//! {
//!     let data_dir = Arc::new(DataDir::open(directory.path(), "example", 1)?);
//!     let storage = RocksStorage::open(data_dir, RocksOptions::small())?;
//!     storage.load().await?;
//!     let batch = Batch { hard_state: Some(hard_state), ..Batch::default() };
//!     storage.persist(batch).await?;
//! }
//! // Another process of the same node finds the vote.
//! let data_dir = Arc::new(DataDir::open(directory.path(), "example", 1)?);
//! let storage = RocksStorage::open(data_dir, RocksOptions::small())?;
//! assert_eq!(storage.load().await?.hard_state, hard_state);
//! # Ok(())
//! # }
//! # #[cfg(feature = "rocksdb")]
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

#![warn(missing_docs)]

mod data_dir;
mod files;
#[cfg_attr(not(feature = "rocksdb"), allow(dead_code, reason = "only RocksDB uses all of it"))]
mod format;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod record;
mod step;

#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "rocksdb")]
pub mod rocksdb;

pub use data_dir::{CLUSTER_ID_BYTES_MAX, DataDir, Space};
pub use step::{Step, StepHook};
