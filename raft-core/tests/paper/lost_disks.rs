//! Members whose disk was lost, and that may have lost promises with it (`consensus::recovery`).

use std::collections::BTreeMap;

use raft_core::consensus::RoleKind::Leader;
use raft_core::error::Rejected;
use raft_core::types::{Memory, Message, MessageBody, NodeId, ReadOutcome};

use crate::common::{Cluster, Disk, say};
use crate::replication::{led, peer};
use crate::{no_pre_vote, only, plain};

/// Node 1 leads three; node 2 has lost its disk and is down. The other nodes notice nothing.
fn one_disk_is_lost() -> Cluster {
    let mut cluster = led();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    cluster
}

fn recovers(cluster: &Cluster, id: NodeId) -> bool {
    cluster.status(id).is_recovering
}

/// The cluster is idle, the leader is the same, and its log reaches back to the start of the
/// follower's. The follower catches up and is readmitted without any client request.
#[test]
fn who_lost_its_disk_is_filled_up() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    cluster.run(1_000);
    assert_eq!((cluster.leader(), cluster.status(1).term), (Some(1), 1), "nobody was disturbed");
    assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
    assert_eq!(peer(&cluster, 2).match_index, cluster.status(1).last_index);
    assert!(!recovers(&cluster, 2) && !peer(&cluster, 2).is_recovering);
}

/// The same when the leader has compacted the entries that the follower lacks.
#[test]
fn who_lost_its_disk_is_filled_up_by_a_snapshot() {
    let mut cluster = one_disk_is_lost();
    cluster.snapshot(1);
    let index = cluster.status(1).snapshot_index;
    cluster.compact(1, index);
    assert!(cluster.status(1).log_start_index > 0);
    cluster.start(2);
    cluster.run(1_000);
    assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
    assert!(!recovers(&cluster, 2));
}

/// The recovering node's acknowledgement commits nothing; after its recovery it does.
#[test]
fn its_acknowledgement_does_not_count_before() {
    let mut cluster = one_disk_is_lost();
    let committed = cluster.status(1).commit_index;
    cluster.isolate(3);
    cluster.start(2);
    // This is within the time for which a leader continues without a quorum.
    cluster.propose(1, "b").expect("it leads");
    cluster.run(200);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.status(2).last_index, cluster.status(1).last_index, "it holds everything");
    assert!(recovers(&cluster, 2), "node 3 was not heard");
    assert_eq!(cluster.status(1).commit_index, committed);
    cluster.heal();
    cluster.run(200);
    assert!(!recovers(&cluster, 2));
    cluster.isolate(3);
    let last = cluster.propose(1, "c").expect("it leads");
    cluster.run(100);
    assert_eq!(cluster.status(1).commit_index, last.index, "by nodes 1 and 2");
}

/// A leader that is contacted only by a recovering node steps down, and confirms no reads.
#[test]
fn its_answer_does_not_confirm_a_leader() {
    let mut cluster = one_disk_is_lost();
    cluster.isolate(3);
    cluster.start(2);
    let read = cluster.read(1).expect("it leads");
    cluster.run(2_000);
    let answer = cluster.node(1).reads.iter().find(|state| state.id == read);
    assert_eq!(answer.expect("an answer").outcome, ReadOutcome::NotLeader);
    assert_eq!(cluster.leader(), None);
}

/// The recovering node's vote, with the vote of a node that lacks a committed entry, does not
/// elect.
#[test]
fn its_vote_does_not_count_before() {
    let disks = BTreeMap::from([
        (1, Disk::of_terms(&[1, 1], 1)),
        (2, Disk::default()),
        (3, Disk::of_terms(&[1], 1)),
    ]);
    let mut cluster = Cluster::with_disks(disks, plain);
    cluster.isolate(1);
    cluster.run(5_000);
    assert_eq!(cluster.leader(), None, "what node 1 and the old node 2 had may be committed");
    cluster.heal();
    cluster.run(5_000);
    assert_eq!(cluster.leader(), Some(1), "nobody else has all votes");
    assert!(cluster.ids().iter().all(|id| !recovers(&cluster, *id)));
}

/// Without pre-vote the node would request votes in the very term that it led. The nodes that
/// elected it must not elect its next incarnation, which lacks that term's entries.
#[test]
fn a_leader_that_lost_its_disk_does_not_lead_its_term_again() {
    let mut cluster = Cluster::with_config(5, no_pre_vote);
    cluster.fire(1);
    while cluster.role(1) != Leader {
        cluster.deliver(0);
    }
    // One other node has entries that the next incarnation will lack; three have none.
    for peer in [3, 4, 5] {
        cluster.partition_link(1, peer);
    }
    let position = cluster.propose(1, "old").expect("it leads");
    cluster.settle();
    assert_eq!((cluster.raft(1).term(), cluster.status(2).last_index), (1, position.index));
    // After a restart no other node remembers that a leader contacted it.
    for id in cluster.ids() {
        cluster.crash(id, 0);
    }
    cluster.lose_disk(1);
    cluster.heal();
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster.rush(1);
    cluster.settle();
    assert_eq!((cluster.raft(1).term(), cluster.leader()), (0, None), "it does not even ask");
    cluster.run(5_000);
    let leader = cluster.leader().expect("a leader of a later term");
    assert!(cluster.raft(leader).term() > 1);
    assert!(
        cluster.ids().iter().all(|id| cluster.node(*id).machine == cluster.node(leader).machine)
    );
}

