//! Behaviour of the service as scripts: what goes in, and everything that comes out.
//!
//! Each file in `sessions`, `engines`, `client` and `cli` is one script; its first line says which
//! behaviour it shows. `UPDATE_GOLDENFILES=1 cargo test -p kv-service --features cli --test golden`
//! rewrites the outputs; read them before you commit them. The languages are described in
//! `machine.rs` and `machine_runner.rs` (sessions, engines), `client_runner.rs`, `cli_runner.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

#[cfg(feature = "cli")]
mod cli_runner;
mod client_runner;
mod machine;
mod machine_runner;
mod nodes;
mod subject;
mod support;

use client_runner::ClientRunner;
use machine_runner::MachineRunner;
use support::run_folder;

#[test]
fn sessions() {
    run_folder("sessions", MachineRunner::in_memory);
}

#[cfg(feature = "rocksdb")]
#[test]
fn engines() {
    run_folder("engines", MachineRunner::on_both_engines);
}

#[test]
fn client() {
    run_folder("client", ClientRunner::default);
}

#[cfg(feature = "cli")]
#[test]
fn cli() {
    run_folder("cli", cli_runner::CliRunner::default);
}
