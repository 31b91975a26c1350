//! Sections 3.5 (replication, log matching) and 3.6.2 (what is committed).

use std::time::Duration;

use raft_core::consensus::PeerStatus;
use raft_core::consensus::RoleKind::{Follower, Leader};
use raft_core::error::Rejected;
use raft_core::types::{Index, Message, MessageBody, NodeId, Term};

use crate::common::{Cluster, Disk, Parcel, say};
use crate::{no_pre_vote, only, plain, with_logs};

/// Three nodes, led by 1 in term 1; its no-op is committed everywhere.
pub(crate) fn led() -> Cluster {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster
}

pub(crate) fn peer(cluster: &Cluster, id: NodeId) -> PeerStatus {
    let status = cluster.raft(cluster.leader().expect("a leader")).status();
    status.peers.into_iter().find(|peer| peer.id == id).expect("a peer of the leader")
}

pub(crate) fn appends(sent: &[(NodeId, Message)], to: NodeId) -> Vec<(Index, usize, Index)> {
    let append = |(receiver, message): &(NodeId, Message)| match &message.body {
        MessageBody::AppendEntries { previous, entries, commit_index } if *receiver == to => {
            Some((previous.index, entries.len(), *commit_index))
        }
        _ => None,
    };
    sent.iter().filter_map(append).collect()
}

/// A1, 3.4: an idle leader sends heartbeats to all peers at each interval. The commit index in a
/// heartbeat is at most the index that the peer has acknowledged.
#[test]
fn a1_heartbeats() {
    let mut cluster = led();
    cluster.partition_link(1, 3);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    let before = cluster.now;
    cluster.fire(1);
    assert!(cluster.now.since(before) <= Duration::from_millis(60));
    let sent = cluster.sent_by(1);
    assert_eq!(sent, [(2, say::heartbeat(1, 2, 2)), (3, say::heartbeat(1, 2, 1))]);
}

/// A2, 3.5: a proposal is appended to the leader's log and sent to all peers at once, with the
/// position before it.
#[test]
fn a2_a_proposal_is_appended_and_sent() {
    let mut cluster = led();
    let position = cluster.propose(1, "a").expect("it leads");
    assert_eq!((position.term, position.index), (1, 2));
    assert_eq!(cluster.node(1).log.last(), position);
    let sent = cluster.sent_by(1);
    for peer in [2, 3] {
        assert_eq!(appends(&sent, peer), [(1, 1, 1)]);
    }
}

/// A3, 3.5: an entry is committed once a majority, including the leader, has it on disk, and not
/// before.
#[test]
fn a3_a_majority_commits() {
    let cases: &[(u64, &[NodeId], bool)] = &[
        (1, &[], true),
        (3, &[], false),
        (3, &[2], true),
        (3, &[2, 3], true),
        (4, &[2], false),
        (4, &[2, 3], true),
        (5, &[], false),
        (5, &[2], false),
        (5, &[2, 3], true),
        (5, &[2, 3, 4, 5], true),
    ];
    for (count, acknowledging, committed) in cases {
        let mut cluster = Cluster::with_config(*count, no_pre_vote);
        cluster.elect(1);
        cluster.run(10);
        cluster.propose(1, "a").expect("it leads");
        for id in cluster.ids().into_iter().filter(|id| !acknowledging.contains(id)) {
            cluster.partition_link(1, id);
        }
        cluster.settle();
        let commit_index = cluster.status(1).commit_index;
        assert_eq!(commit_index == 2, *committed, "{acknowledging:?} of {count}");
        assert_eq!(cluster.node(1).machine.applied.len() as u64, commit_index);
    }
}

/// A4, 3.6.2: a new leader commits its predecessors' entries together with one of its own term.
#[test]
fn a4_older_entries_are_committed_with_the_first_own_one() {
    for log in [&[][..], &[2], &[1, 2], &[1]] {
        let mut cluster = with_logs(&[log, &[], &[]], 2);
        cluster.fire(1);
        cluster.settle();
        assert_eq!(cluster.role(1), Leader);
        let terms: Vec<Term> =
            cluster.node(1).machine.applied.iter().map(|entry| entry.term).collect();
        let expected: Vec<Term> = log.iter().copied().chain([3]).collect();
        assert_eq!(terms, expected);
    }
}

