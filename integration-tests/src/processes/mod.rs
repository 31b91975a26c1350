//! Real processes under faults: the binary `kv serve` with its disk and its network, and real
//! clients.
//!
//! ```text
//!   workload   clients, and the history of their calls for the checker
//!   cluster    three processes (node), laid out like `kv dev`
//!   network    links that lose, delay, repeat, reorder, narrow, and break in one direction; also
//!              those of clients
//!   disk       a file system that fills up, freezes, loses power
//!   inject     system calls that fail or are slow
//!   preload    system calls that fail once, or write too little
//!   machine    processor time of other programs, which no time limit counts
//!   forgery    values that imitate a node's log
//!   attack     hostile clients and strangers
//!   means      a scenario whose tool is missing on this machine is NOT RUN, and never passed
//! ```
//!
//! The simulation finds more faults, and finds them again. These tests check what the simulation
//! takes for granted: that RocksDB, QUIC, the file system and the kernel do what their stand-ins
//! do. Schedules of faults come from seeds; the reactions of the processes do not repeat exactly.

pub mod attack;
pub mod binary;
pub mod cluster;
pub mod disk;
pub mod forgery;
pub mod inject;
mod layout;
pub mod machine;
pub mod means;
pub mod members;
pub mod network;
pub mod node;
pub mod preload;
mod snapshots;
pub mod workload;
