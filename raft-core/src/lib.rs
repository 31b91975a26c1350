//! Raft as a library. See the modules.

pub mod checksum;
pub mod codec;
pub mod consensus;
pub mod driver;
pub mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod state_machine;
pub mod storage;
pub mod testing;
pub mod transport;
pub mod types;
