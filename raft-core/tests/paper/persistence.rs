//! Section 3.8: what must be on disk before a message is sent; restarts; the effects of a slow
//! disk.

use raft_core::consensus::RoleKind::{Candidate, Follower, Leader};
use raft_core::consensus::{Boot, Config, Raft};
use raft_core::types::{
    Configuration, HardState, Loaded, MessageBody, NodeId, Position, SnapshotMeta, Time,
};

use crate::common::{Cluster, Disk, say};
use crate::{no_pre_vote, plain, with_logs};

/// Node 1 follows; its disk writes only when the test says so.
fn slow() -> Cluster {
    let mut cluster = Cluster::with_config(3, plain);
    cluster.slow_disks.insert(1);
    cluster
}

/// D1, 3.8: a vote, a vote request and an acknowledgement are sent once the state that they promise
/// is on disk. Refusals and heartbeat responses promise nothing, and are sent at once.
#[test]
fn d1_promises_wait_for_the_disk() {
    let promises = [
        (say::vote(1, (0, 0)), say::vote_answer(1, true)),
        (say::append(1, (0, 0), &[1], 0), say::accepted(1, 1)),
        (say::append(1, (0, 0), &[], 0), say::accepted(1, 0)),
    ];
    for (message, promise) in promises {
        let mut cluster = slow();
        cluster.step(2, 1, message);
        assert!(cluster.sent_by(1).is_empty());
        assert!(cluster.write(1));
        assert_eq!(cluster.sent_by(1), [(2, promise)]);
    }
    let mut cluster = slow();
    cluster.step(2, 1, say::append(1, (5, 1), &[], 0));
    cluster.step(2, 1, say::heartbeat(1, 1, 0));
    let expected = [(2, say::rejected(1, 5, (0, 0))), (2, say::heartbeat_answer(1, 1))];
    assert_eq!(cluster.sent_by(1), expected);
    let mut cluster = slow();
    cluster.fire(1);
    assert!(cluster.sent_by(1).is_empty(), "the request is a vote of the candidate for itself");
    cluster.write(1);
    assert_eq!(cluster.sent_by(1).len(), 2);
}

/// D1: a repeated vote with nothing new to write waits for the write in progress. Once that is
/// done, a repeated vote is sent at once.
#[test]
fn d1_a_repeated_vote_rides_on_the_first() {
    let mut cluster = slow();
    cluster.step(2, 1, say::vote(1, (0, 0)));
    cluster.step(2, 1, say::vote(1, (0, 0)));
    assert!(cluster.sent_by(1).is_empty());
    cluster.write(1);
    assert_eq!(
        cluster.sent_by(1),
        [(2, say::vote_answer(1, true)), (2, say::vote_answer(1, true))]
    );
    cluster.step(2, 1, say::vote(1, (0, 0)));
    assert_eq!(cluster.sent_by(1), [(2, say::vote_answer(1, true))]);
    assert!(!cluster.write(1), "nothing was written for it");
}

/// D2: entries of terms 1, 2 and 1 again overwrite the same indexes while the first writes are in
/// progress. No acknowledgement covers entries that have been replaced since.
#[test]
fn d2_overwritten_while_being_written() {
    let mut cluster = Cluster::with_config(3, |config| {
        plain(config);
        config.persists_in_flight_max = 8;
    });
    cluster.slow_disks.insert(1);
    cluster.step(2, 1, say::append(1, (0, 0), &[1, 1, 1], 0));
    cluster.step(3, 1, say::append(2, (1, 1), &[2], 0));
    cluster.step(2, 1, say::append(3, (1, 1), &[1, 1, 3], 0));
    let durable = |cluster: &Cluster| cluster.status(1).durable_index;
    cluster.write(1);
    assert_eq!(durable(&cluster), 1, "2 and 3 will still be overwritten on disk");
    cluster.write(1);
    assert_eq!(durable(&cluster), 1);
    assert!(cluster.sent_by(1).is_empty());
    cluster.write(1);
    assert_eq!(durable(&cluster), 4);
    assert_eq!(cluster.sent_by(1), [(2, say::accepted(3, 4))]);
    assert_eq!(cluster.node(1).disk.terms(), [1, 1, 1, 3]);
}

