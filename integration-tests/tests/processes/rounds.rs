//! Round after round of faults on one cluster, with clients at work all the time.
//!
//! Each round draws a fault, lets it have its time, takes it back, and wants a write within five seconds.
//! Then the histories of the round are checked, at the end those of all rounds once more: what was
//! acknowledged in the first round has survived every fault since.
//!
//! `FAULT_ROUNDS` and `FAULT_SEED` say how many rounds and which; `scripts/faults` sets them.

use std::collections::BTreeMap;
use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY};
use integration_tests::processes::disk::Disk;
use integration_tests::processes::inject::Injection;
use integration_tests::processes::means::not_run;
use integration_tests::processes::network::Conditions;
use integration_tests::processes::workload::{Done, Summary, Workload};
use raft_core::types::NodeId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

/// In a run of all tests.
const ROUNDS_DEFAULT: u64 = 6;
/// Writes that have to be acknowledged before a fault, or it has hit nothing, and after it.
const WRITES_MIN: u64 = 20;
const DISK_MEBIBYTES: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillOne,
    KillLeader,
    KillAll,
    /// All at once, again before they are up.
    KillAllTwice,
    StopAndStartAll,
    PauseLeader,
    PauseFollowers,
    Isolate,
    IsolateLeader,
    /// The leader hears nobody, or nobody hears it.
    LeaderDeaf,
    LeaderMute,
    OneWay,
    /// Two nodes do not reach each other, the third reaches both.
    Bridge,
    Loss,
    BadLinks,
    NarrowLinks,
    SyncFails,
    SyncIsSlow,
    LeaderLosesPower,
    AllLosePower,
    LeaderDiskFreezes,
}

const ANYWHERE: &[Fault] = &[
    Fault::KillOne,
    Fault::KillLeader,
    Fault::KillAll,
    Fault::KillAllTwice,
    Fault::StopAndStartAll,
    Fault::PauseLeader,
    Fault::PauseFollowers,
    Fault::Isolate,
    Fault::IsolateLeader,
    Fault::LeaderDeaf,
    Fault::LeaderMute,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Loss,
    Fault::BadLinks,
    Fault::NarrowLinks,
];
const WITH_STRACE: &[Fault] = &[Fault::SyncFails, Fault::SyncIsSlow];
const WITH_DISKS: &[Fault] =
    &[Fault::LeaderLosesPower, Fault::AllLosePower, Fault::LeaderDiskFreezes];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_faults_lose_and_double_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("FAULT_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let seed = number("FAULT_SEED").unwrap_or(1);
    let mut run = Run::start(seed).await;
    for round in 0..rounds {
        run.round(round).await;
    }
    run.finish(rounds).await;
}

