//! The cluster version: raised once all members support the next one, and stored in the log.

use std::sync::Arc;

use raft_core::driver::{Node, NodeConfig};
use raft_core::error::{Fatal, Rejected};
use raft_core::transport::channel::ChannelNetwork;

use crate::support::cluster::in_time;
use crate::support::machine::{Knobs, Machine};
use crate::support::store::Disk;

/// Starts the only node of a cluster, with a program that supports versions up to `version_max`.
async fn start(disk: &Disk, version_max: u32) -> Result<Node<Machine>, Fatal> {
    let mut config = NodeConfig::new(1, [1], 1);
    config.raft.version_max = version_max;
    let machine = Machine::volatile(&Arc::new(Knobs::default()));
    let transport = ChannelNetwork::new(1).transport(1);
    let node = Node::start(config, disk.open(), transport, machine).await?;
    in_time("it leads", node.watch().wait_for(|seen| seen.is_leader)).await.expect("it runs");
    Ok(node)
}

async fn wait_for_version(node: &Node<Machine>, version: u32) {
    let mut status = node.watch_status();
    let raised = status.wait_for(|status| status.cluster_version == version);
    in_time("the version is in force", raised).await.expect("it runs");
}

/// S15. A program that does not know the version in force refuses to start. The error says which
/// program to install.
#[tokio::test(start_paused = true)]
async fn a_raised_version_keeps_older_programs_out() {
    let disk = Disk::of_member();
    let older = start(&disk, 1).await.expect("a new disk");
    wait_for_version(&older, 1).await;
    let refused = older.raise_cluster_version(2).await;
    assert!(matches!(refused, Err(Rejected::Refused(_))), "{refused:?}");
    older.shutdown().await;
    assert_eq!(older.raise_cluster_version(2).await, Err(Rejected::ShuttingDown));

    let newer = start(&disk, 2).await.expect("version 1 is known to it");
    newer.raise_cluster_version(2).await.expect("its only member supports it");
    wait_for_version(&newer, 2).await;
    let refused = newer.raise_cluster_version(2).await;
    assert!(matches!(refused, Err(Rejected::Refused(_))), "{refused:?}");
    newer.shutdown().await;

    let refused = start(&disk, 1).await.err().expect("version 2 is not known to it").to_string();
    assert!(refused.contains("install a newer program"), "{refused}");
    start(&disk, 2).await.expect("the newer program goes on");
}
