//! Joiners, and nodes that were removed, or are no members at all. Scenarios L and D of
//! [`super::membership_catalogue`]; more of them are in [`super::membership`].

use std::collections::BTreeMap;
use std::time::Duration;

use raft_core::consensus::RoleKind::{Follower, Leader};
use raft_core::consensus::{Change, Config, Overrides};
use raft_core::error::Rejected;
use raft_core::types::{Configuration, Index, NodeId, Position};

use crate::common::{Cluster, Disk, Envelope, Parcel, Random, say};
use crate::membership::{add, force, founded, four, learner, text, voters};
use crate::membership_scenarios::until_joint;
use crate::replication::led;
use crate::{is_vote, no_pre_vote};

/// Delivers everything but snapshots.
fn settle_but_snapshots(cluster: &mut Cluster) {
    let is_message = |envelope: &Envelope| matches!(envelope.parcel, Parcel::Message(_));
    while let Some(at) = cluster.flying.iter().position(is_message) {
        cluster.deliver(at);
    }
}

/// M-L1: node 4 is promoted and does not know it, and the leader dies. Node 2 needs the vote of
/// node 4, and gets it: the configuration of the candidate counts.
#[test]
fn m_l1_a_promoted_learner_that_does_not_know_it_votes() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    cluster.change(1, &add(4)).expect("it leads");
    until_joint(&mut cluster);
    cluster.partition(&[&[1, 2], &[3], &[4]]);
    cluster.settle();
    assert!(cluster.raft(2).configuration().is_voter(4));
    assert!(cluster.raft(4).configuration().learners.contains(&4));
    cluster.crash(1, 0);
    cluster.heal();
    cluster.fire(2);
    cluster.settle();
    assert_eq!(cluster.role(2), Leader, "by nodes 2, 3 and 4 of four");
    cluster.run(500);
    assert_eq!(cluster.raft(4).committed_configuration().voters, [1, 2, 3, 4].into());
}

/// M-L3: a leader hands nothing over to a learner, and a learner that is told to campaign does not.
#[test]
fn m_l3_a_learner_takes_no_leadership() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.run(500);
    let refused = cluster.with(1, |raft, now| raft.transfer_leadership(now, Some(4)));
    assert!(refused.is_err());
    cluster.settle();
    cluster.step(1, 4, say::timeout_now(1));
    assert_eq!((cluster.role(4), cluster.raft(4).term()), (Follower, 1));
    assert!(cluster.sent_by(4).iter().all(|(_, message)| !is_vote(message)));
    // A voter that is told the same campaigns.
    cluster.step(1, 3, say::timeout_now(1));
    assert!(cluster.sent_by(3).iter().any(|(_, message)| is_vote(message)));
}

/// M-L6: two operators order changes of one learner, each after having read the members. The first
/// order is carried out and the second is refused. So is an order of an operator that has not seen
/// what the leader did on its own.
#[test]
fn m_l6_two_parties_change_one_learner() {
    let order =
        |cluster: &mut Cluster, change, seen: &Configuration| -> Result<Position, Rejected> {
            let overrides = Overrides::default();
            cluster.with(1, |raft, now| raft.change_members(now, &change, Some(seen), overrides))
        };
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    cluster.change(1, &learner(4)).expect("it leads");
    cluster.run(500);
    let seen = cluster.raft(1).configuration().clone();
    order(&mut cluster, Change::Promote { id: 4 }, &seen).expect("it is the first order");
    cluster.settle();
    let late = order(&mut cluster, Change::Remove { id: 4 }, &seen);
    assert!(text(late).contains("have changed since"));
    let seen = cluster.raft(1).configuration().clone();
    cluster.run(3_000);
    assert_eq!(voters(&cluster, 1), [1, 2, 3, 4], "the leader has made it a voter");
    let late = order(&mut cluster, Change::Demote { id: 4 }, &seen);
    assert!(text(late).contains("have changed since"));
    let seen = cluster.raft(1).configuration().clone();
    order(&mut cluster, Change::Demote { id: 4 }, &seen).expect("it has seen the present members");
}

