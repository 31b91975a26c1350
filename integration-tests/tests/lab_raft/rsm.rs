//! The rsm part of the labs of 2025: every caller that waits for an output gets one, and it is its
//! own.
//!
//! The counter is the number of applied commands: each increment is a command, and its output is
//! its number.

use std::ops::Range;

use tokio::time::{Instant, sleep, timeout};

use super::harness::{Lab, MS, Retry, SECOND, nodes};
use super::ledger::Started;

const SEEDS: Range<u64> = 0..20;

/// Increments one after another, and checks each output.
async fn increment(lab: &Lab, numbers: std::ops::RangeInclusive<u64>, count: usize) {
    for number in numbers {
        assert_eq!(lab.one(lab.command(), count, Retry::Yes).await, number);
    }
}

/// Checks that all outcomes arrive within this time.
async fn all_answered(started: &[Started], within: std::time::Duration) {
    let since = Instant::now();
    for started in started {
        let left = within.saturating_sub(since.elapsed());
        let answered = timeout(left, started.answer()).await;
        assert!(answered.is_ok(), "somebody still waits after {within:?}");
    }
}

#[test]
fn rsm_basic() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        increment(lab, 1..=10, 3).await;
    });
}

#[test]
fn rsm_concurrent() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        let leader = lab.check_one_leader().await;
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (clients, command) = (lab.clients(), lab.command());
                tokio::spawn(async move {
                    clients.propose(leader, command).expect("it leads").answer().await
                })
            })
            .collect();
        let mut numbers = Vec::new();
        for task in tasks {
            numbers.push(task.await.unwrap().unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
        lab.wait(50, 3).await;
    });
}

#[test]
fn rsm_leader_failure() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        increment(lab, 1..=1, 3).await;
        let leader = lab.check_one_leader().await;
        lab.disconnect(&[leader]);
        increment(lab, 2..=2, 2).await;
        lab.connect(&[leader]);
        lab.wait(2, 3).await;
        increment(lab, 3..=3, 3).await;
    });
}

/// Isolates the leader and has it take a hundred commands that must never be executed.
async fn begin_in_vain(lab: &mut Lab) -> (u64, Vec<Started>) {
    increment(lab, 1..=1, 3).await;
    let leader = lab.check_one_leader().await;
    lab.disconnect(&[leader]);
    let in_vain = (0..100).map(|_| lab.propose(leader, lab.command()).expect("it leads")).collect();
    increment(lab, 2..=2, 2).await;
    (leader, in_vain)
}

/// Reconnects the old leader: its proposals fail, and the whole cluster gets on.
async fn end_in_vain(lab: &mut Lab, leader: u64, in_vain: &[Started]) {
    lab.connect(&[leader]);
    all_answered(in_vain, SECOND).await;
    for started in in_vain {
        assert!(started.answer().await.is_err(), "a minority executes nothing");
    }
    lab.wait(2, 3).await;
    increment(lab, 3..=3, 3).await;
}

/// Without check quorum, as in the labs, no proposal gets an outcome before the leader learns of
/// the next leader.
#[test]
fn rsm_leader_partition() {
    nodes(3).without_check_quorum().run(SEEDS, async |lab: &mut Lab| {
        let (leader, in_vain) = begin_in_vain(lab).await;
        sleep(SECOND).await;
        assert!(in_vain.iter().all(|started| started.answer_so_far().is_none()));
        end_in_vain(lab, leader, &in_vain).await;
    });
}

/// With check quorum, a leader without a quorum reports unknown outcomes within an election timeout
/// or two.
#[test]
fn rsm_leader_partition_with_check_quorum() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        let (leader, in_vain) = begin_in_vain(lab).await;
        all_answered(&in_vain, 600 * MS).await;
        end_in_vain(lab, leader, &in_vain).await;
    });
}

#[test]
fn rsm_restart_replay() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        increment(lab, 1..=100, 3).await;
        let ids: Vec<_> = lab.cluster.ids().collect();
        ids.iter().for_each(|id| lab.crash(*id));
        sleep(SECOND).await;
        for id in ids {
            lab.start(id).await;
        }
        increment(lab, 101..=101, 3).await;
    });
}

/// A hundred proposals are under way when all nodes are told to stop. Disks are slow, so some of
/// the proposals are not done by then.
async fn shut_down_amid_requests(lab: &mut Lab) -> Vec<Started> {
    lab.cluster.slow_disks(30 * MS);
    let leader = lab.check_one_leader().await;
    let mut started = Vec::new();
    for _ in 0..4 {
        let wave = (0..25).map(|_| lab.propose(leader, lab.command()).expect("it leads"));
        started.extend(wave);
        sleep(5 * MS).await;
    }
    let since = Instant::now();
    lab.stop_all().await;
    all_answered(&started, (11 * SECOND).saturating_sub(since.elapsed())).await;
    started
}

#[test]
fn rsm_shutdown() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        shut_down_amid_requests(lab).await;
    });
}

/// A command that a later term puts at the index of a pending proposal is not the outcome of that
/// proposal: the ledger knows which command is at which place.
#[test]
fn rsm_restart_submit() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        increment(lab, 1..=10, 3).await;
        let ids: Vec<_> = lab.cluster.ids().collect();
        lab.restart_all().await;
        increment(lab, 11..=11, 3).await;
        shut_down_amid_requests(lab).await;
        sleep(SECOND).await;
        for id in ids {
            lab.start(id).await;
        }
        let number = lab.one(lab.command(), 3, Retry::Yes).await;
        assert!((12..=112).contains(&number), "{number}");
    });
}

#[test]
fn rsm_snapshot() {
    nodes(3).compacting_at(1_000).run(SEEDS, async |lab: &mut Lab| {
        increment(lab, 1..=100, 3).await;
        sleep(20 * MS).await;
        let log_bytes = lab.log_bytes_max();
        assert!(log_bytes <= 2 * 1_000, "{log_bytes}");
        assert!(lab.cluster.nodes.values().all(|node| node.status().snapshot_index > 0));
        lab.restart_all().await;
        increment(lab, 101..=101, 3).await;
        let (command, count) = (lab.cluster.command(1), lab.cluster.command_count());
        for node in lab.cluster.nodes.values() {
            let held = node.query_and_wait((), false).await.unwrap();
            assert_eq!((held.first(), held.len() as u64), (command.as_ref(), count));
        }
    });
}
