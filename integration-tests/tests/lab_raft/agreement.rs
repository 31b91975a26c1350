//! Lab 2B: proposals are agreed on, once and in order, and at a known cost.

use std::ops::Range;

use bytes::Bytes;
use tokio::time::sleep;

use super::harness::{Lab, MS, Retry, SECOND, nodes};
use super::ledger::Started;

const SEEDS: Range<u64> = 0..20;

#[test]
fn basic_agree() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        for number in 1..=3 {
            assert_eq!(lab.applied_count(number), 0, "nobody has proposed it");
            assert_eq!(lab.one(lab.command(), 3, Retry::No).await, number);
        }
    });
}

/// Each command is sent to each peer once.
#[test]
fn rpc_bytes() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::No).await;
        let before = lab.cluster.network.stats().sent_bytes;
        let mut commands_bytes = 0;
        for number in 2..=11 {
            let command: Vec<u8> = (0..5_000).map(|_| lab.draw(0..=255) as u8).collect();
            commands_bytes += command.len() as u64;
            assert_eq!(lab.one(command.into(), 3, Retry::No).await, number);
        }
        let sent_bytes = lab.cluster.network.stats().sent_bytes - before;
        assert!(sent_bytes >= 2 * commands_bytes, "{sent_bytes}: two peers have them");
        assert!(sent_bytes <= 3 * commands_bytes + 50_000, "{sent_bytes}");
    });
}

#[test]
fn follower_failure() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::No).await;
        let leader1 = lab.check_one_leader().await;
        lab.disconnect(&[lab.after(leader1, 1)]);
        lab.one(lab.command(), 2, Retry::No).await;
        sleep(SECOND).await;
        assert_eq!(lab.one(lab.command(), 2, Retry::No).await, 3);
        let leader2 = lab.check_one_leader().await;
        assert_eq!(leader2, leader1, "it had a quorum all the time");
        lab.disconnect(&[lab.after(leader2, 1), lab.after(leader2, 2)]);
        let started = appended(lab, leader2, 1).await.remove(0);
        sleep(2 * SECOND).await;
        assert_eq!((lab.cluster.command_count(), lab.applied_count(4)), (3, 0));
        assert!(started.answer_so_far().unwrap().is_err(), "a leader without followers gives up");
    });
}

#[test]
fn leader_failure() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::No).await;
        let leader1 = lab.check_one_leader().await;
        lab.disconnect(&[leader1]);
        lab.one(lab.command(), 2, Retry::Yes).await;
        sleep(SECOND).await;
        assert_eq!(lab.one(lab.command(), 2, Retry::No).await, 3);
        let leader2 = lab.check_one_leader().await;
        lab.disconnect(&[leader2]);
        let started = lab.propose_everywhere(&lab.command());
        assert!(started.iter().any(|(id, _)| *id == leader2), "it does not know yet");
        sleep(2 * SECOND).await;
        assert_eq!((lab.cluster.command_count(), lab.applied_count(4)), (3, 0));
    });
}

/// A follower that was away catches up, and nothing that was agreed on meanwhile is lost.
#[test]
fn fail_agree() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::No).await;
        let leader = lab.check_one_leader().await;
        let away = lab.after(leader, 1);
        lab.disconnect(&[away]);
        for _ in 0..2 {
            lab.one(lab.command(), 2, Retry::No).await;
        }
        sleep(SECOND).await;
        for _ in 0..2 {
            lab.one(lab.command(), 2, Retry::No).await;
        }
        lab.connect(&[away]);
        assert_eq!(lab.one(lab.command(), 3, Retry::Yes).await, 6);
        sleep(SECOND).await;
        assert_eq!(lab.one(lab.command(), 3, Retry::No).await, 7);
    });
}

/// Nothing is agreed on without a quorum; commands proposed meanwhile may be replaced.
#[test]
fn fail_no_agree() {
    nodes(5).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 5, Retry::No).await;
        let leader = lab.check_one_leader().await;
        let away = [1, 2, 3].map(|distance| lab.after(leader, distance));
        lab.disconnect(&away);
        let lost = appended(lab, leader, 1).await.remove(0);
        sleep(2 * SECOND).await;
        assert_eq!((lab.cluster.command_count(), lab.applied_count(2)), (1, 0));
        assert!(lost.answer_so_far().unwrap().is_err());

        lab.connect(&away);
        let leader = lab.check_one_leader().await;
        let started = lab.propose(leader, lab.command()).expect("it leads");
        let number = started.answer().await.expect("a whole network answers");
        assert!((2..=3).contains(&number), "{number}: one command was before it, or two");
        lab.one(lab.command(), 5, Retry::Yes).await;
    });
}

