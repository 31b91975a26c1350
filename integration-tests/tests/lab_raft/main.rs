//! The tests of the MIT labs on Raft (6.824, 6.5840: 2A to 2D, and the rsm part of 2025), with
//! their names and thresholds, around the real driver in virtual time.
//!
//! Where these tests differ, they ask for more. A crash loses data that was not synced, which the
//! labs' persister never does. A lost message makes no call return. Every outcome of every proposal
//! of a test is checked against the commands applied in the end ([`ledger`]). Every applied entry
//! and every leader's message is checked against those of the other nodes ([`kv_service::sim`]). A
//! change of term without a failure fails the test; it is not just a warning.
//!
//! The labs count the indexes that the service sees. A leader's first entry takes an index of the
//! log here, so *number* is the place of a command among the commands, from 1, and stands for the
//! labs' index.
//!
//! An RPC of the labs is a request and its reply. Here both are messages, so the labs' thresholds
//! on RPCs become thresholds of twice as many messages. Bytes are those that mailboxes charge: the
//! commands, [`ENTRY_OVERHEAD_BYTES`](raft_core::types::ENTRY_OVERHEAD_BYTES) for each entry, and
//! 64 for each message, which is more than either takes on the wire.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agreement;
mod compaction;
mod determinism;
mod election;
mod harness;
mod ledger;
mod persistence;
mod rsm;
