//! S1. Values of an ordinary client imitate the log, and all nodes are killed by kill -9: nothing
//! that a client stored becomes raft state, no node refuses its log, and no acknowledged write is
//! missing.
//!
//! A write-ahead file is reused once two more have been filled. So each round writes more than two
//! files' worth of hostile values, until the newest records stand in front of bytes that the same
//! round stored at its beginning, and kills all nodes there.
//!
//! `FORGERY_ROUNDS` sets the number of rounds of each kind; `scripts/bars` sets it.

use std::collections::BTreeMap;

use bytes::Bytes;
use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY, eventually};
use integration_tests::processes::forgery::{self, Tail};
use integration_tests::processes::workload::Workload;
use kv_service::config::default_max_raft_state;
use kv_service::{Client, Consistency};
use raft_core::types::NodeId;
use tokio::task::JoinSet;

/// Number of rounds in a run of all tests.
const ROUNDS_DEFAULT: u64 = 1;
/// More than the two files that are filled before the first one is reused.
const TRAFFIC_BYTES: u64 = 78 << 20;
/// Size of one value: two files hold 256 of them.
const VALUE_BYTES: usize = 256 << 10;
/// Writes between one use of a place in a file and the next.
const WRITES_PER_REUSE: u64 = (64 << 20) / VALUE_BYTES as u64;
/// Keys of a round's values; they are used again, so that the state does not grow.
const VALUE_KEYS: u64 = 64;
const WRITES_AT_ONCE: u64 = 4;
/// Numbers of files that the marks name.
const FILES: std::ops::Range<u32> = 1..1_017;
/// Most small writes in a row, after each of which the nodes may be killed. Each moves the end of
/// the records to a place from which a sled is entered with a chance of one in seven.
const SMALL_WRITES_MAX: u64 = 100;
/// The term of a forged hard state. Real terms stay far below it.
const FORGED_TERM: u64 = 1_000_000_007;
/// The most by which elections after a kill may raise the term.
const ELECTIONS_MAX: u64 = 50;
/// Number of entries that a forged batch replaces.
const NOOPS: u64 = 200;

#[derive(Clone, Debug)]
enum Hostile {
    /// Marks that claim batches far ahead of the real ones to be durable.
    Marks,
    /// A hard state of a later term.
    HardState,
    /// No-ops in place of entries that will be committed.
    Noops,
    /// The node's own write-ahead files, as a backup would have them.
    OwnFiles,
    /// The write-ahead files of another cluster, which has written more batches.
    OtherFiles(Vec<Bytes>),
}

fn rounds() -> u64 {
    let rounds = std::env::var("FORGERY_ROUNDS").ok();
    rounds.map_or(ROUNDS_DEFAULT, |text| text.parse().expect("FORGERY_ROUNDS is a number"))
}

/// S1. The forged marks made all nodes refuse their logs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_marks_in_values_damage_no_log() {
    Attack::run(Hostile::Marks, Plan::default()).await;
}

/// S1. With default settings: logs that are not compacted while the test runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_marks_in_values_damage_no_log_with_default_settings() {
    Attack::run(Hostile::Marks, as_shipped()).await;
}

/// S1. The forged hard state was replayed, and the term jumped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_hard_state_in_values_is_not_replayed() {
    Attack::run(Hostile::HardState, Plan::default()).await;
}

/// S1. The forged entries were replayed, and a node silently lost acknowledged writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_entries_in_values_replace_no_committed_ones() {
    Attack::run(Hostile::Noops, as_shipped()).await;
}

/// S1. Without malice: a backup of the node's own log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_ahead_files_of_the_node_itself_as_values_damage_no_log() {
    Attack::run(Hostile::OwnFiles, Plan::default()).await;
}

/// S1. Without malice: a backup of another cluster's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_ahead_files_of_another_cluster_as_values_damage_no_log() {
    let files = files_of_a_busier_cluster().await;
    Attack::run(Hostile::OtherFiles(files), Plan::default()).await;
}

fn as_shipped() -> Plan {
    Plan { max_raft_state: default_max_raft_state(), ..Plan::default() }
}

