//! Findings of the review about disks and state machines that hang (C9 to C11, C16): a node that
//! makes no progress must neither lead nor keep a leader in office.

use std::time::Duration;

use raft_core::consensus::Config;
use raft_core::consensus::RoleKind::{Follower, Leader};
use raft_core::types::{Class, Message, MessageBody, Position};

use crate::common::{Cluster, Parcel, say};
use crate::replication::led;

/// C9, control. Without reads a leader with a hung disk steps down after `disk_patience`.
#[test]
fn c9_control_hung_disk_without_reads() {
    let mut cluster = led();
    cluster.slow_disks.insert(1);
    cluster.propose(1, "x").expect("it leads");
    cluster.run(3_000);
    assert_ne!(cluster.leader(), Some(1), "it stepped down");
}

/// C9. Steady reads at a follower do not keep a leader in office whose disk has hung for a minute.
#[test]
fn c9_hung_disk_with_steady_follower_reads() {
    let mut cluster = led();
    cluster.slow_disks.insert(1);
    let at = cluster.propose(1, "x").expect("it leads");
    let mut answered_count = 0;
    for _ in 0..3_000 {
        cluster.run(20);
        if cluster.read(2).is_ok() {
            cluster.settle();
            answered_count += 1;
        }
    }
    let leader = cluster.status(1);
    assert_ne!(
        cluster.leader(),
        Some(1),
        "node 1 leads after 60 s with a hung disk: commit {}, applied {}, proposal at {}, reads {answered_count}",
        leader.commit_index,
        leader.last_applied,
        at.index
    );
}

/// C9. The same with reads at the leader, from clients that give up and ask again.
#[test]
fn c9_hung_disk_with_steady_leader_reads() {
    let mut cluster = led();
    cluster.slow_disks.insert(1);
    cluster.propose(1, "x").expect("it leads");
    for _ in 0..3_000 {
        cluster.run(20);
        if cluster.leader() == Some(1) {
            let _ = cluster.read(1);
            cluster.settle();
        }
    }
    assert_ne!(cluster.leader(), Some(1), "node 1 leads after 60 s with a hung disk");
}

/// C10. A follower with a hung disk must not keep a leader in office that cannot commit, while
/// nodes 2, 4 and 5 are connected and their disks work.
#[test]
fn c10_heartbeats_of_a_follower_outlive_its_disk() {
    let mut cluster = Cluster::new(5);
    cluster.fire(1);
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    for other in [4, 5] {
        cluster.partition_link(1, other);
        cluster.partition_link(other, 1);
    }
    cluster.slow_disks.insert(3);
    let before = cluster.status(1).commit_index;
    cluster.propose(1, "x").expect("it leads");
    cluster.run(60_000);
    assert!(
        cluster.up().iter().any(|id| cluster.status(*id).commit_index > before),
        "nothing was committed for 60 s; leader {:?}",
        cluster.leader()
    );
}

/// C10. A follower whose disk has hung for `disk_patience` does not respond to heartbeats, because
/// it cannot acknowledge entries. Once its disk works, it responds again.
#[test]
fn c10_a_follower_with_a_hung_disk_answers_no_heartbeats() {
    let mut cluster = led();
    let patience = Config::new(1, 1).disk_patience;
    let answers = |cluster: &mut Cluster| {
        cluster.flying.clear();
        cluster.step(1, 2, say::heartbeat(1, 9, 0));
        let sent = cluster.sent_by(2);
        sent.iter()
            .any(|(_, message)| matches!(message.body, MessageBody::HeartbeatResponse { .. }))
    };
    cluster.slow_disks.insert(2);
    cluster.step(1, 2, say::append(1, (1, 1), &[1], 1));
    cluster.now = cluster.now + (patience - Duration::from_millis(1));
    assert!(answers(&mut cluster), "a disk may be slow");
    cluster.now = cluster.now + Duration::from_millis(1);
    assert!(!answers(&mut cluster));
    while cluster.write(2) {}
    assert!(answers(&mut cluster));
}

/// C16. A voter whose disk hangs grants no pre-vote, because it could not write the vote that would
/// follow. It does not obey a `TimeoutNow` either.
#[test]
fn c16_a_voter_with_a_hung_disk_takes_no_part_in_elections() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.fire(1);
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    cluster.slow_disks.insert(2);
    cluster.propose(1, "x").expect("it leads");
    cluster.run(3_000);
    assert_eq!(cluster.leader(), Some(1));
    let last = cluster.status(2).last_index;
    cluster.flying.clear();
    cluster.step(1, 2, say::timeout_now(1));
    assert_eq!((cluster.role(2), cluster.raft(2).term()), (Follower, 1));
    // Its leader has been silent for longer than a follower sticks to a leader.
    cluster.now = cluster.now + Duration::from_millis(2_000);
    cluster.step(
        3,
        2,
        Message::new(1, MessageBody::RequestPreVote { last: Position::new(1, last) }),
    );
    let granted = |body: &MessageBody| match body {
        MessageBody::PreVoteResponse { granted } => Some(*granted),
        _ => None,
    };
    assert!(!crate::only(&cluster.sent_by(2), 3, granted));
}

/// Delivers control messages only: messages of the log class are lost.
fn settle_without_log(cluster: &mut Cluster) {
    while let Some(envelope) = cluster.flying.front() {
        match &envelope.parcel {
            Parcel::Message(message) if message.class() == Class::Control => cluster.deliver(0),
            _ => cluster.drop_parcel(0),
        }
    }
}

/// C10. Heartbeats arrive and appends do not. A leader that has entries to commit, and whose commit
/// index stalls, steps down although a quorum responds. A leader with nothing to commit stays.
#[test]
fn c10_a_leader_whose_commit_index_stalls_steps_down() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.fire(1);
    cluster.settle();
    let Config { heartbeat_interval, stall_patience, .. } = Config::new(1, 1);
    let mut leads_through = |time: Duration| {
        let end = cluster.now + time;
        while cluster.now < end && cluster.role(1) == Leader {
            cluster.advance(heartbeat_interval, false);
            settle_without_log(&mut cluster);
        }
        let leads = cluster.role(1) == Leader;
        let proposed = leads.then(|| cluster.propose(1, "x").expect("it leads"));
        (leads, proposed)
    };
    assert!(leads_through(2 * stall_patience).0, "nothing was left to commit");
    assert!(leads_through(stall_patience - 3 * heartbeat_interval).0, "it is patient");
    assert!(!leads_through(2 * stall_patience).0, "it leads on, and commits nothing");
}

/// C11. A leader's state machine accepts entries and never applies them, while log and network
/// work. The leader steps down and does not campaign again, and the others continue.
#[test]
fn c11_a_leader_whose_machine_hangs_steps_down() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.fire(1);
    cluster.settle();
    cluster.run(1_000);
    assert_eq!(cluster.leader(), Some(1));
    cluster.hung_machines.insert(1);
    cluster.propose(1, "x").expect("it leads");
    let patience = Config::new(1, 1).stall_patience.as_millis();
    let patience = u64::try_from(patience).expect("a few seconds");
    cluster.run(patience - 100);
    assert_eq!(cluster.leader(), Some(1), "it is patient");
    cluster.run(2_000);
    let next = cluster.leader().expect("the others elect");
    assert_ne!(next, 1);
    let at = cluster.propose(next, "y").expect("it leads");
    cluster.run(10_000);
    assert_ne!(cluster.leader(), Some(1), "its machine hangs still");
    assert!(cluster.status(next).last_applied >= at.index);
}
