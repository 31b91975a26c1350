//! Real processes under faults: the binary `kv serve` with its disk and its network, and real clients.
//!
//! ```text
//!   workload   clients, and what they did, for the checker of histories
//!   cluster    three processes (node), laid out like `kv dev`
//!   network    links that lose, delay, repeat, reorder, narrow, and break in one direction; those of the
//!              clients too
//!   disk       a file system that fills up, freezes, loses power
//!   inject     system calls that fail or are slow;   preload   ones that fail once, or write too little
//!   machine    what others had of it, which no time limit counts
//!   forgery    values that imitate a node's log;   attack   hostile clients and strangers
//!   means      what this machine does not offer is NOT RUN, and never passed
//! ```
//!
//! The simulation finds more, and finds it again. What these tests add is what it takes for granted: that
//! RocksDB, QUIC, the file system and the kernel do what their stand-ins do. Schedules of faults come
//! from seeds; what processes make of them does not repeat exactly.

pub mod attack;
pub mod binary;
pub mod cluster;
pub mod disk;
pub mod forgery;
pub mod inject;
mod layout;
pub mod machine;
pub mod means;
pub mod network;
pub mod node;
pub mod preload;
pub mod workload;
