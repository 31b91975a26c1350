//! Sections 3.3 and 3.4, and the election restriction of 3.6.1.

use std::collections::BTreeSet;

use raft_core::consensus::RoleKind::{Candidate, Follower, Leader, PreCandidate};
use raft_core::consensus::{Config, RoleKind};
use raft_core::types::{MessageBody, NodeId, TERM_MAX};

use crate::common::{Cluster, Disk, say};
use crate::{is_vote, no_pre_vote, only, plain, with_logs};

const ROLES: [RoleKind; 4] = [Follower, PreCandidate, Candidate, Leader];

/// A cluster of three in which node 1 has this role, in term 1.
fn with_role(role: RoleKind) -> Cluster {
    let mut cluster = Cluster::with_config(3, move |config| {
        plain(config);
        config.pre_vote = role == PreCandidate;
    });
    match role {
        Follower => cluster.elect(2),
        Leader => cluster.elect(1),
        Candidate => cluster.fire(1),
        PreCandidate => {
            cluster.elect(2);
            cluster.fire(1);
        }
    }
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (role, 1));
    cluster.flying.clear();
    cluster
}

/// E1, 3.3: a node that receives a larger term adopts it; a candidate or leader becomes a follower.
/// The one exception is the request for a pre-vote.
#[test]
fn e1_a_larger_term_makes_a_follower() {
    for role in ROLES {
        for message in say::everything(5) {
            let mut cluster = with_role(role);
            cluster.step(3, 1, message.clone());
            // A pre-vote request only asks (9.6).
            let is_question = matches!(message.body, MessageBody::RequestPreVote { .. });
            let expected = if is_question { (role, 1) } else { (Follower, 5) };
            let now = (cluster.role(1), cluster.raft(1).term());
            assert_eq!(now, expected, "{role:?} {message:?}");
        }
    }
}

/// E2, 3.3: a message of a smaller term is rejected; neither role nor term nor log changes.
#[test]
fn e2_a_smaller_term_changes_nothing() {
    for role in ROLES {
        let mut cluster = with_role(role);
        cluster.step(2, 1, say::append(4, (0, 0), &[], 0));
        cluster.fire(1);
        cluster.sent_by(1);
        let before = cluster.status(1);
        for message in say::everything(2) {
            cluster.step(3, 1, message.clone());
            let after = cluster.status(1);
            assert_eq!(after, before, "{message:?}");
            // If the node responds at all, the response has the larger term and is no vote
            // response: a candidate would take the refusal of its older request for one of its
            // newer request.
            for (_, answer) in cluster.sent_by(1) {
                assert_eq!(answer.term, before.term);
                assert!(!matches!(answer.body, MessageBody::VoteResponse { .. }), "{message:?}");
            }
        }
    }
}

/// E3, 3.4: every node starts as a follower, and stays one while a leader contacts it.
#[test]
fn e3_a_new_node_follows() {
    let mut cluster = Cluster::new(3);
    assert!(cluster.ids().iter().all(|id| cluster.role(*id) == Follower));
    cluster.elect(1);
    cluster.run(10_000);
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 1));
}

/// E4, 3.4: after a timeout a follower or candidate increments its term, votes for itself and
/// requests votes from all others, with the position of its last entry.
#[test]
fn e4_a_timeout_starts_an_election() {
    for role in [Follower, Candidate] {
        let mut cluster = with_role(role);
        let last = cluster.node(1).log.last();
        cluster.fire(1);
        assert_eq!((cluster.role(1), cluster.raft(1).term()), (Candidate, 2));
        assert_eq!(cluster.node(1).disk.loaded.hard_state.voted_for, Some(1));
        let sent = cluster.sent_by(1);
        let asked: Vec<NodeId> = sent.iter().map(|(to, _)| *to).collect();
        assert_eq!(asked, [2, 3]);
        for (_, message) in sent {
            assert_eq!(
                (message.term, message.body),
                (2, MessageBody::RequestVote { last, transfer: false })
            );
        }
    }
}

