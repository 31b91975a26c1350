//! Raft as a library: a pure consensus core, a driver that runs it on tokio, and the traits that a
//! backend implements.
//!
//! * [`replicated`] makes a replicated state machine from one small trait with typed commands.
//!   Start here for a state that fits into memory.
//! * [`driver`] runs one node: the core, its storage, its transport and its state machine.
//! * [`consensus`] is the algorithm as a value, without async, I/O, clock or entropy.
//! * [`state_machine`], [`storage`] and [`transport`] hold the traits. Their documentation is the
//!   contract; [`testing`] checks it for storages and transports.
//! * [`types`] holds the plain data, [`codec`] the message format, [`error`] the failures that a
//!   caller must handle, and [`checksum`] a portable CRC32C.
//!
//! # Example
//!
//! Three cores as values, without a driver: the "network" is a list and the "disks" write at once.
//! The first node whose election timeout passes is elected, and commits a command.
//!
//! ```
//! use std::collections::{BTreeMap, VecDeque};
//! use raft_core::consensus::{Boot, Config, Raft};
//! use raft_core::types::{Configuration, HardState, Loaded, NodeId, Position, Time};
//!
//! let mut now = Time::ZERO;
//! let mut nodes: BTreeMap<NodeId, Raft> = BTreeMap::new();
//! for id in 1..=3 {
//!     let boot = Boot {
//!         loaded: Loaded { hard_state: HardState::INITIAL, ..Loaded::default() },
//!         last_applied: Position::ZERO,
//!         bootstrap: Configuration::of_voters([1, 2, 3]),
//!     };
//!     let seed = id; // In production from the operating system.
//!     nodes.insert(id, Raft::new(Config::new(id, seed), boot, now)?);
//! }
//!
//! // Processes the work of all nodes until no message is in flight.
//! let settle = |nodes: &mut BTreeMap<NodeId, Raft>, now| {
//!     let mut in_flight = VecDeque::new();
//!     loop {
//!         for (id, raft) in nodes.iter_mut() {
//!             loop {
//!                 let ready = raft.ready(now);
//!                 if ready.is_empty() {
//!                     break;
//!                 }
//!                 let sent = ready.messages.into_iter();
//!                 in_flight.extend(sent.map(|(to, message)| (*id, to, message)));
//!                 if let Some(persist) = ready.persist {
//!                     raft.on_persisted(now, persist.id);
//!                 }
//!                 if let Some(last) = ready.committed.last() {
//!                     raft.on_applied(last.index);
//!                 }
//!             }
//!         }
//!         let Some((from, to, message)) = in_flight.pop_front() else { break };
//!         nodes.get_mut(&to).unwrap().step(now, from, message);
//!     }
//! };
//!
//! // Time passes to the earliest deadline; that node campaigns.
//! now = nodes.values().map(Raft::next_deadline).min().unwrap();
//! let due = nodes.values_mut().filter(|raft| raft.next_deadline() <= now);
//! due.for_each(|raft| raft.on_timeout(now));
//! settle(&mut nodes, now);
//! let leader = nodes[&1].leader().expect("elected");
//! assert!(nodes.values().all(|raft| raft.leader() == Some(leader)));
//!
//! let position = nodes.get_mut(&leader).unwrap().propose(vec!["hello".into()])?;
//! settle(&mut nodes, now);
//! assert!(nodes.values().all(|raft| raft.last_applied() == position.index));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Section numbers refer to the Raft dissertation (Ongaro 2014). Ids in comments and test names,
//! such as C12 or S5, name the cases that the tests and the planted bugs cover.

#![warn(missing_docs)]

pub mod checksum;
pub mod codec;
pub mod consensus;
pub mod driver;
pub mod error;
#[doc(hidden)]
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod replicated;
mod rng;
pub mod state_machine;
pub mod storage;
pub mod testing;
pub mod transport;
pub mod types;
