//! Changes of the members: bugs that the simulator found, and rules whose absence no other test
//! showed (planted bugs 9c, 9h, 9i, 9l, 9p, 9v).

use std::time::Duration;

use raft_core::consensus::{Change, Config, OfferDecision, RoleKind, invariants};
use raft_core::types::{
    Configuration, Entry, Member, Message, MessageBody, NodeId, Payload, Position, SnapshotMeta,
};

use crate::common::{Cluster, Parcel, say};
use crate::membership::{force, founded, four};
use crate::replication::led;

/// Voters 1, 2 and 3, and node 4 as a learner that a change of the members has added.
fn with_learner() -> Configuration {
    let mut configuration = Configuration { next_id: 5, ..founded(3) };
    configuration.learners.insert(4);
    configuration.members.insert(4, Member::default());
    configuration
}

pub(crate) fn configuration(index: u64, term: u64, configuration: Configuration) -> Entry {
    Entry { index, term, payload: Payload::Configuration(Box::new(configuration)) }
}

pub(crate) fn append(
    cluster: &mut Cluster,
    from: NodeId,
    to: NodeId,
    term: u64,
    entries: Vec<Entry>,
) {
    let previous = match entries[0].index {
        1 => Position::ZERO,
        index => Position::new(1, index - 1),
    };
    let body = MessageBody::AppendEntries { previous, entries, commit_index: 1 };
    cluster.step(from, to, Message::new(term, body));
}

fn offer(cluster: &mut Cluster, to: NodeId, term: u64, at: Position) -> OfferDecision {
    let meta = SnapshotMeta::new(at, founded(3));
    cluster.with(to, |raft, now| raft.on_snapshot_offer(now, 3, term, &meta))
}

/// An append that arrives twice brings the members of the operators' files again, after later ones
/// are in force. It is no mistake of an operator.
#[test]
fn an_append_that_arrives_late_brings_earlier_members() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    let first = vec![say::entry(1, 1), configuration(2, 1, founded(3))];
    append(&mut cluster, 1, 4, 1, first.clone());
    append(&mut cluster, 1, 4, 1, vec![configuration(3, 1, with_learner())]);
    assert!(cluster.raft(4).configuration().learners.contains(&4));
    cluster.sent_by(4);
    append(&mut cluster, 1, 4, 1, first);
    assert_eq!(cluster.node(4).alarms, Vec::<String>::new());
    let accepted = MessageBody::AppendAccepted { match_index: 2 };
    assert!(cluster.sent_by(4).iter().any(|(to, message)| (*to, &message.body) == (1, &accepted)));
}

/// A change that was never committed is replaced by a configuration of the members before it.
/// Refused, the follower would take nothing from this leader.
#[test]
fn a_change_that_was_never_committed_gives_way() {
    let mut cluster = led();
    append(&mut cluster, 1, 2, 1, vec![configuration(2, 1, with_learner())]);
    append(&mut cluster, 3, 2, 2, vec![configuration(2, 2, founded(3))]);
    assert_eq!(cluster.node(2).alarms, Vec::<String>::new());
    assert_eq!(cluster.raft(2).configuration(), &founded(3));
}

/// An append that does not follow this log is refused as such. Which configuration came before it
/// is not known.
#[test]
fn an_append_that_does_not_follow_is_not_compared() {
    let mut cluster = led();
    append(&mut cluster, 1, 2, 1, vec![configuration(2, 1, with_learner())]);
    let previous = Position::new(2, 2);
    let entries = vec![configuration(3, 2, founded(3))];
    let body = MessageBody::AppendEntries { previous, entries, commit_index: 1 };
    cluster.step(3, 2, Message::new(2, body));
    assert_eq!(cluster.node(2).alarms, Vec::<String>::new());
    let rejected = |message: &Message| matches!(message.body, MessageBody::AppendRejected { .. });
    assert!(cluster.sent_by(2).iter().any(|(to, message)| *to == 3 && rejected(message)));
}