struct Attack {
    cluster: Cluster,
    hostile: Hostile,
    client: Client,
    /// Values of acknowledged writes.
    stored: BTreeMap<String, Bytes>,
    /// Position of the last write in the log.
    revision: u64,
    round: u64,
    /// Rounds in which a node was killed right in front of a sled.
    hits: u64,
}

impl Attack {
    async fn run(hostile: Hostile, plan: Plan) {
        let cluster = Cluster::start(plan).await;
        let client = cluster.client();
        let (stored, revision, round, hits) = (BTreeMap::new(), 0, 0, 0);
        let mut attack = Self { cluster, hostile, client, stored, revision, round, hits };
        for round in 0..rounds() {
            attack.round = round;
            attack.round().await;
        }
        attack.everything_is_everywhere().await;
        eprintln!("{} rounds, {} of them in front of a sled", rounds(), attack.hits);
        attack.cluster.finish().await;
    }

    async fn round(&mut self) {
        self.files_are_ready_for_reuse().await;
        let before = self.term().await;
        self.write_hostile_values(before).await;
        let load = match self.hostile {
            Hostile::HardState | Hostile::Noops => {
                self.write_small_values().await;
                None
            }
            Hostile::Marks | Hostile::OwnFiles | Hostile::OtherFiles(_) => {
                let name = format!("round{}", self.round);
                let load = Workload::start(&self.cluster, &name, self.round);
                load.advances_by(50).await;
                Some(load)
            }
        };
        self.cluster.kill_all().await;
        self.cluster.start_all();
        self.cluster.serves_within(RECOVERY).await;
        self.cluster.converges().await;
        self.cluster.no_node_has_failed();
        let after = self.term().await;
        assert!(after <= before + ELECTIONS_MAX, "the term jumped from {before} to {after}");
        if let Some(load) = load {
            load.advances_by(20).await;
            load.stop().await.check(&self.client).await.unwrap();
        }
        self.everything_is_everywhere().await;
    }

    /// After each start the nodes first fill the files that are reused later.
    async fn files_are_ready_for_reuse(&self) {
        for node in self.cluster.nodes.values() {
            eventually("the log's files", async || node.said().contains("ready for reuse")).await;
        }
    }

    /// The highest term of the nodes.
    async fn term(&self) -> u64 {
        let mut terms = Vec::new();
        for id in NODES {
            terms.extend(self.cluster.status(id).await.map(|status| status.term));
        }
        terms.into_iter().max().expect("a node answers")
    }

    async fn write_hostile_values(&mut self, term: u64) {
        let mut written_bytes = 0;
        let mut number = 0;
        while written_bytes < TRAFFIC_BYTES {
            let mut writing = JoinSet::new();
            for _ in 0..WRITES_AT_ONCE {
                let key = format!("value/{}", number % VALUE_KEYS);
                let value = self.hostile_value(number, term);
                written_bytes += value.len() as u64;
                number += 1;
                self.stored.insert(key.clone(), value.clone());
                let client = self.client.clone();
                writing.spawn(async move { client.put(key, value).await });
            }
            while let Some(written) = writing.join_next().await {
                let answer = written.expect("no task panics").expect("nothing is wrong yet");
                self.revision = self.revision.max(answer.revision);
            }
        }
    }

    fn hostile_value(&self, number: u64, term: u64) -> Bytes {
        let value = match &self.hostile {
            // Near enough to be believed, and far ahead, in turn.
            Hostile::Marks if number.is_multiple_of(2) => {
                forgery::marks(FILES, self.revision + 3_000)
            }
            Hostile::Marks => forgery::marks(FILES, self.revision + (1 << 40)),
            Hostile::HardState => forgery::hard_state(FORGED_TERM, VALUE_BYTES),
            Hostile::Noops => {
                // The entries that will be the newest when this place in the file is reached again.
                let from = (self.revision + WRITES_PER_REUSE).saturating_sub(NOOPS / 2);
                forgery::noops(from..from + NOOPS, term, VALUE_BYTES)
            }
            Hostile::OwnFiles => return self.piece_of_own_files(number),
            Hostile::OtherFiles(pieces) => return pieces[number as usize % pieces.len()].clone(),
        };
        let mut value = value.into_iter().cycle().take(VALUE_BYTES).collect::<Vec<u8>>();
        value.truncate(VALUE_BYTES);
        value.into()
    }

