//! Chapter 4: members come and go. The names begin with the ids of the catalogue of scenarios.

use bytes::Bytes;
use raft_core::consensus::RoleKind::{Follower, Leader};
use raft_core::consensus::{Change, Overrides};
use raft_core::error::Rejected;
use raft_core::types::{Configuration, Member, NodeId, Position};

use crate::common::Cluster;
use crate::replication::{led, peer};

/// The record of a node that is to become a voter, with a disk of this number.
fn voter_to_be(incarnation: u64) -> Member {
    Member { incarnation, wants_vote: true, context: Bytes::new() }
}

pub(crate) fn add(id: NodeId) -> Change {
    Change::Add { id, member: voter_to_be(100 + id) }
}

pub(crate) fn learner(id: NodeId) -> Change {
    Change::Add { id, member: Member { wants_vote: false, ..voter_to_be(100 + id) } }
}

pub(crate) fn voters(cluster: &Cluster, id: NodeId) -> Vec<NodeId> {
    cluster.raft(id).configuration().voters.iter().copied().collect()
}

pub(crate) fn force(
    cluster: &mut Cluster,
    id: NodeId,
    change: &Change,
) -> Result<Position, Rejected> {
    let mut overrides = Overrides::default();
    (overrides.less_redundancy, overrides.live) = (true, true);
    cluster.with(id, |raft, now| raft.change_members(now, change, None, overrides))
}

pub(crate) fn text(refused: Result<Position, Rejected>) -> String {
    refused.expect_err("it is refused").to_string()
}

/// Node 1 leads three, and node 4 has joined as a voter.
pub(crate) fn four() -> Cluster {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    cluster.change(1, &add(4)).expect("it leads");
    cluster.run(3_000);
    assert_eq!(voters(&cluster, 1), [1, 2, 3, 4]);
    cluster
}

/// A learner that is added is caught up, counted, promoted by a joint configuration, and all of
/// that by itself. Every node ends with the same configuration, which is not joint.
#[test]
fn a_new_node_becomes_a_voter() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.start_joiner(4, 104);
    cluster.change(1, &add(4)).expect("it leads");
    cluster.settle();
    assert!(cluster.raft(1).configuration().learners.contains(&4));
    assert!(!cluster.status(4).is_recovering, "a joiner has nothing to recover from");
    cluster.run(3_000);
    for id in 1..=4 {
        let configuration = cluster.raft(id).committed_configuration();
        assert_eq!(configuration.voters, [1, 2, 3, 4].into(), "node {id}");
        assert!(!configuration.is_joint() && configuration.learners.is_empty());
        assert_eq!(configuration.next_id, 5);
    }
    assert_eq!((cluster.leader(), cluster.status(1).term), (Some(1), 1), "nobody was disturbed");
    assert_eq!(cluster.node(4).machine, cluster.node(1).machine);
}

/// A cluster of one grows to three, and loses its founder.
#[test]
fn one_grows_to_three_and_its_founder_goes() {
    let mut cluster = Cluster::new(1);
    cluster.run(1_000);
    for id in [2, 3] {
        cluster.start_joiner(id, 100 + id);
        cluster.change(1, &add(id)).expect("it leads");
        cluster.run(3_000);
    }
    assert_eq!(voters(&cluster, 3), [1, 2, 3]);
    force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
    cluster.run(1_000);
    let leader = cluster.leader().expect("the others go on");
    assert_ne!(leader, 1);
    assert_eq!((voters(&cluster, leader), cluster.role(1)), (vec![2, 3], Follower));
    cluster.propose(leader, "b").expect("it leads");
    cluster.run(1_000);
    assert_eq!(cluster.status(leader).commit_index, cluster.status(leader).last_index);
}

/// A dead voter is replaced in one joint step, so the cluster never has an even number of voters
/// that count. The voter need not respond, and the joiner counts although it never did (M-R9).
#[test]
fn a_dead_voter_is_replaced_in_one_step() {
    let mut cluster = led();
    cluster.crash(3, 0);
    cluster.start_joiner(4, 104);
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.run(500);
    cluster.change(1, &Change::Replace { old: 3, new: 4 }).expect("both are members");
    cluster.run(3_000);
    let configuration = cluster.raft(2).committed_configuration();
    assert_eq!(configuration.voters, [1, 2, 4].into());
    assert!(!configuration.is_member(3) && !configuration.members.contains_key(&3));
    cluster.crash(2, 0);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    assert_eq!(cluster.status(1).commit_index, cluster.status(1).last_index, "by 1 and 4");
}

/// M-J1: a leader changes nothing before an entry of its own term is committed.
#[test]
fn m_j1_not_before_the_own_term_commits() {
    let mut cluster = Cluster::new(3);
    cluster.slow_disks.extend(1..=3);
    cluster.fire(1);
    for id in [1, 1, 2, 3, 1] {
        cluster.settle();
        cluster.write(id);
    }
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    let refused = cluster.change(1, &add(4));
    assert_eq!(
        refused,
        Err(Rejected::Busy("another change of the configuration is not committed yet"))
    );
}

