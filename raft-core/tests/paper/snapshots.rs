//! Chapter 5: snapshots, compaction, and catching up a peer whose next entries are compacted.

use raft_core::consensus::OfferDecision::{NotNeeded, Stale, Wanted};
use raft_core::consensus::RoleKind::{Candidate, Follower, Leader};
use raft_core::consensus::{PeerStatus, ProgressState};
use raft_core::types::{Configuration, NodeId, Position, SnapshotMeta};

use crate::common::{Cluster, Machine, Parcel, say};
use crate::{no_pre_vote, plain, with_logs};

/// Node 1 leads and has compacted its log through its end, index 4; node 3 was down and has only
/// entry 1.
fn lagging() -> Cluster {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster.crash(3, 0);
    cluster.with(1, |raft, now| raft.on_unreachable(now, 3));
    for command in ["a", "b", "c"] {
        cluster.propose(1, command).expect("it leads");
        cluster.settle();
    }
    cluster.snapshot(1);
    cluster.compact(1, 4);
    cluster.start(3);
    cluster
}

/// Node 3 has responded to the leader, which has found that node 3 needs a snapshot.
fn sending() -> Cluster {
    let mut cluster = lagging();
    cluster.fire(1);
    while let Some(at) =
        cluster.flying.iter().position(|one| matches!(one.parcel, Parcel::Message(_)))
    {
        cluster.deliver(at);
    }
    assert_eq!(cluster.flying.len(), 1, "a snapshot is under way");
    cluster
}

fn third(cluster: &Cluster) -> PeerStatus {
    cluster.status(1).peers.into_iter().find(|peer| peer.id == 3).expect("a peer")
}

fn meta(index: u64, term: u64) -> SnapshotMeta {
    let configuration = Configuration::of_voters([1, 2, 3]);
    SnapshotMeta::new(Position::new(term, index), configuration)
}

/// Offers node 1 a snapshot of no-ops, from node 2, and hands it over if it is wanted.
fn give(cluster: &mut Cluster, term: u64, state_terms: &[u64]) -> bool {
    let applied = (1..).zip(state_terms).map(|(index, term)| say::entry(index, *term)).collect();
    let state = Machine { applied };
    let meta = meta(state.last_applied().index, state.last_applied().term);
    let offer = meta.clone();
    let answer = cluster.with(1, |raft, now| raft.on_snapshot_offer(now, 2, term, &offer));
    if answer != Wanted {
        return false;
    }
    let node = cluster.nodes.get_mut(&1).expect("node 1");
    node.disk.finish_snapshot(meta.clone(), state.clone());
    node.log.finish_snapshot(meta.clone(), state);
    cluster.with(1, |raft, now| raft.on_snapshot_received(now, 2, term, meta))
}

/// S1, 5: a peer that needs compacted entries receives a snapshot, and no entries meanwhile.
#[test]
fn s1_a_lagging_peer_gets_a_snapshot() {
    let mut cluster = sending();
    assert_eq!(third(&cluster).state, ProgressState::Snapshot);
    cluster.propose(1, "d").expect("it leads");
    assert!(cluster.sent_by(1).iter().all(|(to, _)| *to != 3));
    cluster.fire(1);
    let sent = cluster.sent_by(1);
    assert!(sent.contains(&(3, say::heartbeat(1, 3, 1))), "heartbeats go on: {sent:?}");
}

/// S1, S3, S11: the peer installs the snapshot, receives the entries after it, and catches up.
#[test]
fn s11_the_lagging_peer_catches_up() {
    let mut cluster = sending();
    cluster.propose(1, "d").expect("it leads");
    cluster.settle();
    assert_eq!(third(&cluster).state, ProgressState::Replicate);
    cluster.run(100);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine);
    assert_eq!(cluster.status(3).log_start_index, 4);
}

/// S2: after a failed snapshot the leader probes, once the peer gives a sign of life.
#[test]
fn s2_a_snapshot_fails() {
    let mut cluster = sending();
    cluster.drop_parcel(0);
    assert_eq!(
        (third(&cluster).state, third(&cluster).next_index),
        (ProgressState::Probe { paused: true }, 2)
    );
    cluster.run(500);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine);
}

