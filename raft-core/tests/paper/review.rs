//! One or more tests for each finding of the review of the core, C1 to C31, as far as the core
//! alone can show it. A test name begins with the finding's number. Findings about whole nodes are
//! in `tests/driver`, those about founding in `founding`; `catalogue` has the whole list.

use raft_core::consensus::RoleKind::{Follower, Leader, PreCandidate};
use raft_core::consensus::{Config, PeerStatus};
use raft_core::types::{
    CONFIGURATION_BYTES_MAX, Configuration, Entry, Message, MessageBody, Payload, Position,
    TERM_MAX,
};

use crate::common::{Cluster, Parcel, say};
use crate::plain;
use crate::replication::led;

fn peer_of(cluster: &Cluster, leader: u64, id: u64) -> PeerStatus {
    cluster.status(leader).peers.into_iter().find(|peer| peer.id == id).expect("a peer")
}

/// C1. After a follower's disk loss the leader of term 2 must not send a heartbeat with the commit
/// index that the lost disk had acknowledged: meanwhile the old leader has replicated other entries
/// to the empty disk. Otherwise the oracle objects in the last `settle`.
fn heartbeat_for_the_lost_disk(configure: fn(&mut Config)) {
    let mut cluster = Cluster::with_config(3, configure);
    cluster.fire(1);
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    // Node 1 appends an entry that reaches no other node.
    cluster.partition(&[&[1], &[2, 3]]);
    cluster.propose(1, "x").expect("it leads");
    cluster.settle();
    // Node 3 leads term 2 with node 2 and commits with it.
    cluster.rush(3);
    cluster.settle();
    lose_and_refill(&mut cluster);
}

fn lose_and_refill(cluster: &mut Cluster) {
    assert_eq!((cluster.role(3), cluster.raft(3).term()), (Leader, 2));
    cluster.propose(3, "y").expect("it leads");
    cluster.settle();
    assert_eq!(peer_of(cluster, 3, 2).match_index, 3);
    assert_eq!(cluster.status(3).commit_index, 3);
    // Node 2 loses its disk. No message is in flight.
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    assert!(cluster.flying.is_empty());
    // The first messages to node 2 come from node 1, which still believes that it leads.
    cluster.partition(&[&[1, 2], &[3]]);
    cluster.start(2);
    assert_eq!(cluster.role(1), Leader);
    cluster.rush_heartbeat(1);
    cluster.settle();
    assert_eq!(cluster.status(2).last_index, 2, "the no-op and x of node 1");
    // Then node 2 receives from node 3, whose first message is a heartbeat.
    cluster.partition(&[&[1], &[2, 3]]);
    assert_eq!(cluster.role(3), Leader);
    cluster.rush_heartbeat(3);
    cluster.settle();
}

#[test]
fn c1_heartbeat_for_the_lost_disk_plain() {
    heartbeat_for_the_lost_disk(plain);
}

/// The same with the default configuration. All of it happens within one election timeout: no clock
/// moves after node 1's last heartbeat.
#[test]
fn c1_heartbeat_for_the_lost_disk_check_quorum() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.fire(1);
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    // Node 1 transfers leadership to node 3. The TimeoutNow is late, and node 1 abandons the
    // transfer.
    cluster.with(1, |raft, now| raft.transfer_leadership(now, Some(3))).expect("a voter");
    let told = cluster.flying.iter().position(|envelope| {
        matches!(
            &envelope.parcel,
            Parcel::Message(Message { body: MessageBody::TimeoutNow { .. }, .. })
        )
    });
    let late = cluster.flying.remove(told.expect("it is sent")).expect("just seen");
    cluster.run(500);
    assert_eq!((cluster.role(1), cluster.raft(1).term()), (Leader, 1));
    cluster.rush_heartbeat(1);
    cluster.settle();
    cluster.partition(&[&[1], &[2, 3]]);
    cluster.propose(1, "x").expect("it leads");
    cluster.settle();
    let Parcel::Message(message) = late.parcel else { unreachable!() };
    cluster.step(1, 3, message);
    cluster.settle();
    lose_and_refill(&mut cluster);
}

/// C2. A disk that is lost twice comes back with another number, because the seed is drawn at each
/// start and has no default. With the same number the leader would mistake the empty disk for the
/// one that it has replicated to, and the oracle would object in the last `run`.
#[test]
fn c2_disk_lost_twice() {
    let mut cluster = Cluster::with_config(3, plain);
    cluster.fire(1);
    cluster.settle();
    cluster.isolate(3);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    assert_eq!(cluster.status(1).commit_index, 2, "by nodes 1 and 2");
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    cluster.start(2);
    cluster.rush_heartbeat(1);
    cluster.settle();
    assert!(cluster.status(2).is_recovering);
    assert_eq!(cluster.status(2).last_index, 2, "filled, but node 3 has not answered");
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    cluster.start(2);
    // Node 3 responds to heartbeats. Appends to it are lost, so it stays behind.
    cluster.heal();
    for _ in 0..3 {
        cluster.rush_heartbeat(1);
        for _ in 0..100 {
            let next = cluster.flying.iter().position(|envelope| match &envelope.parcel {
                Parcel::Message(message) => {
                    !(matches!(message.body, MessageBody::AppendEntries { .. }) && envelope.to == 3)
                }
                _ => false,
            });
            let Some(at) = next else { break };
            cluster.deliver(at);
        }
        cluster.flying.clear();
    }
    cluster.crash(1, 0);
    cluster.run(3_000);
}

