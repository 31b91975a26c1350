//! The ends of a node: a shutdown, an abort, a runtime that is dropped. Every request is completed.

use std::sync::Arc;
use std::time::Duration;

use raft_core::consensus::RoleKind;
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::{Fatal, ProposeError, Rejected};
use raft_core::transport::channel::ChannelNetwork;

use crate::support::cluster::{Cluster, in_time};
use crate::support::machine::{Knobs, Machine};
use crate::support::store::Disk;

/// API finding 5. `abort` stops a node as a crash does: it does not transfer leadership, and it
/// does not wait for a batch that hangs.
#[tokio::test(start_paused = true)]
async fn an_aborted_node_ends_at_once_and_answers() {
    let mut cluster = Cluster::new(1, 3);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    cluster.sites[&leader].disk.hinder(|disk| disk.hangs = true);
    let node = cluster.nodes[&leader].clone();
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.propose_and_wait("x".into()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let aborted_at = tokio::time::Instant::now();
    node.abort().await;
    assert!(aborted_at.elapsed() < Duration::from_millis(1), "it waits for nothing");
    let outcome = waiting.await.expect("no panic");
    assert!(matches!(outcome, Err(ProposeError::Unknown(_))), "{outcome:?}");
    node.stopped().await.expect("an abort is no failure");
    let seen = *node.watch().borrow();
    assert_eq!((seen.leader, seen.is_leader), (None, false), "a stopped node leads nothing");
    assert_eq!(node.status().role, RoleKind::Follower);
    assert_eq!(node.query_and_wait((), false).await, Err(Rejected::ShuttingDown));

    cluster.sites[&leader].disk.hinder(|disk| disk.hangs = false);
    cluster.crash(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.start(leader).await;
    cluster.write("y").await;
}

/// API finding 4. Requests in every stage are completed, and the node does not look like a leader.
#[test]
fn a_runtime_that_goes_away_answers_all_requests() {
    let build = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().expect("a runtime can be built")
    };
    let runtime = build();
    let disk = Disk::of_member();
    let node = runtime.block_on(async {
        let machine = Machine::volatile(&Arc::new(Knobs::default()));
        let transport = ChannelNetwork::new(1).transport(1);
        let config = NodeConfig::new(1, [1], 1);
        let node = Node::start(config, disk.open(), transport, machine).await;
        let node = node.expect("a node of a healthy disk starts");
        in_time("it leads", node.watch().wait_for(|seen| seen.is_leader)).await.expect("it runs");
        node
    });
    disk.hinder(|disk| disk.hangs = true);
    let (sender, outcomes) = std::sync::mpsc::sync_channel(10);
    let propose = |what: &'static str| {
        let sender = sender.clone();
        node.propose("x".into(), move |outcome| {
            sender.send((what, outcome.is_err())).expect("room");
        });
    };
    propose("waits for the disk");
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    propose("waits in the inbox");
    drop(runtime);
    propose("comes too late");
    let mut told: Vec<_> = outcomes.try_iter().collect();
    told.sort_unstable();
    let expected = ["comes too late", "waits for the disk", "waits in the inbox"];
    assert_eq!(told, expected.map(|what| (what, true)));
    assert!(!node.watch().borrow().is_leader, "a node without a runtime leads nothing");

    let other = build();
    let late = other.block_on(node.propose_and_wait("y".into()));
    assert_eq!(late, Err(Rejected::ShuttingDown.into()));
    other.block_on(node.stopped()).expect_err("it did not end in good order");
}

/// A receiver may outlive each handle of the node: it is still notified.
#[tokio::test(start_paused = true)]
async fn a_watcher_outlives_the_handles_of_its_node() {
    let mut cluster = Cluster::new(1, 3);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let follower = 1 + leader % 3;
    let mut watcher = cluster.nodes[&follower].watch_status();
    drop(cluster.nodes.remove(&follower));
    cluster.write("x").await;
    let goal = cluster.nodes[&leader].status().last_index;
    let applied = watcher.wait_for(|status| status.last_applied >= goal);
    in_time("the follower applies the write", applied).await.expect("it runs");
}

/// C24. A node whose configuration cannot work does not start.
#[tokio::test(start_paused = true)]
async fn c24_a_node_without_room_for_a_command_does_not_start() {
    for change in [
        (|config: &mut NodeConfig| config.raft.uncommitted_bytes_max = 0) as fn(&mut NodeConfig),
        |config| config.max_raft_state_bytes = u64::MAX,
    ] {
        let mut config = NodeConfig::new(1, [1], 1);
        change(&mut config);
        let machine = Machine::volatile(&Arc::new(Knobs::default()));
        let transport = ChannelNetwork::new(1).transport(1);
        let started = Node::start(config, Disk::of_member().open(), transport, machine).await;
        assert!(matches!(started.err(), Some(Fatal::Config(_))), "accepted");
    }
}