/// D3: committed entries are handed out within a budget of bytes; the next ones follow when those
/// are applied.
#[test]
fn d3_apply_is_bounded() {
    let mut config = Config::new(1, 1);
    config.apply_bytes_max = 2 * say::entry(1, 1).size_bytes();
    let entries = (1..=5).map(|index| say::entry(index, 1)).collect();
    let hard_state = HardState { term: 1, commit_index: 5, ..HardState::INITIAL };
    let loaded = Loaded { hard_state, entries, ..Loaded::default() };
    let bootstrap = Configuration::of_voters([1, 2, 3]);
    let boot = Boot { loaded, last_applied: Position::ZERO, bootstrap };
    let mut raft = Raft::new(config, boot, Time::ZERO).expect("a fine configuration");
    let mut handed = Vec::new();
    loop {
        let committed = raft.ready(Time::ZERO).committed;
        let Some(last) = committed.last() else { break };
        assert!(committed.len() <= 2 && raft.ready(Time::ZERO).committed.is_empty());
        let last = last.index;
        handed.extend(committed.into_iter().map(|entry| entry.index));
        raft.on_applied(last);
    }
    assert_eq!(handed, [1, 2, 3, 4, 5]);
}

/// D4, 10.2.1: a leader commits an entry once a majority has it on disk, even without its own disk,
/// but applies the entry only once its own disk has it.
#[test]
fn d4_committed_before_the_own_disk() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster.slow_disks.insert(1);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    let status = cluster.status(1);
    assert_eq!((status.commit_index, status.durable_index, status.last_applied), (2, 1, 1));
    cluster.write(1);
    assert_eq!(cluster.status(1).last_applied, 2);
}

/// E16, D4: a single node is its own majority, and waits for its own disk: for its vote and for
/// each entry.
#[test]
fn e16_a_single_node_waits_for_its_disk() {
    let mut cluster = Cluster::new(1);
    cluster.slow_disks.insert(1);
    cluster.fire(1);
    assert_eq!(cluster.role(1), Candidate);
    cluster.write(1);
    assert_eq!(cluster.role(1), Leader);
    assert_eq!(cluster.status(1).commit_index, 0);
    cluster.write(1);
    cluster.propose(1, "a").expect("it leads");
    assert_eq!(cluster.status(1).commit_index, 1);
    cluster.write(1);
    assert_eq!((cluster.status(1).commit_index, cluster.status(1).last_applied), (2, 2));
}

/// E18: the write of a leader's own entry completes after the leader was deposed: it is not
/// counted.
#[test]
fn e18_a_late_write_of_a_deposed_leader() {
    let mut cluster = Cluster::with_config(3, plain);
    cluster.elect(1);
    cluster.slow_disks.insert(1);
    cluster.isolate(1);
    cluster.propose(1, "a").expect("it leads");
    cluster.step(3, 1, say::heartbeat(5, 1, 0));
    while cluster.write(1) {}
    assert_eq!((cluster.role(1), cluster.status(1).commit_index), (Follower, 1));
}

/// D5: a change of the commit index alone is not written; it is part of the next write.
#[test]
fn d5_the_commit_index_alone_is_not_written() {
    let mut cluster = with_logs(&[&[1, 1], &[1, 1], &[1, 1]], 1);
    cluster.slow_disks.insert(1);
    cluster.step(2, 1, say::append(1, (2, 1), &[], 2));
    assert_eq!(cluster.status(1).last_applied, 2);
    assert!(cluster.node(1).writing.is_empty());
    cluster.step(2, 1, say::append(1, (2, 1), &[1], 2));
    assert!(cluster.write(1));
    assert_eq!(cluster.node(1).disk.loaded.hard_state.commit_index, 2);
}

/// D6: the leader changes while batches are being written: each acknowledgement goes to the leader
/// that sent the append, in that leader's term.
#[test]
fn d6_the_leader_changes_while_batches_are_under_way() {
    let mut cluster = slow();
    cluster.step(2, 1, say::append(1, (0, 0), &[1], 0));
    cluster.step(3, 1, say::append(2, (1, 1), &[2], 0));
    while cluster.write(1) {}
    // The entry of node 2 was not replaced, so both acknowledgements are true.
    assert_eq!(cluster.sent_by(1), [(2, say::accepted(1, 1)), (3, say::accepted(2, 2))]);
}

/// While the maximum number of batches is being written, further changes gather in one batch.
#[test]
fn batches_gather_while_the_disk_is_busy() {
    let mut cluster = Cluster::with_config(3, |config| {
        plain(config);
        config.persists_in_flight_max = 2;
    });
    cluster.slow_disks.insert(1);
    for index in 0..10 {
        cluster.step(2, 1, say::append(1, (index, index.min(1)), &[1], 0));
    }
    assert_eq!(cluster.node(1).writing.len(), 2);
    cluster.write(1);
    let sizes: Vec<usize> =
        cluster.node(1).writing.iter().map(|persist| persist.batch.entries.len()).collect();
    assert_eq!(sizes, [1, 8]);
    while cluster.write(1) {}
    let last = cluster.sent_by(1).pop().expect("an acknowledgement");
    assert_eq!(last, (2, say::accepted(1, 10)));
}