/// S3: after a snapshot the leader probes at the index after it.
#[test]
fn s3_a_snapshot_succeeds() {
    let mut cluster = sending();
    cluster.with(1, |raft, now| raft.on_snapshot_sent(now, 3, Some(4)));
    assert_eq!(
        (third(&cluster).state, third(&cluster).next_index),
        (ProgressState::Probe { paused: true }, 5)
    );
    assert_eq!(cluster.sent_by(1), [(3, say::append(1, (4, 1), &[], 4))]);
}

/// S4: the peer's acknowledgement may arrive before the completion of the transfer.
#[test]
fn s4_the_acknowledgement_comes_first() {
    let mut cluster = sending();
    cluster.step(3, 1, say::accepted(1, 2));
    assert_eq!(third(&cluster).state, ProgressState::Snapshot, "the log begins behind that");
    cluster.step(3, 1, say::accepted(1, 4));
    assert_eq!((third(&cluster).state, third(&cluster).next_index), (ProgressState::Replicate, 5));
    cluster.with(1, |raft, now| raft.on_snapshot_sent(now, 3, None));
    assert_eq!(third(&cluster).state, ProgressState::Replicate);
}

/// S5: a snapshot older than the log's start is not enough; the next one is sent after it.
#[test]
fn s5_a_snapshot_that_is_too_old_by_now() {
    let mut cluster = sending();
    let crowd: [NodeId; 2] = [1, 2];
    for _ in 0..2 {
        cluster.propose(1, "d").expect("it leads");
        while let Some(at) = cluster.flying.iter().position(|one| crowd.contains(&one.to)) {
            cluster.deliver(at);
        }
    }
    cluster.snapshot(1);
    cluster.compact(1, 6);
    cluster.run(1_000);
    assert_eq!(cluster.status(3).log_start_index, 6);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine);
}

/// S6, S13: a silent peer is sent no snapshot, and the others are served meanwhile.
#[test]
fn s6_a_silent_peer_gets_nothing() {
    let mut cluster = lagging();
    cluster.crash(3, 0);
    for _ in 0..30 {
        cluster.propose(1, "d").expect("it leads");
        cluster.run(60);
        assert_ne!(third(&cluster).state, ProgressState::Snapshot);
    }
    assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
}

/// S6: this also holds after a snapshot that has become too old: the next one waits for a sign of
/// life.
#[test]
fn s6_the_next_snapshot_waits_for_a_sign_of_life() {
    let mut cluster = sending();
    cluster.flying.clear();
    cluster.isolate(3);
    for _ in 0..2 {
        cluster.propose(1, "d").expect("it leads");
        cluster.run(200);
    }
    cluster.snapshot(1);
    cluster.compact(1, 6);
    cluster.with(1, |raft, now| raft.on_snapshot_sent(now, 3, Some(4)));
    assert_eq!(third(&cluster).state, ProgressState::Probe { paused: false });
    cluster.step(3, 1, say::heartbeat_answer(1, 1));
    assert_eq!(third(&cluster).state, ProgressState::Snapshot);
}

/// S7: a snapshot below the commit index is not needed; an offer of an older term is stale.
#[test]
fn s7_what_is_not_needed() {
    let mut cluster = with_logs(&[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1]], 2);
    cluster.step(2, 1, say::append(2, (3, 1), &[], 2));
    let mut offer = |term, index| {
        cluster.with(1, |raft, now| raft.on_snapshot_offer(now, 2, term, &meta(index, 1)))
    };
    assert_eq!([offer(2, 1), offer(2, 2)], [NotNeeded, NotNeeded]);
    assert_eq!(offer(2, 3), Wanted);
    assert_eq!(offer(1, 9), Stale { term: 2 });
}

/// S7: a snapshot whose position is in the log replaces nothing; it only advances the commit index.
#[test]
fn s7_a_snapshot_that_agrees_with_the_log() {
    let mut cluster = with_logs(&[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1]], 1);
    assert!(!give(&mut cluster, 2, &[1, 1]), "nothing to publish");
    let status = cluster.status(1);
    assert_eq!((status.commit_index, status.last_index, status.log_start_index), (2, 3, 0));
    assert!(cluster.sent_by(1).contains(&(2, say::accepted(2, 2))));
}