/// M-L7: the snapshot for a joiner takes ten minutes. The joiner stays a learner, gets one snapshot
/// and not one after the other, and becomes a voter afterwards.
#[test]
fn m_l7_a_joiner_that_restores_for_long_stays() {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.snapshot(1);
    cluster.compact(1, cluster.status(1).snapshot_index);
    cluster.start_joiner(4, 104);
    cluster.change(1, &add(4)).expect("it leads");
    for _ in 0..60_000 {
        cluster.advance(Duration::from_millis(10), false);
        settle_but_snapshots(&mut cluster);
        assert!(cluster.flying.len() <= 1, "one snapshot");
        cluster.events.clear();
    }
    assert_eq!((cluster.flying.len(), cluster.leader()), (1, Some(1)));
    assert!(cluster.raft(1).configuration().learners.contains(&4));
    cluster.run(3_000);
    assert_eq!(voters(&cluster, 4), [1, 2, 3, 4]);
}

/// Orders a random change, moves the leadership, or restarts a node, from its log or from a
/// snapshot. Returns true if a change was ordered.
fn disturb(cluster: &mut Cluster, random: &mut Random) -> bool {
    let ids = cluster.ids();
    let id = *random.pick(&ids);
    if random.percent(30) {
        if random.percent(50) {
            cluster.snapshot(id);
            cluster.compact(id, cluster.status(id).snapshot_index);
        }
        cluster.crash(id, random.below(2));
        cluster.start(id);
        return false;
    }
    let Some(leader) = cluster.leader() else { return false };
    let next = cluster.raft(leader).configuration().fresh_id();
    let change = match random.below(6) {
        0 if ids.len() < 9 => add(next),
        1 if ids.len() < 9 => learner(next),
        2 => Change::Promote { id },
        3 => Change::Demote { id },
        4 => Change::Replace { old: id, new: *random.pick(&ids) },
        _ => Change::Remove { id },
    };
    let is_ordered = force(cluster, leader, &change).is_ok();
    if is_ordered
        && let Change::Add { id, .. } = change
        && !ids.contains(&id)
    {
        cluster.start_joiner(id, 100 + id);
    }
    is_ordered
}

/// M-L9: whatever was ordered, and wherever a node started from, all nodes have the same members at
/// the same index. The members of the operators' files, with which three nodes start, are of no
/// importance once others are in the log.
#[test]
fn m_l9_members_are_equal_at_equal_indexes() {
    let (mut ordered, mut different) = (0, 0);
    for seed in 0..40 {
        let mut random = Random::new(seed);
        random.stir();
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        let mut known: BTreeMap<Index, Configuration> = BTreeMap::new();
        for _ in 0..40 {
            ordered += u32::from(disturb(&mut cluster, &mut random));
            cluster.run(random.between(1, 800));
            for id in cluster.ids() {
                let raft = cluster.raft(id);
                for index in raft.log_start_index()..=raft.commit_index() {
                    let meta = raft.snapshot_meta(index).expect("it is in the log");
                    // A node that joins knows no members at first.
                    if !meta.configuration.is_empty() {
                        let first =
                            known.entry(index).or_insert_with(|| (*meta.configuration).clone());
                        assert_eq!(
                            first, &*meta.configuration,
                            "node {id} at {index}, seed {seed}"
                        );
                    }
                }
            }
        }
        let last = known.last_key_value().expect("something is committed").1;
        different += u32::from(!last.has_members_of(&founded(3)));
    }
    assert!(ordered > 100 && different > 20, "{ordered} and {different}");
}

/// M-D1: node 4 was removed while it was away, and node 5 was never added, though its file says so.
/// Both are back, with and without pre-votes, for a thousand election timeouts: no member's term
/// rises, and the leader stays.
#[test]
fn m_d1_strangers_that_campaign_disturb_no_member() {
    for configure in [no_pre_vote, |_: &mut Config| {}] {
        let mut cluster = Cluster::with_config(4, configure);
        cluster.elect(1);
        cluster.isolate(4);
        force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
        // The leader takes leave of node 4 for ten election timeouts.
        cluster.run(5_000);
        cluster.voters = founded(5);
        cluster.start_joiner(5, 0);
        cluster.crash(5, 0);
        cluster.swap_disk(5, Disk::of_terms(&[], 0), 0);
        cluster.start(5);
        cluster.heal();
        cluster.take_events();
        let mut campaigned = [false; 2];
        for _ in 0..1_000 {
            cluster.run(300);
            for event in cluster.take_events() {
                assert!(!event.contains(" is leader"), "{event}");
                campaigned[0] |= event.starts_with("4 is ") && event.contains("candidate");
                campaigned[1] |= event.starts_with("5 is ") && event.contains("candidate");
            }
        }
        assert_eq!(campaigned, [true; 2]);
        for id in 1..=3 {
            assert_eq!((cluster.status(id).term, cluster.status(id).leader), (1, Some(1)));
        }
    }
}

