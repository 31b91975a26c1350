//! The founding of a cluster, and the restrictions on an empty disk afterwards
//! (`consensus::founding`).

use std::collections::BTreeMap;

use raft_core::consensus::Config;
use raft_core::types::{HardState, Memory, Message, MessageBody, NodeId};

use crate::common::{Cluster, Disk};
use crate::{no_pre_vote, plain};

/// A cluster of `count` members on disks that the operator has just initialised, with the default
/// configuration.
fn new_cluster(count: NodeId) -> Cluster {
    unfounded(Cluster::with_disks(new_disks(count), |_| {}))
}

fn new_disks(count: NodeId) -> BTreeMap<NodeId, Disk> {
    (1..=count).map(|id| (id, Disk::new_member())).collect()
}

/// Replaces the configuration of the test cluster, which says that the cluster exists.
fn unfounded(mut cluster: Cluster) -> Cluster {
    for id in cluster.ids() {
        cluster.crash(id, 0);
    }
    cluster.voters.founded = false;
    cluster.voters.cluster_version = 0;
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster
}

fn memory(cluster: &Cluster, id: NodeId) -> Memory {
    cluster.status(id).memory
}

/// A founded cluster of three new disks, with an entry that every node has applied.
fn founded() -> Cluster {
    let mut cluster = new_cluster(3);
    cluster.run(2_000);
    let leader = cluster.leader().expect("the cluster is founded");
    cluster.propose(leader, "a").expect("it leads");
    cluster.run(200);
    cluster
}

fn wipe(cluster: &mut Cluster, id: NodeId) {
    cluster.crash(id, 0);
    cluster.lose_disk(id);
}

/// The operator initialises the wiped member as a new one.
fn wipe_and_initialise(cluster: &mut Cluster, id: NodeId) {
    wipe(cluster, id);
    cluster.nodes.get_mut(&id).expect("a node").disk = Disk::new_member();
}

/// The first leader needs all members to have met; then a majority is enough.
#[test]
fn a_cluster_is_founded_by_all_its_members() {
    let mut cluster = new_cluster(3);
    cluster.isolate(3);
    cluster.run(5_000);
    assert_eq!(cluster.leader(), None, "the third may remember another cluster");
    assert_eq!(cluster.status(1).waits_for, [3]);
    assert_eq!(cluster.raft(1).term(), 0, "and no node counts its term up meanwhile");
    cluster.heal();
    cluster.run(2_000);
    let leader = cluster.leader().expect("all have met");
    for id in cluster.ids() {
        let status = cluster.status(id);
        assert_eq!((status.memory, status.founded), (Memory::Intact, true), "node {id}");
        assert_eq!(status.cluster_version, Config::new(1, 1).version_max);
    }
    cluster.isolate(leader);
    cluster.run(5_000);
    assert!(cluster.leader().is_some_and(|next| next != leader));
}

/// The first leader names the newest version that all members support, even if its own program
/// knows newer ones.
#[test]
fn a_cluster_is_founded_with_the_version_that_all_support() {
    for oldest in 1..=3 {
        let configure = move |config: &mut Config| {
            config.version_max = if config.id == oldest { 2 } else { 3 };
        };
        let mut cluster = unfounded(Cluster::with_disks(new_disks(3), configure));
        cluster.run(2_000);
        assert!(cluster.leader().is_some());
        for id in cluster.ids() {
            assert_eq!(cluster.status(id).cluster_version, 2, "node {id}");
        }
    }
}

#[test]
fn one_node_founds_a_cluster_of_its_own() {
    let mut cluster = new_cluster(1);
    cluster.run(1_000);
    assert_eq!((cluster.leader(), memory(&cluster, 1)), (Some(1), Memory::Intact));
    assert!(cluster.status(1).founded);
}

/// C31. The leader is cut off one heartbeat after its election: the others are counted already, and
/// elect another.
#[test]
fn c31_the_first_leader_is_cut_off_at_once() {
    for count in [3, 5] {
        let mut cluster = new_cluster(count);
        while cluster.leader().is_none() {
            cluster.run(1);
        }
        let first = cluster.leader().expect("just seen");
        cluster.run(60);
        cluster.isolate(first);
        cluster.run(3_000);
        let next = cluster
            .ids()
            .into_iter()
            .filter(|id| *id != first)
            .find(|id| cluster.status(*id).leader == Some(*id));
        assert!(next.is_some(), "the others of {count} elect no leader");
    }
}

/// A member crashes in the middle of founding and continues from the state on its disk.
#[test]
fn a_member_that_crashes_while_founding_goes_on() {
    for steps in 0..40 {
        let mut cluster = new_cluster(3);
        for _ in 0..steps {
            cluster.run(5);
        }
        cluster.crash(2, 0);
        cluster.run(20);
        cluster.start(2);
        cluster.run(3_000);
        assert!(cluster.leader().is_some(), "after {} ms", 5 * steps);
        for id in cluster.ids() {
            assert_eq!(memory(&cluster, id), Memory::Intact, "node {id}, after {} ms", 5 * steps);
        }
    }
}