/// E5, 3.4: a majority of grants elects; a majority of refusals ends the candidacy; otherwise it
/// continues.
#[test]
fn e5_one_round_of_votes() {
    let cases: &[(u64, &[NodeId], &[NodeId], RoleKind)] = &[
        (1, &[], &[], Leader),
        (3, &[2, 3], &[], Leader),
        (3, &[2], &[], Leader),
        (3, &[2], &[3], Leader),
        (3, &[], &[], Candidate),
        (3, &[], &[2], Candidate),
        (3, &[], &[2, 3], Follower),
        (5, &[2, 3, 4, 5], &[], Leader),
        (5, &[2, 3], &[], Leader),
        (5, &[2, 3], &[4, 5], Leader),
        (5, &[2], &[3, 4], Candidate),
        (5, &[2], &[3, 4, 5], Follower),
        (5, &[], &[2, 3], Candidate),
        (5, &[], &[2, 3, 4], Follower),
    ];
    for (count, granted, refused, expected) in cases {
        let mut cluster = Cluster::with_config(*count, no_pre_vote);
        cluster.fire(1);
        for (voter, grants) in
            granted.iter().map(|id| (id, true)).chain(refused.iter().map(|id| (id, false)))
        {
            cluster.step(*voter, 1, say::vote_answer(1, grants));
        }
        assert_eq!(cluster.role(1), *expected, "{count} nodes, {granted:?}, {refused:?}");
    }
}

/// 3.4: a voter is counted once, even if it responds repeatedly, and its first response counts. A
/// response from a non-voter is not counted.
#[test]
fn s3_4_each_voter_counts_once() {
    let mut cluster = Cluster::with_config(5, no_pre_vote);
    cluster.fire(1);
    for _ in 0..3 {
        cluster.step(2, 1, say::vote_answer(1, true));
        cluster.step(9, 1, say::vote_answer(1, true));
    }
    assert_eq!(cluster.role(1), Candidate);
    cluster.step(3, 1, say::vote_answer(1, false));
    cluster.step(3, 1, say::vote_answer(1, true));
    assert_eq!(cluster.role(1), Candidate);
    cluster.step(4, 1, say::vote_answer(1, true));
    assert_eq!(cluster.role(1), Leader);
}

/// E6, 3.4: one vote per term, first come first served; the same candidate may ask again.
#[test]
fn e6_first_come_first_served() {
    for first in [2, 3] {
        let second = 5 - first;
        let mut cluster = Cluster::with_config(3, plain);
        let granted = |cluster: &mut Cluster, from| {
            cluster.step(from, 1, say::vote(1, (0, 0)));
            only(&cluster.sent_by(1), from, |body| match body {
                MessageBody::VoteResponse { granted } => Some(*granted),
                _ => None,
            })
        };
        assert!(granted(&mut cluster, first));
        assert!(!granted(&mut cluster, second));
        assert!(granted(&mut cluster, first), "asked again");
    }
}

/// E7, 3.4: a candidate that is contacted by a leader of its own or of a larger term follows it.
#[test]
fn e7_a_candidate_recognizes_the_leader() {
    for (role, leader) in [(Candidate, 3), (PreCandidate, 2)] {
        for term in [1, 2] {
            for message in [say::append(term, (0, 0), &[], 0), say::heartbeat(term, 1, 0)] {
                let mut cluster = with_role(role);
                cluster.step(leader, 1, message);
                let status = cluster.status(1);
                let expected = (Follower, term, Some(leader));
                assert_eq!((status.role, status.term, status.leader), expected);
            }
        }
    }
}

/// E8, 3.4: each timeout is drawn anew from [t, 2t), for followers and for candidates.
#[test]
fn e8_timeouts_are_random() {
    let timeout = Config::new(1, 1).election_timeout;
    for pre_vote in [true, false] {
        let mut cluster = Cluster::with_config(3, move |config| config.pre_vote = pre_vote);
        let mut tenths = BTreeSet::new();
        for _ in 0..200 {
            let before = cluster.now;
            cluster.fire(1);
            let waited = cluster.raft(1).election_deadline().since(cluster.now);
            assert!(cluster.now >= before && waited >= timeout && waited < 2 * timeout);
            tenths.insert(10 * (waited - timeout).as_micros() / timeout.as_micros());
        }
        assert_eq!(tenths.len(), 10, "every tenth of the range occurs");
    }
}

