//! Sections 9.6 (pre-vote), 6.2 and 4.2.3 (check quorum, sticking to a leader).

use raft_core::consensus::RoleKind::{Candidate, Follower, Leader, PreCandidate};
use raft_core::types::{Message, MessageBody, NodeId};

use crate::common::{Cluster, say};
use crate::no_pre_vote;

/// Q1: an isolated node requests pre-votes in vain for a long time, and its term does not grow.
/// When it is back, the leader is not disturbed.
#[test]
fn q1_a_partitioned_node_does_not_disturb() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.isolate(3);
    cluster.run(10_000);
    assert_eq!((cluster.role(3), cluster.raft(3).term()), (PreCandidate, 1));
    cluster.heal();
    cluster.run(2_000);
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 1));
    assert_eq!(cluster.status(3).leader, Some(1));
}

/// Q2: a pre-vote requires the same up-to-date log as a vote.
#[test]
fn q2_pre_votes_judge_the_log() {
    for (log, last, granted) in [
        (&[1, 1][..], (1, 1), false),
        (&[1, 1], (2, 1), true),
        (&[2], (9, 1), false),
        (&[1], (1, 2), true),
    ] {
        let mut cluster = crate::with_logs(&[log, &[], &[]], 2);
        cluster.step(2, 1, say::pre_vote(2, last));
        assert_eq!(cluster.sent_by(1), [(2, say::pre_vote_answer(2, granted))], "{log:?} {last:?}");
    }
}

/// 9.6: a pre-vote changes nothing at the voter: no term, no vote, no timer, nothing to write.
#[test]
fn s9_6_a_pre_vote_changes_nothing() {
    for term in [0, 1, 7] {
        let mut cluster = Cluster::new(3);
        let (status, deadline) = (cluster.status(1), cluster.raft(1).election_deadline());
        cluster.step(2, 1, say::pre_vote(term, (9, 9)));
        assert_eq!(cluster.sent_by(1), [(2, say::pre_vote_answer(term, true))]);
        assert_eq!((cluster.status(1), cluster.raft(1).election_deadline()), (status, deadline));
        assert!(cluster.node(1).writing.is_empty());
    }
}

/// Q3: a node that a leader has contacted within the election timeout rejects a pre-vote; later it
/// grants.
#[test]
fn q3_refused_while_a_leader_responds() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.flying.clear();
    cluster.step(3, 2, say::pre_vote(1, (9, 9)));
    assert_eq!(cluster.sent_by(2), [(3, say::pre_vote_answer(1, false))]);
    cluster.step(3, 1, say::pre_vote(1, (9, 9)));
    assert_eq!(cluster.sent_by(1), [(3, say::pre_vote_answer(1, false))], "so does the leader");
    cluster.now = cluster.now + std::time::Duration::from_millis(300);
    cluster.step(3, 2, say::pre_vote(1, (9, 9)));
    assert_eq!(cluster.sent_by(2), [(3, say::pre_vote_answer(1, true))]);
}

/// Q3: a node that requests pre-votes itself has given up its leader and grants them to others, so
/// two of three nodes are enough.
#[test]
fn q3_who_asks_itself_is_not_loyal() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.rush(3);
    cluster.settle();
    assert_eq!((cluster.status(3).leader, cluster.leader()), (None, Some(1)), "one is too few");
    cluster.rush(2);
    cluster.settle();
    assert_eq!((cluster.leader(), cluster.raft(2).term()), (Some(2), 2));
}

/// Q4: a split vote is resolved in a later round.
#[test]
fn q4_a_split_vote_is_settled() {
    for count in [2, 4] {
        let mut cluster = Cluster::new(count);
        for id in cluster.ids() {
            cluster.rush(id);
        }
        cluster.run(5_000);
        assert!(cluster.leader().is_some(), "{count} nodes");
    }
}

