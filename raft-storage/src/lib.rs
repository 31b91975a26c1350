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
