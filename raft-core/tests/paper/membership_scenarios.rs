//! The members change: joint configurations, promotions, and what is counted meanwhile. Scenarios J
//! and C of [`super::membership_catalogue`]; more of them are in [`super::membership`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_core::consensus::RoleKind::{Candidate, Follower, Leader};
use raft_core::consensus::quorum::{VoteResult, reached_by_quorum, vote_result};
use raft_core::consensus::{Change, Raft, invariants};
use raft_core::types::{Configuration, Index, Message, NodeId, ReadOutcome};

use crate::common::{Cluster, Disk, Random, say};
use crate::membership::{add, force, founded, four, learner, text, voters};
use crate::membership_findings::{append, configuration};
use crate::replication::led;
use crate::{no_pre_vote, plain};

/// Time passes until node 1, which leads, has appended a joint configuration. The appends are in
/// flight.
pub(crate) fn until_joint(cluster: &mut Cluster) {
    for _ in 0..100 {
        cluster.rush_heartbeat(1);
        if cluster.raft(1).configuration().is_joint() {
            return;
        }
        cluster.run(50);
    }
    panic!("node 1 changes no voters");
}

/// Node 1 leads three, and has just appended the joint configuration in which node 4 takes the
/// place of node 3.
fn replacing_3_by_4(mut cluster: Cluster) -> Cluster {
    cluster.start_joiner(4, 104);
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.run(500);
    cluster.change(1, &Change::Replace { old: 3, new: 4 }).expect("both are members");
    until_joint(&mut cluster);
    assert_eq!(voters(&cluster, 1), [1, 2, 4]);
    cluster
}

/// Node 1 leads alone, and has just appended the joint configuration in which node 2 is a voter.
fn one_becomes_two() -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.run(1_000);
    cluster.start_joiner(2, 102);
    cluster.change(1, &add(2)).expect("it leads");
    until_joint(&mut cluster);
    assert_eq!(voters(&cluster, 1), [1, 2]);
    cluster
}

fn outcome(cluster: &Cluster, id: NodeId, read: u64) -> Option<ReadOutcome> {
    cluster.node(id).reads.iter().find(|state| state.id == read).map(|state| state.outcome)
}

/// M-J6: one voter becomes two, and the joiner vanishes at that moment. The leader steps down, and
/// is elected again once the joiner responds, which has followed as a learner and is still one by
/// its own log. A joiner with an empty log is no voter: learners come first.
#[test]
fn m_j6_the_leader_is_elected_once_the_joiner_is_back() {
    let mut cluster = one_becomes_two();
    cluster.isolate(2);
    cluster.run(3_000);
    assert_eq!((cluster.leader(), cluster.status(1).is_majority_lost), (None, false));
    assert!(cluster.raft(2).configuration().learners.contains(&2));
    assert_eq!(cluster.status(2).last_index, cluster.status(1).last_index - 1);
    cluster.heal();
    cluster.run(3_000);
    assert_eq!(cluster.leader(), Some(1));
    for id in [1, 2] {
        let configuration = cluster.raft(id).committed_configuration();
        assert!(!configuration.is_joint() && configuration.voters == [1, 2].into());
    }
}

/// M-J8: node 4 takes the place of node 3, and node 2 is down. Node 3 has the joint configuration,
/// node 4 also later entries, and neither knows that it is committed. Then the leader dies. Node 4
/// refuses node 3, whose log is shorter; it campaigns itself, since a configuration is in force
/// when it is appended.
#[test]
fn m_j8_a_promoted_learner_with_the_longest_log_leads() {
    for configure in [no_pre_vote, |_: &mut _| {}] {
        let mut cluster = Cluster::with_config(3, configure);
        cluster.elect(1);
        let mut cluster = replacing_3_by_4(cluster);
        cluster.crash(2, 0);
        for follower in [3, 4] {
            cluster.partition_link(follower, 1);
        }
        cluster.settle();
        cluster.partition_link(1, 3);
        for command in ["a", "b"] {
            cluster.propose(1, command).expect("it leads");
        }
        cluster.settle();
        let joint = cluster.raft(1).configuration_stage();
        assert!(!joint.is_committed && cluster.status(4).commit_index < joint.position.index);
        assert_eq!(cluster.status(3).last_index + 2, cluster.status(4).last_index);
        cluster.crash(1, 0);
        cluster.heal();
        cluster.start(2);
        cluster.run(5_000);
        assert_eq!(cluster.leader(), Some(4));
        assert_eq!(cluster.raft(4).committed_configuration().voters, [1, 2, 4].into());
        assert!(!cluster.raft(2).configuration().is_joint());
    }
}