/// M-J2: while a change is under way there is no other one, and a caller that saw an older
/// configuration is refused. A request that is repeated does nothing.
#[test]
fn m_j2_one_change_at_a_time() {
    let mut cluster = led();
    let seen = cluster.raft(1).configuration().clone();
    cluster.partition(&[&[1], &[2, 3]]);
    cluster.change(1, &add(4)).expect("it leads");
    let busy = Rejected::Busy("another change of the configuration is not committed yet");
    assert_eq!(cluster.change(1, &Change::Remove { id: 3 }), Err(busy));
    cluster.heal();
    cluster.run(500);
    let change = Change::Remove { id: 4 };
    let late = cluster
        .with(1, |raft, now| raft.change_members(now, &change, Some(&seen), Overrides::default()));
    assert!(text(late).contains("have changed since"));
    let last_index = cluster.status(1).last_index;
    cluster.change(1, &add(4)).expect("it is so already");
    assert_eq!(cluster.status(1).last_index, last_index, "nothing was appended");
}

/// M-J3: a new leader that finds a joint configuration commits an entry of its own under both
/// halves before it leaves it.
#[test]
fn m_j3_the_next_leader_leaves_the_joint_configuration() {
    let mut cluster = four();
    // The joint entry that removes 4 reaches node 2 only.
    cluster.partition(&[&[1, 2], &[3, 4]]);
    force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
    cluster.settle();
    assert!(cluster.raft(2).configuration().is_joint());
    cluster.crash(1, 0);
    cluster.heal();
    cluster.fire(2);
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2), "the longest log");
    cluster.run(1_000);
    let configuration = cluster.raft(2).committed_configuration();
    assert_eq!((configuration.is_joint(), &configuration.voters), (false, &[1, 2, 3].into()));
}

/// M-J4: a node that restarts acts under the latest configuration of its log, committed or not.
#[test]
fn m_j4_a_restart_keeps_what_was_appended() {
    let mut cluster = led();
    cluster.partition(&[&[1], &[2, 3]]);
    cluster.change(1, &add(4)).expect("it leads");
    cluster.crash(1, 1);
    cluster.start(1);
    assert!(cluster.raft(1).configuration().learners.contains(&4));
    assert!(!cluster.raft(1).committed_configuration().is_member(4));
}

/// M-J5: a truncated configuration is gone.
#[test]
fn m_j5_a_truncated_change_never_was() {
    let mut cluster = led();
    cluster.isolate(1);
    cluster.change(1, &add(4)).expect("it leads");
    cluster.fire(2);
    cluster.settle();
    assert_eq!(cluster.role(2), Leader);
    cluster.heal();
    cluster.run(1_000);
    assert!(!cluster.raft(1).configuration().is_member(4));
    cluster.change(2, &add(4)).expect("the id was not given out");
}

/// M-J7, 4.2.2: the only node whose log can win is left out by its own latest configuration. It
/// campaigns, does not count itself, commits, and steps down.
#[test]
fn m_j7_a_node_that_leaves_leads_once_more() {
    let mut cluster = four();
    cluster.partition(&[&[1, 2], &[3, 4]]);
    cluster.crash(3, 0);
    cluster.heal();
    cluster.run(500);
    assert_eq!(cluster.leader(), Some(1));
    // 2 leaves: the joint entry is committed by 1, 2 and 4; the final one reaches 2 alone.
    let change = Change::Remove { id: 2 };
    force(&mut cluster, 1, &change).expect("it leads");
    while cluster.raft(1).configuration().is_joint() {
        cluster.deliver(0);
    }
    cluster.partition(&[&[1, 2], &[3, 4]]);
    cluster.settle();
    assert!(!cluster.raft(2).configuration().is_voter(2));
    cluster.crash(1, 0);
    cluster.heal();
    cluster.start(3);
    cluster.run(5_000);
    let leader = cluster.leader().expect("2 has brought the others on");
    assert_eq!((voters(&cluster, leader), leader == 2), (vec![1, 3, 4], false));
    assert_eq!(cluster.role(2), Follower);
}

/// M-J12, M-J14: a leader that is removed leads until that is committed, then hands over at once
/// and sends no more heartbeats.
#[test]
fn m_j12_a_removed_leader_hands_over() {
    let mut cluster = four();
    let now = cluster.now;
    force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
    cluster.settle();
    let leader = cluster.leader().expect("a successor");
    assert_ne!(leader, 1);
    assert_eq!(cluster.now, now, "nobody waited for a timeout");
    cluster.run(1_000);
    assert_eq!((cluster.role(1), cluster.leader()), (Follower, Some(leader)));
    assert_eq!(voters(&cluster, leader), [2, 3, 4]);
    let term = cluster.status(leader).term;
    cluster.run(10_000);
    assert_eq!(cluster.status(leader).term, term, "the removed node disturbs nobody (M-D1)");
}

