//! Rounds of faults on one cluster, with clients at work all the time.
//!
//! Each round draws a fault, lets it last for a while, takes it back, and requires a write within
//! five seconds. Then the histories of the round are checked, and at the end those of all rounds
//! once more: writes acknowledged in the first round have survived every fault since.
//!
//! Each module has the faults of one component: their list, their needs, and their making.
//!
//! `FAULT_ROUNDS` and `FAULT_SEED` choose the number of rounds and the seed; `scripts/faults` sets
//! them. `FAULT_ONLY=Members` draws only faults whose name contains this.

mod clients;
mod directories;
mod disks;
mod links;
mod means;
mod members;
mod processes;
mod report;
mod snapshots;

use std::collections::BTreeMap;
use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY};
use integration_tests::processes::disk::Disk;
use integration_tests::processes::workload::{Done, Workload};
use raft_core::types::NodeId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use self::means::Means;
use self::report::{Report, Round};

/// Number of rounds in a run of all tests.
const ROUNDS_DEFAULT: u64 = 6;
/// Writes that have to be acknowledged before a fault, so that it hits something, and after it.
const WRITES_MIN: u64 = 20;
/// Keys that exist from the beginning, so that a snapshot takes its time. Their values are random,
/// so that they cannot be compressed.
const BULK_KEYS: u32 = 64;
const BULK_VALUE_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Process(processes::Fault),
    Link(links::Fault),
    Clients(clients::Fault),
    Snapshot(snapshots::Fault),
    Disk(disks::Fault),
    Directory(directories::Fault),
    Members(members::Fault),
}

impl Fault {
    fn all() -> Vec<Fault> {
        let mut all = Vec::new();
        all.extend(processes::Fault::ALL.map(Fault::Process));
        all.extend(links::Fault::ALL.map(Fault::Link));
        all.extend(clients::Fault::ALL.map(Fault::Clients));
        all.extend(snapshots::Fault::ALL.map(Fault::Snapshot));
        all.extend(disks::Fault::ALL.map(Fault::Disk));
        all.extend(directories::Fault::ALL.map(Fault::Directory));
        all.extend(members::Fault::ALL.map(Fault::Members));
        all
    }

    fn needs(self) -> Option<Means> {
        match self {
            Fault::Process(_)
            | Fault::Link(_)
            | Fault::Clients(_)
            | Fault::Directory(_)
            | Fault::Members(_) => None,
            Fault::Snapshot(fault) => fault.needs(),
            Fault::Disk(fault) => Some(fault.needs()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_of_faults_lose_and_double_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("FAULT_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let seed = number("FAULT_SEED").unwrap_or(1);
    let mut run = Run::start(seed).await;
    for round in 0..rounds {
        run.round(round).await;
    }
    run.finish().await;
}

struct Run {
    cluster: Cluster,
    disks: BTreeMap<NodeId, Disk>,
    faults: Vec<Fault>,
    /// Faults are drawn from the top; an empty deck is shuffled anew, so that each fault gets its
    /// turn.
    deck: Vec<Fault>,
    chance: StdRng,
    seed: u64,
    done: Vec<Done>,
    report: Report,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let disks = means::disks();
        let data = disks.iter().flatten().map(|(id, disk)| (*id, disk.data())).collect();
        let file_faults = means::file_faults();
        let plan = Plan { data, seed, file_faults: file_faults.is_ok(), ..Plan::default() };
        let cluster = Cluster::start(plan).await;
        let missing = BTreeMap::from([
            (Means::Disks, disks.as_ref().err().cloned()),
            (Means::FileFaults, file_faults.err()),
            (Means::Strace, means::strace(&cluster.nodes[&1]).err()),
        ]);
        let only = std::env::var("FAULT_ONLY").unwrap_or_default();
        let wanted = Fault::all().into_iter().filter(|fault| format!("{fault:?}").contains(&only));
        let faults = means::of_which_there_are_means(wanted.collect(), &missing);
        let client = cluster.client();
        for number in 0..BULK_KEYS {
            let mut value = vec![0; BULK_VALUE_BYTES];
            chance.fill(&mut value[..]);
            client.put(format!("bulk/{number}"), value).await.unwrap();
        }
        Self {
            cluster,
            disks: disks.unwrap_or_default(),
            faults,
            deck: Vec::new(),
            chance,
            seed,
            done: Vec::new(),
            report: Report::default(),
        }
    }

    fn draw(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = self.faults.clone();
            rand::seq::SliceRandom::shuffle(&mut self.deck[..], &mut self.chance);
        }
        self.deck.pop().unwrap()
    }

    async fn round(&mut self, number: u64) {
        let fault = self.draw();
        let began = Instant::now();
        let name = format!("round{number}");
        let load = Workload::start(&self.cluster, &name, self.seed ^ (number << 32));
        load.advances_by(WRITES_MIN).await;
        let leader = self.cluster.leader().await;
        eprintln!("round {number}: {fault:?} of leader {leader}");
        let struck = Instant::now();
        self.inflict(fault, leader, &load).await;
        let lasted = struck.elapsed();
        let recovery = self.cluster.serves_within(RECOVERY).await;
        load.advances_by(WRITES_MIN).await;
        let done = load.stop().await;
        let checked = done.check(&self.cluster.client()).await;
        if let Err(wrong) = checked {
            let nodes = self.cluster.describe().await;
            panic!("round {number} of seed {}, {fault:?}: {wrong}\n{nodes}", self.seed);
        }
        self.cluster.no_node_has_failed();
        let seen = done.summary();
        self.done.push(done);
        self.report.add(Round { number, fault, lasted, recovery, took: began.elapsed(), seen });
    }

    async fn finish(self) {
        let client = self.cluster.client();
        for (round, done) in self.done.iter().enumerate() {
            if let Err(wrong) = done.check(&client).await {
                panic!("round {round} of seed {}, looked at again at the end: {wrong}", self.seed);
            }
        }
        self.cluster.converges().await;
        self.cluster.finish().await;
        self.report.tell(self.seed);
    }

    /// Makes the fault, waits, and takes it back.
    async fn inflict(&mut self, fault: Fault, leader: NodeId, load: &Workload) {
        match fault {
            Fault::Process(fault) => self.inflict_on_processes(fault, leader).await,
            Fault::Link(fault) => self.inflict_on_links(fault, leader).await,
            Fault::Clients(fault) => self.inflict_on_clients(fault, leader, load).await,
            Fault::Snapshot(fault) => self.inflict_on_snapshot(fault, leader).await,
            Fault::Disk(fault) => self.inflict_on_disks(fault, leader).await,
            Fault::Directory(fault) => self.inflict_on_directory(fault, leader, load).await,
            Fault::Members(fault) => self.inflict_on_members(fault, leader).await,
        }
    }

    fn any_node(&mut self) -> NodeId {
        *NODES.choose(&mut self.chance).unwrap()
    }

    fn follower(&mut self, leader: NodeId) -> NodeId {
        *self.cluster.peers_of(leader).choose(&mut self.chance).unwrap()
    }

    async fn last(&mut self, ms: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.chance.random_range(ms))).await;
    }
}