/// E9, 3.4: so it is rare that two nodes of five time out within a hundredth of the timeout of each
/// other.
#[test]
fn e9_timeouts_seldom_collide() {
    let mut collisions = 0;
    for round in 0..500 {
        let cluster = Cluster::with_config(5, move |config| config.seed += 7919 * round);
        let mut deadlines: Vec<_> =
            cluster.ids().iter().map(|id| cluster.raft(*id).election_deadline()).collect();
        deadlines.sort_unstable();
        let resolution = Config::new(1, 1).election_timeout / 100;
        if deadlines[1].since(deadlines[0]) < resolution {
            collisions += 1;
        }
    }
    assert!(collisions <= 150, "{collisions} of 500 rounds");
}

/// E10, 3.6.1: a voter rejects a candidate whose log is less up to date: by last term first, then
/// by length. An equal log is enough.
#[test]
fn e10_the_election_restriction() {
    let cases: &[(&[u64], (u64, u64), bool)] = &[
        (&[1], (1, 1), true),
        (&[1], (2, 1), true),
        (&[1, 1], (1, 1), false),
        (&[1], (1, 2), true),
        (&[1], (2, 2), true),
        (&[1, 1], (1, 2), true),
        (&[2], (1, 1), false),
        (&[2], (2, 1), false),
        (&[2, 2], (1, 1), false),
        (&[2], (9, 1), false),
        (&[], (0, 0), true),
        (&[1], (0, 0), false),
    ];
    for (log, last, expected) in cases {
        let mut cluster = with_logs(&[log, &[], &[]], 2);
        cluster.step(2, 1, say::vote(3, *last));
        let granted = only(&cluster.sent_by(1), 2, |body| match body {
            MessageBody::VoteResponse { granted } => Some(*granted),
            _ => None,
        });
        assert_eq!(granted, *expected, "{log:?} asked by {last:?}");
        // Either way the larger term is adopted.
        assert_eq!(cluster.raft(1).term(), 3);
    }
}

/// E11: a candidate or leader has voted for itself, so it rejects others in its own term.
#[test]
fn e11_refused_by_who_runs_itself() {
    for role in [Candidate, Leader] {
        let mut cluster = with_role(role);
        cluster.step(3, 1, say::vote(1, (9, 9)));
        assert_eq!(cluster.role(1), role);
        assert!(
            cluster.sent_by(1).iter().any(|(_, message)| *message == say::vote_answer(1, false))
        );
    }
}

/// E12: a vote request of a larger term is granted in any role, if the log allows, and stored.
#[test]
fn e12_a_larger_term_is_granted_from_any_role() {
    for role in ROLES {
        for (last, expected) in [((9, 1), true), ((0, 0), role == Candidate)] {
            let mut cluster = with_role(role);
            cluster.step(3, 1, say::vote(2, last));
            assert_eq!((cluster.role(1), cluster.raft(1).term()), (Follower, 2));
            let vote = cluster.node(1).disk.loaded.hard_state.voted_for;
            assert_eq!(vote, expected.then_some(3), "{role:?} {last:?}");
        }
    }
}

/// E13, 3.6.1: node 3 has an entry of term 2 that is not on a majority. Node 1, with an entry of
/// term 1, loses the election of term 2, in which others have voted. It wins term 3, and its log
/// replaces that entry everywhere.
#[test]
fn e13_a_newer_log_can_be_overwritten() {
    let mut disks: std::collections::BTreeMap<_, _> = [&[1][..], &[1], &[2], &[], &[]]
        .into_iter()
        .zip(1..)
        .map(|(terms, id)| (id, Disk::of_terms(terms, if id < 3 { 1 } else { 2 })))
        .collect();
    for id in 3..=5 {
        disks.get_mut(&id).expect("there").loaded.hard_state.voted_for = Some(3);
    }
    let mut cluster = Cluster::with_disks(disks, plain);
    cluster.fire(1);
    cluster.settle();
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (Follower, 2), "only 2 voted for it");
    cluster.elect(1);
    assert_eq!(cluster.raft(1).term(), 3);
    cluster.run(200);
    for id in cluster.ids() {
        assert_eq!(cluster.node(id).disk.terms(), [1, 3], "node {id}");
    }
}