/// Snapshots are compared likewise, and an earlier snapshot that is offered late is not needed.
#[test]
fn snapshots_of_earlier_members_are_no_mistake() {
    let mut cluster = led();
    append(&mut cluster, 1, 2, 1, vec![configuration(2, 1, with_learner())]);
    assert_eq!(offer(&mut cluster, 2, 2, Position::new(2, 5)), OfferDecision::Wanted);
    let mut cluster = led();
    cluster.change(1, &Change::Add { id: 4, member: Member::default() }).expect("it leads");
    cluster.run(500);
    assert_eq!(offer_of_leader(&mut cluster), OfferDecision::NotNeeded);
    assert_eq!(cluster.node(2).alarms, Vec::<String>::new());
}

fn offer_of_leader(cluster: &mut Cluster) -> OfferDecision {
    let meta = SnapshotMeta::new(Position::new(1, 1), founded(3));
    cluster.with(2, |raft, now| raft.on_snapshot_offer(now, 1, 1, &meta))
}

/// A node that joins has applied entries before it knows the members. No peer would take a snapshot
/// of that state.
#[test]
fn a_snapshot_without_members_is_not_published() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    append(&mut cluster, 1, 4, 1, vec![say::entry(1, 1)]);
    assert_eq!(
        (cluster.status(4).last_applied, cluster.raft(4).configuration().is_empty()),
        (1, true)
    );
    cluster.snapshot(4);
    assert_eq!(cluster.status(4).snapshot_index, 0);
    append(&mut cluster, 1, 4, 1, vec![configuration(2, 1, founded(3))]);
    cluster.snapshot(4);
    assert_eq!(cluster.status(4).snapshot_index, 0, "the state is still that of index 1");
}

/// A snapshot of an earlier leader arrives after this node has begun to campaign, and does not name
/// it as a voter.
/// The node gives up, and asks for no more votes.
#[test]
fn a_candidate_that_a_snapshot_leaves_out_gives_up() {
    let mut cluster = led();
    cluster.isolate(2);
    cluster.fire(2);
    assert_eq!((cluster.role(2), cluster.status(2).term), (RoleKind::Candidate, 2));
    let members = Configuration { next_id: 4, ..Configuration::of_voters([1, 3]) };
    let meta = SnapshotMeta::new(Position::new(1, 5), members);
    let mut raft = cluster.raft(2).clone();
    raft.on_snapshot_received(cluster.now, 1, 1, meta);
    assert_eq!(raft.role(), RoleKind::Follower);
    invariants::check(&raft);
}

/// While joint, the voters that leave are counted as well: with them there is a majority, and the
/// operator is not told that it is lost.
#[test]
fn voters_that_leave_are_counted_before_the_alarm() {
    let mut cluster = four();
    cluster.partition(&[&[1, 2], &[3], &[4]]);
    force(&mut cluster, 1, &Change::Remove { id: 2 }).expect("it leads");
    cluster.settle();
    assert!(cluster.raft(2).configuration().is_joint());
    for id in [1, 3] {
        cluster.crash(id, 0);
    }
    cluster.lose_disk(3);
    for id in [1, 3] {
        cluster.start(id);
    }
    cluster.heal();
    cluster.fire(2);
    cluster.settle();
    assert_eq!(cluster.node(2).alarms, Vec::<String>::new());
}

/// R1. A node that joins counts once the entry that records its disk is committed, and not when it
/// is in the log.
#[test]
fn an_admission_counts_once_it_is_committed() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    let mut admission = with_learner();
    admission.members.insert(4, Member { incarnation: 104, ..Member::default() });
    append(&mut cluster, 1, 4, 1, vec![say::entry(1, 1), configuration(2, 1, admission)]);
    assert!(cluster.raft(4).configuration().learners.contains(&4));
    assert!(cluster.status(4).is_recovering, "the admission may yet be truncated");
}