struct Run {
    cluster: Cluster,
    disks: BTreeMap<NodeId, Disk>,
    faults: Vec<Fault>,
    /// Drawn from the top, and shuffled anew when it is empty: each fault gets its turn.
    deck: Vec<Fault>,
    chance: StdRng,
    seed: u64,
    done: Vec<Done>,
    total: Summary,
    slowest: Duration,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let mut faults = ANYWHERE.to_vec();
        let disks: Result<BTreeMap<NodeId, Disk>, String> =
            NODES.into_iter().map(|id| Ok((id, Disk::new(DISK_MEBIBYTES)?))).collect();
        let disks = disks.unwrap_or_else(|why| {
            not_run("rounds with loss of power and frozen disks", &why);
            BTreeMap::new()
        });
        if !disks.is_empty() {
            faults.extend(WITH_DISKS);
        }
        let data = disks.iter().map(|(id, disk)| (*id, disk.data())).collect();
        let cluster = Cluster::start(Plan { data, seed, ..Plan::default() }).await;
        match Injection::into_node(&cluster.nodes[&1], &["fdatasync:delay_exit=1"]) {
            Ok(_) => faults.extend(WITH_STRACE),
            Err(why) => not_run("rounds with failing and slow syncs", &why),
        }
        Self {
            cluster,
            disks,
            faults,
            deck: Vec::new(),
            chance: StdRng::seed_from_u64(seed),
            seed,
            done: Vec::new(),
            total: Summary::default(),
            slowest: Duration::ZERO,
        }
    }

    fn draw(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = self.faults.clone();
            rand::seq::SliceRandom::shuffle(&mut self.deck[..], &mut self.chance);
        }
        self.deck.pop().unwrap()
    }

    async fn round(&mut self, round: u64) {
        let fault = self.draw();
        let began = Instant::now();
        let name = format!("round{round}");
        let load = Workload::start(&self.cluster, &name, self.seed ^ (round << 32));
        load.advances_by(WRITES_MIN).await;
        let leader = self.cluster.leader().await;
        let struck = Instant::now();
        self.inflict(fault, leader).await;
        let lasted = struck.elapsed();
        let recovery = self.cluster.serves_within(RECOVERY).await;
        load.advances_by(WRITES_MIN).await;
        let done = load.stop().await;
        let checked = done.check(&self.cluster.client()).await;
        if let Err(wrong) = checked {
            let nodes = self.cluster.describe().await;
            panic!("round {round} of seed {}, {fault:?}: {wrong}\n{nodes}", self.seed);
        }
        self.cluster.no_node_has_failed();
        let seen = done.summary();
        self.done.push(done);
        self.slowest = self.slowest.max(recovery);
        self.total.add(seen);
        eprintln!(
            "round {round}: {fault:?} of leader {leader} for {} ms, recovered in {} ms, {} ms in all, \
             {seen:?}",
            lasted.as_millis(),
            recovery.as_millis(),
            began.elapsed().as_millis()
        );
    }

    async fn finish(self, rounds: u64) {
        let client = self.cluster.client();
        for (round, done) in self.done.iter().enumerate() {
            if let Err(wrong) = done.check(&client).await {
                panic!("round {round} of seed {}, looked at again at the end: {wrong}", self.seed);
            }
        }
        self.cluster.converges().await;
        self.cluster.finish().await;
        eprintln!(
            "{rounds} rounds of seed {}: nothing lost, nothing doubled, all histories linearizable; \
             {:?}; slowest recovery {} ms",
            self.seed,
            self.total,
            self.slowest.as_millis()
        );
    }

    /// Does it, waits, and takes it back.
    async fn inflict(&mut self, fault: Fault, leader: NodeId) {
        let [follower, other] = self.cluster.peers_of(leader);
        let any = *NODES.choose(&mut self.chance).unwrap();
        let (any_peer, _) = self.cluster.peers_of(any).into();
        let cut = Conditions::cut();
        let network = &self.cluster.network;
        let lost_before = network.lost_count();
        match fault {
            Fault::KillOne => return self.kill(&[any]).await,
            Fault::KillLeader => return self.kill(&[leader]).await,
            Fault::KillAll => return self.kill(&NODES).await,
            Fault::KillAllTwice => {
                self.kill(&NODES).await;
                return self.kill(&NODES).await;
            }
            Fault::StopAndStartAll => return self.stop_and_start_all().await,
            Fault::PauseLeader => return self.pause(&[leader]).await,
            Fault::PauseFollowers => return self.pause(&[follower, other]).await,
            Fault::SyncFails => return self.sync_fails(leader).await,
            Fault::SyncIsSlow => return self.sync_is_slow(leader).await,
            Fault::LeaderLosesPower => return self.lose_power(&[leader]).await,
            Fault::AllLosePower => return self.lose_power(&NODES).await,
            Fault::LeaderDiskFreezes => return self.freeze(leader).await,
            Fault::Isolate => network.set_around(any, &cut),
            Fault::IsolateLeader => network.set_around(leader, &cut),
            Fault::LeaderDeaf => {
                network.set(follower, leader, cut.clone());
                network.set(other, leader, cut);
            }
            Fault::LeaderMute => {
                network.set(leader, follower, cut.clone());
                network.set(leader, other, cut);
            }
            Fault::OneWay => network.set(any, any_peer, cut),
            Fault::Bridge => network.set_both(any, any_peer, &cut),
            Fault::Loss => network.set_all(&Conditions::losing(0.2)),
            Fault::BadLinks => network.set_all(&Conditions {
                loss: 0.05,
                duplication: 0.2,
                damage: 0.02,
                delay: Duration::from_millis(1)..Duration::from_millis(40),
                ..Conditions::default()
            }),
            Fault::NarrowLinks => network.set_all(&Conditions {
                bytes_per_second: Some(200_000),
                delay: Duration::from_millis(5)..Duration::from_millis(6),
                ..Conditions::default()
            }),
        }
        self.last(500..3_000).await;
        self.cluster.network.heal();
        if fault != Fault::NarrowLinks {
            let lost = self.cluster.network.lost_count() - lost_before;
            assert!(lost > 0, "{fault:?} has hit nothing");
        }
    }

    async fn last(&mut self, ms: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.chance.random_range(ms))).await;
    }

    async fn kill(&mut self, victims: &[NodeId]) {
        for id in victims {
            self.cluster.node(*id).signal(rustix::process::Signal::KILL);
        }
        for id in victims {
            self.cluster.node(*id).ended().await;
        }
        self.last(0..1_000).await;
        self.cluster.start_all();
        // The second time it may hit them while they recover.
        self.last(0..300).await;
    }

    async fn stop_and_start_all(&mut self) {
        for id in NODES {
            let status = self.cluster.node(id).stop().await;
            assert!(status.success(), "{}", self.cluster.node(id).said());
            self.cluster.node(id).start();
        }
    }

    async fn pause(&mut self, victims: &[NodeId]) {
        for id in victims {
            self.cluster.node(*id).pause();
        }
        self.last(1_000..4_000).await;
        for id in victims {
            self.cluster.node(*id).resume();
        }
    }

    async fn sync_fails(&mut self, victim: NodeId) {
        let node = self.cluster.node(victim);
        let injection = Injection::into_node(node, &["fdatasync:error=EIO", "fsync:error=EIO"]);
        let injection = injection.expect("it could be done before");
        let said = node.gives_up().await;
        drop(injection);
        super::disks::says_what_to_do(&said, "error");
        self.last(0..500).await;
        self.cluster.start_all();
    }

    async fn sync_is_slow(&mut self, victim: NodeId) {
        let slow = ["fdatasync:delay_exit=200000", "fsync:delay_exit=200000"];
        let injection = Injection::into_node(self.cluster.node(victim), &slow);
        let injection = injection.expect("it could be done before");
        self.last(1_000..3_000).await;
        drop(injection);
    }

    async fn lose_power(&mut self, victims: &[NodeId]) {
        for id in victims {
            self.disks[id].lose_power().unwrap();
        }
        for id in victims {
            self.cluster.node(*id).kill_if_running().await;
        }
        for id in victims {
            self.disks.get_mut(id).unwrap().regain_power();
        }
        self.last(0..500).await;
        self.cluster.start_all();
    }

    async fn freeze(&mut self, victim: NodeId) {
        let frozen = self.disks[&victim].freeze().unwrap();
        let ms = self.chance.random_range(500..4_000);
        sleep(Duration::from_millis(ms)).await;
        drop(frozen);
    }
}