/// E14: every node can be elected, repeatedly.
#[test]
fn e14_leadership_goes_round() {
    for pre_vote in [true, false] {
        let mut cluster = Cluster::with_config(3, move |config| config.pre_vote = pre_vote);
        for _ in 0..2 {
            for id in [1, 2, 3] {
                cluster.elect(id);
                cluster.run(20);
            }
        }
    }
}

/// E15: after a partition heals, the candidate with the shorter log does not win, and the terms
/// become equal.
#[test]
fn e15_duelling_candidates() {
    for pre_vote in [true, false] {
        let mut cluster = Cluster::with_config(3, move |config| config.pre_vote = pre_vote);
        cluster.partition(&[&[1, 2], &[3]]);
        cluster.elect(1);
        cluster.propose(1, "a").expect("it leads");
        cluster.run(1000);
        assert_eq!(cluster.raft(3).term() > 1, !pre_vote, "only pre-vote keeps the term");
        cluster.heal();
        cluster.run(3000);
        assert_ne!(cluster.leader(), Some(3), "it lacks an entry");
        let terms: BTreeSet<_> = cluster.ids().iter().map(|id| cluster.raft(*id).term()).collect();
        assert_eq!(terms.len(), 1);
        assert_eq!(cluster.node(3).disk.loaded.entries, cluster.node(1).disk.loaded.entries);
    }
}

/// E17: a candidate's own vote becomes durable after the candidate has followed another leader of
/// that term. The vote does not make it a leader.
#[test]
fn e17_a_late_own_vote() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.slow_disks.insert(1);
    cluster.fire(1);
    cluster.step(3, 1, say::vote_answer(1, true));
    assert_eq!(cluster.role(1), Candidate, "its own vote is not on disk");
    cluster.step(2, 1, say::heartbeat(1, 1, 0));
    while cluster.write(1) {}
    assert_eq!((cluster.role(1), cluster.status(1).leader), (Follower, Some(2)));
}

/// E19, 3.3: no role is skipped. Responses meant for another role change nothing, however many
/// arrive, and a leader's deadline never makes it campaign.
#[test]
fn e19_no_role_is_skipped() {
    for (role, answer) in [
        (Follower, say::vote_answer(1, true)),
        (Follower, say::pre_vote_answer(1, true)),
        (PreCandidate, say::vote_answer(1, true)),
        (Candidate, say::pre_vote_answer(1, true)),
        (Leader, say::vote_answer(1, false)),
        (Leader, say::pre_vote_answer(1, true)),
    ] {
        let mut cluster = with_role(role);
        for voter in [2, 3] {
            cluster.step(voter, 1, answer.clone());
        }
        assert_eq!((cluster.role(1), cluster.raft(1).term()), (role, 1), "{answer:?}");
        assert!(cluster.node(1).alarms.is_empty());
    }
    let mut cluster = with_role(Leader);
    for _ in 0..100 {
        cluster.fire(1);
        assert_eq!((cluster.role(1), cluster.raft(1).term()), (Leader, 1));
    }
    let mut cluster = with_role(PreCandidate);
    cluster.step(3, 1, say::pre_vote_answer(1, true));
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (Candidate, 2), "one step at a time");
}