/// Without failures the term does not change, so unlike in the labs the first try has to succeed.
#[test]
fn concurrent_starts() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        let leader = lab.check_one_leader().await;
        let term = lab.term(leader);
        let first = lab.propose(leader, lab.command()).expect("it leads");
        let tasks: Vec<_> = (0..5)
            .map(|_| {
                let (clients, command) = (lab.clients(), lab.command());
                tokio::spawn(async move { clients.propose(leader, command).expect("it leads") })
            })
            .collect();
        let mut numbers = vec![first.answer().await.unwrap()];
        for task in tasks {
            let started: Started = task.await.unwrap();
            numbers.push(started.answer().await.unwrap());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
        lab.wait(6, 3).await;
        assert_eq!(lab.check_terms(), term);
    });
}

/// An old leader comes back with a tail of its own, which a newer leader's entries have replaced.
#[test]
fn rejoin() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        lab.one(lab.command(), 3, Retry::No).await;
        let leader1 = lab.check_one_leader().await;
        lab.disconnect(&[leader1]);
        let lost = appended(lab, leader1, 3).await;
        lab.one(lab.command(), 2, Retry::Yes).await;

        let leader2 = lab.check_one_leader().await;
        lab.disconnect(&[leader2]);
        lab.connect(&[leader1]);
        lab.one(lab.command(), 2, Retry::Yes).await;
        lab.connect(&[leader2]);
        assert_eq!(lab.one(lab.command(), 3, Retry::Yes).await, 4);
        for started in lost {
            assert!(started.answer().await.is_err(), "what nobody else has is not done");
        }
    });
}

/// Two leaders in turn append long tails that no other node has; finding the common prefix takes no
/// time.
#[test]
fn backup() {
    nodes(5).run(0..5, async |lab: &mut Lab| {
        lab.one(lab.command(), 5, Retry::No).await;
        let leader1 = lab.check_one_leader().await;
        let side: [_; 3] = [2, 3, 4].map(|distance| lab.after(leader1, distance));
        let follower1 = lab.after(leader1, 1);
        lab.disconnect(&side);
        appended(lab, leader1, 50).await;
        sleep(500 * MS).await;
        lab.disconnect(&[leader1, follower1]);
        lab.connect(&side);
        agree_on(lab, 50, 3).await;

        let leader2 = lab.check_one_leader().await;
        let other = *side.iter().find(|id| **id != leader2).unwrap();
        lab.disconnect(&[other]);
        appended(lab, leader2, 50).await;
        sleep(500 * MS).await;
        let all: Vec<_> = lab.cluster.ids().collect();
        lab.disconnect(&all);
        lab.connect(&[leader1, follower1, other]);
        agree_on(lab, 50, 3).await;

        lab.connect(&all);
        assert_eq!(lab.one(lab.command(), 5, Retry::Yes).await, 102);
    });
}

async fn agree_on(lab: &Lab, count: usize, nodes_count: usize) {
    for _ in 0..count {
        lab.one(lab.command(), nodes_count, Retry::Yes).await;
    }
}

/// Has a leader append commands that cannot be committed for now, and waits until it has.
async fn appended(lab: &Lab, leader: u64, count: usize) -> Vec<Started> {
    let node = &lab.cluster.nodes[&leader];
    let target = node.status().last_index + count as u64;
    let propose = |command: Bytes| lab.propose(leader, command).expect("it leads, as it believes");
    let started = (0..count).map(|_| propose(lab.command())).collect();
    lab.cluster.until(|| node.status().last_index == target).await;
    started
}

/// The cost of an election, of agreement and of idleness, in messages of all three nodes.
#[test]
fn count() {
    nodes(3).run(SEEDS, async |lab: &mut Lab| {
        let before = lab.message_count();
        let leader = lab.cluster.leader().await;
        let founding = lab.founding_count();
        assert!(founding <= 40, "{founding} messages by which new members meet");
        let election = lab.message_count() - before - founding;
        assert!((4..=30).contains(&election), "{election} messages to elect a leader");

        let term = lab.check_terms();
        assert_eq!(lab.check_one_leader().await, leader);
        let before = lab.message_count();
        let started: Vec<_> =
            (0..12).map(|_| lab.propose(leader, lab.command()).expect("it leads")).collect();
        for (place, started) in started.iter().enumerate() {
            assert_eq!(started.answer().await, Ok(place as u64 + 1), "in order");
        }
        lab.wait(12, 3).await;
        let agreement = lab.message_count() - before;
        assert!((4..=42).contains(&agreement), "{agreement} messages for 12 commands");

        let before = lab.message_count();
        sleep(SECOND).await;
        let idle = lab.message_count() - before;
        assert!((1..=60).contains(&idle), "{idle} messages in an idle second");
        assert_eq!(lab.check_terms(), term);
    });
}
