//! Findings of an attack on founding, recovery, the stall rules and cluster versions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use raft_core::consensus::RoleKind::{Leader, PreCandidate};
use raft_core::consensus::{Boot, Config, Raft};
use raft_core::types::{
    Configuration, Entry, HardState, Loaded, Memory, Message, MessageBody, NodeId, Payload,
    Position, Time,
};

use crate::common::{Cluster, Disk, Envelope, Parcel, say};
use crate::{no_pre_vote, plain};

/// Links on which messages with entries wait, in order, for the link's rate. Each link's mailbox
/// holds `mailbox_bytes_max` and drops the messages beyond. All other messages arrive at once.
struct SlowLinks {
    bytes_per_ms: u64,
    mailbox_bytes_max: u64,
    queues: BTreeMap<(NodeId, NodeId), VecDeque<(Envelope, u64)>>,
    waiting_bytes: BTreeMap<(NodeId, NodeId), u64>,
    credit_bytes: BTreeMap<(NodeId, NodeId), u64>,
}

impl SlowLinks {
    fn new(bytes_per_ms: u64) -> Self {
        Self {
            bytes_per_ms,
            mailbox_bytes_max: 32 << 20,
            queues: BTreeMap::new(),
            waiting_bytes: BTreeMap::new(),
            credit_bytes: BTreeMap::new(),
        }
    }

    fn take(&mut self, cluster: &mut Cluster) {
        while let Some(envelope) = cluster.flying.pop_front() {
            let bytes = match &envelope.parcel {
                Parcel::Message(message) if !matches!(&message.body, MessageBody::AppendEntries { entries, .. } if entries.is_empty()) => {
                    match &message.body {
                        MessageBody::AppendEntries { .. } => message.size_bytes(),
                        _ => 0,
                    }
                }
                _ => 0,
            };
            let link = (envelope.from, envelope.to);
            if bytes == 0 {
                cluster.flying.push_front(envelope);
                cluster.deliver(0);
                continue;
            }
            let waiting = self.waiting_bytes.entry(link).or_default();
            if *waiting > 0 && *waiting + bytes > self.mailbox_bytes_max {
                continue;
            }
            *waiting += bytes;
            self.queues.entry(link).or_default().push_back((envelope, bytes));
        }
    }

    fn tick(&mut self, cluster: &mut Cluster, millis: u64) {
        cluster.advance(Duration::from_millis(millis), false);
        self.take(cluster);
        let mut due = Vec::new();
        for (link, queue) in &mut self.queues {
            let credit = self.credit_bytes.entry(*link).or_default();
            *credit += millis * self.bytes_per_ms;
            while let Some((_, bytes)) = queue.front()
                && bytes <= credit
            {
                let (envelope, bytes) = queue.pop_front().expect("it is there");
                *credit -= bytes;
                *self.waiting_bytes.get_mut(link).expect("it is there") -= bytes;
                due.push(envelope);
            }
            if queue.is_empty() {
                *credit = 0;
            }
        }
        for envelope in due {
            cluster.flying.push_front(envelope);
            cluster.deliver(0);
            self.take(cluster);
        }
    }
}

fn big(cluster: &mut Cluster, leader: NodeId, bytes: usize) {
    let command = "x".repeat(bytes);
    cluster.propose(leader, &command).expect("it leads");
}

/// A client proposes a command of 4 MiB, the default `command_bytes_max`, and again whenever no log
/// holds it. The links have 6 Mbit/s. Returns the milliseconds spent, the last term, and 1 if the
/// command was applied.
fn slow_link_commits_one_large_command(stall: bool) -> (u64, u64, u64) {
    let mut cluster = Cluster::with_config(3, move |config| {
        if !stall {
            config.stall_patience = Duration::from_secs(1_000_000);
        }
    });
    cluster.elect(1);
    cluster.run(200);
    let mut links = SlowLinks::new(750);
    let is_big = |entry: &Entry| entry.size_bytes() > 1 << 20;
    let applied = |cluster: &Cluster| {
        cluster.up().iter().any(|id| cluster.node(*id).machine.applied.iter().any(is_big))
    };
    let mut spent = 0;
    while spent < 300_000 && !applied(&cluster) {
        links.tick(&mut cluster, 10);
        spent += 10;
        let Some(leader) = cluster.leader() else { continue };
        let has_it = cluster.node(leader).log.loaded.entries.iter().any(is_big);
        if !has_it {
            big(&mut cluster, leader, 4 << 20);
        }
    }
    let term = cluster.ids().iter().map(|id| cluster.raft(*id).term()).max().expect("it is there");
    (spent, term, u64::from(applied(&cluster)))
}

