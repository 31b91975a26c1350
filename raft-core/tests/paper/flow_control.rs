//! Flow control: how far a leader sends ahead of a peer's acknowledgements, and how it recovers
//! when a message was lost.

use std::time::Duration;

use bytes::Bytes;
use raft_core::consensus::ProgressState;
use raft_core::consensus::ProgressState::{Probe, Replicate};

use raft_core::types::Entry;

use crate::common::{Cluster, Disk, say};
use crate::replication::{appends, led, peer};
use crate::{no_pre_vote, plain};

/// F1: while the leader does not know where the logs agree, it sends one append, and the next one
/// only after a response or an election timeout. (Other implementations wait one heartbeat
/// interval; but a peer that is alive and does not respond usually has a full log or a slow disk.)
#[test]
fn f1_a_probe_is_sent_once() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.fire(1);
    cluster.step(2, 1, say::vote_answer(1, true));
    assert_eq!(appends(&cluster.sent_by(1), 2), [(0, 1, 0)]);
    assert_eq!(peer(&cluster, 2).state, Probe { paused: true });
    cluster.propose(1, "a").expect("it leads");
    cluster.step(2, 1, say::heartbeat_answer(1, 1));
    assert_eq!(appends(&cluster.sent_by(1), 2), [], "the answer may be under way");
    cluster.now = cluster.now + Duration::from_millis(299);
    cluster.step(2, 1, say::heartbeat_answer(1, 1));
    assert_eq!(appends(&cluster.sent_by(1), 2), [], "still");
    cluster.now = cluster.now + Duration::from_millis(1);
    cluster.step(2, 1, say::heartbeat_answer(1, 1));
    let sent = cluster.sent_by(1);
    assert_eq!(appends(&sent, 2), [(0, 2, 0)]);
    for (to, message) in sent {
        cluster.step(1, to, message);
    }
    cluster.settle();
    assert_eq!(peer(&cluster, 2).state, Replicate);
}

/// F2: once the leader knows where the logs agree, it sends entries ahead of their
/// acknowledgements.
#[test]
fn f2_entries_are_sent_ahead() {
    let mut cluster = led();
    for sent_ahead in 1..=10 {
        cluster.propose(1, "a").expect("it leads");
        let peer = peer(&cluster, 2);
        assert_eq!((peer.match_index, peer.next_index), (1, 2 + sent_ahead));
        assert_eq!((peer.state, peer.inflight_count as u64), (Replicate, sent_ahead));
    }
    let expected: Vec<_> = (1..=10).map(|previous| (previous, 1, 1)).collect();
    assert_eq!(appends(&cluster.sent_by(1), 2), expected);
}

/// F3: the leader sends ahead within a window of appends; acknowledgements free it in order.
#[test]
fn f3_the_window() {
    let mut cluster = Cluster::with_config(3, |config| {
        config.pre_vote = false;
        config.inflight_count_max = 3;
    });
    cluster.elect(1);
    for _ in 0..5 {
        cluster.propose(1, "a").expect("it leads");
    }
    let sent = cluster.sent_by(1);
    assert_eq!(appends(&sent, 2), [(1, 1, 1), (2, 1, 1), (3, 1, 1)]);
    assert_eq!((peer(&cluster, 2).inflight_count, peer(&cluster, 2).next_index), (3, 5));
    // Node 2 receives the entries that it is about to acknowledge, one after the other.
    for (to, message) in sent.into_iter().filter(|(to, _)| *to == 2) {
        cluster.step(1, to, message);
    }
    cluster.flying.clear();
    let mut window_after = |match_index| {
        cluster.step(2, 1, say::accepted(1, match_index));
        (peer(&cluster, 2).inflight_count, appends(&cluster.sent_by(1), 2))
    };
    assert_eq!(window_after(1), (3, vec![]), "acknowledged before the window was filled");
    assert_eq!(window_after(2), (3, vec![(4, 2, 2)]), "the first is free, and takes the rest");
    assert_eq!(window_after(3), (2, vec![]));
    assert_eq!(window_after(4), (1, vec![]));
}

/// F3: the window is bounded in bytes as well.
#[test]
fn f3_the_window_in_bytes() {
    let mut cluster = Cluster::with_config(3, |config| {
        config.pre_vote = false;
        config.append_bytes_max = 1000;
        config.inflight_bytes_max = 2000;
    });
    cluster.elect(1);
    let commands = (0..10).map(|_| Bytes::from(vec![b'x'; 900])).collect();
    cluster.with(1, |raft, _| raft.propose(commands)).expect("it leads");
    let sent = appends(&cluster.sent_by(1), 2);
    assert_eq!(sent, [(1, 1, 1), (2, 1, 1), (3, 1, 1)], "a window that is not full takes one more");
}

