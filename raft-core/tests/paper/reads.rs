//! Section 6.4: reads without an entry in the log.

use std::time::Duration;

use raft_core::consensus::{Boot, Config, Raft, ReadState};
use raft_core::error::Rejected;
use raft_core::types::{
    Configuration, HardState, Loaded, Message, MessageBody, Position, ReadOutcome, Time,
};

use crate::common::{Cluster, say};
use crate::{no_pre_vote, only, plain};

fn led() -> Cluster {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster
}

/// I1: a read, on the leader or on a follower, gets an index that covers every completed write.
#[test]
fn i1_reads_see_what_was_committed_before() {
    let mut cluster = led();
    for id in cluster.ids() {
        let read = cluster.read(id).expect("a leader is known");
        cluster.settle();
        assert_eq!(
            cluster.node(id).reads,
            [ReadState { id: read, outcome: ReadOutcome::Confirmed(2) }]
        );
    }
}

/// I1: a read on a learner does, too; the learner asks its leader as a follower does.
#[test]
fn i1_learners_read_as_well() {
    let bootstrap = Configuration {
        learners: [4].into(),
        founded: true,
        ..Configuration::of_voters([1, 2, 3])
    };
    let boot = Boot {
        loaded: Loaded { hard_state: HardState::INITIAL, ..Loaded::default() },
        last_applied: Position::ZERO,
        bootstrap,
    };
    let mut learner = Raft::new(Config::new(4, 4), boot, Time::ZERO).expect("a fine configuration");
    let rejected = learner.read_index(Time::ZERO, 1).expect_err("no leader is known");
    assert_eq!(rejected, Rejected::NotLeader { leader: None });
    learner.step(Time::ZERO, 1, say::heartbeat(1, 1, 0));
    learner.read_index(Time::ZERO, 2).expect("a leader is known");
    let sent = learner.ready(Time::ZERO).messages;
    let id = only(&sent, 1, |body| match body {
        MessageBody::ReadIndex { id } => Some(*id),
        _ => None,
    });
    let answer =
        Message::new(1, MessageBody::ReadIndexResponse { id, outcome: ReadOutcome::Confirmed(5) });
    learner.step(Time::ZERO, 1, answer);
    let states = learner.ready(Time::ZERO).read_states;
    assert_eq!(states, [ReadState { id: 2, outcome: ReadOutcome::Confirmed(5) }]);
}

/// I2: a new leader confirms no read before an entry of its own term is committed.
#[test]
fn i2_a_new_leader_holds_reads() {
    let mut cluster = led();
    cluster.with(1, |raft, now| raft.transfer_leadership(now, Some(2))).expect("another voter");
    while cluster.leader() != Some(2) {
        cluster.deliver(0);
    }
    cluster.read(2).expect("it leads");
    // Heartbeats and their responses are delivered, appends are not.
    let is_append = |message: &Message| matches!(message.body, MessageBody::AppendEntries { .. });
    while let Some(at) = cluster.flying.iter().position(|one| match &one.parcel {
        crate::common::Parcel::Message(message) => !is_append(message),
        crate::common::Parcel::Snapshot { .. } => true,
    }) {
        cluster.deliver(at);
    }
    assert!(cluster.node(2).reads.is_empty());
    cluster.settle();
    assert_eq!(cluster.node(2).reads[0].outcome, ReadOutcome::Confirmed(3));
}

/// I3: only a round of heartbeats that began after the read arrived confirms it.
#[test]
fn i3_an_older_round_confirms_nothing() {
    let mut cluster = led();
    cluster.fire(1);
    cluster.flying.clear();
    cluster.read(1).expect("it leads");
    let sent = cluster.sent_by(1);
    let round = only(&sent, 2, |body| match body {
        MessageBody::Heartbeat { round, .. } => Some(*round),
        _ => None,
    });
    cluster.step(2, 1, say::heartbeat_answer(1, round - 1));
    cluster.step(3, 1, say::heartbeat_answer(1, round - 1));
    assert!(cluster.node(1).reads.is_empty());
    cluster.step(3, 1, say::heartbeat_answer(1, round));
    assert_eq!(cluster.node(1).reads.len(), 1);
}