/// M-J9: the only voter is to be a learner, and node 2 the voter, which is away. Node 1 votes for
/// itself, which counts in the outgoing half only. It is elected once node 2 is back, completes the
/// change and hands over.
#[test]
fn m_j9_a_voter_that_becomes_a_learner_leads_once_more() {
    let mut cluster = Cluster::with_config(1, no_pre_vote);
    cluster.run(1_000);
    cluster.start_joiner(2, 102);
    cluster.change(1, &learner(2)).expect("it leads");
    cluster.run(500);
    let members = cluster.raft(1).configuration().clone();
    let joint =
        Configuration { voters: [2].into(), outgoing: [1].into(), learners: [1].into(), ..members };
    cluster.crash(1, 0);
    let disk = &mut cluster.nodes.get_mut(&1).expect("a node").disk;
    let index = disk.last().index + 1;
    disk.loaded.entries.push(configuration(index, 1, joint));
    cluster.isolate(2);
    cluster.start(1);
    cluster.run(3_000);
    assert_eq!(cluster.role(1), Candidate);
    assert_eq!(cluster.node(1).disk.loaded.hard_state.voted_for, Some(1));
    cluster.take_events();
    cluster.heal();
    cluster.run(3_000);
    assert!(cluster.take_events().iter().any(|event| event.starts_with("1 is leader")));
    assert_eq!((cluster.leader(), cluster.role(1)), (Some(2), Follower));
    for id in [1, 2] {
        let configuration = cluster.raft(id).committed_configuration();
        assert!(!configuration.is_joint() && configuration.learners == [1].into());
    }
}

/// M-J10: the new half has a voter. An order that leaves learners only, or no member, is refused;
/// so is such a configuration from a leader. A half that has voters reaches only what its majority
/// has.
#[test]
fn m_j10_each_half_has_a_voter() {
    let mut cluster = Cluster::new(1);
    cluster.run(1_000);
    cluster.start_joiner(2, 102);
    cluster.change(1, &learner(2)).expect("it leads");
    cluster.run(500);
    let last_index = cluster.status(1).last_index;
    for change in [Change::Demote { id: 1 }, Change::Remove { id: 1 }] {
        let refused = force(&mut cluster, 1, &change);
        assert!(text(refused).contains("needs a voter"), "{change:?}");
    }
    assert_eq!(cluster.status(1).last_index, last_index, "nothing was appended");

    for learners in [BTreeSet::new(), BTreeSet::from([1, 2, 3])] {
        let mut cluster = led();
        let voters = BTreeSet::new();
        let joint = Configuration { outgoing: [1, 2, 3].into(), voters, next_id: 4, ..founded(3) };
        let broken = Configuration { learners, ..joint };
        append(&mut cluster, 1, 2, 1, vec![configuration(2, 1, broken)]);
        assert_eq!(cluster.status(2).last_index, 1);
        let alarms = &cluster.node(2).alarms;
        assert!(matches!(&alarms[..], [alarm] if alarm.contains("contradicts itself")));
    }

    let joint = Configuration { outgoing: [1].into(), ..Configuration::of_voters([2]) };
    let reached = |values: [u64; 2]| reached_by_quorum(&joint, |id| values[id as usize - 1]);
    assert_eq!([reached([7, 0]), reached([0, 7]), reached([7, 5])], [0, 0, 5]);
    assert_eq!(vote_result(&joint, &BTreeMap::from([(1, true)])), VoteResult::Pending);
}