/// F4: an acknowledgement frees all appends that it covers; a stale or repeated one frees none.
#[test]
fn f4_stale_acknowledgements_free_nothing() {
    let mut cluster = Cluster::with_config(3, |config| {
        config.pre_vote = false;
        config.inflight_count_max = 3;
    });
    cluster.elect(1);
    for _ in 0..6 {
        cluster.propose(1, "a").expect("it leads");
    }
    // Node 2 receives the entries that it is about to acknowledge.
    for (to, message) in cluster.sent_by(1).into_iter().filter(|(to, _)| *to == 2) {
        cluster.step(1, to, message);
    }
    cluster.flying.clear();
    cluster.step(2, 1, say::accepted(1, 3));
    assert_eq!(appends(&cluster.sent_by(1), 2), [(4, 3, 3)], "two are free, one takes the rest");
    assert_eq!(peer(&cluster, 2).inflight_count, 2);
    let before = cluster.status(1);
    for stale in [0, 1, 2, 3] {
        cluster.step(2, 1, say::accepted(1, stale));
        assert_eq!(cluster.status(1), before, "{stale}");
        assert!(appends(&cluster.sent_by(1), 2).is_empty());
    }
}

/// F5: the window is full and the follower acknowledges nothing, but it is alive. Once per election
/// timeout the leader probes it with one append, and repeats that until it acknowledges.
#[test]
fn f5_a_full_window_of_a_follower_that_acknowledges_nothing() {
    let mut cluster = Cluster::with_config(3, |config| {
        config.pre_vote = false;
        config.inflight_count_max = 3;
    });
    cluster.elect(1);
    for _ in 0..6 {
        cluster.propose(1, "a").expect("it leads");
    }
    cluster.flying.clear();
    let answer = |cluster: &mut Cluster, after_ms| {
        cluster.now = cluster.now + Duration::from_millis(after_ms);
        cluster.step(2, 1, say::heartbeat_answer(1, 1));
        appends(&cluster.sent_by(1), 2)
    };
    assert_eq!(answer(&mut cluster, 60), [], "an acknowledgement may be under way");
    assert_eq!(answer(&mut cluster, 239), []);
    assert_eq!(answer(&mut cluster, 1), [(1, 6, 1)], "an election timeout after the oldest");
    for _ in 0..5 {
        assert_eq!(answer(&mut cluster, 299), [], "its answer may be under way");
        assert_eq!(answer(&mut cluster, 1), [(1, 6, 1)], "lost again, asked again");
    }
}

/// F7: two appends in the middle of a sequence are lost. The follower rejects those that do not
/// fit, and has all entries before any timer fires.
#[test]
fn f7_a_gap_is_closed_at_once() {
    let mut cluster = led();
    let now = cluster.now;
    for command in ["a", "b", "c", "d"] {
        cluster.propose(1, command).expect("it leads");
    }
    for _ in 0..2 {
        let at = cluster.flying.iter().position(|one| one.to == 2).expect("appends to 2");
        cluster.drop_parcel(at);
    }
    cluster.settle();
    assert!(
        cluster.events.iter().any(|line| line.starts_with("2 -> 1") && line.contains("reject"))
    );
    assert_eq!(cluster.now, now);
    assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
    assert_eq!((peer(&cluster, 2).state, peer(&cluster, 2).match_index), (Replicate, 5));
}

/// F8: the leader compacts entries that a follower with a full window still lacks. When the leader
/// learns this, it sends a snapshot, and replication continues behind it.
#[test]
fn f8_compacted_while_a_follower_is_throttled() {
    let mut cluster = Cluster::with_config(3, |config| {
        config.pre_vote = false;
        config.inflight_count_max = 2;
    });
    cluster.elect(1);
    cluster.partition_link(1, 3);
    for _ in 0..5 {
        cluster.propose(1, "a").expect("it leads");
        cluster.settle();
    }
    assert_eq!((peer(&cluster, 3).state, peer(&cluster, 3).inflight_count), (Replicate, 2));
    cluster.snapshot(1);
    cluster.compact(1, 6);
    assert!(cluster.flying.is_empty(), "the window is full");
    cluster.heal();
    cluster.run(1_000);
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 1));
    assert_eq!(cluster.status(3).log_start_index, 6, "by snapshot");
    cluster.propose(1, "b").expect("it leads");
    cluster.settle();
    assert_eq!(peer(&cluster, 3).state, Replicate);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine);
}

/// F9: a peer that is down receives only heartbeats, however much is proposed and however often its
/// connection breaks. At its first sign of life it receives the entries that it lacks.
#[test]
fn f9_no_storm_to_a_peer_that_is_gone() {
    let mut cluster = led();
    cluster.crash(3, 0);
    cluster.take_events();
    for _ in 0..50 {
        cluster.with(1, |raft, now| raft.on_unreachable(now, 3));
        cluster.propose(1, "a").expect("it leads");
        cluster.run(60);
    }
    let lost = cluster.take_events();
    let lost = |kind: &str| {
        let lines = lost.iter().filter(|line| line.starts_with("1 -x 3") && line.contains(kind));
        lines.count()
    };
    assert!(lost("heartbeat") >= 45);
    assert_eq!(lost("append"), 0);
    cluster.start(3);
    cluster.run(60);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine, "within a heartbeat interval");
}