/// X7: a change of the members waits for a transfer that is under way, so its target stays a voter.
#[test]
fn x7_no_change_during_a_transfer() {
    let mut cluster = four();
    cluster.isolate(2);
    cluster.with(1, |raft, now| raft.transfer_leadership(now, Some(2))).expect("a voter");
    let refused = force(&mut cluster, 1, &Change::Remove { id: 2 });
    assert_eq!(refused, Err(Rejected::Busy("leadership is being handed over")));
}

/// C7, M-R1: founded alone and grown to three; then the founder is wiped, and starts again with the
/// file of its first day. It never leads, although "all voters" of that file would grant it.
#[test]
fn c7_a_wiped_founder_does_not_found_again() {
    let mut cluster = Cluster::new(1);
    cluster.run(1_000);
    for id in [2, 3] {
        cluster.start_joiner(id, 100 + id);
        cluster.change(1, &add(id)).expect("it leads");
        cluster.run(3_000);
    }
    cluster.crash(1, 0);
    cluster.lose_disk(1);
    cluster.isolate(1);
    cluster.start(1);
    cluster.run(20_000);
    assert_eq!((cluster.role(1), cluster.status(1).is_recovering), (Follower, true));
    cluster.heal();
    cluster.run(3_000);
    assert!(!cluster.status(1).is_recovering, "the others have readmitted it");
    assert_eq!(voters(&cluster, 1), [1, 2, 3]);
}

/// M-J13: a leader that is demoted leads until the joint configuration is left.
#[test]
fn m_j13_a_demoted_leader_leaves_the_joint_configuration_first() {
    let mut cluster = four();
    force(&mut cluster, 1, &Change::Demote { id: 1 }).expect("it leads");
    cluster.run(1_000);
    let leader = cluster.leader().expect("a successor");
    assert_ne!(leader, 1);
    let configuration = cluster.raft(1).committed_configuration();
    assert!(configuration.learners.contains(&1) && !configuration.is_joint());
    cluster.propose(leader, "a").expect("it leads");
    cluster.run(500);
    assert_eq!(cluster.status(1).commit_index, cluster.status(leader).commit_index, "as a learner");
}

/// M-J15: the last voter stays.
#[test]
fn m_j15_the_last_voter_stays() {
    let mut cluster = Cluster::new(1);
    cluster.run(1_000);
    let last_index = cluster.status(1).last_index;
    let refused = force(&mut cluster, 1, &Change::Remove { id: 1 });
    assert!(text(refused).contains("needs a voter"));
    assert_eq!(cluster.status(1).last_index, last_index);
}

/// M-J17: promotion keeps what the leader knows of the learner, and so check quorum holds (M-C1).
#[test]
fn m_j17_promotion_keeps_progress() {
    let cluster = four();
    assert_eq!(peer(&cluster, 4).match_index, cluster.status(1).last_index);
    assert_eq!(cluster.status(1).term, 1);
}

/// M-J18: the next leader knows the learners.
#[test]
fn m_j18_learners_survive_a_change_of_the_leader() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.run(500);
    cluster.elect_again(2);
    cluster.propose(2, "a").expect("it leads");
    cluster.run(500);
    assert_eq!(peer_of(&cluster, 2, 4), cluster.status(2).last_index);
    assert_eq!(cluster.node(4).machine, cluster.node(2).machine);
}

fn peer_of(cluster: &Cluster, leader: NodeId, id: NodeId) -> u64 {
    cluster.raft(leader).peer(id).expect("the leader replicates to it").match_index
}

/// M-J19: with a smaller quorum, what waits is committed at once.
#[test]
fn m_j19_a_smaller_quorum_commits_at_once() {
    let mut cluster = four();
    cluster.crash(4, 0);
    cluster.run(400);
    cluster.change(1, &Change::Remove { id: 4 }).expect("three tolerate as much as four");
    cluster.settle();
    cluster.crash(3, 0);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    assert_eq!(cluster.status(1).commit_index, cluster.status(1).last_index, "by 1 and 2");
}

/// M-L2, M-L3: a learner never campaigns, and is given no leadership.
#[test]
fn m_l2_a_learner_does_not_lead() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.run(500);
    let refused = cluster.with(1, |raft, now| raft.transfer_leadership(now, Some(4)));
    assert!(refused.is_err());
    cluster.isolate(4);
    cluster.run(5_000);
    assert_eq!((cluster.role(4), cluster.status(4).term), (Follower, 1));
}