/// E21, 3.4: a term has at most one leader. If two nodes claim to lead a term, the invariant is
/// broken: the second claim is ignored and raises an alarm.
#[test]
fn e21_a_second_leader_of_a_term_is_not_believed() {
    let mut cluster = Cluster::with_config(3, plain);
    cluster.step(2, 1, say::append(1, (0, 0), &[1], 0));
    cluster.step(3, 1, say::append(1, (0, 0), &[], 0));
    cluster.step(3, 1, say::heartbeat(1, 1, 1));
    assert_eq!(cluster.status(1).leader, Some(2));
    assert_eq!(cluster.node(1).alarms.len(), 2);
    let mut cluster = with_role(Leader);
    cluster.step(3, 1, say::heartbeat(1, 1, 0));
    assert_eq!((cluster.role(1), cluster.node(1).alarms.len()), (Leader, 1));
}

/// E22: a node that is not a voter does not campaign, but it votes: its configuration may be older
/// than the candidate's.
#[test]
fn e22_learners_vote_and_do_not_campaign() {
    use raft_core::consensus::{Boot, Raft};
    use raft_core::types::{Configuration, HardState, Loaded, Position, Time};
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
    for _ in 0..5 {
        let now = learner.next_deadline();
        learner.on_timeout(now);
        assert!(learner.ready(now).is_empty());
        assert_eq!((learner.role(), learner.term()), (Follower, 0));
    }
    let now = learner.next_deadline();
    learner.step(now, 1, say::vote(1, (0, 0)));
    let persist = learner.ready(now).persist.expect("a vote is written");
    learner.on_persisted(now, persist.id);
    assert_eq!(learner.ready(now).messages, [(1, say::vote_answer(1, true))]);
}

/// E23: late requests and responses do no harm. A grant of an older term does not elect.
#[test]
fn e23_late_grants_count_for_their_term_only() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.fire(1);
    cluster.fire(1);
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (Candidate, 2));
    cluster.step(2, 1, say::vote_answer(1, true));
    assert_eq!(cluster.role(1), Candidate);
    // The messages still in flight complete the election.
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
}

/// 3.4: a node that grants a vote waits a whole timeout before it campaigns; one that rejects does
/// not.
#[test]
fn s3_4_granting_resets_the_timer() {
    for (last, granted) in [((9, 9), true), ((0, 0), false)] {
        let mut cluster = with_logs(&[&[1], &[], &[]], 1);
        let deadline = cluster.raft(1).election_deadline();
        cluster.now = deadline;
        cluster.step(2, 1, say::vote(2, last));
        assert_eq!(cluster.raft(1).election_deadline() > deadline, granted);
    }
}

/// 3.4: a new leader sends heartbeats at once, so that no other node starts an election.
#[test]
fn s3_4_a_new_leader_speaks_at_once() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.fire(1);
    assert!(cluster.sent_by(1).iter().all(|(_, message)| is_vote(message)));
    cluster.step(2, 1, say::vote_answer(1, true));
    let sent = cluster.sent_by(1);
    for peer in [2, 3] {
        let round = only(&sent, peer, |body| match body {
            MessageBody::Heartbeat { round, .. } => Some(*round),
            _ => None,
        });
        assert_eq!(round, 1);
    }
}

/// C22. Terms have a maximum, which every decoder enforces. A message with a larger term is
/// ignored, and a node at the maximum does not campaign. So neither a node's disk nor its messages
/// hold a term that others would reject.
#[test]
fn c22_there_is_no_term_after_the_last() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.with(1, |raft, now| raft.step(now, 2, say::heartbeat(u64::MAX, 1, 0)));
    assert_eq!(cluster.status(1).term, 0, "out of range: nothing is believed");
    cluster.with(1, |raft, now| raft.step(now, 2, say::heartbeat(TERM_MAX, 1, 0)));
    cluster.fire(1);
    assert_eq!((cluster.status(1).role, cluster.status(1).term), (Follower, TERM_MAX));
    cluster.with(1, |raft, now| raft.step(now, 2, say::heartbeat(TERM_MAX, 2, 0)));
    cluster.with(1, |raft, now| raft.step(now, 2, say::timeout_now(TERM_MAX)));
    assert_eq!((cluster.status(1).role, cluster.status(1).term), (Follower, TERM_MAX));
    assert!(cluster.node(1).alarms.iter().any(|alarm| alarm.contains("no term after")));
}
