//! The configuration of a node, from a file or from flags.

use std::path::Path;

use anyhow::{Context, bail};
use kv_service::ServerConfig;
use kv_service::config::TlsFiles;

use crate::args::NodeArgs;

/// Reads the node's file, or makes a configuration from the flags.
pub(crate) fn read(config: Option<&Path>, args: NodeArgs) -> anyhow::Result<ServerConfig> {
    match config {
        Some(path) => from_file(path, &args),
        None => from_flags(args),
    }
}

/// A file holds the whole configuration. With a flag beside it, it would be open which of the two
/// holds.
fn from_file(path: &Path, args: &NodeArgs) -> anyhow::Result<ServerConfig> {
    let beside = args.data_dir.is_some() || args.listen.is_some() || describes_a_node(args);
    if beside {
        bail!("give either --config or the other flags: the file {} says it all", path.display());
    }
    Ok(ServerConfig::read(path)?)
}

/// Returns true if a flag is given that a file or an invitation answers.
pub(crate) fn describes_a_node(args: &NodeArgs) -> bool {
    let NodeArgs {
        cluster,
        id,
        listen: _,
        data_dir: _,
        node,
        ca,
        cert,
        key,
        max_raft_state,
        storage,
    } = args;
    cluster.is_some()
        || id.is_some()
        || !node.is_empty()
        || ca.is_some()
        || cert.is_some()
        || key.is_some()
        || max_raft_state.is_some()
        || storage.is_some()
}

fn from_flags(args: NodeArgs) -> anyhow::Result<ServerConfig> {
    fn needed<T>(value: Option<T>, flag: &str) -> anyhow::Result<T> {
        value.with_context(|| format!("{flag} is missing; or name a file with --config"))
    }
    if args.node.is_empty() {
        bail!("--node ID=HOST:PORT is missing, once for each node; or name a file with --config");
    }
    let tls = TlsFiles {
        ca: needed(args.ca, "--ca FILE")?,
        cert: needed(args.cert, "--cert FILE")?,
        key: needed(args.key, "--key FILE")?,
    };
    let cluster = needed(args.cluster, "--cluster NAME")?;
    let id = needed(args.id, "--id N")?;
    let data_dir = needed(args.data_dir, "--data-dir DIR")?;
    let mut config = ServerConfig::new(cluster, id, data_dir, tls, args.node);
    config.listen = args.listen;
    if let Some(storage) = args.storage {
        config.storage = storage.into();
    }
    if let Some(max_raft_state) = args.max_raft_state {
        config.max_raft_state = max_raft_state;
    }
    config.check()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn parse(line: &str) -> NodeArgs {
        let Command::Serve(args) = Args::parse_from(line.split_whitespace()).command else {
            panic!("{line}")
        };
        args.node
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