/// A5, 3.6.2, figure 8: acknowledgements of entries of older terms commit nothing. An acknowledged
/// entry of the leader's own term commits everything before it.
#[test]
fn a5_only_own_entries_commit_by_counting() {
    for (match_index, expected) in [(1, 0), (2, 0), (3, 3)] {
        let mut cluster = with_logs(&[&[1, 2], &[], &[]], 2);
        cluster.fire(1);
        cluster.flying.clear();
        cluster.step(2, 1, say::vote_answer(3, true));
        cluster.flying.clear();
        // Node 2 receives the entries that it is about to acknowledge.
        cluster.step(1, 2, say::append(3, (0, 0), &[1, 2, 3][..match_index as usize], 0));
        cluster.flying.clear();
        cluster.step(2, 1, say::accepted(3, match_index));
        assert_eq!(cluster.status(1).commit_index, expected, "acknowledged through {match_index}");
    }
}

/// A6, 3.5: a follower rejects an append whose previous entry is not in its log, and names the last
/// position that the logs may share.
#[test]
fn a6_the_consistency_check() {
    type Case = ((Index, Term), Option<(Index, Term)>);
    let cases: &[Case] = &[
        ((0, 0), None),
        ((1, 1), None),
        ((2, 2), None),
        ((1, 2), Some((0, 0))),
        ((2, 1), Some((1, 1))),
        ((3, 3), Some((2, 2))),
        ((9, 1), Some((1, 1))),
    ];
    for (previous, hint) in cases {
        let mut cluster = with_logs(&[&[1, 2], &[], &[]], 2);
        cluster.step(2, 1, say::append(3, *previous, &[], 0));
        let answer = match hint {
            None => say::accepted(3, previous.0),
            Some(hint) => say::rejected(3, previous.0, *hint),
        };
        assert_eq!(cluster.sent_by(1), [(2, answer)], "{previous:?}");
        assert_eq!(cluster.node(1).disk.terms(), [1, 2], "a refusal touches nothing");
    }
}

/// A7, 3.5: entries are replaced from the first conflict on, and only if there is one. A shorter
/// append without a conflict deletes nothing.
#[test]
fn a7_conflicts_are_replaced() {
    type Case<'a> = ((Index, Term), &'a [Term], &'a [Term]);
    let cases: &[Case<'_>] = &[
        ((2, 2), &[3], &[1, 2, 3]),
        ((1, 1), &[3, 4], &[1, 3, 4]),
        ((0, 0), &[1], &[1, 2]),
        ((0, 0), &[3], &[3]),
        ((0, 0), &[], &[1, 2]),
        ((0, 0), &[1, 2, 4], &[1, 2, 4]),
    ];
    for (previous, sent, expected) in cases {
        let mut cluster = with_logs(&[&[1, 2], &[], &[]], 2);
        cluster.step(2, 1, say::append(4, *previous, sent, 0));
        assert_eq!(cluster.node(1).disk.terms(), *expected, "{previous:?} {sent:?}");
        let match_index = previous.0 + sent.len() as u64;
        assert_eq!(cluster.sent_by(1), [(2, say::accepted(4, match_index))]);
    }
}

/// A8, figure 7: the leader repairs the logs of followers that miss entries, have extra ones, or
/// both.
#[test]
fn a8_figure_7() {
    let leader: &[Term] = &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: &[&[Term]] = &[
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for follower in followers {
        // The third log is empty, so that the leader can be elected by it.
        let mut cluster = with_logs(&[leader, follower, &[]], 7);
        cluster.elect(1);
        let expected = cluster.node(1).disk.terms();
        assert_eq!(expected, [leader, &[8]].concat());
        assert_eq!(cluster.node(2).disk.terms(), expected, "{follower:?}");
    }
}

/// A9, 3.5: the commit index of an append applies to the log through the append's last entry, not
/// to a tail beyond it. It never moves the follower's commit index back.
#[test]
fn a9_commit_through_the_last_new_entry() {
    type Case<'a> = ((Index, Term), &'a [Term], Index, Index);
    let cases: &[Case<'_>] = &[
        ((1, 1), &[], 3, 1),
        ((1, 1), &[2], 3, 2),
        ((2, 2), &[], 3, 2),
        ((2, 2), &[], 1, 1),
        ((2, 2), &[3], 3, 3),
        ((2, 2), &[3], 2, 2),
        ((2, 2), &[3], 9, 3),
        ((0, 0), &[], 9, 0),
    ];
    for (previous, sent, commit_index, expected) in cases {
        // Entry 3 of term 2 is a tail that the leader of term 3 may lack. Entries 1 and 2 are on a
        // majority.
        let mut cluster = with_logs(&[&[1, 2, 2], &[1, 2, 3], &[1, 2, 3]], 3);
        cluster.step(2, 1, say::append(3, *previous, sent, *commit_index));
        assert_eq!(
            cluster.status(1).commit_index,
            *expected,
            "{previous:?} {sent:?} {commit_index}"
        );
    }
}