/// Without the stall rule the command commits.
#[test]
fn control_large_command_on_a_slow_link() {
    let (spent, term, committed) = slow_link_commits_one_large_command(false);
    println!("control: committed {committed} after {spent} ms in term {term}");
    assert_eq!((term, committed), (1, 1), "after {spent} ms");
}

/// With the stall rule it commits, too: the leader does not step down each time before the command
/// has arrived.
#[test]
fn large_command_on_a_slow_link() {
    let (spent, term, committed) = slow_link_commits_one_large_command(true);
    println!("committed {committed} after {spent} ms in term {term}");
    assert_eq!(committed, 1, "not committed after {spent} ms, in term {term}");
}

/// Nodes 2 and 3 have lost their disks; node 3 received entries beyond node 1's and was not
/// readmitted. Node 1 must report that a majority is lost, even if node 3 rejects it because of its
/// longer log.
#[test]
fn a_lost_majority_that_refuses_is_noticed() {
    let mut cluster = Cluster::new(3);
    cluster.elect(2);
    cluster.run(200);
    cluster.isolate(1);
    for command in ["a", "b"] {
        cluster.propose(2, command).expect("it leads");
        cluster.settle();
    }
    cluster.crash(3, 0);
    cluster.lose_disk(3);
    cluster.start(3);
    cluster.run(250);
    assert_eq!(cluster.role(2), Leader);
    assert_eq!(cluster.status(3).memory, Memory::Lost, "node 1 was not received");
    assert!(cluster.status(3).last_index > cluster.status(1).last_index);
    cluster.crash(2, 0);
    cluster.lose_disk(2);
    cluster.start(2);
    cluster.heal();
    cluster.run(60_000);
    assert_eq!(cluster.leader(), None);
    assert!(
        cluster.status(1).is_majority_lost,
        "60 s without a leader, and no word: {:?}",
        cluster.node(1).alarms
    );
}

/// A follower with an older program refuses the leader's snapshot. The leader must not offer it in
/// a loop.
#[test]
fn a_refused_snapshot_is_not_offered_in_a_loop() {
    let mut cluster = Cluster::with_config(3, |config| config.version_max = 2);
    cluster.elect(1);
    cluster.run(200);
    cluster.crash(3, 0);
    cluster.with(1, |raft, _| raft.raise_cluster_version(2)).expect("all know it");
    cluster.settle();
    cluster.propose(1, "a").expect("it leads");
    cluster.settle();
    cluster.snapshot(1);
    let index = cluster.status(1).last_applied;
    cluster.compact(1, index);
    cluster.configure = Box::new(|config| config.version_max = if config.id == 3 { 1 } else { 2 });
    cluster.start(3);
    cluster.with(1, |raft, now| raft.on_unreachable(now, 3));
    for _ in 0..3 {
        cluster.advance(Duration::from_millis(60), false);
        let probes = cluster.flying.len();
        for _ in 0..2 * probes {
            if !cluster.flying.is_empty() && cluster.node(3).alarms.is_empty() {
                cluster.deliver(0);
            }
        }
    }
    // Delivers without letting time pass.
    let mut steps = 0;
    while !cluster.flying.is_empty() && steps < 2_000 {
        cluster.deliver(0);
        steps += 1;
    }
    let offers = cluster.node(3).alarms.len();
    println!("{offers} offers in {steps} steps");
    assert!(
        offers < 10,
        "{offers} offers refused in no time, {steps} parcels: {}",
        cluster.node(3).alarms[0]
    );
}

/// A follower that refuses an entry must not raise its alarm again and again.
#[test]
fn a_refused_entry_is_not_told_again_and_again() {
    let mut cluster = Cluster::with_config(3, |config| config.version_max = 2);
    cluster.elect(1);
    cluster.run(200);
    cluster.crash(3, 0);
    cluster.with(1, |raft, _| raft.raise_cluster_version(2)).expect("all know it");
    cluster.settle();
    cluster.configure = Box::new(|config| config.version_max = if config.id == 3 { 1 } else { 2 });
    cluster.start(3);
    cluster.run(60_000);
    let count = cluster.node(3).alarms.len();
    assert!(count < 10, "{count} alarms in 60 s");
}

