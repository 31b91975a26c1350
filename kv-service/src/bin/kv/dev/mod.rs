//! `kv dev`: a cluster of real server processes on this machine, for trying and developing.
//!
//! ```text
//!   kv dev ---- supervise: owns everything, prints, stops
//!     |            |-- keeper of node 1 ---- process `kv serve --config DIR/node1.toml`
//!     |            |-- keeper of node 2 ---- process ...
//!     |            `-- control socket DIR/dev.sock  <----  kv dev restart N, add, ...
//!     `--- layout: what is in DIR
//! ```
//!
//! The nodes are processes like any other `kv serve`: they may be killed, stopped and started by
//! hand. They do not outlive the supervisor, not even one that is killed, because each node then
//! reads the end of its standard input. For anything but development run `kv serve` under a service
//! manager.

mod control;
mod keeper;
mod layout;
mod marker;
mod members;
mod supervise;

use std::path::{Path, PathBuf};

use anyhow::bail;

use self::control::Action;
use self::layout::{Layout, Wish};
use crate::args::{DevAction, DevArgs};
use crate::exit::Exit;

const DEFAULT_DIR: &str = "./kv-data";

pub(crate) async fn run(config: Option<&Path>, args: DevArgs) -> anyhow::Result<Exit> {
    if config.is_some() {
        bail!("`kv dev` makes its own configuration: name its directory with --dir");
    }
    let dir = args.dir.unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    if let Some(action) = args.action {
        let beside = args.clean
            || args.nodes.is_some()
            || args.base_port.is_some()
            || args.max_raft_state.is_some();
        if beside {
            bail!(
                "`kv dev {}` takes no flag but --dir: the others are for starting a cluster",
                name(&action)
            );
        }
        return control::order(&dir, action_of(&action)).await;
    }
    let wish = Wish {
        nodes: args.nodes,
        base_port: args.base_port,
        max_raft_state: args.max_raft_state,
        clean: args.clean,
    };
    let layout = Layout::open(&dir, &wish).await?;
    supervise::run(layout).await
}

fn name(action: &DevAction) -> &'static str {
    match action {
        DevAction::Restart { .. } => "restart",
        DevAction::Add => "add",
        DevAction::Remove { .. } => "remove",
        DevAction::Replace { .. } => "replace",
    }
}

fn action_of(action: &DevAction) -> Action {
    match *action {
        DevAction::Restart { node } => Action::Restart(node),
        DevAction::Add => Action::Add,
        DevAction::Remove { node } => Action::Remove(node),
        DevAction::Replace { node } => Action::Replace(node),
    }
}

/// The name by which this program was called, so that printed commands can be copied.
fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if called.contains('/') { quoted(&called) } else { "kv".to_owned() }
}

/// Quotes a text for a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Flags with which a client command finds the cluster; empty if it finds it without them.
fn client_flags(layout: &Layout) -> String {
    if layout.dir() == Path::new(DEFAULT_DIR) {
        String::new()
    } else {
        format!(" --config {}", quoted(&layout.client_config().display().to_string()))
    }
}

/// Flags with which `kv dev` finds the directory; empty if it finds it without them.
fn dir_flags(dir: &Path) -> String {
    if dir == Path::new(DEFAULT_DIR) {
        String::new()
    } else {
        format!(" --dir {}", quoted(&dir.display().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_copied_into_a_shell() {
        assert_eq!(quoted("/tmp/kv-data"), "/tmp/kv-data");
        assert_eq!(quoted("my data"), "'my data'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(dir_flags(Path::new(DEFAULT_DIR)), "");
        assert_eq!(dir_flags(Path::new("/d")), " --dir /d");
    }
}