/// M-R6, R2. A removal that is not committed does not release a wiped voter: the removed node may
/// hold a promise, and may yet lead.
#[test]
fn m_r6_a_removal_that_is_not_committed_releases_no_voter() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    cluster.crash(5, 0);
    cluster.crash(4, 0);
    cluster.lose_disk(4);
    cluster.start(4);
    cluster.run(2_000);
    force(&mut cluster, 1, &Change::Remove { id: 5 }).expect("it leads");
    while cluster.raft(1).configuration() == &founded(5)
        || cluster.raft(1).configuration().is_joint()
    {
        cluster.deliver(0);
    }
    // The joint configuration is committed, and the final one reaches node 4 only.
    cluster.partition(&[&[1, 4], &[2, 3, 5]]);
    cluster.settle();
    assert!(!cluster.raft(4).configuration().is_voter(5));
    assert!(cluster.status(4).is_recovering);
}

/// A leader that is removed is not counted for the entry that removes it.
#[test]
fn a_removed_leader_does_not_count_itself() {
    let mut cluster = led();
    force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
    while cluster.raft(1).configuration().is_joint() {
        cluster.deliver(0);
    }
    cluster.partition(&[&[1, 2], &[3]]);
    cluster.settle();
    let status = cluster.status(1);
    assert_eq!(status.commit_index, status.last_index - 1, "2 alone is no majority of 2 and 3");
}

/// A learner that lost its disk becomes a voter only after it has recovered.
#[test]
fn a_learner_that_recovers_is_not_promoted() {
    let mut cluster = Cluster::new(5);
    cluster.elect(1);
    cluster.crash(5, 0);
    cluster.start_joiner(6, 106);
    cluster.change(1, &Change::Add { id: 6, member: Member::default() }).expect("it leads");
    cluster.run(1_000);
    assert!(cluster.status(6).is_recovering, "its disk is not recorded, and 5 is down");
    cluster.change(1, &Change::Promote { id: 6 }).expect("it leads");
    cluster.run(3_000);
    let configuration = cluster.raft(1).configuration();
    assert!(configuration.wants_vote(6) && configuration.learners.contains(&6));
}

/// R4. The disk of a voter is not recorded anew: the voter would count, with what it has forgotten.
#[test]
fn the_disk_of_a_voter_is_not_recorded() {
    let mut cluster = led();
    cluster.crash(3, 0);
    cluster.lose_disk(3);
    let refused = cluster.change(1, &Change::Bind { id: 3, incarnation: 203 });
    assert!(refused.is_err(), "node 3 has no record, and is a voter");
    cluster.change(1, &Change::SetContext { id: 3, context: "zone a".into() }).expect("it leads");
    cluster.run(100);
    let refused = cluster.change(1, &Change::Bind { id: 3, incarnation: 203 });
    assert!(refused.is_err(), "node 3 has a record without a disk, and is a voter");
}

/// M-J17. The joint configuration that makes a voter of a learner leaves its progress as it was.
#[test]
fn m_j17_progress_survives_the_joint_configuration() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    let member = Member { incarnation: 104, wants_vote: true, ..Member::default() };
    cluster.change(1, &Change::Add { id: 4, member }).expect("it leads");
    cluster.settle();
    for _ in 0..100 {
        cluster.rush_heartbeat(1);
        if cluster.raft(1).configuration().is_joint() {
            break;
        }
        cluster.run(50);
    }
    assert!(cluster.raft(1).configuration().is_joint(), "4 is being promoted");
    let known = cluster.raft(1).peer(4).expect("a member").match_index;
    assert_eq!(known, cluster.status(1).last_index - 1, "everything before the joint entry");
}

/// A removed leader is not kept in office by requests to hand over to one node after the other.
#[test]
fn a_removed_leader_hands_over_once() {
    let mut cluster = four();
    force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
    while !cluster.raft(1).committed_configuration().voters.iter().eq(&[2, 3, 4]) {
        cluster.deliver(0);
    }
    // The successor is told, and does not receive it.
    cluster.flying.clear();
    cluster.partition(&[&[1], &[2, 3, 4]]);
    let since = cluster.now;
    while cluster.role(1) == RoleKind::Leader {
        assert!(cluster.now.since(since) < Duration::from_secs(1), "it leads on");
        for to in [2, 3] {
            let _ = cluster.with(1, |raft, now| raft.transfer_leadership(now, Some(to)));
        }
        cluster.advance(Duration::from_millis(50), false);
    }
}