/// A10: a heartbeat moves the commit index forward, and never back.
#[test]
fn a10_heartbeats_never_move_the_commit_index_back() {
    for (said, expected) in [(3, 3), (2, 2), (1, 2), (0, 2)] {
        let mut cluster = with_logs(&[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1]], 1);
        cluster.step(2, 1, say::append(1, (3, 1), &[], 2));
        cluster.step(2, 1, say::heartbeat(1, 1, said));
        assert_eq!(cluster.status(1).commit_index, expected);
    }
}

/// A11, 3.5: the number of rejections until two logs meet is about one for each term in which they
/// differ.
#[test]
fn a11_fast_back_up() {
    let cases: &[(&[Term], &[Term], usize)] = &[
        (&[1, 2, 2, 4, 4, 4, 4], &[1, 2, 2, 2, 2, 2, 2, 3, 3, 3], 1),
        (&[1, 2, 2, 3, 4, 4, 4, 5], &[1, 2, 2, 3, 3, 3, 3, 3, 3], 1),
        (&[1, 1, 1, 1, 5, 5, 5], &[1, 1, 1, 1], 1),
        (&[1, 1, 1, 1, 5, 5, 5, 6], &[1, 1, 1, 1, 4, 4, 4], 1),
        (&[1, 1, 1, 1, 6], &[1, 1, 1, 1, 4, 4, 4, 5, 5, 5], 1),
        (&[2, 5, 5, 5, 5, 5, 5, 5], &[2, 4, 4, 4, 4], 1),
        (&[2, 2, 2, 2, 2, 5, 5, 5], &[2, 4, 4, 4, 4, 4], 2),
        (&[1, 3, 3, 3, 3, 3, 5], &[1, 2, 2, 2, 4, 4, 4, 4, 4], 2),
        (&[1, 3, 3, 3, 3, 3, 6], &[1, 3, 3, 3, 4, 4, 4], 2),
    ];
    for (leader, follower, refusals) in cases {
        let mut cluster = with_logs(&[leader, follower, &[]], 6);
        cluster.fire(1);
        cluster.settle();
        assert_eq!(cluster.node(2).disk.terms(), [leader, &[7][..]].concat());
        let refused = |line: &&String| line.starts_with("2 -> 1") && line.contains("rejected");
        assert_eq!(
            cluster.events.iter().filter(refused).count(),
            *refusals,
            "{leader:?} {follower:?}"
        );
    }
}

/// A12: a follower that is alive and lags receives its missing entries when it responds to a
/// heartbeat. One that has all entries receives nothing.
#[test]
fn a12_a_lagging_follower_is_served_after_a_heartbeat() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.flying.clear();
    cluster.with(1, |raft, now| raft.on_unreachable(now, 2));
    for (from, expected) in [(2, vec![(1, 1, 1)]), (3, vec![])] {
        cluster.now = cluster.now + Duration::from_millis(60);
        cluster.step(from, 1, say::heartbeat_answer(1, 1));
        assert_eq!(appends(&cluster.sent_by(1), from), expected);
    }
}

/// A13: late and repeated responses move nothing back.
#[test]
fn a13_stale_answers() {
    let mut cluster = led();
    for command in ["a", "b", "c"] {
        cluster.propose(1, command).expect("it leads");
        cluster.settle();
    }
    let before = cluster.status(1);
    for message in [
        say::accepted(1, 1),
        say::accepted(1, 3),
        say::rejected(1, 1, (0, 0)),
        say::rejected(1, 4, (1, 1)),
        say::accepted(0, 9),
    ] {
        cluster.step(2, 1, message.clone());
        assert_eq!(cluster.status(1), before, "{message:?}");
        assert!(cluster.sent_by(1).is_empty());
    }
}

/// A14: the rejection of a probe, or of an append sent ahead, arrives long after the follower has
/// caught up. The leader must not conclude from it that the follower has lost its log.
#[test]
fn a14_a_late_refusal_is_no_lost_log() {
    let mut cluster = with_logs(&[&[1, 1, 1, 2], &[1], &[1, 1, 1, 2]], 2);
    cluster.fire(1);
    while cluster.role(1) != Leader {
        cluster.deliver(0);
    }
    let at = |cluster: &Cluster, what: fn(&MessageBody) -> bool| {
        cluster.flying.iter().position(|one| match &one.parcel {
            Parcel::Message(message) => one.from == 2 && what(&message.body),
            Parcel::Snapshot { .. } => false,
        })
    };
    let refusal = loop {
        if let Some(at) = at(&cluster, |body| matches!(body, MessageBody::AppendRejected { .. })) {
            break cluster.flying[at].clone();
        }
        cluster.deliver(0);
    };
    cluster.settle();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    let before = cluster.status(1);
    assert_eq!(peer(&cluster, 2).match_index, before.last_index);
    cluster.flying.push_back(refusal);
    cluster.settle();
    assert_eq!(cluster.status(1), before);
    assert!(cluster.node(1).alarms.is_empty());
}