/// Q4: candidates that know that the vote was split do not wait a whole election timeout again.
#[test]
fn q4_a_split_vote_is_settled_soon() {
    let is_settled_soon = |size: u64, seed: u64| {
        let mut cluster =
            Cluster::with_config(size, move |config| config.seed = 2 * seed + config.id);
        cluster.isolate(3);
        for id in [1, 2] {
            cluster.rush(id);
        }
        cluster.settle();
        // With three nodes, the third might still respond.
        let role = if size == 2 { Follower } else { Candidate };
        assert_eq!([1, 2].map(|id| (cluster.role(id), cluster.raft(id).term())), [(role, 1); 2]);
        cluster.run(299);
        cluster.leader().is_some()
    };
    // None would be settled if each candidate waited for an election timeout of at least 300 ms.
    for size in [2, 3] {
        let settled_count = (0..100).filter(|seed| is_settled_soon(size, *seed)).count();
        assert!(settled_count >= 80, "{settled_count} of 100 with {size} nodes");
    }
}

/// Q4: only a candidate that was refused retries early, once, and only if it begins again with a
/// pre-vote.
#[test]
fn q4_nobody_else_asks_again_before_its_timeout() {
    let timeout = std::time::Duration::from_millis(300);
    let mut hurried_count = 0;
    for seed in 0..50 {
        for pre_vote in [true, false] {
            let mut cluster = Cluster::with_config(5, move |config| {
                config.seed = seed;
                config.pre_vote = pre_vote;
            });
            cluster.fire(1);
            for peer in [2, 3].into_iter().filter(|_| pre_vote) {
                cluster.step(peer, 1, say::pre_vote_answer(0, true));
            }
            cluster.flying.clear();
            cluster.step(2, 1, say::vote_answer(1, true));
            assert_eq!((cluster.role(1), cluster.raft(1).term()), (Candidate, 1));
            let waits = |cluster: &Cluster| cluster.raft(1).election_deadline() - cluster.now;
            assert!(waits(&cluster) >= timeout, "a vote was given");
            cluster.step(3, 1, say::vote_answer(1, false));
            let refused = waits(&cluster);
            assert!(pre_vote || refused >= timeout, "others would have to go along");
            hurried_count += u32::from(refused < timeout);
            cluster.step(4, 1, say::vote_answer(1, false));
            assert_eq!((cluster.role(1), waits(&cluster)), (Candidate, refused), "once");
        }
    }
    assert!(hurried_count >= 30, "{hurried_count} of 50");
}

/// A candidate whose timer fires late starts a new candidacy.
#[test]
fn a_candidate_that_oversleeps_asks_again() {
    let mut cluster = Cluster::new(3);
    cluster.isolate(1);
    cluster.fire(1);
    let late = cluster.raft(1).election_deadline() + std::time::Duration::from_millis(1);
    cluster.flying.clear();
    cluster.with(1, |raft, _| raft.on_timeout(late));
    assert!(cluster.raft(1).election_deadline() > late, "a new candidacy");
}

/// Q5: the leader is isolated, and a node of a smaller term is back: a leader is elected
/// nevertheless.
#[test]
fn q5_a_node_of_a_smaller_term_completes_an_election() {
    let mut cluster = Cluster::new(3);
    cluster.isolate(3);
    cluster.elect(1);
    cluster.partition(&[&[1], &[2], &[3]]);
    cluster.run(1_000);
    cluster.partition(&[&[1, 2], &[3]]);
    cluster.run(5_000);
    let leader = cluster.leader().expect("a leader of two");
    assert!(cluster.raft(3).term() < cluster.raft(leader).term());
    cluster.isolate(leader);
    cluster.run(5_000);
    assert_ne!(cluster.leader().expect("a leader of the other two"), leader);
    assert_ne!(cluster.role(leader), Leader);
}

