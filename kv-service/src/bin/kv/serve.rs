//! `kv serve`: one node, until it is told to stop or fails.

use std::path::Path;
use std::pin::pin;

use anyhow::{anyhow, bail};
use kv_service::{Server, ServerConfig, ServerError};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::ServeArgs;
use crate::exit::Exit;
use crate::{invitation, node_config, output};

pub(crate) async fn run(config: Option<&Path>, args: ServeArgs) -> anyhow::Result<Exit> {
    let parent_watched = args.stop_on_stdin_eof;
    let config = configuration(config, args)?;
    // Installed before the node starts, so that no signal can arrive too early. SIGHUP is left
    // alone: an operator who starts a node with nohup wants it to stay.
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
        started = Server::start(config) => match started {
            Ok(server) => server,
            Err(error) => match ended(&error) {
                Some(exit) => return Ok(exit),
                None => return Err(anyhow!("{error}")),
            },
        },
        // Nothing has been acknowledged yet, so there is nothing to finish.
        why = told(&mut terminate, &mut interrupt, parent_gone.as_mut()) => {
            tracing::info!("stopped on {why} before it was up");
            return Ok(Exit::Done);
        }
    };
    tracing::info!("node {node_id} of cluster {cluster_id} serves at {listen}");
    let why = tokio::select! {
        stopped = server.stopped() => {
            if let Some(exit) = stopped.as_ref().err().and_then(ended) {
                return Ok(exit);
            }
            // The error's text names the causes already.
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

fn configuration(config: Option<&Path>, args: ServeArgs) -> anyhow::Result<ServerConfig> {
    match args.join {
        Some(_) if config.is_some() => {
            bail!("give either --config or --join: an invitation makes the configuration")
        }
        Some(file) => invitation::accept(&file, args.advertise, args.node),
        None => node_config::read(config, args.node),
    }
}

/// Says why the node must not be started again, if that is so.
fn ended(error: &ServerError) -> Option<Exit> {
    let exit = match error {
        ServerError::Removed(_) => Exit::Removed,
        ServerError::Replaced(_) => Exit::Replaced,
        _ => return None,
    };
    output::complain(&error.to_string());
    Some(exit)
}

/// Waits until the node is told to stop, and returns the reason.
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
    // An error counts as the end.
    while matches!(stdin.read(&mut ignored).await, Ok(count) if count > 0) {}
}
