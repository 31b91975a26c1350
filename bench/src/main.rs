//! How fast the store is, beside its peers and its floors: one subcommand for each question.
//!
//! Each subcommand runs both sides in the same run, alternating, prints a table of medians and
//! ratios with their spread, and writes every single measurement as JSON. The README beside this
//! crate describes the method.

mod chart;
mod cluster;
mod etcd;
mod figures;
mod floors;
mod growth;
mod load;
mod machine;
mod openraft;
mod process;
mod raft_rs;
mod report;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::report::Report;

#[derive(Debug, Parser)]
#[command(about = "How fast the store is, beside its peers and its floors", max_term_width = 100)]
struct Args {
    /// Where the JSON goes: DIR/<benchmark>.json
    #[arg(long, value_name = "DIR", default_value = "results", global = true)]
    out: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The durable cluster against etcd: put, linearizable get, half and half
    Etcd(etcd::Args),
    /// The leader killed with -9 under load: how long no write succeeds, against etcd
    Kills(etcd::kills::Args),
    /// Three nodes in one process, in memory, against openraft
    Openraft(openraft::Args),
    /// The pure core alone, three values in one thread, against raft-rs
    RaftRs(raft_rs::Args),
    /// A single client's put beside what disk, network and memory cost by themselves
    Floors(floors::Args),
    /// The durable cluster against size of values, cluster and state, clients, sessions, snapshots
    Growth(growth::Args),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let report: Report = match args.command {
        Command::Etcd(args) => etcd::run(args)?,
        Command::Kills(args) => etcd::kills::run(args)?,
        Command::Openraft(args) => openraft::run(args)?,
        Command::RaftRs(args) => raft_rs::run(args)?,
        Command::Floors(args) => floors::run(args)?,
        Command::Growth(args) => growth::run(args)?,
    };
    report.conclude(&args.out)
}