/// M-D2: node 4 campaigns while it is away, and is removed meanwhile. Its term costs the leader one
/// election when it is back, and no more. It cannot be added again, and a node with a new id is
/// added without an election.
#[test]
fn m_d2_a_raised_term_costs_one_election() {
    let mut cluster = four();
    cluster.isolate(4);
    force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
    cluster.run(2_000);
    assert!(cluster.status(4).term > 2, "without pre-votes it raises its term");
    cluster.take_events();
    cluster.heal();
    cluster.run(60_000);
    let elections = |cluster: &mut Cluster| {
        cluster.take_events().iter().filter(|event| event.contains(" is leader")).count()
    };
    assert_eq!(elections(&mut cluster), 1);
    let leader = cluster.leader().expect("a leader");
    assert!(text(cluster.change(leader, &add(4))).contains("never used again"));
    cluster.start_joiner(5, 105);
    cluster.change(leader, &add(5)).expect("a new id");
    cluster.run(60_000);
    assert_eq!((elections(&mut cluster), voters(&cluster, leader)), (0, vec![1, 2, 3, 5]));
}

/// M-D3: nodes 3 and 4 are removed while node 5 is away. Then they meet node 5, which still counts
/// five voters, and no other node. They elect no second leader, also if they were wiped since.
#[test]
fn m_d3_removed_nodes_elect_no_leader() {
    for are_wiped in [false, true] {
        let mut cluster = Cluster::new(5);
        cluster.elect(1);
        cluster.isolate(5);
        for id in [3, 4] {
            force(&mut cluster, 1, &Change::Remove { id }).expect("it leads");
            cluster.run(500);
        }
        cluster.partition(&[&[1, 2], &[3, 4, 5]]);
        for id in [3, 4].into_iter().filter(|_| are_wiped) {
            cluster.crash(id, 0);
            cluster.lose_disk(id);
            cluster.start(id);
        }
        for _ in 0..200 {
            cluster.run(100);
            assert!((3..=5).all(|id| cluster.role(id) != Leader));
        }
        assert_eq!(
            (voters(&cluster, 1), voters(&cluster, 5)),
            (vec![1, 2, 5], vec![1, 2, 3, 4, 5])
        );
        let at = cluster.propose(1, "a").expect("it leads");
        cluster.settle();
        assert_eq!(cluster.status(1).commit_index, at.index, "by nodes 1 and 2");
    }
}

fn sent_to(cluster: &mut Cluster, to: NodeId) -> usize {
    let is_sent = |event: &String| {
        event.contains(&format!(" -> {to} ")) || event.contains(&format!(" -x {to} "))
    };
    cluster.take_events().iter().filter(|event| is_sent(event)).count()
}

/// M-D6: the leader writes to a removed node until it knows of its removal, or for ten election
/// timeouts; then it is silent.
#[test]
fn m_d6_the_farewell_ends() {
    for is_away in [false, true] {
        let mut cluster = four();
        if is_away {
            cluster.isolate(4);
        }
        force(&mut cluster, 1, &Change::Remove { id: 4 }).expect("it leads");
        cluster.run(200);
        let is_told = !cluster.raft(4).committed_configuration().is_member(4);
        assert_eq!(is_told, !is_away);
        // Responses to campaigns of node 4 are not to be counted below.
        cluster.crash(4, 0);
        cluster.take_events();
        cluster.run(2_500);
        assert_eq!(sent_to(&mut cluster, 4) > 0, is_away, "it may yet come back");
        cluster.run(1_000);
        cluster.take_events();
        cluster.run(30_000);
        assert_eq!(sent_to(&mut cluster, 4), 0);
    }
}
