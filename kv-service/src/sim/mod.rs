//! A whole cluster in virtual time: disks in memory that lose power, a network that loses, delays
//! and partitions, and one seed that decides everything.
//!
//! This is how the store tests itself, and it is public so that you can test your own state
//! machine, or an application on top of the store, in the same way. No part of the node is a model:
//! the driver that is simulated is the driver that ships, and only disk, network and clock are
//! replaced.
//!
//! * [`run`] runs a scenario once, [`for_seeds`] once for each seed of a range. Each run has a
//!   single-threaded runtime and a paused clock of its own: an hour of virtual time in which
//!   nothing happens takes no time, and two runs of a seed are the same run.
//! * [`Cluster`] runs nodes around your [`StateMachine`](raft_core::state_machine::StateMachine),
//!   and injects faults: [`Cluster::crash`], [`Cluster::isolate`], faults of links and disks. It
//!   checks every entry that a node applies, and fails the run when two nodes differ.
//! * [`Service`] is the whole store: servers, sessions, and clients that retry over streams which
//!   are slow, break, or are partitioned.
//! * [`linearizability`] checks what the clients saw: the store's operations, or those of your own
//!   state machine ([`linearizability::model`]).
//! * [`Trace`] reduces everything that happened in a run to a number. The test that equal seeds
//!   give equal runs compares two of them.
//!
//! The nodes are new members of a cluster that is being founded: the first leader is elected once
//! all of them have met.
//!
//! # A failing run is its seed
//!
//! When a scenario panics, the seed and the command that replays it are printed. The environment
//! variable `SEEDS`, such as `0..1000` or `17..18`, replaces the range that a test was written
//! with, and `TRACE=1` prints every message and every applied entry of a run with its time.
//!
//! A run repeats itself only if everything that it does comes from the seed and the paused clock.
//! So a scenario, and a state machine, must not read a wall clock, draw from the system's
//! randomness, iterate over a `HashMap`, or start threads.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//!
//! use kv_service::sim::{Cluster, LinkFaults, run};
//! # use raft_core::state_machine::*;
//! # use raft_core::types::{Entry, Payload, Position, SnapshotMeta};
//! # use bytes::Bytes;
//! # #[derive(Default)]
//! # struct Tally { position: Position, count: u64 }
//! # struct View(Position, Option<Bytes>);
//! # impl SnapshotSource for View {
//! #     fn position(&self) -> Position { self.0 }
//! #     fn next_chunk(&mut self, _: usize) -> MachineResult<Option<Bytes>> { Ok(self.1.take()) }
//! # }
//! # impl StateMachine for Tally {
//! #     type Output = u64;
//! #     type Query = ();
//! #     type Answer = u64;
//! #     fn last_applied(&self) -> Position { self.position }
//! #     fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
//! #         for entry in entries {
//! #             self.position = entry.position();
//! #             if let Payload::Command(_) = entry.payload {
//! #                 self.count += 1;
//! #                 outputs.push(self.count);
//! #             }
//! #         }
//! #         Ok(())
//! #     }
//! #     fn query(&mut self, (): ()) -> u64 { self.count }
//! #     fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
//! #         let bytes = Bytes::copy_from_slice(&self.count.to_be_bytes());
//! #         Ok(Box::new(View(self.position, Some(bytes))))
//! #     }
//! #     fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
//! #         self.position = meta.position;
//! #         Ok(())
//! #     }
//! #     fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
//! #         let bytes = chunk[..].try_into().map_err(|_| MachineError("8 bytes".into()))?;
//! #         self.count = u64::from_be_bytes(bytes);
//! #         Ok(())
//! #     }
//! #     fn finish_restore(&mut self) -> MachineResult<()> { Ok(()) }
//! # }
//!
//! // `Tally` is a state machine that counts its commands.
//! let survives = async |seed| {
//!     let mut cluster = Cluster::new(seed, 3, |_node| Tally::default()).await;
//!     let ms = Duration::from_millis(1);
//!     cluster.network.set_default_faults(LinkFaults::none().losing(0.1).delaying(ms, 10 * ms));
//!     let leader = cluster.leader().await;
//!     assert_eq!(cluster.nodes[&leader].propose_and_wait("one".into()).await, Ok(1));
//!     cluster.crash(leader);
//!     let next = cluster.leader().await;
//!     assert_eq!(cluster.nodes[&next].propose_and_wait("two".into()).await, Ok(2));
//!     cluster.trace.digest()
//! };
//! assert_eq!(run(17, survives), run(17, survives), "a seed is a run");
//! ```
//!
//! `examples/check.rs` is a longer example, with a verdict.

mod cluster;
mod leadership;
pub mod linearizability;
mod observed;
mod run;
mod service;
mod trace;

pub use cluster::Cluster;
pub use observed::Observed;
pub use raft_core::transport::channel::{ChannelNetwork, LinkFaults};
pub use raft_storage::Step;
pub use raft_storage::memory::{Latency, MemoryDisk, Operation};
pub use run::{for_seeds, run, seeds_to_run};
pub use service::Service;
pub use trace::{Digest, Trace};
