//! The `kv` command: runs nodes and speaks to them.
//!
//! Each command is one file and uses the library as any other program would. Everything runs on one
//! thread: nodes and clients usually share a machine, where a hop between threads costs more than
//! it brings.

mod args;
mod batch;
mod bench;
mod cert;
mod cluster;
mod commands;
mod connect;
mod dev;
mod exit;
mod files;
mod init;
mod invitation;
mod leader;
mod member;
mod node_config;
mod node_dir;
mod output;
mod serve;
mod status;
mod upgrade;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command};
use crate::exit::Exit;

fn main() -> ExitCode {
    let args = Args::parse();
    let exit = match execute(args) {
        Ok(exit) => exit,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            Exit::of(&error)
        }
    };
    exit.into()
}

fn execute(args: Args) -> anyhow::Result<Exit> {
    log_to_stderr(&args.command)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start: the system gives no event queue")?;
    let result = runtime.block_on(run(args));
    // A thread may still be blocked in a read of standard input that never returns.
    runtime.shutdown_background();
    result
}

async fn run(args: Args) -> anyhow::Result<Exit> {
    let config = args.config.as_deref();
    match args.command {
        Command::Dev(dev) => dev::run(config, dev).await,
        Command::Init(args) => init::run(config, args),
        Command::Serve(serve) => serve::run(config, serve).await,
        Command::Get(get) => commands::get(config, get).await,
        Command::Put(put) => commands::put(config, put).await,
        Command::Append(append) => commands::append(config, append).await,
        Command::Delete(delete) => commands::delete(config, delete).await,
        Command::Cas(cas) => commands::cas(config, cas).await,
        Command::Scan(scan) => commands::scan(config, scan).await,
        Command::Status(status) => status::run(config, status).await,
        Command::Member(args) => member::run(config, args).await,
        Command::Cluster(args) => cluster::run(config, args).await,
        Command::Leader(args) => leader::run(config, args).await,
        Command::Drain(args) => member::drain(config, args).await,
        Command::OkToStop(args) => leader::ok_to_stop(config, args).await,
        Command::Cert(args) => cert::run(&args),
        Command::Upgrade(args) => upgrade::run(config, args).await,
        Command::Batch(batch) => batch::run(config, batch).await,
        Command::Bench(bench) => bench::run(config, bench).await,
    }
}

/// `KV_LOG` decides. Without it, `kv serve` logs at level info, and the other commands log errors
/// only.
fn log_to_stderr(command: &Command) -> anyhow::Result<()> {
    let filter = match std::env::var("KV_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).with_context(|| {
            format!("KV_LOG={directives:?}: write a level such as debug, or TARGET=LEVEL, ...")
        })?,
        Err(_) if matches!(command, Command::Serve(_)) => EnvFilter::new("info"),
        Err(_) => EnvFilter::new("error"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // Otherwise a failure to log is reported on standard error, which panics if that fails too:
        // a node must not die because its log is full.
        .log_internal_errors(false)
        .init();
    Ok(())
}