/// I3: a majority must respond, also of five; a repeated response is counted once.
#[test]
fn i3_a_majority_confirms() {
    let mut cluster = Cluster::with_config(5, no_pre_vote);
    cluster.elect(1);
    cluster.read(1).expect("it leads");
    cluster.flying.clear();
    cluster.step(2, 1, say::heartbeat_answer(1, 2));
    cluster.step(2, 1, say::heartbeat_answer(1, 2));
    assert!(cluster.node(1).reads.is_empty());
    cluster.step(5, 1, say::heartbeat_answer(1, 2));
    assert_eq!(cluster.node(1).reads.len(), 1);
}

/// C26. A leader keeps a bounded number of its followers' reads. Beyond the limit it responds
/// `Busy`, which is not the response of a node that does not lead.
#[test]
fn c26_a_question_beyond_the_limit_is_answered_busy() {
    let mut cluster = Cluster::with_config(3, |config| {
        no_pre_vote(config);
        config.reads_waiting_max = 2;
    });
    cluster.elect(1);
    cluster.fire(1);
    cluster.flying.clear();
    for id in [7, 8, 9] {
        cluster.step(2, 1, Message::new(1, MessageBody::ReadIndex { id }));
    }
    let refused =
        Message::new(1, MessageBody::ReadIndexResponse { id: 9, outcome: ReadOutcome::Busy });
    let answers = |sent: Vec<(u64, Message)>| -> Vec<_> {
        sent.into_iter()
            .filter(|(_, one)| matches!(one.body, MessageBody::ReadIndexResponse { .. }))
            .collect()
    };
    assert_eq!(answers(cluster.sent_by(1)), [(2, refused)]);
}

/// Reads that arrive while a round is in progress share the next one.
#[test]
fn reads_share_rounds() {
    let mut cluster = led();
    for _ in 0..10 {
        cluster.read(1).expect("it leads");
    }
    assert_eq!(cluster.sent_by(1).len(), 2, "one round to two peers");
    let round = cluster.status(1).term + 1;
    cluster.step(2, 1, say::heartbeat_answer(1, round));
    assert_eq!((cluster.node(1).reads.len(), cluster.sent_by(1).len()), (1, 2));
    cluster.step(2, 1, say::heartbeat_answer(1, round + 1));
    assert_eq!(cluster.node(1).reads.len(), 10);
}

/// I4: a repeated response to an earlier request of a follower does not confirm a later one.
#[test]
fn i4_a_repeated_answer_confirms_no_later_read() {
    let mut cluster = led();
    cluster.read(3).expect("a leader is known");
    let question = |cluster: &mut Cluster| {
        only(&cluster.sent_by(3), 1, |body| match body {
            MessageBody::ReadIndex { id } => Some(*id),
            _ => None,
        })
    };
    let first = question(&mut cluster);
    let answer = Message::new(
        1,
        MessageBody::ReadIndexResponse { id: first, outcome: ReadOutcome::Confirmed(2) },
    );
    cluster.step(1, 3, answer.clone());
    assert_eq!(cluster.node(3).reads.len(), 1);
    cluster.read(3).expect("a leader is known");
    let second = question(&mut cluster);
    assert_ne!(first, second);
    cluster.step(1, 3, answer);
    assert_eq!(cluster.node(3).reads.len(), 1);
    // After an election timeout the follower asks again, under a third number.
    cluster.fire(3);
    assert_ne!(question(&mut cluster), second);
}