fn new_members(
    lists: &[&[NodeId]],
    configure: impl Fn(NodeId, &mut Config),
) -> BTreeMap<NodeId, Raft> {
    let rafts = (1..).zip(lists).map(|(id, list)| {
        let mut config = Config::new(id, id + 77);
        configure(id, &mut config);
        let loaded = Loaded { hard_state: HardState::FOUNDING, ..Loaded::default() };
        let boot = Boot {
            loaded,
            last_applied: Position::ZERO,
            bootstrap: Configuration::of_voters(list.iter().copied()),
        };
        (id, Raft::new(config, boot, Time::ZERO).expect("a configuration"))
    });
    rafts.collect()
}

/// Runs plain nodes, with disks that write at once. Returns the alarms, and the entries that each
/// applied.
fn run_rafts(
    rafts: &mut BTreeMap<NodeId, Raft>,
    millis: u64,
) -> (Vec<String>, BTreeMap<NodeId, Vec<Entry>>) {
    let (mut alarms, mut applied) = (Vec::new(), BTreeMap::<NodeId, Vec<Entry>>::new());
    for milli in 1..=millis {
        let now = Time::ZERO + Duration::from_millis(milli);
        for raft in rafts.values_mut() {
            if raft.next_deadline() <= now {
                raft.on_timeout(now);
            }
        }
        loop {
            let mut sent = Vec::new();
            for (id, raft) in rafts.iter_mut() {
                let ready = raft.ready(now);
                alarms.extend(ready.alarms.into_iter().map(|alarm| format!("{id}: {alarm}")));
                sent.extend(ready.messages.into_iter().map(|(to, message)| (*id, to, message)));
                if let Some(persist) = ready.persist {
                    raft.on_persisted(now, persist.id);
                    sent.push((0, 0, Message::new(0, MessageBody::ReadIndex { id: 0 })));
                }
                if let Some(last) = ready.committed.last() {
                    raft.on_applied(last.index);
                    applied.entry(*id).or_default().extend(ready.committed);
                }
            }
            if sent.is_empty() {
                break;
            }
            for (from, to, message) in sent {
                if let Some(raft) = rafts.get_mut(&to) {
                    raft.step(now, from, message);
                }
            }
        }
    }
    (alarms, applied)
}

/// Programs without a common version found no cluster: the node whose program knows none of the
/// others' versions waits, and says so once. With a program that knows one, the cluster is founded.
#[test]
fn programs_without_a_common_version() {
    let members: [&[NodeId]; 3] = [&[1, 2, 3]; 3];
    let mut rafts = new_members(&members, |id, config| {
        (config.version_min, config.version_max) = if id == 3 { (2, 3) } else { (1, 1) };
    });
    let (alarms, applied) = run_rafts(&mut rafts, 3_000);
    let [alarm] = &alarms[..] else { panic!("one alarm: {alarms:?}") };
    assert!(alarm.starts_with("3: the cluster is not founded"), "{alarm}");
    assert!(rafts.values().all(|raft| raft.term() == 0 && raft.leader().is_none()));
    assert_eq!(applied, BTreeMap::new());
    // Node 3 restarts with another program.
    let mut newer = new_members(&members, |id, config| {
        (config.seed, config.version_max) = (id + 99, 3);
    });
    rafts.insert(3, newer.remove(&3).expect("a member"));
    let (alarms, applied) = run_rafts(&mut rafts, 6_000);
    assert_eq!(alarms, [""; 0]);
    for (id, entries) in applied {
        let founded = entries.iter().any(|entry| match &entry.payload {
            Payload::Configuration(stored) => stored.founded && stored.cluster_version == 1,
            Payload::Noop | Payload::Command(_) => false,
        });
        assert!(founded && rafts[&id].leader().is_some(), "node {id}: {entries:?}");
    }
    assert!(rafts.values().all(|raft| raft.status().founded));
}