/// C2. After a restart a follower draws another number for its read, so a late response to the read
/// before the restart does not confirm the new one. The oracle would object in the last `step`.
#[test]
fn c2_read_attempts_do_not_repeat() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.fire(1);
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    let restart_and_ask = |cluster: &mut Cluster| {
        cluster.crash(2, 0);
        cluster.start(2);
        cluster.flying.clear();
        cluster.rush_heartbeat(1);
        let at = cluster.flying.iter().position(|envelope| envelope.to == 2).expect("a heartbeat");
        cluster.deliver(at);
        cluster.flying.clear();
        cluster.read(2).expect("it knows the leader");
    };
    restart_and_ask(&mut cluster);
    let mut late = None;
    while let Some(envelope) = cluster.flying.front() {
        let is_answer = matches!(&envelope.parcel, Parcel::Message(message)
            if matches!(message.body, MessageBody::ReadIndexResponse { .. }));
        if is_answer {
            late = cluster.flying.pop_front();
        } else {
            cluster.deliver(0);
        }
    }
    let late = late.expect("an answer");
    // An entry is committed that node 2 has not received.
    cluster.partition_link(1, 2);
    cluster.propose(1, "newer").expect("it leads");
    cluster.settle();
    assert_eq!(cluster.status(1).commit_index, 2);
    cluster.heal();
    restart_and_ask(&mut cluster);
    let Parcel::Message(message) = late.parcel else { unreachable!() };
    cluster.step(1, 2, message);
    let stale =
        cluster.node(2).reads.iter().find(|state| state.outcome.index().is_some_and(|at| at < 2));
    assert!(stale.is_none(), "a read was confirmed at an index before the last commit: {stale:?}");
}

/// C5. Behind slow disks voters hold back votes for a node's earlier incarnation. These votes must
/// not elect its next incarnation, whose disk is empty. Otherwise the oracle objects as soon as
/// node 2 leads.
#[test]
fn c5_votes_for_the_lost_disk() {
    let mut cluster = Cluster::with_config(3, plain);
    // Node 2 does not vote in term 1, so it loses no vote of that term.
    cluster.isolate(2);
    cluster.fire(1);
    cluster.settle();
    cluster.heal();
    cluster.run(400);
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    assert_eq!(cluster.status(1).commit_index, 2);
    assert_eq!(cluster.status(2).last_index, 2);
    cluster.slow_disks.extend([1, 3]);
    // Node 2 is a candidate in term 2 with the whole log. Both votes wait for the voters' disks.
    cluster.rush(2);
    cluster.settle();
    assert_eq!((cluster.raft(1).term(), cluster.raft(3).term()), (2, 2));
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    assert!(cluster.flying.is_empty(), "no message is under way");
    // Node 2 restarts on an empty disk without contact to a peer. It must not reach term 2 again.
    cluster.isolate(2);
    cluster.start(2);
    cluster.rush(2);
    cluster.rush(2);
    cluster.settle();
    assert_eq!((cluster.raft(2).term(), cluster.status(2).last_index), (0, 0), "it does not ask");
    cluster.heal();
    while cluster.write(1) {}
    while cluster.write(3) {}
    cluster.settle();
    assert_ne!(cluster.role(2), Leader);
}

/// C6. A configuration entry that names other members would take effect on some nodes or none. The
/// follower rejects the whole append: it neither appends nor acknowledges it, and raises an alarm.
#[test]
fn c6_a_configuration_of_other_members_is_refused() {
    for others in [&[2][..], &[1, 2], &[1, 2, 3, 4], &[1, 2, 4]] {
        let mut cluster = led();
        let members = Configuration::of_voters(others.iter().copied());
        let entries = vec![
            say::entry(2, 1),
            Entry { index: 3, term: 1, payload: Payload::Configuration(Box::new(members)) },
        ];
        let append =
            MessageBody::AppendEntries { previous: Position::new(1, 1), entries, commit_index: 1 };
        cluster.step(1, 2, Message::new(1, append));
        assert_eq!(cluster.status(2).last_index, 1, "{others:?}");
        assert!(cluster.sent_by(2).is_empty(), "nothing is acknowledged");
        let alarms = &cluster.node(2).alarms;
        assert!(alarms.iter().any(|alarm| alarm.contains("other members")), "{alarms:?}");
    }
}