/// M-J11: node 4 is a learner in the new half and a voter in the old one. A read is confirmed by
/// both halves: nodes 1 and 2 are a majority of the new one only, and node 4 completes the old one.
#[test]
fn m_j11_a_voter_that_is_demoted_confirms_reads_in_the_old_half() {
    let mut cluster = four();
    // The disk of node 4 is slow, so it responds and acknowledges no entry.
    cluster.slow_disks.insert(4);
    cluster.partition(&[&[1, 2, 4], &[3]]);
    force(&mut cluster, 1, &Change::Demote { id: 4 }).expect("it leads");
    cluster.settle();
    let configuration = cluster.raft(1).configuration().clone();
    assert!(configuration.outgoing.contains(&4) && configuration.learners.contains(&4));
    cluster.partition(&[&[1, 2], &[3], &[4]]);
    let read = cluster.read(1).expect("it leads");
    cluster.settle();
    assert_eq!(outcome(&cluster, 1, read), None, "two of four");
    cluster.partition(&[&[1, 2, 4], &[3]]);
    cluster.rush_heartbeat(1);
    cluster.settle();
    assert!(matches!(outcome(&cluster, 1, read), Some(ReadOutcome::Confirmed(_))));
    assert_eq!(cluster.raft(1).configuration(), &configuration, "still joint");
    cluster.slow_disks.clear();
    while cluster.write(4) {}
    cluster.settle();
    assert!(!cluster.raft(1).committed_configuration().is_voter(4));
}

/// M-J14: the leader of two is removed, and the message with the final configuration is lost. The
/// leader sends it again, and stays until the other node has it. If the leader dies before that,
/// the other node waits for it, and not longer: the leader comes back and brings it on.
#[test]
fn m_j14_the_leader_of_two_leaves_and_a_message_is_lost() {
    for dies in [false, true] {
        let mut cluster = one_becomes_two();
        cluster.run(1_000);
        force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
        while cluster.raft(1).configuration().is_joint() {
            cluster.deliver(0);
        }
        cluster.flying.clear();
        assert!(cluster.raft(2).configuration().is_joint());
        assert_eq!(cluster.role(1), Leader, "node 2 does not have its removal");
        if dies {
            cluster.crash(1, 0);
            cluster.run(3_000);
            assert_eq!(cluster.leader(), None, "by its log, node 2 needs both");
            cluster.start(1);
        }
        cluster.run(3_000);
        assert_eq!((cluster.leader(), cluster.role(1)), (Some(2), Follower));
        assert_eq!(voters(&cluster, 2), [2]);
        cluster.crash(1, 0);
        let at = cluster.propose(2, "a").expect("it leads");
        assert_eq!(cluster.status(2).commit_index, at.index, "alone");
    }
}

/// The voters of one half that are at `index` or beyond are a majority.
fn has_majority(half: &BTreeSet<NodeId>, reached: &BTreeMap<NodeId, Index>, index: Index) -> bool {
    2 * half.iter().filter(|id| reached[*id] >= index).count() > half.len()
}

/// Gives one input to a node whose disk writes at once.
fn give(raft: &mut Raft, now: raft_core::types::Time, input: impl FnOnce(&mut Raft)) {
    input(raft);
    invariants::check(raft);
    while let Some(persist) = raft.ready(now).persist {
        raft.on_persisted(now, persist.id);
    }
}

/// M-J16: acknowledgements arrive in any order, in joint configurations of any two halves, some of
/// nodes that recover. The commit index is that of counting: in both halves while joint, in the new
/// one afterwards, and a node that recovers has reached nothing.
#[test]
fn m_j16_acknowledgements_are_counted_in_both_halves() {
    let mut random = Random::new(16);
    random.stir();
    let (mut jointly, mut after) = (0, 0);
    for _ in 0..1_000 {
        let mut half = |least: &[NodeId]| -> BTreeSet<NodeId> {
            let drawn = (1..=7).filter(|_| random.percent(50));
            drawn.chain(least.iter().copied()).collect()
        };
        let (outgoing, incoming) = (half(&[1]), half(&[7]));
        let learners = (1..=7).filter(|id| !incoming.contains(id)).collect();
        let joint = Configuration { learners, next_id: 8, ..founded(7) };
        let joint = Configuration { voters: incoming.clone(), outgoing: outgoing.clone(), ..joint };
        let mut disk = Disk::of_terms(&[1], 1);
        disk.loaded.entries.push(configuration(2, 1, joint));
        let disks = (1..=7).map(|id| (id, disk.clone())).collect();
        let mut cluster = Cluster::with_disks(disks, plain);
        cluster.fire(1);
        while cluster.role(1) != Leader {
            cluster.deliver(0);
        }
        let (mut raft, now) = (cluster.raft(1).clone(), cluster.now);
        give(&mut raft, now, |raft| {
            raft.propose(vec!["x".into(); 5]).expect("it leads");
        });
        let mut reached: BTreeMap<NodeId, Index> = (1..=7).map(|id| (id, 0)).collect();
        let (mut commit_index, mut is_joint) = (raft.commit_index(), true);
        let mut order: Vec<NodeId> = (2..=7).collect();
        while !order.is_empty() {
            let id = order.remove(random.below(order.len()));
            let (index, recovers) = (random.between(1, 8), random.percent(20));
            let recovering = recovers.then_some(100 + id);
            let message = Message { recovering, ..say::accepted(2, index) };
            give(&mut raft, now, |raft| raft.step(now, id, message));
            reached.insert(id, if recovers { 0 } else { index });
            reached.insert(1, raft.status().durable_index);
            let in_both = |index: &Index| {
                has_majority(&incoming, &reached, *index)
                    && has_majority(&outgoing, &reached, *index)
            };
            // The first entry of the leader's term is at 3.
            if is_joint && let Some(index) = (3..=8).rev().find(in_both) {
                (commit_index, is_joint) = (index, false);
                jointly += 1;
            }
            let in_new = |index: &Index| has_majority(&incoming, &reached, *index);
            if !is_joint && let Some(index) = (commit_index + 1..=9).rev().find(in_new) {
                commit_index = index;
                after += 1;
            }
            assert_eq!(raft.commit_index(), commit_index, "{incoming:?} {outgoing:?} {reached:?}");
            assert_eq!(raft.configuration().is_joint(), is_joint);
        }
    }
    assert!(jointly > 100 && after > 100, "{jointly} and {after}");
}

