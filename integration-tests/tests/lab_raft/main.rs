//! The tests of the MIT labs on Raft (6.824, 6.5840: 2A to 2D, and the rsm part of 2025), by their names
//! and with their thresholds, around the real driver in virtual time.
//!
//! Where ours differ, they ask for more. A crash loses what was not synced, which the labs' persister
//! never does. A lost message makes no call return. Every answer to every proposal of a test is checked
//! against what was applied in the end ([`ledger`]), every applied entry and every leader's message
//! against those of the other nodes ([`kv_service::sim`]). A change of term without a failure is a failed
//! test and not a warning.
//!
//! The labs count the indexes that the service sees. A leader's first entry takes an index of the log
//! here, so *number* is the place of a command among the commands, from 1, and takes the part of the
//! labs' index.
//!
//! What the labs call an RPC is a request and its reply. Here both are messages, and the thresholds on
//! RPCs are kept for messages: for twice as much. Bytes are those that mailboxes charge: the commands,
//! [`ENTRY_OVERHEAD_BYTES`](raft_core::types::ENTRY_OVERHEAD_BYTES) for each entry, and 64 for each
//! message, which is more than either takes on the wire.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agreement;
mod compaction;
mod determinism;
mod election;
mod harness;
mod ledger;
mod persistence;
mod rsm;
