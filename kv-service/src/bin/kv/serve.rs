//! `kv serve`: one node, until it is told to stop or fails.

use std::path::Path;
use std::pin::pin;

use anyhow::{Context, anyhow, bail};
use kv_service::config::{ServerConfig, TlsFiles, default_max_raft_state};
use kv_service::server::Server;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::ServeArgs;
use crate::exit::Exit;

pub(crate) async fn run(config: Option<&Path>, args: ServeArgs) -> anyhow::Result<Exit> {
    let parent_watched = args.stop_on_stdin_eof;
    let config = match config {
        Some(path) => from_file(path, &args)?,
        None => from_flags(args)?,
    };
    // Before the node starts, so that none of them can arrive too early. A hang-up is left alone: who
    // started us with nohup wants us to stay.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut parent_gone = pin!(async {
        if parent_watched {
            end_of_stdin().await;
        } else {
            std::future::pending::<()>().await;
        }
    });

    let (node_id, cluster_id) = (config.node_id, config.cluster_id.clone());
    let listen = config.listen_address()?;
    let server = tokio::select! {
        started = Server::start(config) => started.map_err(|error| anyhow!("{error}"))?,
        // Nothing has been promised to anybody yet, so there is nothing to finish.
        why = told(&mut terminate, &mut interrupt, parent_gone.as_mut()) => {
            tracing::info!("stopped on {why} before it was up");
            return Ok(Exit::Done);
        }
    };
    tracing::info!("node {node_id} of cluster {cluster_id} serves at {listen}");
    let why = tokio::select! {
        stopped = server.stopped() => {
            // Its text names the causes already.
            stopped.map_err(|error| {
                anyhow!(
                    "the node has stopped: {error}. Nothing that was acknowledged is lost; see to \
                     the cause, then start the node again"
                )
            })?;
            return Ok(Exit::Done);
        }
        why = told(&mut terminate, &mut interrupt, parent_gone.as_mut()) => why,
    };
    tracing::info!("shutting down on {why}");
    tokio::select! {
        () = server.shutdown() => {}
        _ = terminate.recv() => tracing::warn!("told twice, so not waiting for anything"),
        _ = interrupt.recv() => tracing::warn!("told twice, so not waiting for anything"),
    }
    Ok(Exit::Done)
}

/// Waits until the node is told to stop, and says by what.
async fn told(
    terminate: &mut Signal,
    interrupt: &mut Signal,
    parent_gone: impl Future<Output = ()>,
) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "interrupt",
        () = parent_gone => "the end of who started it",
    }
}

async fn end_of_stdin() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 64];
    // An error is an end as well.
    while matches!(stdin.read(&mut ignored).await, Ok(count) if count > 0) {}
}

/// A file says everything: a flag beside it would leave open which of the two holds.
fn from_file(path: &Path, args: &ServeArgs) -> anyhow::Result<ServerConfig> {
    let ServeArgs {
        cluster,
        id,
        listen,
        data_dir,
        node,
        ca,
        cert,
        key,
        max_raft_state,
        storage,
        stop_on_stdin_eof: _,
    } = args;
    let beside = cluster.is_some()
        || id.is_some()
        || listen.is_some()
        || data_dir.is_some()
        || !node.is_empty()
        || ca.is_some()
        || cert.is_some()
        || key.is_some()
        || max_raft_state.is_some()
        || storage.is_some();
    if beside {
        bail!("give either --config or the other flags: the file {} says it all", path.display());
    }
    Ok(ServerConfig::read(path)?)
}

fn from_flags(args: ServeArgs) -> anyhow::Result<ServerConfig> {
    fn needed<T>(value: Option<T>, flag: &str) -> anyhow::Result<T> {
        value.with_context(|| format!("{flag} is missing; or name a file with --config"))
    }
    if args.node.is_empty() {
        bail!("--node ID=HOST:PORT is missing, once for each node; or name a file with --config");
    }
    let config = ServerConfig {
        cluster_id: needed(args.cluster, "--cluster NAME")?,
        node_id: needed(args.id, "--id N")?,
        listen: args.listen,
        data_dir: needed(args.data_dir, "--data-dir DIR")?,
        storage: args.storage.map(Into::into).unwrap_or_default(),
        max_raft_state: args.max_raft_state.unwrap_or(default_max_raft_state()),
        limits: Default::default(),
        timeouts: Default::default(),
        sessions: Default::default(),
        tls: TlsFiles {
            ca: needed(args.ca, "--ca FILE")?,
            cert: needed(args.cert, "--cert FILE")?,
            key: needed(args.key, "--key FILE")?,
        },
        nodes: args.node,
    };
    config.check()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn parse(line: &str) -> ServeArgs {
        let Command::Serve(args) = Args::parse_from(line.split_whitespace()).command else {
            panic!("{line}")
        };
        args
    }

    const FLAGS: &str = "kv serve --cluster shop --id 2 --data-dir d --node 1=localhost:1 \
                         --node 2=127.0.0.1:2 --ca a --cert b --key c --max-raft-state 1MiB";

    #[test]
    fn flags_make_a_configuration() {
        let config = from_flags(parse(FLAGS)).unwrap();
        assert_eq!(config.listen_address().unwrap().port(), 2);
        assert_eq!(config.max_raft_state.0, 1 << 20);
        assert_eq!(config.nodes.len(), 2);
    }

    #[test]
    fn what_is_missing_is_named() {
        let without = FLAGS.replace("--key c", "");
        let error = from_flags(parse(&without)).unwrap_err().to_string();
        assert!(error.contains("--key FILE is missing"), "{error}");
        let error = from_flags(parse("kv serve --cluster shop")).unwrap_err().to_string();
        assert!(error.contains("--node"), "{error}");
    }

    #[test]
    fn a_file_and_flags_contradict_each_other() {
        let error = from_file(Path::new("n.toml"), &parse(FLAGS)).unwrap_err().to_string();
        assert!(error.contains("either --config"), "{error}");
    }
}