/// A15: a follower has lost acknowledged entries and does not know it, because its disk was
/// restored to an earlier state. The leader does not take back the acknowledgement, and does not
/// send the entries again as if nothing had happened: commits may have depended on them. (A node
/// whose disk is empty knows that it may have lost something; see `lost_disks`.)
#[test]
fn a15_a_follower_whose_disk_was_put_back_is_not_filled_up() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.crash(2, 0);
    cluster.nodes.get_mut(&2).expect("node 2").disk = Disk::of_terms(&[], 0);
    cluster.start(2);
    for _ in 0..20 {
        cluster.propose(1, "b").expect("it leads");
        cluster.run(100);
    }
    assert_eq!((cluster.leader(), peer(&cluster, 2).match_index), (Some(1), 2));
    assert_eq!(cluster.status(2).last_index, 0);
    assert_eq!(cluster.status(1).commit_index, 22, "by the others");
}

/// A16: an acknowledgement beyond the leader's log is nonsense: it is ignored and raises an alarm.
#[test]
fn a16_an_acknowledgement_beyond_the_log() {
    let mut cluster = led();
    let before = cluster.status(1);
    cluster.step(2, 1, say::accepted(1, 9));
    assert_eq!(cluster.status(1), before);
    assert_eq!(cluster.node(1).alarms.len(), 1);
}

/// A17, 3.5: an append from a deposed leader is rejected with the newer term; the log is unchanged.
#[test]
fn a17_an_append_of_an_older_term() {
    let mut cluster = with_logs(&[&[1, 2], &[], &[]], 3);
    cluster.step(2, 1, say::append(2, (1, 1), &[1, 1], 2));
    assert_eq!(cluster.node(1).disk.terms(), [1, 2]);
    assert_eq!(cluster.sent_by(1), [(2, say::heartbeat_answer(3, 0))]);
    assert_eq!((cluster.status(1).leader, cluster.status(1).commit_index), (None, 0));
}

/// A18: a leader that was isolated with a tail of its own adopts its successor's log.
#[test]
fn a18_a_deposed_leader_takes_the_new_log() {
    let mut cluster = Cluster::with_config(3, plain);
    cluster.elect(1);
    cluster.isolate(1);
    for command in ["lost", "gone"] {
        cluster.propose(1, command).expect("it still believes that it leads");
    }
    cluster.elect(2);
    cluster.propose(2, "kept").expect("it leads");
    cluster.settle();
    cluster.heal();
    cluster.run(500);
    assert_eq!((cluster.role(1), cluster.leader()), (Follower, Some(2)));
    assert_eq!(cluster.node(1).machine, cluster.node(2).machine);
    assert_eq!(cluster.node(1).disk.terms(), [1, 2, 2]);
}

/// A19: a node that does not lead rejects proposals, and names the leader if it knows it.
#[test]
fn a19_proposals_elsewhere_are_rejected() {
    let mut cluster = led();
    let rejected =
        |cluster: &mut Cluster, id| cluster.propose(id, "a").expect_err("it does not lead");
    assert_eq!(rejected(&mut cluster, 2), Rejected::NotLeader { leader: Some(1) });
    cluster.fire(2);
    assert_eq!(rejected(&mut cluster, 2), Rejected::NotLeader { leader: None });
}

/// A24: the commit index is sent with the next message, not only with the next heartbeat.
#[test]
fn a24_the_commit_index_travels_at_once() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    for id in cluster.ids() {
        assert_eq!(cluster.status(id).commit_index, 2, "and no time has passed");
    }
}

/// 3.5: a leader never overwrites or deletes entries of its own log, whatever it receives.
#[test]
fn s3_5_a_leader_only_appends() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    let before = cluster.node(1).log.loaded.entries.clone();
    for message in say::everything(1) {
        cluster.step(3, 1, message);
        assert_eq!(cluster.node(1).log.loaded.entries, before);
    }
    assert_eq!(cluster.role(1), Leader);
}

#[test]
fn a_follower_answers_its_leader_only() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.step(1, 2, say::append(1, (2, 1), &[], 2));
    let index = only(&cluster.sent_by(2), 1, |body| match body {
        MessageBody::AppendAccepted { match_index } => Some(*match_index),
        _ => None,
    });
    assert_eq!(index, 2);
}