/// M-L4, M-L5: a joiner that never starts does no harm, and can be removed.
#[test]
fn m_l4_a_joiner_that_never_comes() {
    let mut cluster = Cluster::new(1);
    cluster.run(1_000);
    cluster.change(1, &add(2)).expect("it leads");
    cluster.run(20_000);
    assert_eq!(voters(&cluster, 1), [1], "it is still a learner");
    cluster.propose(1, "a").expect("it leads");
    cluster.run(100);
    assert_eq!(cluster.status(1).commit_index, cluster.status(1).last_index);
    cluster.change(1, &Change::Remove { id: 2 }).expect("a learner");
    cluster.run(100);
    assert!(text(cluster.change(1, &add(2))).contains("removed"), "M-D4: its id is gone");
}

/// M-D4, R1: a second disk under the id of a joiner is not taken for the first: it recovers, and
/// waits for all voters.
#[test]
fn m_d4_another_disk_under_the_same_id_recovers() {
    let mut cluster = Cluster::new(4);
    cluster.elect(1);
    cluster.start_joiner(5, 105);
    cluster.change(1, &add(5)).expect("it leads");
    cluster.run(3_000);
    assert_eq!(voters(&cluster, 1), [1, 2, 3, 4, 5]);
    cluster.crash(4, 0);
    cluster.crash(5, 0);
    cluster.lose_disk(5);
    cluster.set_disk_number(5, 205);
    cluster.start(5);
    cluster.run(2_000);
    assert!(cluster.status(5).is_recovering, "its own admission is of another disk");
    let bound = cluster.change(1, &Change::Bind { id: 5, incarnation: 205 });
    assert!(text(bound).contains("with this data directory"));
}

/// M-R5, M-R6: a wiped voter counts once the removal of the dead one is committed.
#[test]
fn m_r5_a_committed_removal_releases_a_wiped_voter() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    cluster.crash(5, 0);
    cluster.crash(4, 0);
    cluster.lose_disk(4);
    cluster.start(4);
    cluster.run(2_000);
    assert!(cluster.status(4).is_recovering, "5 might have promised something to it");
    force(&mut cluster, 1, &Change::Remove { id: 5 }).expect("1, 2 and 3 decide");
    cluster.run(1_000);
    assert!(!cluster.status(4).is_recovering);
}

/// M-R7: a dead learner keeps no voter from recovering.
#[test]
fn m_r7_a_dead_learner_is_not_waited_for() {
    let mut cluster = led();
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.settle();
    cluster.crash(3, 0);
    cluster.lose_disk(3);
    cluster.start(3);
    cluster.run(2_000);
    assert!(!cluster.status(3).is_recovering);
}

/// M-S2, M-S3, M-L8: a learner of a compacted log gets the configuration with the snapshot, also
/// one that does not contain it.
#[test]
fn m_s3_a_joiner_gets_a_snapshot() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.snapshot(1);
    cluster.compact(1, cluster.status(1).snapshot_index);
    cluster.start_joiner(4, 104);
    cluster.change(1, &add(4)).expect("it leads");
    cluster.run(3_000);
    assert_eq!(voters(&cluster, 4), [1, 2, 3, 4]);
    assert_eq!(cluster.node(4).machine, cluster.node(1).machine);
}

/// Check 6: a change that could not be committed is refused, and the cluster goes on.
#[test]
fn a_change_without_a_reachable_quorum_is_refused() {
    let mut cluster = four();
    cluster.crash(4, 0);
    cluster.run(400);
    // 1, 2 and 3 hold the quorum of four; of {1, 2, 4} they would need 2.
    cluster.crash(3, 0);
    let lost = force(&mut cluster, 1, &Change::Remove { id: 3 });
    assert!(lost.is_ok(), "3 was heard a moment ago: {lost:?}");
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.crash(3, 0);
    cluster.run(400);
    let refused = cluster.change(1, &Change::Remove { id: 2 });
    assert!(text(refused).contains("is running"));
    let refused = force(&mut cluster, 1, &Change::Remove { id: 2 });
    assert!(text(refused).contains("too few of the voters"), "1 and 3 would be the voters");
    assert_eq!(cluster.raft(1).configuration(), &founded(3));
}

/// Check 7: fewer tolerated failures must be meant.
#[test]
fn less_redundancy_must_be_meant() {
    let mut cluster = led();
    cluster.crash(3, 0);
    cluster.run(400);
    let refused = cluster.change(1, &Change::Remove { id: 3 });
    assert!(text(refused).contains("would tolerate 0 failed nodes"));
    force(&mut cluster, 1, &Change::Remove { id: 3 }).expect("it is meant");
    cluster.run(400);
    assert_eq!(voters(&cluster, 1), [1, 2]);
}

pub(crate) fn founded(count: NodeId) -> Configuration {
    let voters = Configuration::of_voters(1..=count);
    Configuration { founded: true, cluster_version: 1, ..voters }
}
