//! Lab 2D: the log stays small, and a node that needs dropped entries gets a snapshot.
//!
//! In the labs the service asks for a snapshot after every ten commands, and the bound on the
//! persisted bytes shows that the log was compacted. Here the node watches its log by itself.

use std::ops::Range;

use tokio::time::sleep;

use super::harness::{Lab, Links, MS, Retry, Setup, nodes};

const SEEDS: Range<u64> = 0..4;

/// The labs' `MAXLOGSIZE`.
const LOG_BYTES_MAX: u64 = 2_000;

/// The state soon outgrows this limit. Then a node waits for up to four times as much log, so as
/// not to write the state again and again.
const MAX_RAFT_STATE_BYTES: u64 = 250;

const COMPACTING: Setup = nodes(3).compacting_at(MAX_RAFT_STATE_BYTES);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Disconnect,
    Crash,
}

async fn snapshots(lab: &mut Lab, fault: Fault) {
    lab.one(lab.command(), 3, Retry::Yes).await;
    let mut leader = lab.check_one_leader().await;
    for iteration in 0..30 {
        let (victim, sender) = match iteration % 3 {
            1 => (leader, lab.after(leader, 1)),
            _ => (lab.after(leader, 1), leader),
        };
        match fault {
            Fault::None => {}
            Fault::Disconnect => lab.disconnect(&[victim]),
            Fault::Crash => lab.crash(victim),
        }
        let count = if fault == Fault::None { 3 } else { 2 };
        if fault != Fault::None {
            lab.one(lab.command(), count, Retry::Yes).await;
        }
        for _ in 0..lab.draw(5..=14) {
            lab.propose(sender, lab.command());
        }
        lab.one(lab.command(), count, Retry::Yes).await;
        // As long as the polls of the labs take; a snapshot takes less.
        sleep(20 * MS).await;
        let log_bytes = lab.log_bytes_max();
        assert!(log_bytes < LOG_BYTES_MAX, "{log_bytes} bytes of log in round {iteration}");
        match fault {
            Fault::None => {}
            Fault::Disconnect => lab.connect(&[victim]),
            Fault::Crash => lab.start(victim).await,
        }
        if fault != Fault::None {
            lab.one(lab.command(), 3, Retry::Yes).await;
            leader = lab.check_one_leader().await;
        }
    }
    for node in lab.cluster.nodes.values() {
        assert!(node.status().snapshot_index > 0, "every log was compacted");
    }
}

/// Checks that a node was sent a snapshot, because the log no longer reached back far enough.
fn assert_sent(lab: &Lab) {
    assert!(lab.frame_count() > 0, "no snapshot was sent");
}

#[test]
fn snapshot_basic() {
    COMPACTING.run(SEEDS, async |lab: &mut Lab| snapshots(lab, Fault::None).await);
}

#[test]
fn snapshot_install() {
    COMPACTING.run(SEEDS, async |lab: &mut Lab| {
        snapshots(lab, Fault::Disconnect).await;
        assert_sent(lab);
    });
}

pub(crate) async fn install_unreliable(lab: &mut Lab) {
    snapshots(lab, Fault::Disconnect).await;
    assert_sent(lab);
}

pub(crate) const UNRELIABLE: Setup = COMPACTING.with(Links::Unreliable);

#[test]
fn snapshot_install_unreliable() {
    UNRELIABLE.run(SEEDS, install_unreliable);
}

#[test]
fn snapshot_install_crash() {
    COMPACTING.run(SEEDS, async |lab: &mut Lab| {
        snapshots(lab, Fault::Crash).await;
        assert_sent(lab);
    });
}

#[test]
fn snapshot_install_un_crash() {
    UNRELIABLE.run(SEEDS, async |lab: &mut Lab| {
        snapshots(lab, Fault::Crash).await;
        assert_sent(lab);
    });
}

/// All nodes crash at once, and the agreed commands are there again. Runs on both kinds of links,
/// as the labs did in different years; so does the next test.
#[test]
fn snapshot_all_crash() {
    for links in [Links::Reliable, Links::Unreliable] {
        COMPACTING.with(links).run(SEEDS, async |lab: &mut Lab| {
            lab.one(lab.command(), 3, Retry::Yes).await;
            for _ in 0..5 {
                for _ in 0..lab.draw(5..=14) {
                    lab.one(lab.command(), 3, Retry::Yes).await;
                }
                let before = lab.one(lab.command(), 3, Retry::Yes).await;
                lab.restart_all().await;
                let after = lab.one(lab.command(), 3, Retry::Yes).await;
                assert!(after > before, "{after} after {before}");
            }
            let indexes: Vec<_> =
                lab.cluster.nodes.values().map(|node| node.status().snapshot_index).collect();
            assert!(indexes.iter().all(|index| *index > 0), "{indexes:?}");
        });
    }
}

/// A node that restarts keeps its snapshot, and does not replace it by an empty one.
#[test]
fn snapshot_init() {
    for links in [Links::Reliable, Links::Unreliable] {
        COMPACTING.with(links).run(SEEDS, async |lab: &mut Lab| {
            let mut agreed = Vec::new();
            for _ in 0..30 {
                let command = lab.command();
                agreed.push((lab.one(command.clone(), 3, Retry::Yes).await, command));
            }
            for node in lab.cluster.nodes.values() {
                assert!(node.status().snapshot_index > 0, "{:?}", node.status());
            }
            // Twice, with a command persisted in between.
            for _ in 0..2 {
                lab.restart_all().await;
                let command = lab.command();
                agreed.push((lab.one(command.clone(), 3, Retry::Yes).await, command));
            }
            for node in lab.cluster.nodes.values() {
                let held = node.query_and_wait((), false).await.unwrap();
                for (number, command) in &agreed {
                    assert_eq!(held.get(*number as usize - 1), Some(command));
                }
            }
        });
    }
}
