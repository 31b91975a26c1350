//! Real processes under faults; the harness is `integration_tests::processes`.
//!
//! `scripts/faults` runs the long form. A test whose tools are missing on this machine reports `NOT
//! RUN`.

#![allow(clippy::unwrap_used)]

mod addresses;
mod certificates;
mod clients;
mod directories;
mod disks;
mod files;
mod half_alive;
mod hostile;
mod links;
mod members;
mod operators;
mod rounds;
mod snapshots;
mod stored_bytes;
mod upgrade;
