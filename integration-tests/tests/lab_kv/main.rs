//! The MIT labs that test the service (`3A`, `3B`, `4B`, `4C`, `kvsrv`), in virtual time: real
//! servers, real clients with sessions, disks in memory that lose power, a bad network. Each test
//! has the lab's name and keeps its thresholds; a failure prints the command that replays it.
//!
//! Where a lab asks for less, these tests ask for more: faults overlap the clients' work, a history
//! that could not be decided has not passed, a pending read has to return, and all servers have to
//! hold the same state in the end. [`members`] runs the labs while servers are added, removed and
//! replaced, which the labs do not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod book;
mod cluster;
mod lab;
mod members;
mod one_partition;
mod operator;
mod replicated;
mod snapshots;
mod versioned;
