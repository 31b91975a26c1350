//! Members whose disk was lost, and that may have forgotten promises (`consensus::recovery`).

use std::collections::BTreeMap;

use raft_core::consensus::RoleKind::Leader;
use raft_core::error::Rejected;
use raft_core::types::{Body, Memory, Message, NodeId, ReadOutcome};

use crate::common::{Cluster, Disk, say};
use crate::replication::{led, peer};
use crate::{no_pre_vote, only, plain};

/// Node 1 leads three; node 2 has lost its disk and is down. Nobody else notices anything.
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

/// On an idle cluster, under the same leader, whose log reaches back to what the follower had: it is
/// filled up, without a word from a client.
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

/// Also when the leader has compacted what it lacks.
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

/// Its acknowledgement does not commit anything before it has recovered, and does afterwards.
#[test]
fn its_acknowledgement_does_not_count_before() {
    let mut cluster = one_disk_is_lost();
    let committed = cluster.status(1).commit_index;
    cluster.isolate(3);
    cluster.start(2);
    // Within the time for which a leader goes on without a quorum.
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

/// A leader whose only company recovers steps down, and answers no reads.
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

/// Its vote, with that of one who lacks what is committed, elects nobody.
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

/// Without a pre-vote it asks for votes in the very term that it led. Those who elected it then do not elect its
/// later life, which knows nothing of that term's entries.
#[test]
fn a_leader_that_lost_its_disk_does_not_lead_its_term_again() {
    let mut cluster = Cluster::with_config(5, no_pre_vote);
    cluster.fire(1);
    while cluster.role(1) != Leader {
        cluster.deliver(0);
    }
    // One other has entries that the later life will not know, three have none.
    for peer in [3, 4, 5] {
        cluster.cut(1, peer);
    }
    let position = cluster.propose(1, "old").expect("it leads");
    cluster.settle();
    assert_eq!((cluster.raft(1).term(), cluster.status(2).last_index), (1, position.index));
    // None of the others remembers to have heard a leader.
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

/// It campaigned unheard before it lost its disk, and recovers in an earlier term: what it gave itself beyond that
/// was gone with the candidacy, and the vote is free for another.
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

/// It may have voted in the term in which it recovers, and cannot vote in it again.
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

/// Lost twice: the first disk's number does not speak for the second one.
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
    // Recovered for a number that is not its own: nothing.
    cluster.crash(3, 0);
    cluster.lose_disk(3);
    cluster.start(3);
    cluster.isolate(3);
    let message = Message::new(1, Body::Recovered { number: 7 });
    cluster.step(1, 3, Message::new(1, Body::Heartbeat { round: 9, commit_index: 0 }));
    cluster.step(1, 3, message);
    assert!(recovers(&cluster, 3));
}

/// Leadership is not handed to a node whose word does not count.
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

/// C31. The round that speaks for it starts at once, and not when the next heartbeat is due.
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

/// C31. The last response that it waits for may be that of another node: then it is told at once.
#[test]
fn c31_it_is_readmitted_by_the_last_response_of_another_node() {
    let mut cluster = one_disk_is_lost();
    cluster.start(2);
    cluster.cut(3, 1);
    cluster.fire(1);
    cluster.settle();
    cluster.run(1);
    assert!(recovers(&cluster, 2), "node 3 has not answered");
    cluster.step(3, 1, say::heartbeat_answer(1, u64::MAX));
    cluster.settle();
    assert!(!recovers(&cluster, 2));
}

/// A vote is not repeated to a candidate that says that it recovers: it was given to an earlier life.
/// No node campaigns in that state; this is the second of two bars.
#[test]
fn a_vote_is_not_repeated_to_a_node_that_recovers() {
    let mut cluster = Cluster::with_config(3, plain);
    let is_granted = |cluster: &mut Cluster, recovering| {
        cluster.step(1, 2, Message { recovering, ..say::vote(1, (0, 0)) });
        let granted = |body: &Body| match body {
            Body::VoteAnswer { granted } => Some(*granted),
            _ => None,
        };
        only(&cluster.sent_by(2), 1, granted)
    };
    assert!(is_granted(&mut cluster, None));
    assert!(is_granted(&mut cluster, None), "the response may have been lost");
    assert!(!is_granted(&mut cluster, Some(7)));
}
