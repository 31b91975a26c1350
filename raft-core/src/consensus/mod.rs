//! The Raft consensus algorithm.
//!
//! A cluster agrees on a log. Time is divided into terms; in each, at most one node leads. The
//! leader appends commands to its log and sends them to the others; an entry that a majority has on
//! disk is committed and will never change; every node applies the committed entries in the same
//! order.
//!
//! This module is pure: no async, no I/O, no clock, no entropy, no unordered map. [`Raft`] is a
//! value. The driver reports events to it (a message arrived, the deadline passed, a batch is on
//! disk), and it collects the resulting work in a [`Ready`]. So a failing run is a seed, and an
//! error of the disk or of the network cannot happen here.
//!
//! | dissertation | here |
//! |---|---|
//! | 3.3 terms, roles | `raft`: the one place that changes role and term |
//! | 3.4 election, 9.6 pre-vote | `role::candidate`; timers in `role::follower` |
//! | 3.5 replication | `role::leader::replication`, `progress`, `inflights`, `log` |
//! | 3.6 election restriction, commit rule, no-op | `raft::on_vote`, `role::leader::replication` |
//! | 3.8 persisted state | `durability`: what is held back until it is on disk |
//! | 3.10 leadership transfer | `role::leader::transfer` |
//! | 4.1 the configuration in force | `configurations` |
//! | 4.2, 4.4 which configuration comes next | `membership`, `role::leader::members` |
//! | 4.3 joint majorities | `quorum` |
//! | 5 snapshots | `raft::on_snapshot_*`, `log` |
//! | 6.2 check quorum | `role::leader` |
//! | 6.4 reads | `read_index`, `role::leader::reads`, `role::follower` |
//! | (not there) disks that are lost | `recovery` |
//! | (not there) how a cluster begins | `founding` |
//! | 10.2.1 the leader's disk beside the network | `role::leader::replication` |
//!
//! Guarantee, beside the five properties of figure 3.2: nothing in a [`Ready`] rests on a write
//! that is not durable, so the driver may process everything in it at once, in any order.

mod config;
mod configurations;
mod durability;
mod fingerprint;
mod founding;
mod inflights;
pub mod invariants;
mod latency;
mod log;
mod membership;
mod node_state;
mod progress;
pub mod quorum;
mod raft;
mod read_index;
mod ready;
mod recovery;
mod role;
mod status;

pub use config::{Config, ConfigError};
pub use membership::{Change, Overrides};
pub use progress::ProgressState;
pub use raft::snapshots::OfferDecision;
pub use raft::{Boot, ConfigurationStage, Raft};
pub use ready::{Persist, ReadState, Ready, RoleChange};
pub use status::{PeerStatus, Status};

pub use crate::types::{PersistId, RoleKind};
