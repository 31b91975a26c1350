//! A cluster of pure cores under full control, for scripts and paper tests. The simulator also uses
//! its rng and its rendering of messages.
//!
//! Nodes are values, the network is a list, the disk is a value that survives a crash, and time
//! passes when the test says so. Nothing happens by itself: a message is delivered, lost or
//! repeated, a batch is written, a deadline passes, only because the test called the method for it.
//! After every such step the core's own invariants are checked on the node that changed, and the
//! [`oracle`] checks the invariants that span nodes.
//!
//! Left out: real bytes. A snapshot is a clone of the machine's history.

// Each test binary uses a part of this module.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod cluster;
pub mod disk;
pub mod network;
pub mod oracle;
mod process_ready;
pub mod random;
pub mod render;
pub mod say;

pub use cluster::Cluster;
pub use disk::{Disk, Machine};
pub use network::{Envelope, Parcel};
pub use random::Random;
