//! `kv init`: the data directory of a node of a new cluster.

use std::path::Path;

use anyhow::anyhow;
use kv_service::Server;

use crate::args::InitArgs;
use crate::exit::Exit;
use crate::{node_config, output};

pub(crate) fn run(config: Option<&Path>, args: InitArgs) -> anyhow::Result<Exit> {
    let config = node_config::read(config, args.node)?;
    Server::init(&config).map_err(|error| anyhow!("{error}"))?;
    let others: Vec<String> = config
        .nodes
        .iter()
        .filter(|node| node.id != config.node_id)
        .map(|node| node.id.to_string())
        .collect();
    let next = if others.is_empty() {
        "Start it with `kv serve`".to_owned()
    } else {
        format!(
            "Initialise the other nodes ({}) too, then start all with `kv serve`: the first leader needs \
             all of them, from then on a majority is enough",
            others.join(", ")
        )
    };
    output::tell(
        format!(
            "initialised {} for node {} of the new cluster {}. {next}.",
            config.data_dir.display(),
            config.node_id,
            config.cluster_id,
        )
        .as_bytes(),
    );
    Ok(Exit::Done)
}