/// M-J19: an entry and a read wait for a third of four voters. The removal of the fourth is
/// committed, two of three are enough, and both are completed without another message.
#[test]
fn m_j19_what_waits_is_completed_by_the_removal() {
    let mut cluster = four();
    cluster.partition(&[&[1, 2, 3], &[4]]);
    cluster.partition_link(3, 1);
    force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
    cluster.settle();
    let joint = cluster.raft(1).configuration_stage().position;
    cluster.partition_link(1, 3);
    let at = cluster.propose(1, "a").expect("it leads");
    let read = cluster.read(1).expect("it leads");
    cluster.settle();
    assert!(cluster.status(1).commit_index < joint.index);
    assert_eq!(outcome(&cluster, 1, read), None);
    assert_eq!(cluster.status(3).last_index, joint.index, "node 3 has the joint configuration");
    // The write of the final configuration is not waited for either.
    cluster.slow_disks.insert(1);
    cluster.step(3, 1, say::accepted(1, joint.index));
    assert_eq!(cluster.status(1).commit_index, at.index, "by nodes 1 and 2");
    assert!(matches!(outcome(&cluster, 1, read), Some(ReadOutcome::Confirmed(_))));
}

/// M-C1: new voters count as observed since they were learners. The leader stays when they respond.
/// If they are cut off at that moment, it leads for about an election timeout, and no longer,
/// though it has a majority of the old half.
#[test]
fn m_c1_a_leader_needs_the_new_voters_after_a_timeout() {
    for count in [1, 3] {
        let grown = || {
            let mut cluster = Cluster::new(count);
            cluster.elect(1);
            for id in count + 1..=count + 2 {
                cluster.start_joiner(id, 100 + id);
                cluster.change(1, &add(id)).expect("it leads");
                cluster.run(100);
            }
            until_joint(&mut cluster);
            cluster
        };
        let mut cluster = grown();
        cluster.run(5_000);
        assert_eq!((cluster.leader(), cluster.status(1).term), (Some(1), 1));
        assert_eq!(cluster.raft(1).committed_configuration().voters.len() as u64, count + 2);

        let mut cluster = grown();
        match count {
            1 => cluster.partition(&[&[1], &[2], &[3]]),
            _ => cluster.partition(&[&[1, 2], &[3], &[4], &[5]]),
        }
        let since = cluster.now;
        while cluster.role(1) == Leader {
            assert!(cluster.now.since(since) < Duration::from_millis(400), "it leads on");
            cluster.run(10);
        }
        assert!(cluster.now.since(since) > Duration::from_millis(200), "it was contacted before");
    }
}

