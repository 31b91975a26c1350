//! The cluster version: the formats that all members may use
//! (`consensus::role::leader::configuration`).

use raft_core::consensus::RoleKind::Leader;
use raft_core::consensus::{Boot, Config, Raft};
use raft_core::error::Rejected;
use raft_core::types::{
    Configuration, Entry, HardState, Index, Loaded, Message, MessageBody, Payload, Position, Time,
};

use crate::common::Cluster;

/// Three nodes that use version 1; nodes 1 and 2 support version 2, node 3 does not. Node 1 leads
/// and has received the supported versions of all.
fn upgraded() -> Cluster {
    let mut cluster = Cluster::with_config(3, |config| {
        config.version_max = if config.id == 3 { 1 } else { 2 };
    });
    cluster.fire(1);
    cluster.settle();
    assert_eq!(cluster.role(1), Leader);
    cluster.run(200);
    cluster
}

fn raise(cluster: &mut Cluster, version: u32) -> Result<Position, Rejected> {
    cluster.with(1, |raft, _| raft.raise_cluster_version(version))
}

fn restart_with(cluster: &mut Cluster, configure: fn(&mut Config)) {
    cluster.crash(3, 0);
    cluster.configure = Box::new(configure);
    cluster.start(3);
    cluster.run(200);
}

/// The version is raised only once every member has announced that it supports the new one.
#[test]
fn the_last_member_decides() {
    let mut cluster = upgraded();
    let refusal = raise(&mut cluster, 2).expect_err("node 3 knows version 1 only");
    assert!(refusal.to_string().contains("node 3 knows versions up to 1"), "{refusal}");
    restart_with(&mut cluster, |config| config.version_max = 2);
    let at = raise(&mut cluster, 2).expect("all know it");
    assert!(matches!(raise(&mut cluster, 3), Err(Rejected::Busy(_))), "one change at a time");
    assert_eq!(cluster.status(1).cluster_version, 1, "not before it is committed");
    cluster.run(200);
    for id in cluster.ids() {
        assert!(cluster.status(id).commit_index >= at.index);
        assert_eq!(cluster.status(id).cluster_version, 2, "node {id}");
    }
    assert!(matches!(raise(&mut cluster, 2), Err(Rejected::Refused(_))), "it is in use already");
}

/// A raised version that was not committed is reverted when its entry is truncated.
#[test]
fn a_truncated_version_is_taken_back() {
    let mut cluster = upgraded();
    restart_with(&mut cluster, |config| config.version_max = 2);
    cluster.isolate(1);
    raise(&mut cluster, 2).expect("all know it");
    cluster.elect(2);
    cluster.heal();
    cluster.run(1_000);
    for id in cluster.ids() {
        assert_eq!(cluster.status(id).cluster_version, 1, "node {id}");
    }
}

/// C8. A snapshot, and the log's start after it, carry the configuration in force at their
/// position. A newer one in the log may yet be truncated, and could not be removed from the
/// snapshot again.
#[test]
fn c8_a_snapshot_carries_the_configuration_of_its_position() {
    let mut cluster = upgraded();
    restart_with(&mut cluster, |config| config.version_max = 2);
    cluster.isolate(1);
    let at = raise(&mut cluster, 2).expect("all know it");
    let applied_index = cluster.status(1).last_applied;
    assert_eq!(applied_index + 1, at.index, "the entry is not committed");
    cluster.snapshot(1);
    cluster.compact(1, applied_index);
    let loaded = cluster.node(1).disk.loaded.clone();
    let snapshot = loaded.snapshot.expect("it is published");
    assert_eq!((snapshot.index(), loaded.log_start.index()), (applied_index, applied_index));
    assert_eq!(snapshot.configuration.cluster_version, 1);
    assert_eq!(loaded.log_start.configuration.cluster_version, 1);
    cluster.elect(2);
    cluster.heal();
    cluster.run(1_000);
    assert_eq!(cluster.status(1).cluster_version, 1, "the entry is gone");
    assert!(cluster.status(1).commit_index >= at.index);
}

fn start(config: Config, stored: Configuration, named: &[u64]) -> Result<Raft, String> {
    let entry = Entry { index: 1, term: 1, payload: Payload::Configuration(Box::new(stored)) };
    let loaded = Loaded {
        hard_state: HardState { term: 1, ..HardState::INITIAL },
        entries: vec![entry],
        ..Loaded::default()
    };
    let bootstrap = Configuration::of_voters(named.iter().copied());
    let boot = Boot { loaded, last_applied: Position::ZERO, bootstrap };
    Raft::new(config, boot, Time::ZERO).map_err(|error| error.to_string())
}

/// A program that does not know the log's version does not start. The error says which program
/// does.
#[test]
fn a_log_of_another_version_is_refused() {
    let of = |version| Configuration {
        founded: true,
        cluster_version: version,
        ..Configuration::of_voters([1, 2, 3])
    };
    let knows = |min, max| {
        let mut config = Config::new(1, 1);
        (config.version_min, config.version_max) = (min, max);
        config
    };
    assert!(start(knows(1, 2), of(2), &[1, 2, 3]).is_ok());
    let newer = start(knows(1, 2), of(3), &[1, 2, 3]).expect_err("too new");
    assert!(newer.contains("uses version 3") && newer.contains("newer program"), "{newer}");
    let older = start(knows(2, 3), of(1), &[1, 2, 3]).expect_err("too old");
    assert!(older.contains("uses version 1") && older.contains("older program"), "{older}");
}

/// C3. The members are those that the cluster was founded with, not those in the present file.
#[test]
fn c3_other_members_than_those_of_the_log_are_refused() {
    let stored = Configuration { founded: true, ..Configuration::of_voters([1, 2, 3]) };
    assert!(start(Config::new(1, 1), stored.clone(), &[1, 2, 3]).is_ok());
    for named in [&[1, 2, 3, 4, 5][..], &[1, 2], &[1, 2, 4]] {
        let error = start(Config::new(1, 1), stored.clone(), named).expect_err("other members");
        assert!(error.contains("{1, 2, 3}") && error.contains("addresses can"), "{error}");
    }
}

/// A follower does not acknowledge an entry of a version that it does not know.
#[test]
fn an_entry_of_a_newer_version_is_refused() {
    let mut cluster = upgraded();
    let last: Index = cluster.status(3).last_index;
    let newer = Configuration { cluster_version: 2, ..cluster.voters.clone() };
    let entry =
        Entry { index: last + 1, term: 1, payload: Payload::Configuration(Box::new(newer)) };
    let append = MessageBody::AppendEntries {
        previous: Position::new(1, last),
        entries: vec![entry],
        commit_index: last,
    };
    cluster.step(1, 3, Message::new(1, append));
    assert_eq!(cluster.status(3).last_index, last);
    assert!(cluster.node(3).alarms.iter().any(|alarm| alarm.contains("install a newer program")));
}