/// A learner has entries that no voter has, of a leader that is gone; and the voters that are left
/// need its vote, by a joint configuration that it does not have. It would refuse every candidate,
/// and so it campaigns itself, and hands over once it has led.
#[test]
fn a_learner_whose_vote_is_needed_brings_the_voters_on() {
    let mut cluster = led();
    cluster.start_joiner(4, 104);
    let member = Member { incarnation: 104, ..Member::default() };
    cluster.change(1, &Change::Add { id: 4, member }).expect("it leads");
    cluster.run(2_000);
    cluster.change(1, &Change::Promote { id: 4 }).expect("a learner");
    cluster.settle();
    // Only node 1 has the joint configuration in which 4 is a voter.
    cluster.isolate(1);
    cluster.rush_heartbeat(1);
    cluster.settle();
    assert!(cluster.raft(1).configuration().is_joint());
    // Node 2 leads next, and reaches only the learner.
    cluster.fire(2);
    while cluster.role(2) != RoleKind::Leader {
        cluster.deliver(0);
    }
    cluster.partition(&[&[2, 4], &[1], &[3]]);
    cluster.settle();
    assert!(cluster.raft(4).configuration().learners.contains(&4));
    assert_eq!(cluster.status(4).last_index, cluster.status(2).last_index);
    cluster.crash(2, 0);
    cluster.heal();
    cluster.run(10_000);
    let leader = cluster.leader().expect("1, 3 and 4 are a majority of each half");
    assert_ne!(leader, 4, "a learner hands over");
    cluster.propose(leader, "a").expect("it leads");
    cluster.run(1_000);
    assert_eq!(cluster.status(leader).commit_index, cluster.status(leader).last_index);
}

/// A configuration that is not committed is replaced by that of another leader at the same index.
/// It has another place, so that those who follow the members notice.
#[test]
fn a_configuration_at_the_index_of_another_one_has_another_place() {
    let mut cluster = led();
    append(&mut cluster, 1, 2, 1, vec![configuration(2, 1, with_learner())]);
    let before = cluster.raft(2).configuration_stage();
    let replaced = Configuration { next_id: 6, ..with_learner() };
    append(&mut cluster, 3, 2, 2, vec![configuration(2, 2, replaced.clone())]);
    let after = cluster.raft(2).configuration_stage();
    assert_eq!(cluster.raft(2).configuration(), &replaced);
    assert_eq!((before.position.index, after.position.index), (2, 2));
    assert!(before != after && !after.is_committed);
}

/// M-J12. A leader that is removed leaves after the time of one transfer, also if its log has just
/// been compacted past the removal. It led on for another such time after each compaction.
#[test]
fn a_removed_leader_leaves_although_its_log_was_compacted() {
    let mut cluster = four();
    force(&mut cluster, 1, &Change::Remove { id: 1 }).expect("it leads");
    let is_hand_over = |parcel: &Parcel| match parcel {
        Parcel::Message(message) => matches!(message.body, MessageBody::TimeoutNow { .. }),
        Parcel::Snapshot { .. } => false,
    };
    while cluster.raft(1).configuration().is_voter(1) {
        cluster.deliver(0);
    }
    // A log is compacted past the removal if an entry follows it.
    cluster.propose(1, "a").expect("the removal is not committed");
    while let Some(next) = cluster.flying.front() {
        // Its successor is never told.
        if is_hand_over(&next.parcel) {
            cluster.drop_parcel(0);
        } else {
            cluster.deliver(0);
        }
    }
    let ms = Duration::from_millis(1);
    let election_timeout = Config::new(1, 1).election_timeout;
    cluster.advance(election_timeout - ms, true);
    assert_eq!(cluster.role(1), RoleKind::Leader);
    cluster.snapshot(1);
    let last = cluster.status(1).commit_index;
    // Both events at once, as a driver may report them.
    cluster.with(1, |raft, now| {
        raft.compact(last).expect("the snapshot covers it");
        raft.on_timeout(now + 2 * ms);
    });
    assert_eq!(cluster.role(1), RoleKind::Follower);
}