/// C6. A configuration that no disk could store is refused like one of other members: with a record
/// of a node that is no member, or with more bytes than a snapshot's header has room for.
#[test]
fn c6_a_configuration_that_cannot_be_stored_is_refused() {
    for (id, bytes) in [(4, 0), (2, CONFIGURATION_BYTES_MAX as usize)] {
        let mut cluster = led();
        let mut configuration = Configuration::of_voters([1, 2, 3]);
        configuration.members.entry(id).or_default().context = vec![0; bytes].into();
        let entries = vec![
            say::entry(2, 1),
            Entry { index: 3, term: 1, payload: Payload::Configuration(Box::new(configuration)) },
        ];
        let append =
            MessageBody::AppendEntries { previous: Position::new(1, 1), entries, commit_index: 1 };
        cluster.step(1, 2, Message::new(1, append));
        assert_eq!(cluster.status(2).last_index, 1, "node {id}, {bytes} bytes");
        assert!(cluster.sent_by(2).is_empty(), "nothing is acknowledged");
        let alarms = &cluster.node(2).alarms;
        assert!(alarms.iter().any(|alarm| alarm.contains("too many bytes")), "{alarms:?}");
    }
}

/// C22. A peer sends the last term that the decoders accept. The node must not count beyond it:
/// with such a term its disk would not load.
#[test]
fn c22_the_last_term() {
    let mut cluster = led();
    cluster.step(
        3,
        2,
        Message::new(TERM_MAX, MessageBody::HeartbeatResponse { round: 0, version_max: 1 }),
    );
    cluster.rush(2);
    let on_disk = cluster.node(2).disk.loaded.hard_state.term;
    assert!(on_disk <= TERM_MAX, "term {on_disk} on disk, which every decoder refuses");
}

/// C23. A peer that lost acknowledged entries without losing its disk rejects at the very index
/// that it acknowledged. That proves the loss to the leader, so the leader raises an alarm.
#[test]
fn c23_a_peer_whose_disk_was_rolled_back_is_reported() {
    let mut cluster = led();
    let earlier = cluster.node(3).disk.clone();
    for command in ["a", "b"] {
        cluster.propose(1, command).expect("it leads");
        cluster.settle();
    }
    assert_eq!(peer_of(&cluster, 1, 3).match_index, 3);
    cluster.crash(3, 0);
    cluster.nodes.get_mut(&3).expect("a node").disk = earlier;
    cluster.oracle.forget_own_votes(3);
    cluster.start(3);
    cluster.propose(1, "c").expect("it leads");
    cluster.run(3_000);
    let alarms = &cluster.node(1).alarms;
    assert!(alarms.iter().any(|alarm| alarm.contains("no longer holds index 3")), "{alarms:?}");
    assert_eq!(alarms.len(), 1, "said once: {alarms:?}");
}

/// C25. A pre-candidate that grants its vote waits a whole election timeout for the winner.
#[test]
fn c25_a_pre_candidate_that_grants_waits() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.step(
        3,
        2,
        Message::new(1, MessageBody::HeartbeatResponse { round: 0, version_max: 1 }),
    );
    cluster.rush(2);
    assert_eq!((cluster.role(2), cluster.raft(2).term()), (PreCandidate, 1));
    let timeout = Config::new(2, 2).election_timeout;
    cluster.now = cluster.raft(2).election_deadline();
    cluster.step(3, 2, say::vote(1, (0, 0)));
    assert_eq!(cluster.role(2), Follower);
    assert!(cluster.raft(2).election_deadline() >= cluster.now + timeout);
}

/// C30. A leader that believes a peer to be up to date tells it to campaign, but the peer has just
/// lost its disk. The peer does not campaign, and the leader is not deposed.
#[test]
fn c30_no_campaign_on_the_word_about_a_lost_disk() {
    let mut cluster = Cluster::with_config(3, |_| {});
    cluster.fire(1);
    cluster.settle();
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    cluster.start(2);
    cluster.step(1, 2, say::heartbeat(1, 9, 0));
    let last = cluster.raft(1).snapshot_meta(1).expect("the no-op").position;
    cluster.step(1, 2, Message::new(1, MessageBody::TimeoutNow { last }));
    cluster.settle();
    assert_eq!((cluster.leader(), cluster.raft(1).term()), (Some(1), 1));
}

/// C30. The leader believes that a follower's log ends where its own does. A follower whose log
/// ends earlier, because its disk was rolled back, does not campaign either.
#[test]
fn c30_no_campaign_with_a_shorter_log_than_the_leader_believes() {
    for (last, campaigns) in [((1, 2), false), ((2, 1), false), ((1, 1), true)] {
        let mut cluster = led();
        let last = Position::new(last.0, last.1);
        cluster.step(1, 2, Message::new(1, MessageBody::TimeoutNow { last }));
        assert_eq!(cluster.raft(2).term() == 2, campaigns, "{last}");
    }
}