/// Q6: a node whose term ran ahead, because it used no pre-vote, comes back. It responds to the
/// leader's messages with that term. The cluster settles in that term, if the node requests votes
/// again, or in a later one.
#[test]
fn q6_an_inflated_term_is_absorbed() {
    let mut cluster = Cluster::with_config(3, |config| config.pre_vote = config.id != 3);
    cluster.elect(1);
    cluster.isolate(3);
    cluster.run(5_000);
    let inflated = cluster.raft(3).term();
    assert!(inflated > 3);
    cluster.heal();
    cluster.run(5_000);
    let leader = cluster.leader().expect("a leader");
    assert!(cluster.raft(leader).term() >= inflated);
    assert!(cluster.ids().iter().all(|id| cluster.status(*id).leader == Some(leader)));
}

/// Q7, 6.2: a leader stays if it receives from a quorum within each election timeout, whichever the
/// members of the quorum are.
#[test]
fn q7_a_leader_that_hears_a_quorum_stays() {
    for heard in [[2, 3], [3, 5], [4, 5]] {
        let mut cluster = Cluster::new(5);
        cluster.elect(1);
        for silent in [2, 3, 4, 5].into_iter().filter(|id| !heard.contains(id)) {
            cluster.partition_link(silent, 1);
        }
        cluster.run(5_000);
        assert_eq!((cluster.role(1), cluster.raft(1).term()), (Leader, 1), "hears {heard:?}");
    }
}

/// Q8, 6.2: a leader that receives from no quorum becomes a follower in the same term and falls
/// silent.
#[test]
fn q8_without_a_quorum_a_leader_falls_silent() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    cluster.partition(&[&[1, 2, 3], &[4, 5]]);
    cluster.run(5_000);
    assert_eq!(cluster.role(1), Leader, "with two of four it goes on");
    cluster.partition(&[&[1, 2], &[3], &[4], &[5]]);
    cluster.run(500);
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (Follower, 1));
    assert_eq!(cluster.status(1).leader, None);
}

/// 6.2: a leader gives up an election timeout after its last contact with a quorum.
#[test]
fn s6_2_a_leader_gives_up_after_an_election_timeout() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.isolate(1);
    let cut_at = cluster.now;
    while cluster.role(1) == Leader {
        cluster.fire(1);
        cluster.settle();
    }
    let took = cluster.now.since(cut_at).as_millis();
    assert!((300..=360).contains(&took), "{took} ms: a timeout, and at most a heartbeat more");
}

/// Q9, 4.2.3: within the minimal election timeout after contact with a leader, a node ignores vote
/// requests, including their term. Afterwards it grants them.
#[test]
fn q9_voters_stick_to_their_leader() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster.flying.clear();
    for id in [1, 2] {
        cluster.step(3, id, say::vote(5, (9, 9)));
        assert_eq!(cluster.raft(id).term(), 1);
        assert!(cluster.sent_by(id).is_empty());
    }
    cluster.now = cluster.now + std::time::Duration::from_millis(300);
    cluster.step(3, 2, say::vote(5, (9, 9)));
    assert_eq!(cluster.sent_by(2), [(3, say::vote_answer(5, true))]);
}

/// Q10: a candidate whose requests are ignored is not stuck: its response to a heartbeat deposes
/// the leader.
#[test]
fn q10_a_stuck_candidate_is_freed() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    cluster.elect(1);
    cluster.rush(3);
    cluster.settle();
    assert_eq!((cluster.role(3), cluster.raft(3).term()), (Candidate, 2));
    cluster.fire(1);
    cluster.settle();
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (Follower, 2));
    cluster.run(5_000);
    assert!(cluster.leader().is_some());
}

