//! Raft as a library: a pure consensus core, a driver that runs it on tokio, and the traits that a
//! backend implements.
//!
//! * [`replicated`] makes a replicated state machine from one small trait with typed commands. Start
//!   here for a state that fits into memory.
//! * [`driver`] runs one node: the core, its storage, its transport and its state machine.
//! * [`consensus`] is the algorithm as a value, without async, I/O, clock or entropy.
//! * [`state_machine`], [`storage`] and [`transport`] hold the traits. Their documentation is the
//!   contract; [`testing`] checks it for storages and transports.
//! * [`types`] holds the plain data, [`codec`] the message format, [`error`] the failures that a
//!   caller must handle, and [`checksum`] a portable CRC32C.
//!
//! Section numbers refer to the Raft dissertation (Ongaro 2014). Ids in comments and test names,
//! such as C12 or S5, name the cases that the tests and the planted bugs cover.

pub mod checksum;
pub mod codec;
pub mod consensus;
pub mod driver;
pub mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod replicated;
pub mod state_machine;
pub mod storage;
pub mod testing;
pub mod transport;
pub mod types;