/// S10, 5: a snapshot whose position is not in the log replaces the whole log, in the batch that
/// publishes it.
#[test]
fn s10_a_snapshot_replaces_a_conflicting_log() {
    let mut cluster = with_logs(&[&[1, 2, 2, 2, 2], &[1, 1, 3], &[1, 1, 3]], 3);
    cluster.slow_disks.insert(1);
    assert!(give(&mut cluster, 3, &[1, 1, 3]));
    let status = cluster.status(1);
    assert_eq!((status.last_index, status.commit_index, status.last_applied), (3, 3, 0));
    assert!(cluster.raft(1).is_restoring() && cluster.sent_by(1).is_empty());
    assert_eq!(cluster.node(1).disk.terms(), [1, 2, 2, 2, 2], "not written yet");
    cluster.write(1);
    assert_eq!(
        (cluster.status(1).last_applied, cluster.node(1).disk.start()),
        (3, Position::new(3, 3))
    );
    assert!(cluster.node(1).disk.loaded.entries.is_empty());
    assert_eq!(cluster.sent_by(1), [(2, say::accepted(3, 3))]);
}

/// S16: a second, newer snapshot arrives before the first is written: the newer one is installed.
#[test]
fn s16_a_newer_snapshot_while_one_is_taken_over() {
    let mut cluster = with_logs(&[&[], &[1, 1, 3, 3], &[1, 1, 3, 3]], 3);
    cluster.slow_disks.insert(1);
    assert!(give(&mut cluster, 3, &[1, 1, 3]));
    assert!(give(&mut cluster, 3, &[1, 1, 3, 3]));
    while cluster.write(1) {}
    let status = cluster.status(1);
    assert_eq!(
        (status.last_applied, status.log_start_index, cluster.raft(1).is_restoring()),
        (4, 4, false)
    );
}

/// S16: entries after the snapshot are accepted while it is being written, and are applied after
/// it.
#[test]
fn s16_entries_while_a_snapshot_is_taken_over() {
    let mut cluster = with_logs(&[&[], &[1, 1, 3, 3], &[1, 1, 3, 3]], 3);
    cluster.slow_disks.insert(1);
    assert!(give(&mut cluster, 3, &[1, 1, 3]));
    cluster.step(2, 1, say::append(3, (3, 3), &[3], 4));
    assert_eq!(cluster.status(1).last_index, 4);
    while cluster.write(1) {}
    assert_eq!(cluster.status(1).last_applied, 4);
}

/// S16, S18: a crash before the batch is written leaves the old state; after it, the new one.
#[test]
fn s18_a_crash_while_a_snapshot_is_taken_over() {
    for (written, start_index) in [(0, 0), (1, 3)] {
        let mut cluster = with_logs(&[&[1], &[1, 1, 3], &[1, 1, 3]], 3);
        cluster.slow_disks.insert(1);
        assert!(give(&mut cluster, 3, &[1, 1, 3]));
        cluster.crash(1, written);
        cluster.start(1);
        assert_eq!(cluster.status(1).log_start_index, start_index);
        assert_eq!(cluster.status(1).last_applied, start_index);
    }
}

/// A snapshot from a leader that was deposed meanwhile still contains only committed entries.
#[test]
fn s16_the_term_changes_during_a_transfer() {
    let mut cluster = with_logs(&[&[1], &[1, 1, 3], &[1, 1, 3]], 3);
    let applied = [1, 1, 3].iter().zip(1..).map(|(term, index)| say::entry(index, *term)).collect();
    let state = Machine { applied };
    let node = cluster.nodes.get_mut(&1).expect("node 1");
    node.disk.finish_snapshot(meta(3, 3), state.clone());
    node.log.finish_snapshot(meta(3, 3), state);
    cluster.step(3, 1, say::heartbeat(4, 1, 0));
    cluster.sent_by(1);
    assert!(cluster.with(1, |raft, now| raft.on_snapshot_received(now, 2, 3, meta(3, 3))));
    assert_eq!((cluster.status(1).last_applied, cluster.status(1).leader), (3, Some(3)));
    assert!(cluster.sent_by(1).is_empty(), "the old leader is told nothing");
}

/// Gives node 1 a snapshot at 3@3 with this configuration.
fn given_members(members: Configuration) -> Cluster {
    let mut cluster = with_logs(&[&[], &[1, 1, 3], &[1, 1, 3]], 3);
    let applied = [1, 1, 3].iter().zip(1..).map(|(term, index)| say::entry(index, *term)).collect();
    let mut others = meta(3, 3);
    others.configuration = Box::new(members);
    let state = Machine { applied };
    let node = cluster.nodes.get_mut(&1).expect("node 1");
    node.disk.finish_snapshot(others.clone(), state.clone());
    node.log.finish_snapshot(others.clone(), state);
    assert!(cluster.with(1, |raft, now| raft.on_snapshot_received(now, 2, 3, others)));
    assert_eq!(cluster.status(1).last_applied, 3);
    cluster.flying.clear();
    cluster
}