/// A peer claims that its newest version is 0. The founded cluster must be able to restart.
#[test]
fn version_zero_from_a_peer() {
    let mut rafts = new_members(&[&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]], |_, config| {
        (config.version_min, config.version_max) = (1, 2);
    });
    // Node 3 does not run: the test sends a message in its name, with version 0.
    let mut bad = new_members(&[&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]], |_, config| {
        config.version_max = 1;
    });
    let _ = bad.remove(&3);
    let now = Time::ZERO;
    for raft in rafts.values_mut() {
        raft.on_timeout(now);
    }
    let mut numbers = BTreeMap::new();
    let mut sent = Vec::new();
    for (id, raft) in &mut rafts {
        let ready = raft.ready(now);
        for (to, message) in ready.messages {
            if let MessageBody::Founding { number, .. } = message.body {
                numbers.insert(*id, number);
            }
            sent.push((*id, to, message));
        }
    }
    rafts.remove(&3);
    for id in [1, 2] {
        let body = MessageBody::Founding {
            number: 5,
            heard: Some(numbers[&id]),
            met: true,
            version_max: 0,
        };
        rafts.get_mut(&id).expect("it is there").step(now, 3, Message::new(0, body));
    }
    for (from, to, message) in sent {
        if let Some(raft) = rafts.get_mut(&to).filter(|_| from != 3) {
            raft.step(now, from, message);
        }
    }
    let (_, applied) = run_rafts(&mut rafts, 3_000);
    let entries = applied.get(&1).cloned().unwrap_or_default();
    let loaded = Loaded {
        hard_state: HardState { term: 1, ..HardState::INITIAL },
        entries: entries.clone(),
        ..Loaded::default()
    };
    let boot = Boot {
        loaded,
        last_applied: Position::ZERO,
        bootstrap: Configuration::of_voters([1, 2, 3]),
    };
    let mut config = Config::new(1, 9);
    (config.version_min, config.version_max) = (1, 2);
    let restarted = Raft::new(config, boot, Time::ZERO);
    assert!(!entries.is_empty());
    assert!(
        restarted.is_ok(),
        "no node of the cluster starts any more: {}",
        restarted.unwrap_err()
    );
}

/// Entries that name other members are refused. A snapshot that names them must be refused, too, or
/// the node could not start again.
#[test]
fn a_snapshot_of_other_members_is_refused_like_an_entry() {
    let mut cluster = Cluster::with_config(3, no_pre_vote);
    let mut others = raft_core::types::SnapshotMeta {
        position: Position::new(3, 3),
        configuration: Box::new(Configuration::of_voters([7, 8, 9])),
    };
    for empty in [false, true] {
        if empty {
            *others.configuration = Configuration::default();
        }
        let offer = others.clone();
        let answer = cluster.with(1, |raft, now| raft.on_snapshot_offer(now, 2, 3, &offer));
        assert_ne!(
            answer,
            raft_core::consensus::OfferDecision::Wanted,
            "{:?}",
            offer.configuration
        );
    }
}

/// Rule 3: a node that has learned of a member that has not met all others does not campaign.
#[test]
fn a_pre_candidate_does_not_campaign_once_a_member_has_not_met() {
    let disks = (1..=3).map(|id| (id, Disk::new_member())).collect();
    let mut cluster = Cluster::with_disks(disks, |_| {});
    for id in cluster.ids() {
        cluster.crash(id, 0);
    }
    cluster.voters.founded = false;
    cluster.flying.clear();
    for id in cluster.ids() {
        cluster.start(id);
    }
    // Runs until a node requests pre-votes.
    let candidate = loop {
        let candidate = cluster.ids().into_iter().find(|id| cluster.role(*id) == PreCandidate);
        if let Some(candidate) = candidate {
            break candidate;
        }
        cluster.settle_but_pre_votes();
        if cluster.ids().into_iter().any(|id| cluster.role(id) == PreCandidate) {
            continue;
        }
        cluster.advance(Duration::from_millis(1), false);
    };
    cluster.flying.clear();
    let number = 4711;
    let wiped = 1 + candidate % 3;
    let granting = 1 + wiped % 3;
    let body = MessageBody::Founding { number, heard: None, met: false, version_max: 1 };
    cluster.step(wiped, candidate, Message::new(0, body));
    assert_eq!(cluster.status(candidate).waits_for, [wiped], "it has taken note");
    cluster.step(granting, candidate, say::pre_vote_answer(0, true));
    assert_eq!(cluster.raft(candidate).term(), 0, "rule 3");
}

/// A node must not follow a peer that claims to lead in term 0.
#[test]
fn no_node_leads_in_term_0() {
    let disks = (1..=3).map(|id| (id, Disk::default())).collect();
    let mut cluster = Cluster::with_disks(disks, plain);
    cluster.step(2, 1, say::heartbeat(0, 1, 0));
    let answer = cluster.sent_by(1);
    let number = answer.iter().find_map(|(_, message)| message.recovering).unwrap_or(0);
    cluster.step(2, 1, Message::new(0, MessageBody::Recovered { number }));
    assert_eq!((cluster.status(1).leader, cluster.status(1).memory), (None, Memory::Lost));
}