/// M-C2: a leader that is contacted by a majority of one half only steps down, whichever half it
/// is, commits nothing, and a read of that time fails.
#[test]
fn m_c2_a_majority_of_one_half_is_not_enough() {
    for (other, is_enough) in [(2, true), (3, false), (4, false)] {
        let mut cluster = replacing_3_by_4(led());
        let joint = cluster.raft(1).configuration_stage().position;
        let others: Vec<NodeId> = (2..=4).filter(|id| *id != other).collect();
        cluster.partition(&[&[1, other], &others[..1], &others[1..]]);
        let read = cluster.read(1).expect("it leads");
        cluster.run(1_000);
        assert_eq!(cluster.role(1) == Leader, is_enough, "with node {other}");
        assert_eq!(cluster.status(1).commit_index >= joint.index, is_enough);
        let failed = outcome(&cluster, 1, read) == Some(ReadOutcome::NotLeader);
        assert_eq!(failed, !is_enough, "with node {other}");
    }
}

/// M-C3: node 3 has the older configuration, asks its voters, and not node 4. It never wins once
/// the newer one is committed: a voter that it asks has that one, or the joint one before it, and
/// refuses. It may win while the newer one is on the old leader alone, and that one is then gone.
#[test]
fn m_c3_a_candidate_with_an_older_configuration_meets_the_newer_one() {
    for reaches_2 in ["everything", "the joint one", "nothing"] {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        let mut cluster = replacing_3_by_4(cluster);
        match reaches_2 {
            "everything" => {
                cluster.isolate(3);
                cluster.run(500);
            }
            "the joint one" => {
                cluster.isolate(3);
                while cluster.raft(1).configuration().is_joint() {
                    cluster.deliver(0);
                }
                cluster.partition(&[&[1, 4], &[2], &[3]]);
                cluster.settle();
                assert!(cluster.raft(1).configuration_stage().is_committed);
                assert!(cluster.raft(2).configuration().is_joint());
            }
            _ => {
                cluster.isolate(1);
                cluster.settle();
            }
        }
        let is_committed = cluster.raft(1).configuration_stage().is_committed;
        assert_eq!(is_committed, reaches_2 != "nothing");
        assert_eq!(voters(&cluster, 3), [1, 2, 3]);
        cluster.crash(1, 0);
        cluster.partition(&[&[2, 3, 4], &[1]]);
        cluster.take_events();
        // Node 3 is the first to ask, and no voter sticks to the old leader.
        cluster.now = cluster.now + Duration::from_millis(300);
        cluster.fire(3);
        cluster.settle();
        assert_eq!(cluster.role(3) == Leader, !is_committed, "{reaches_2}");
        cluster.run(5_000);
        assert!(cluster.leader().is_some());
        // With pre-votes, a candidate that is refused does not even campaign.
        let is_of_3 = |event: &String| event.starts_with("3 is candidate");
        assert!(!is_committed || !cluster.take_events().iter().any(is_of_3), "{reaches_2}");
        cluster.heal();
        cluster.start(1);
        cluster.run(3_000);
        // The intention was committed before, so a leader carries it out again.
        let leader = cluster.leader().expect("a leader");
        assert_eq!(cluster.raft(leader).committed_configuration().voters, [1, 2, 4].into());
    }
}

/// M-C4: node 4 does not know that it was removed, no longer receives the leader's messages, and
/// grants a vote. The candidate does not count it, whose configuration has no node 4.
#[test]
fn m_c4_the_grant_of_a_removed_voter_does_not_count() {
    let mut cluster = four();
    cluster.partition(&[&[1, 2, 3], &[4]]);
    force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
    cluster.run(500);
    assert_eq!((voters(&cluster, 2), voters(&cluster, 4)), (vec![1, 2, 3], vec![1, 2, 3, 4]));
    cluster.partition(&[&[2, 4], &[1, 3]]);
    while cluster.role(2) != Candidate || cluster.raft(2).term() <= cluster.raft(4).term() {
        cluster.fire(2);
    }
    cluster.settle();
    let (term, last) = (cluster.raft(2).term(), cluster.node(2).log.last());
    cluster.step(2, 4, say::vote(term, (last.index, last.term)));
    cluster.settle();
    assert_eq!(cluster.node(4).disk.loaded.hard_state.voted_for, Some(2), "node 4 grants it");
    assert_eq!(cluster.role(2), Candidate, "one of three");
    cluster.heal();
    cluster.step(2, 3, say::vote(term, (last.index, last.term)));
    cluster.settle();
    assert_eq!(cluster.role(2), Leader, "node 3 counts");
}