/// S8: the snapshot carries the configuration: the members, and whose votes are needed, also while
/// it is joint.
#[test]
fn s8_the_configuration_comes_with_the_snapshot() {
    let joint = Configuration {
        outgoing: [1, 4, 5].into(),
        learners: [6].into(),
        ..Configuration::of_voters([1, 2, 3])
    };
    let cases: [(Configuration, &[NodeId]); 2] =
        [(Configuration::of_voters([1, 2, 3, 4, 5]), &[2, 3]), (joint, &[2, 4])];
    for (members, needed) in cases {
        let mut cluster = given_members(members.clone());
        let campaign = |cluster: &mut Cluster| {
            cluster.flying.clear();
            cluster.fire(1);
            let sent = cluster.sent_by(1);
            assert!(sent.iter().all(|(_, message)| crate::is_vote(message)));
            let asked: Vec<NodeId> = sent.into_iter().map(|(to, _)| to).collect();
            assert_eq!(asked, [2, 3, 4, 5], "{members:?}");
        };
        campaign(&mut cluster);
        for voter in needed {
            cluster.step(6, 1, say::vote_answer(4, true));
            assert_eq!(cluster.role(1), Candidate, "{members:?} without {voter}");
            cluster.step(*voter, 1, say::vote_answer(4, true));
        }
        assert_eq!(cluster.role(1), Leader, "{members:?}");
        cluster.crash(1, 0);
        cluster.start(1);
        campaign(&mut cluster);
    }
}

/// S9: a node that is not a voter in the snapshot's configuration installs the snapshot and no
/// longer campaigns, also after a restart. This holds for a learner and for a removed node.
#[test]
fn s9_a_node_that_the_snapshot_does_not_count() {
    let removed = Configuration::of_voters([2, 3]);
    let learner = Configuration { learners: [1].into(), ..Configuration::of_voters([2, 3]) };
    for members in [removed, learner] {
        let mut cluster = given_members(members);
        for restarted in [false, true] {
            if restarted {
                cluster.crash(1, 0);
                cluster.start(1);
            }
            for _ in 0..5 {
                cluster.fire(1);
            }
            assert_eq!((cluster.role(1), cluster.raft(1).term()), (Follower, 3));
            assert!(cluster.sent_by(1).is_empty());
        }
    }
}

/// S12: while a snapshot is being built, entries are appended, committed and applied. The snapshot
/// is published at the position at which it was begun, and the next one can follow.
#[test]
fn s12_a_snapshot_that_takes_long() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    let begun = cluster.raft(1).snapshot_meta(1).expect("applied");
    let state = cluster.node(1).machine.clone();
    for command in ["a", "b", "c"] {
        cluster.propose(1, command).expect("it leads");
        cluster.settle();
    }
    assert_eq!((cluster.status(1).last_applied, cluster.raft(1).snapshot_index()), (4, 0));
    let node = cluster.nodes.get_mut(&1).expect("node 1");
    node.disk.finish_snapshot(begun.clone(), state.clone());
    node.log.finish_snapshot(begun.clone(), state);
    cluster.slow_disks.insert(1);
    assert!(cluster.with(1, |raft, _| raft.publish_snapshot(begun)));
    assert_eq!(cluster.raft(1).snapshot_index(), 0, "not on disk yet");
    cluster.write(1);
    assert_eq!((cluster.status(1).last_applied, cluster.raft(1).snapshot_index()), (4, 1));
    cluster.snapshot(1);
    cluster.write(1);
    assert_eq!(cluster.raft(1).snapshot_index(), 4);
}