    fn piece_of_own_files(&self, number: u64) -> Bytes {
        let id = NODES[number as usize % NODES.len()];
        piece_of_files(&self.cluster, id, number as usize)
    }

    /// Moves the end of the records in small steps, until a node that is killed now would find a
    /// sled there.
    async fn write_small_values(&mut self) {
        for number in 0..SMALL_WRITES_MAX {
            let key = format!("small/{}/{number}", self.round);
            let value = Bytes::from(format!("{:0>1$}", number, 100 + number as usize));
            let answer = self.client.put(key.clone(), value.clone()).await.unwrap();
            self.revision = answer.revision;
            self.stored.insert(key, value);
            let at_sled = NODES.iter().any(|id| {
                let log = self.cluster.nodes[id].data.join("log");
                Tail::of(&log).is_some_and(|tail| tail.stands_before_sled())
            });
            if at_sled {
                self.hits += 1;
                return;
            }
        }
    }

    /// Checks every value by a linearizable read, and by a stale read at each node.
    async fn everything_is_everywhere(&self) {
        self.cluster.converges().await;
        let near = NODES.map(|id| (id, self.cluster.client_of_node(id)));
        for (key, value) in &self.stored {
            let read = self.client.get(key.clone()).await.unwrap();
            assert!(read.is_some_and(|record| record.value == *value), "{key} was acknowledged");
            for (id, client) in &near {
                let read = client.get_with(key.clone(), Consistency::Stale).await.unwrap();
                let is_there = read.is_some_and(|record| record.value == *value);
                assert!(is_there, "node {id} has lost {key}, which was acknowledged");
            }
        }
    }
}

/// One chunk of the write-ahead files of a node as they are now.
fn piece_of_files(cluster: &Cluster, id: NodeId, number: usize) -> Bytes {
    let files = forgery::log_files(&cluster.nodes[&id].data.join("log"));
    let (_, path) = &files[number % files.len()];
    let bytes = std::fs::read(path).unwrap_or_default();
    let pieces: Vec<&[u8]> = bytes.chunks(VALUE_BYTES).collect();
    Bytes::copy_from_slice(pieces.get(number % pieces.len().max(1)).unwrap_or(&&b"gone"[..]))
}

/// Small, so that the other cluster has written more batches than the attacked one by the time that
/// its files have the same numbers.
const VALUE_BYTES_OF_THE_OTHER: usize = 8 << 10;

/// Chunks of the files of a cluster that was founded in the same way, from each file in turn.
async fn files_of_a_busier_cluster() -> Vec<Bytes> {
    let mut cluster = Cluster::start(Plan::default()).await;
    let log = cluster.nodes[&1].data.join("log");
    let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut written_bytes = 0;
    while written_bytes < TRAFFIC_BYTES {
        let client = cluster.client();
        for number in 0..50 {
            let mut writing = JoinSet::new();
            for worker in 0..WRITES_AT_ONCE {
                let client = client.clone();
                let value = vec![worker as u8; VALUE_BYTES_OF_THE_OTHER];
                writing.spawn(async move { client.put(format!("{worker}/{number}"), value).await });
            }
            while let Some(written) = writing.join_next().await {
                written.expect("no task panics").expect("nothing is wrong");
                written_bytes += VALUE_BYTES_OF_THE_OTHER as u64;
            }
        }
        // A file keeps its bytes until the second file after it is begun.
        for (number, path) in forgery::log_files(&log).into_iter().rev().take(2) {
            files.insert(number, std::fs::read(path).unwrap_or_default());
        }
    }
    cluster.kill_all().await;
    drop(cluster);
    let longest = files.values().map(|bytes| bytes.len().div_ceil(VALUE_BYTES)).max().unwrap_or(0);
    let piece = |number: usize| {
        let of_file = move |bytes: &Vec<u8>| {
            bytes.chunks(VALUE_BYTES).nth(number).map(Bytes::copy_from_slice)
        };
        files.values().filter_map(of_file).collect::<Vec<_>>()
    };
    (0..longest).flat_map(piece).collect()
}