/// E20, 3.8: term, vote and log survive a restart; role, leader and the progress of peers do not.
#[test]
fn e20_what_survives_a_restart() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    let log = cluster.node(1).disk.loaded.entries.clone();
    cluster.crash(1, 0);
    cluster.start(1);
    let status = cluster.status(1);
    assert_eq!((status.role, status.term, status.leader), (Follower, 1, None));
    assert!(status.peers.is_empty());
    assert_eq!(cluster.node(1).disk.loaded.entries, log);
    cluster.step(3, 1, say::vote(1, (9, 9)));
    assert_eq!(cluster.sent_by(1), [(3, say::vote_answer(1, false))], "it voted for itself");
}

/// 3.8: after a crash between any two of a series of writes, the node restarts in a state that it
/// was in, and has promised nothing beyond that state.
#[test]
fn s3_8_a_crash_between_any_two_writes() {
    for written in 0..=4 {
        let mut cluster = Cluster::with_config(3, |config| {
            plain(config);
            config.persists_in_flight_max = 8;
        });
        cluster.slow_disks.insert(1);
        cluster.step(2, 1, say::vote(1, (0, 0)));
        cluster.step(2, 1, say::append(1, (0, 0), &[1, 1], 0));
        cluster.step(3, 1, say::vote(2, (2, 1)));
        cluster.step(3, 1, say::append(2, (1, 1), &[2], 0));
        cluster.crash(1, written);
        assert!(cluster.sent_by(1).is_empty());
        cluster.start(1);
        let expected: [(u64, Option<NodeId>, &[u64]); 5] = [
            (0, None, &[]),
            (1, Some(2), &[]),
            (1, Some(2), &[1, 1]),
            (2, Some(3), &[1, 1]),
            (2, Some(3), &[1, 2]),
        ];
        let hard_state = cluster.node(1).disk.loaded.hard_state;
        let found = (hard_state.term, hard_state.voted_for, &cluster.node(1).disk.terms()[..]);
        assert_eq!(found, expected[written]);
        assert_eq!(cluster.raft(1).term(), expected[written].0);
    }
}

/// S19, A20: a start is rejected if state machine and log do not fit together.
#[test]
fn s19_a_state_that_does_not_fit_the_log_is_refused() {
    let entries = |terms: &[u64]| Disk::of_terms(terms, 5).loaded.entries;
    let boot = |last_applied, loaded| {
        let bootstrap = Configuration::of_voters([1, 2, 3]);
        Raft::new(Config::new(1, 1), Boot { loaded, last_applied, bootstrap }, Time::ZERO)
    };
    let log = |terms| Loaded { entries: entries(terms), ..Loaded::default() };
    assert!(boot(Position::new(1, 2), log(&[1, 1])).is_ok());
    assert!(boot(Position::new(1, 3), log(&[1, 1])).is_err(), "the state is ahead of the log");
    assert!(boot(Position::new(2, 2), log(&[1, 1])).is_err(), "another entry was applied");
    let mut gap = log(&[1, 1, 1, 1]);
    gap.entries.drain(..2);
    let position = Position::new(1, 2);
    gap.log_start = SnapshotMeta::new(position, Configuration::default());
    assert!(boot(position, gap.clone()).is_ok());
    assert!(boot(Position::new(1, 1), gap).is_err(), "the entries in between are gone");
}

/// 3.8, A20: all nodes crash at once, repeatedly: every committed entry is still there, and is
/// applied once.
#[test]
fn s3_8_everybody_crashes() {
    let mut cluster = Cluster::new(3);
    for round in 1..=5 {
        cluster.run(3_000);
        let leader = cluster.leader().expect("a leader");
        cluster.propose(leader, &format!("{round}")).expect("it leads");
        cluster.settle();
        let committed = cluster.oracle.committed_index();
        for id in cluster.ids() {
            cluster.crash(id, 0);
        }
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster.run(3_000);
        for id in cluster.ids() {
            assert!(cluster.node(id).machine.last_applied().index >= committed);
        }
    }
    let commands =
        |body: &raft_core::types::Payload| matches!(body, raft_core::types::Payload::Command(_));
    let count =
        |id| cluster.node(id).machine.applied.iter().filter(|e| commands(&e.payload)).count();
    assert_eq!([count(1), count(2), count(3)], [5, 5, 5]);
}

/// A vote that was lost in a crash was never sent, so the node may vote for another candidate.
#[test]
fn s3_8_an_unwritten_vote() {
    let mut cluster = slow();
    cluster.step(2, 1, say::vote(1, (0, 0)));
    cluster.crash(1, 0);
    cluster.start(1);
    cluster.step(3, 1, say::vote(1, (0, 0)));
    cluster.write(1);
    let sent = cluster.sent_by(1);
    assert!(
        matches!(sent[..], [(3, ref m)] if m.body == MessageBody::VoteResponse { granted: true })
    );
}