/// S13: the target of a snapshot is unreachable. The others are served and the log is compacted as
/// if the target did not exist.
#[test]
fn s13_a_target_that_cannot_be_reached_holds_nobody_up() {
    let mut cluster = sending();
    let snapshot = cluster.flying.pop_front().expect("a snapshot is under way");
    cluster.isolate(3);
    for round in 1..=5 {
        cluster.propose(1, "d").expect("it leads");
        cluster.settle();
        cluster.snapshot(1);
        cluster.compact(1, 4 + round);
        assert_eq!(third(&cluster).state, ProgressState::Snapshot, "its fate is not known");
        assert_eq!(cluster.status(1).log_start_index, 4 + round);
        assert_eq!(cluster.status(2).last_applied, 4 + round);
    }
    cluster.flying.push_back(snapshot);
    cluster.settle();
    assert!(matches!(third(&cluster).state, ProgressState::Probe { .. }), "it was lost");
    cluster.heal();
    cluster.run(1_000);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine);
}

/// 5.1: each node takes its own snapshots; a snapshot at a position that the log no longer contains
/// is not published.
#[test]
fn s5_1_own_snapshots() {
    let mut cluster = lagging();
    cluster.snapshot(2);
    assert_eq!(cluster.raft(2).snapshot_index(), 4);
    assert!(!cluster.with(1, |raft, _| raft.publish_snapshot(meta(2, 1))), "compacted");
    cluster.run(200);
    assert_eq!(cluster.raft(3).snapshot_index(), 4, "the one it was sent");
}

/// 5.1: one snapshot is published at a time, and the core's log start and last_applied follow.
#[test]
fn s5_1_one_at_a_time() {
    let mut cluster = lagging();
    assert_eq!((cluster.raft(1).log_start_index(), cluster.raft(1).last_applied()), (4, 4));
    assert_eq!((cluster.raft(2).log_start_index(), cluster.raft(2).last_applied()), (0, 4));
    let raft = cluster.nodes.get_mut(&2).and_then(|node| node.raft.as_mut()).expect("it is up");
    assert!(raft.publish_snapshot(meta(3, 1)));
    assert!(!raft.publish_snapshot(meta(4, 1)), "the first one is not on its way yet");
}

/// The durable state of a state machine allows compaction like a snapshot, up to last_applied.
#[test]
fn a_durable_state_stands_for_the_log() {
    let mut cluster = lagging();
    cluster.with(2, |raft, _| raft.on_state_durable(3));
    assert_eq!(cluster.raft(2).snapshot_index(), 3);
    cluster.with(2, |raft, _| raft.on_state_durable(9));
    assert_eq!(cluster.raft(2).snapshot_index(), 4, "it is ahead of its report");
    let left = |bytes| cluster.raft(2).index_leaving_bytes(bytes);
    assert_eq!((left(0), left(u64::MAX)), (4, 0));
}

/// 5.1, A22: after compaction the log still knows the position that it starts after, so it accepts
/// appends that follow this position. Of an earlier append it accepts the part after its start.
#[test]
fn a22_the_start_of_a_compacted_log() {
    let mut cluster = lagging();
    cluster.crash(3, 0);
    cluster.snapshot(2);
    cluster.compact(2, 4);
    cluster.step(1, 2, say::append(1, (4, 1), &[], 4));
    assert_eq!(cluster.sent_by(2), [(1, say::accepted(1, 4))]);
    cluster.step(1, 2, say::append(1, (0, 0), &[], 4));
    assert_eq!(cluster.sent_by(2), [(1, say::accepted(1, 4))]);
    cluster.step(1, 2, say::append(1, (5, 1), &[], 4));
    assert_eq!(cluster.sent_by(2), [(1, say::rejected(1, 5, (4, 1)))]);
}

/// S14: a leader that has compacted its whole log serves a new, empty peer.
#[test]
fn s14_a_log_compacted_to_its_tip() {
    let mut cluster = lagging();
    cluster.crash(3, 0);
    cluster.nodes.get_mut(&3).expect("node 3").disk = Default::default();
    cluster.start(3);
    cluster.run(1_000);
    assert_eq!(cluster.node(3).machine, cluster.node(1).machine);
}

/// A snapshot offer in the node's own name is rejected.
#[test]
fn an_offer_in_the_own_name() {
    for lead in [false, true] {
        let mut cluster = Cluster::with_config(3, plain);
        if lead {
            cluster.elect(1);
        }
        for term in [1, 7] {
            let answer =
                cluster.with(1, |raft, now| raft.on_snapshot_offer(now, 1, term, &meta(9, 1)));
            assert!(matches!(answer, Stale { .. }));
        }
        assert_eq!(cluster.raft(1).term(), u64::from(lead), "no term is taken over");
    }
}
