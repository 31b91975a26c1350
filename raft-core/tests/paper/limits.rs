//! Limits of a node's log: entries handed out in pages, bytes not yet committed, a log that is
//! full, and a log that was compacted.

use std::time::Duration;

use bytes::Bytes;
use raft_core::error::Rejected;

use crate::common::{Cluster, say};
use crate::no_pre_vote;
use crate::replication::led;

/// A20: committed entries are handed out in pages, and the node crashes between two pages. After
/// the restart no entry is skipped, and the commit index is not below the one on disk.
#[test]
fn a20_pages_of_commits_and_a_restart() {
    for snapshot in [false, true] {
        let mut cluster = Cluster::with_config(3, |config| {
            no_pre_vote(config);
            config.apply_bytes_max = say::entry(1, 1).size_bytes();
        });
        cluster.elect(1);
        let commands = (0..7u8).map(|number| Bytes::from(vec![number])).collect();
        cluster.with(1, |raft, _| raft.propose(commands)).expect("it leads");
        cluster.settle();
        let pages = cluster.events.iter().filter(|line| line.starts_with("2 applies")).count();
        assert_eq!(pages, 8, "a page for each entry");
        if snapshot {
            cluster.snapshot(2);
            cluster.compact(2, 5);
        }
        let remembered = cluster.node(2).disk.loaded.hard_state.commit_index;
        cluster.crash(2, 0);
        cluster.start(2);
        assert!(cluster.status(2).commit_index >= remembered.max(if snapshot { 8 } else { 0 }));
        cluster.with(1, |raft, now| raft.on_unreachable(now, 2));
        cluster.run(500);
        // The machine asserts that there is no gap.
        assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
        assert_eq!(cluster.status(2).last_applied, 8);
    }
}

/// A21: uncommitted entries are bounded in bytes. A single larger command is accepted while the
/// total is below the bound, and a new leader's no-op always. Committed entries are not counted.
#[test]
fn a21_uncommitted_bytes_are_bounded() {
    let mut cluster = Cluster::with_config(3, |config| {
        config.pre_vote = false;
        config.uncommitted_bytes_max = 100;
    });
    cluster.elect(1);
    cluster.isolate(1);
    let large = "x".repeat(1000);
    cluster.propose(1, &large).expect("below the bound before");
    assert!(matches!(cluster.propose(1, "a"), Err(Rejected::Busy(_))));
    cluster.heal();
    // The uncommitted entry does not prevent a new leader from appending its no-op.
    cluster.now = cluster.now + Duration::from_millis(400);
    cluster.fire(1);
    cluster.run(2_000);
    cluster.elect(1);
    cluster.run(100);
    cluster.propose(1, &large).expect("all is committed");
}

/// The leader's disk was rolled back to before the entries that this node has compacted. The node
/// must not accept its append behind the log's start, neither silently nor with a panic.
#[test]
fn an_append_that_contradicts_the_compacted_log_is_refused() {
    for terms in [&[1, 1, 1, 1][..], &[1, 1, 3], &[1, 1, 1]] {
        let mut cluster = led();
        cluster.propose(1, "a").expect("it leads");
        cluster.settle();
        cluster.elect_again(2);
        cluster.settle();
        // Node 3's log is empty and starts after 3@2.
        cluster.snapshot(3);
        cluster.compact(3, 3);
        assert_eq!(cluster.node(3).disk.start(), raft_core::types::Position::new(2, 3));
        cluster.flying.clear();
        cluster.step(1, 3, say::append(9, (0, 0), terms, 0));
        assert_eq!(cluster.node(3).alarms.len(), 1, "{terms:?}");
        assert!(cluster.sent_by(3).is_empty());
        assert_eq!(cluster.status(3).last_index, 3);
    }
}

/// A follower whose log is full accepts no more entries until it has compacted committed ones.
/// Meanwhile it follows the commit index and does not disturb the others; then it catches up.
#[test]
fn a_full_log_takes_no_more_until_it_is_compacted() {
    let mut cluster = Cluster::with_config(3, |config| {
        no_pre_vote(config);
        if config.id == 3 {
            config.uncommitted_bytes_max = 300;
            config.log_bytes_max = 300;
        }
    });
    cluster.elect(1);
    for _ in 0..50 {
        cluster.propose(1, "a").expect("it leads");
        cluster.run(20);
    }
    cluster.run(1_000);
    let last_index = cluster.status(1).last_index;
    assert_eq!(cluster.status(1).commit_index, last_index, "two of three suffice");
    assert_eq!(cluster.leader(), Some(1));
    let full = cluster.status(3);
    assert!((300..400).contains(&full.log_bytes), "{full:?}");
    assert_eq!(full.last_applied, full.last_index, "heartbeats move the commit index");
    for _ in 0..50 {
        let applied = cluster.status(3).last_applied;
        cluster.snapshot(3);
        cluster.compact(3, applied);
        cluster.run(1_000);
    }
    assert_eq!(cluster.status(3).last_applied, last_index);
}