/// F6: after a broken connection, or a gap that the follower notices, the leader goes back to the
/// last index known to match.
#[test]
fn f6_a_gap_leads_back_to_a_probe() {
    let start = || {
        let mut cluster = led();
        cluster.propose(1, "a").expect("it leads");
        cluster.propose(1, "b").expect("it leads");
        cluster.flying.clear();
        assert_eq!((peer(&cluster, 2).state, peer(&cluster, 2).next_index), (Replicate, 4));
        cluster
    };
    let mut cluster = start();
    cluster.with(1, |raft, now| raft.on_unreachable(now, 2));
    assert_eq!(
        (peer(&cluster, 2).state, peer(&cluster, 2).next_index),
        (Probe { paused: true }, 2)
    );
    let mut cluster = start();
    cluster.step(2, 1, say::rejected(1, 2, (1, 1)));
    assert_eq!(appends(&cluster.sent_by(1), 2), [(1, 2, 1)], "sent again at once");
    assert!(matches!(peer(&cluster, 2).state, ProgressState::Probe { paused: true }));
}

/// F10: replication waits for no timer: without any timeout all entries are delivered and
/// committed.
#[test]
fn f10_replication_needs_no_timer() {
    let mut cluster = led();
    let now = cluster.now;
    for _ in 0..50 {
        cluster.propose(1, "a").expect("it leads");
        cluster.settle();
    }
    assert_eq!((cluster.now, cluster.node(3).machine.applied.len()), (now, 51));
}

/// A probe that was lost with its connection is sent again soon after the peer responds, and not
/// only after an election timeout.
#[test]
fn a_probe_lost_with_its_connection_is_sent_again_soon() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.fire(1);
    cluster.step(2, 1, say::vote_answer(1, true));
    assert_eq!(appends(&cluster.sent_by(1), 2), [(0, 1, 0)]);
    cluster.with(1, |raft, now| raft.on_unreachable(now, 2));
    cluster.step(2, 1, say::heartbeat_answer(1, 1));
    assert_eq!(appends(&cluster.sent_by(1), 2), [], "in no loop");
    cluster.now = cluster.now + Duration::from_millis(60);
    cluster.step(2, 1, say::heartbeat_answer(1, 1));
    assert_eq!(appends(&cluster.sent_by(1), 2), [(0, 1, 0)]);
}

/// A lagging state machine may let entries gather up to half of the log's budget.
#[test]
fn a_log_has_room_up_to_half_of_its_budget() {
    let entry_bytes = Disk::of_terms(&[1], 1).loaded.entries[0].size_bytes();
    for (entry_count, has_room) in [(0, true), (4, true), (5, false), (9, false)] {
        let disks = [(1, Disk::of_terms(&vec![1; entry_count], 1))].into();
        let cluster = Cluster::with_disks(disks, move |config| {
            config.log_bytes_max = 10 * entry_bytes;
            config.uncommitted_bytes_max = config.log_bytes_max;
        });
        assert_eq!(cluster.raft(1).log_has_room(), has_room, "{entry_count} of 10");
    }
}

/// A follower whose log is full accepts no more entries if at least half of its limit is committed:
/// the log will be compacted without further messages. Otherwise it must accept entries, because
/// the uncommitted ones may need them to be committed.
#[test]
fn a_full_log_takes_more_only_if_it_cannot_shrink_by_itself() {
    let terms = [1; 10];
    let full_bytes = Disk::of_terms(&terms, 1).loaded.entries.iter().map(Entry::size_bytes).sum();
    for (committed, takes) in [(10, false), (5, false), (4, true), (0, true)] {
        let disks = (1..=3).map(|id| (id, Disk::of_terms(&terms, 1))).collect();
        let mut cluster = Cluster::with_disks(disks, move |config| {
            plain(config);
            config.uncommitted_bytes_max = full_bytes;
            config.log_bytes_max = full_bytes;
        });
        cluster.step(1, 2, say::append(1, (10, 1), &[], committed));
        assert_eq!(cluster.status(2).commit_index, committed);
        cluster.step(1, 2, say::append(1, (10, 1), &[1], committed));
        cluster.flying.clear();
        cluster.step(1, 2, say::append(1, (9, 1), &[1], committed));
        let sent = cluster.sent_by(2);
        assert!(
            sent.contains(&(1, say::accepted(1, 10))),
            "what it has it acknowledges again: {sent:?}"
        );
        let last_index = if takes { 11 } else { 10 };
        assert_eq!(cluster.status(2).last_index, last_index, "{committed} of 10 are committed");
    }
}