/// Q11: a learner never campaigns. It ignores and grants vote requests as a voter does: the
/// candidate may know a newer configuration.
#[test]
fn q11_a_learner_is_loyal_and_does_not_campaign() {
    use raft_core::consensus::{Boot, Config, Raft};
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
    let answers = |learner: &mut Raft, now| {
        let mut sent = Vec::new();
        loop {
            let ready = learner.ready(now);
            let Some(persist) = ready.persist else {
                sent.extend(ready.messages);
                return sent;
            };
            sent.extend(ready.messages);
            learner.on_persisted(now, persist.id);
        }
    };
    learner.step(Time::ZERO, 1, say::heartbeat(1, 1, 0));
    assert_eq!(answers(&mut learner, Time::ZERO), [(1, say::heartbeat_answer(1, 1))]);
    learner.step(Time::ZERO, 2, say::vote(2, (9, 9)));
    assert_eq!((answers(&mut learner, Time::ZERO), learner.term()), (vec![], 1), "loyal");
    for _ in 0..5 {
        let now = learner.next_deadline();
        learner.on_timeout(now);
        assert!(answers(&mut learner, now).is_empty(), "it has nothing to ask");
        assert_eq!((learner.role(), learner.term()), (Follower, 1));
    }
    let now = learner.next_deadline();
    learner.step(now, 2, say::pre_vote(1, (9, 9)));
    learner.step(now, 2, say::vote(2, (9, 9)));
    let expected = [(2, say::pre_vote_answer(1, true)), (2, say::vote_answer(2, true))];
    assert_eq!(answers(&mut learner, now), expected);
}

/// Q14: a node that receives from its leader does not campaign, although its own messages do not
/// arrive. But a leader whose messages arrive and that receives none steps down, so that the others
/// are free to elect another.
#[test]
fn q14_one_way_isolation() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.partition_link(3, 1);
    cluster.partition_link(3, 2);
    cluster.run(5_000);
    assert_eq!((cluster.role(3), cluster.leader(), cluster.raft(1).term()), (Follower, Some(1), 1));
    cluster.heal();
    cluster.partition_link(2, 1);
    cluster.partition_link(3, 1);
    cluster.run(5_000);
    assert!([2, 3].contains(&cluster.leader().expect("a leader")));
}

/// Q15: endless pre-vote requests do not disturb a leader.
#[test]
fn q15_pre_vote_spam() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    for _ in 0..100 {
        for id in [1, 2] {
            cluster.step(3, id, say::pre_vote(9, (9, 9)));
        }
        cluster.run(20);
    }
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 1));
}

/// A leader whose disk hangs must not keep others from leading: heartbeats must not outlive the
/// ability to append.
#[test]
fn a_leader_with_a_stuck_disk_steps_down() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.slow_disks.insert(1);
    cluster.propose(1, "a").expect("it leads");
    cluster.run(1_000);
    assert_eq!(cluster.role(1), Leader, "patience");
    cluster.run(1_500);
    assert_eq!(cluster.role(1), Follower);
    assert!([2, 3].contains(&cluster.leader().expect("another leader")));
}

/// C31. A request or its response may be lost. Once per heartbeat interval a candidate asks the
/// voters again that have not responded, and only those; so does a pre-candidate.
#[test]
fn c31_a_candidate_asks_again() {
    for pre_vote in [false, true] {
        let mut cluster = Cluster::with_config(5, move |config| config.pre_vote = pre_vote);
        cluster.fire(1);
        let asked = |cluster: &mut Cluster| -> Vec<NodeId> {
            let asks = |body: &MessageBody| {
                matches!(body, MessageBody::RequestPreVote { .. } | MessageBody::RequestVote { .. })
            };
            let sent = cluster.sent_by(1).into_iter();
            sent.filter(|(_, message)| asks(&message.body)).map(|(to, _)| to).collect()
        };
        let asked_again = |cluster: &mut Cluster| {
            let due = cluster.raft(1).next_deadline();
            cluster.with(1, |raft, _| raft.on_timeout(due));
            asked(cluster)
        };
        assert_eq!(asked_again(&mut cluster), [2, 3, 4, 5, 2, 3, 4, 5], "all that was sent");
        let answer = match pre_vote {
            true => say::pre_vote_answer(1, true),
            false => say::vote_answer(1, true),
        };
        let answer = Message { term: cluster.raft(1).term(), ..answer };
        cluster.step(4, 1, answer);
        assert_eq!(asked_again(&mut cluster), [2, 3, 5]);
        assert_eq!(asked_again(&mut cluster), [2, 3, 5]);
    }
}