/// The node campaigned in isolation before it lost its disk, and recovers in an earlier term. The
/// votes that it gave itself in later terms were lost with the candidacies, so its vote there is
/// free.
#[test]
fn a_vote_for_itself_goes_with_the_disk() {
    let mut cluster = led();
    cluster.isolate(2);
    for term in [2, 3] {
        cluster.rush(2);
        assert_eq!(
            (cluster.raft(2).term(), cluster.node(2).disk.loaded.hard_state.voted_for),
            (term, Some(2))
        );
    }
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    cluster.heal();
    cluster.flying.clear();
    cluster.start(2);
    cluster.run(1_000);
    assert_eq!((cluster.leader(), cluster.raft(2).term()), (Some(1), 1));
    assert!(!recovers(&cluster, 2));
    cluster.crash(1, 0);
    cluster.elect(3);
    assert_eq!((cluster.raft(3).term(), cluster.raft(2).term()), (2, 2));
    assert_eq!(cluster.node(2).disk.loaded.hard_state.voted_for, Some(3));
}

/// The node may have voted in the term in which it recovers, and cannot vote in that term again.
#[test]
fn it_does_not_vote_again_in_the_term_in_which_it_recovers() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    cluster.run(1_000);
    let hard_state = cluster.node(2).disk.loaded.hard_state;
    assert_eq!((hard_state.term, hard_state.voted_for), (1, Some(1)));
    assert!(hard_state.memory == Memory::Intact, "that it has recovered is on disk");
    cluster.crash(2, 0);
    cluster.start(2);
    assert!(!recovers(&cluster, 2));
}

/// The disk is lost again: the number of the first empty disk does not readmit the second one.
#[test]
fn a_disk_that_is_lost_again_is_filled_up_again() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    cluster.run(1_000);
    for _ in 0..2 {
        cluster.crash(2, 0);
        cluster.lose_disk(2);
        cluster.start(2);
        assert!(recovers(&cluster, 2));
    }
    cluster.run(1_000);
    assert!(!recovers(&cluster, 2));
    assert_eq!(cluster.node(2).machine, cluster.node(1).machine);
    // A `Recovered` message with another number has no effect.
    cluster.crash(3, 0);
    cluster.lose_disk(3);
    cluster.start(3);
    cluster.isolate(3);
    let message = Message::new(1, MessageBody::Recovered { number: 7 });
    cluster.step(1, 3, Message::new(1, MessageBody::Heartbeat { round: 9, commit_index: 0 }));
    cluster.step(1, 3, message);
    assert!(recovers(&cluster, 3));
}

/// A leader does not transfer leadership to a node whose votes and acknowledgements are not
/// counted.
#[test]
fn leadership_is_not_handed_to_it() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    let heartbeat_answered = |cluster: &Cluster| peer(cluster, 2).is_recovering;
    while !heartbeat_answered(&cluster) {
        let next = cluster.raft(1).next_deadline();
        cluster.now = cluster.now.max(next);
        cluster.fire(1);
        for _ in 0..4 {
            if !cluster.flying.is_empty() && !heartbeat_answered(&cluster) {
                cluster.deliver(0);
            }
        }
    }
    let to =
        |cluster: &mut Cluster, to| cluster.with(1, |raft, now| raft.transfer_leadership(now, to));
    assert!(matches!(to(&mut cluster, Some(2)), Err(Rejected::Busy(_))));
    assert_eq!(to(&mut cluster, None), Ok(()));
    cluster.settle();
    assert_eq!(cluster.role(3), Leader);
}

/// C31. The heartbeat round that readmits the node starts at once, not when the next one is due.
#[test]
fn c31_it_is_readmitted_without_waiting_for_a_heartbeat() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    cluster.fire(1);
    cluster.settle();
    assert!(recovers(&cluster, 2));
    cluster.run(1);
    assert!(!recovers(&cluster, 2));
}

/// C31. The last response that readmission waits for may be another node's: then the recovering
/// node is told at once.
#[test]
fn c31_it_is_readmitted_by_the_last_response_of_another_node() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    cluster.partition_link(3, 1);
    cluster.fire(1);
    cluster.settle();
    cluster.run(1);
    assert!(recovers(&cluster, 2), "node 3 has not answered");
    cluster.step(3, 1, say::heartbeat_answer(1, u64::MAX));
    cluster.settle();
    assert!(!recovers(&cluster, 2));
}

/// A vote is not repeated to a candidate that is recovering: it was given to an earlier
/// incarnation. No node campaigns while it recovers; this is the second of two barriers.
#[test]
fn a_vote_is_not_repeated_to_a_node_that_recovers() {
    let mut cluster = Cluster::with_config(3, plain);
    let is_granted = |cluster: &mut Cluster, recovering| {
        cluster.step(1, 2, Message { recovering, ..say::vote(1, (0, 0)) });
        let granted = |body: &MessageBody| match body {
            MessageBody::VoteResponse { granted } => Some(*granted),
            _ => None,
        };
        only(&cluster.sent_by(2), 1, granted)
    };
    assert!(is_granted(&mut cluster, None));
    assert!(is_granted(&mut cluster, None), "the response may have been lost");
    assert!(!is_granted(&mut cluster, Some(7)));
}