/// A disk is lost in the middle of founding, and initialised again. Until a member has led, the
/// founding continues; after that the member recovers.
#[test]
fn a_disk_that_is_lost_while_founding() {
    for steps in 0..60 {
        let mut cluster = new_cluster(3);
        for _ in 0..steps {
            cluster.run(5);
        }
        wipe_and_initialise(&mut cluster, 2);
        cluster.start(2);
        cluster.run(5_000);
        assert!(cluster.leader().is_some(), "after {} ms", 5 * steps);
        for id in cluster.ids() {
            assert_eq!(memory(&cluster, id), Memory::Intact, "node {id}, after {} ms", 5 * steps);
        }
    }
}

/// C4. A majority of the disks is lost after founding: no node leads, and the one that remembers
/// reports why. The cluster continues once one of the disks is back.
#[test]
fn c4_a_lost_majority_stops_the_cluster() {
    let mut cluster = founded();
    wipe(&mut cluster, 2);
    let kept = {
        cluster.crash(3, 0);
        std::mem::take(&mut cluster.nodes.get_mut(&3).expect("a node").disk)
    };
    cluster.start(2);
    cluster.start(3);
    cluster.run(20_000);
    assert_eq!(cluster.leader(), None);
    assert!(cluster.status(1).is_majority_lost);
    let alarms = &cluster.node(1).alarms;
    assert_eq!(alarms.len(), 1, "said once: {alarms:?}");
    assert!(alarms[0].contains("no leader can be elected"), "{alarms:?}");
    cluster.crash(3, 0);
    cluster.nodes.get_mut(&3).expect("a node").disk = kept;
    cluster.start(3);
    cluster.run(5_000);
    assert!(cluster.leader().is_some_and(|leader| leader != 2));
    assert!(!cluster.status(1).is_majority_lost);
    assert_eq!(memory(&cluster, 2), Memory::Intact, "and node 2 was readmitted");
}

/// C4. All disks are lost: no empty cluster appears by itself.
#[test]
fn c4_no_empty_cluster_appears() {
    for configure in [no_pre_vote, plain] {
        let mut cluster = founded();
        for id in cluster.ids() {
            wipe(&mut cluster, id);
        }
        cluster.flying.clear();
        drop(cluster);
        let disks = (1..=3).map(|id| (id, Disk::default())).collect();
        let mut cluster = Cluster::with_disks(disks, configure);
        cluster.run(20_000);
        for id in cluster.ids() {
            assert_eq!((cluster.raft(id).term(), memory(&cluster, id)), (0, Memory::Lost));
        }
    }
}

/// C4. An operator who initialises wiped members again, one or even two of three, founds no second
/// cluster beside the member that remembers.
#[test]
fn c4_a_wiped_member_that_is_declared_new_recovers() {
    let mut cluster = founded();
    let leader = cluster.leader().expect("founded");
    let wiped = 1 + leader % 3;
    wipe_and_initialise(&mut cluster, wiped);
    cluster.start(wiped);
    assert_eq!(memory(&cluster, wiped), Memory::New);
    cluster.run(1_000);
    assert_eq!(memory(&cluster, wiped), Memory::Intact);
    assert_eq!(cluster.node(wiped).machine, cluster.node(leader).machine);

    let remembers = 1 + wiped % 3;
    for id in cluster.ids().into_iter().filter(|id| *id != remembers) {
        wipe_and_initialise(&mut cluster, id);
    }
    cluster.flying.clear();
    for id in cluster.ids().into_iter().filter(|id| *id != remembers) {
        cluster.start(id);
    }
    cluster.run(20_000);
    assert_eq!(cluster.leader(), None);
    for id in cluster.ids().into_iter().filter(|id| *id != remembers) {
        assert_eq!(
            memory(&cluster, id),
            Memory::Lost,
            "node {id} has learned that there is a term"
        );
    }
}

/// A late message that names a member's number from before its restart does not count for its
/// present one.
#[test]
fn a_word_to_an_earlier_life_does_not_count() {
    let mut cluster = Cluster::with_disks(new_disks(3), no_pre_vote);
    cluster.flying.clear();
    let founding = |heard| {
        let body = MessageBody::Founding { number: 7, heard, met: false, version_max: 1 };
        Message::new(0, body)
    };
    let own = |cluster: &mut Cluster| {
        cluster.rush(1);
        let sent = cluster.sent_by(1);
        sent.into_iter().find_map(|(_, message)| match message.body {
            MessageBody::Founding { number, .. } => Some(number),
            _ => None,
        })
    };
    let earlier = own(&mut cluster).expect("it makes itself known");
    cluster.crash(1, 0);
    cluster.start(1);
    cluster.flying.clear();
    for from in [2, 3] {
        cluster.step(from, 1, founding(Some(earlier)));
        cluster.step(from, 1, founding(None));
        cluster.step(from, 1, founding(Some(earlier)));
    }
    assert_eq!(memory(&cluster, 1), Memory::New);
    let present = own(&mut cluster).expect("it makes itself known");
    assert_ne!(present, earlier);
    for from in [2, 3] {
        cluster.step(from, 1, founding(Some(present)));
    }
    assert_eq!(
        cluster.node(1).disk.loaded.hard_state,
        HardState { memory: Memory::Met, ..HardState::INITIAL }
    );
}