/// I5: a read fails when the node that should confirm it no longer leads. That node never confirms
/// it later.
#[test]
fn i5_reads_fail_with_the_leader() {
    let mut cluster = led();
    cluster.read(1).expect("it leads");
    cluster.flying.clear();
    cluster.step(3, 1, say::heartbeat(9, 1, 0));
    assert_eq!(cluster.node(1).reads, [ReadState { id: 1, outcome: ReadOutcome::NotLeader }]);
    cluster.step(2, 1, say::heartbeat_answer(1, 2));
    assert_eq!(cluster.node(1).reads.len(), 1);
    // At a follower: when it follows another leader, or campaigns.
    for turn in [0, 1] {
        let mut cluster = led();
        cluster.read(3).expect("a leader is known");
        match turn {
            0 => cluster.step(2, 3, say::heartbeat(9, 1, 0)),
            _ => (0..2).for_each(|_| cluster.fire(3)),
        }
        assert_eq!(cluster.node(3).reads, [ReadState { id: 1, outcome: ReadOutcome::NotLeader }]);
    }
}

/// I5: a node that does not lead says so to a follower that asks, so that the follower need not
/// wait.
#[test]
fn i5_a_question_to_who_does_not_lead() {
    let mut cluster = led();
    cluster.step(3, 2, Message::new(1, MessageBody::ReadIndex { id: 7 }));
    let none =
        Message::new(1, MessageBody::ReadIndexResponse { id: 7, outcome: ReadOutcome::NotLeader });
    assert_eq!(cluster.sent_by(2), [(3, none)]);
}

/// I9: the read index may exceed the reader's last_applied; the reader waits for that entry, not
/// for a timer.
#[test]
fn i9_the_index_may_lie_ahead() {
    let mut cluster = led();
    cluster.partition_link(1, 3);
    cluster.propose(1, "b").expect("it leads");
    cluster.settle();
    cluster.heal();
    cluster.read(3).expect("a leader is known");
    cluster.settle();
    assert_eq!(cluster.node(3).reads[0].outcome, ReadOutcome::Confirmed(3));
}

/// I6: the number of waiting reads is bounded; beyond it reads are rejected, and accepted again
/// later.
#[test]
fn i6_waiting_reads_are_bounded() {
    let mut cluster = Cluster::with_config(3, |config| {
        plain(config);
        config.reads_waiting_max = 3;
    });
    cluster.elect(1);
    cluster.isolate(1);
    for id in [1, 3] {
        for _ in 0..3 {
            cluster.read(id).expect("room for three");
        }
        assert!(matches!(cluster.read(id), Err(Rejected::Busy(_))));
    }
    cluster.heal();
    cluster.run(1_000);
    for id in [1, 3] {
        assert_eq!(cluster.node(id).reads.len(), 3);
        cluster.read(id).expect("room again");
    }
}

/// I10: a restarted node confirms no read by itself; a single node first commits an entry of its
/// new term.
#[test]
fn i10_no_read_after_a_restart_without_a_new_entry() {
    let mut cluster = Cluster::new(1);
    cluster.elect(1);
    cluster.propose(1, "a").expect("it leads");
    cluster.crash(1, 0);
    cluster.start(1);
    assert_eq!(cluster.read(1), Err(Rejected::NotLeader { leader: None }));
    cluster.slow_disks.insert(1);
    cluster.fire(1);
    cluster.write(1);
    let read = cluster.read(1).expect("it leads");
    assert!(cluster.node(1).reads.is_empty(), "its no-op is not on disk");
    cluster.write(1);
    assert_eq!(cluster.node(1).reads, [ReadState { id: read, outcome: ReadOutcome::Confirmed(3) }]);
}

/// I11: an isolated leader confirms no read, however long it waits.
#[test]
fn i11_a_leader_without_a_quorum_confirms_nothing() {
    let mut cluster = Cluster::with_config(3, plain);
    cluster.elect(1);
    cluster.isolate(1);
    cluster.read(1).expect("it believes that it leads");
    cluster.advance(Duration::from_millis(250), true);
    assert!(cluster.node(1).reads.is_empty());
}
