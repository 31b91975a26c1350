//! Whole nodes on a healthy network, with nodes that come and go.

use std::time::Duration;

use bytes::Bytes;
use integration_tests::counter::{command, counters};
use raft_core::error::ProposeError;
use raft_core::transport::channel::{LinkFaults, Traffic};
use raft_core::types::NodeId;
use raft_storage::memory::{Latency, Operation};

#[tokio::test(start_paused = true)]
async fn elects_commits_and_reads_everywhere() {
    let cluster = counters(1, 3, 0).await;
    let leader = cluster.leader().await;
    for number in 1..=100 {
        let output = cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
        assert_eq!(output, number as u64);
    }
    for node in cluster.nodes.values() {
        let commands = node.query_and_wait((), true).await.unwrap();
        assert_eq!(commands, (1..=100).map(command).collect::<Vec<_>>());
    }
}

/// The follower's disk is slow, so it may not have applied yet what the others have acknowledged.
#[tokio::test(start_paused = true)]
async fn a_follower_answers_a_read_when_it_has_what_was_acknowledged_before() {
    let cluster = counters(1, 3, 0).await;
    let leader = cluster.leader().await;
    let follower = 1 + leader % 3;
    let slow = Latency { before: Duration::from_millis(200), after: Duration::ZERO };
    cluster.disk(follower).set_latency(Operation::Persist, slow);
    let asked = tokio::time::Instant::now();
    for number in 1..=3 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    assert_eq!(cluster.nodes[&follower].query_and_wait((), false).await.unwrap(), [] as [Bytes; 0]);
    let commands = cluster.nodes[&follower].query_and_wait((), true).await.unwrap();
    assert_eq!(commands, (1..=3).map(command).collect::<Vec<_>>());
    assert!(asked.elapsed() >= slow.before, "the disk was not slow");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_was_away_catches_up_by_snapshot() {
    let mut cluster = counters(1, 3, 2_000).await;
    let leader = cluster.leader().await;
    let away = 1 + leader % 3;
    cluster.stop(away).await;
    for number in 1..=1_000 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    let status = cluster.nodes[&leader].status();
    assert!(status.log_bytes <= 16_000, "{status:?}");
    assert!(status.snapshot_index > 0);
    cluster.start(away).await;
    let mut watch = cluster.nodes[&away].watch_status();
    watch.wait_for(|status| status.last_applied >= 1_001).await.unwrap();
    let commands = cluster.nodes[&away].query_and_wait((), false).await.unwrap();
    assert_eq!(commands.len(), 1_000);
}

/// No client writes, the leader stays, and its log reaches back to everything that the follower had
/// acknowledged.
#[tokio::test(start_paused = true)]
async fn a_follower_that_lost_its_disk_is_filled_up_on_an_idle_cluster() {
    let mut cluster = counters(1, 3, 0).await;
    let leader = cluster.leader().await;
    let lost = 1 + leader % 3;
    for number in 1..=10 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    cluster.lose_disk(lost);
    cluster.start(lost).await;
    assert!(cluster.nodes[&lost].status().is_recovering);
    let mut watch = cluster.nodes[&lost].watch_status();
    let is_whole = watch.wait_for(|status| status.last_applied >= 11 && !status.is_recovering);
    tokio::time::timeout(Duration::from_secs(2), is_whole).await.expect("soon").unwrap();
    assert_eq!(cluster.nodes[&leader].status().term, cluster.nodes[&lost].status().term);
    // The node is readmitted: with the third node isolated, it is a majority with the leader.
    cluster.isolate(1 + lost % 3);
    cluster.nodes[&leader].propose_and_wait(command(11)).await.unwrap();
}

/// An acknowledged entry is not given up for a node that lacks it.
#[tokio::test(start_paused = true)]
async fn who_lost_its_disk_elects_nobody_who_lacks_what_was_acknowledged() {
    let mut cluster = counters(1, 3, 0).await;
    let leader = cluster.leader().await;
    let (lost, behind) = (1 + leader % 3, 1 + (leader + 1) % 3);
    cluster.isolate(behind);
    cluster.nodes[&leader].propose_and_wait(command(1)).await.unwrap();
    cluster.crash(leader);
    cluster.lose_disk(lost);
    cluster.reconnect(behind);
    cluster.start(lost).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    for id in [lost, behind] {
        assert_eq!(cluster.nodes[&id].status().leader_id, None, "node {leader} alone has it");
    }
    cluster.start(leader).await;
    let next = cluster.leader().await;
    let commands = cluster.nodes[&next].query_and_wait((), true).await.unwrap();
    assert_eq!(commands, [command(1)]);
}

/// The link breaks while the snapshot is under way.
#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_transfer_breaks_off_is_sent_again() {
    let mut cluster = counters(1, 3, 2_000).await;
    let leader = cluster.leader().await;
    let away = 1 + leader % 3;
    cluster.stop(away).await;
    for number in 1..=500 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    let (frames, mut seen) = tokio::sync::watch::channel(0);
    cluster.network.listen(move |from, to, traffic| {
        if (from, to) == (leader, away) && matches!(traffic, Traffic::Frame(_)) {
            frames.send_modify(|count| *count += 1);
        }
    });
    let delay = Duration::from_millis(10);
    cluster.network.set_faults(leader, away, LinkFaults::none().delaying(delay, delay));
    cluster.start(away).await;
    seen.wait_for(|count| *count > 0).await.unwrap();
    cluster.network.partition_link(leader, away);
    cluster.network.heal_link(leader, away);
    let before = *seen.borrow();
    let mut watch = cluster.nodes[&away].watch_status();
    let caught_up = watch.wait_for(|status| status.last_applied >= 501);
    tokio::time::timeout(Duration::from_secs(60), caught_up)
        .await
        .expect("it is sent again")
        .unwrap();
    assert!(*seen.borrow() > before, "it came by another way");
    assert_eq!(cluster.leader().await, leader);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_loses_nothing_that_was_acknowledged() {
    let mut cluster = counters(1, 3, 0).await;
    let leader = cluster.leader().await;
    cluster.nodes[&leader].propose_and_wait(command(1)).await.unwrap();
    cluster.network.isolate(leader);
    let lost = cluster.nodes[&leader].propose_and_wait(command(99)).await;
    assert!(matches!(lost, Err(ProposeError::Unknown(_))), "{lost:?}");
    let old = cluster.nodes.remove(&leader).unwrap();
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    assert_eq!(cluster.nodes[&next].propose_and_wait(command(2)).await.unwrap(), 2);
    cluster.network.heal();
    let mut watch = old.watch_status();
    watch
        .wait_for(|status| status.leader_id == Some(next) && status.last_applied >= 4)
        .await
        .unwrap();
    assert_eq!(old.query_and_wait((), false).await.unwrap(), [command(1), command(2)]);
}

#[tokio::test(start_paused = true)]
async fn all_restart_and_a_leader_hands_over() {
    let mut cluster = counters(1, 3, 500).await;
    let leader = cluster.leader().await;
    for number in 1..=200 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    let before = tokio::time::Instant::now();
    cluster.stop(leader).await;
    cluster.leader().await;
    assert!(before.elapsed() < Duration::from_millis(300), "handed over, not timed out");
    let ids: Vec<NodeId> = cluster.nodes.keys().copied().collect();
    for id in ids {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    let leader = cluster.leader().await;
    assert_eq!(cluster.nodes[&leader].propose_and_wait(command(201)).await.unwrap(), 201);
}
