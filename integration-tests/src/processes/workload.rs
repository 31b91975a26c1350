//! Clients at work on a cluster while faults happen, and the history of their calls.
//!
//! Each worker is one client that does one operation after the other: it appends to some keys,
//! puts, swaps and deletes others, reads all of them, and puts ballast elsewhere, so that logs grow
//! and snapshots are taken. Some deadlines are too short for any cluster, so that some outcomes are
//! unknown. A client with such an outcome is retired: its request may still be executed while its
//! successor goes on.
//!
//! The values are unique and none is a prefix of another, so they tell which client wrote them; all
//! times come from one monotonic clock. [`kv_service::sim::linearizability`] needs both.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kv_service::{Client, ClientConfig, ClientError, Expect, Operation, Outcome};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, eventually};
use super::network::CLIENTS;
use kv_service::sim::linearizability::{Call, History, Request, STEPS_PER_KEY, Verdict, check};

const WORKER_COUNT: u64 = 5;
/// Keys that receive appends only, in which no acknowledged write may ever be missing.
const LOG_KEY_COUNT: usize = 3;
/// Keys that receive all other operations.
const CELL_KEY_COUNT: usize = 2;
/// Longer than any fault with the recovery after it.
const DEADLINE: Duration = Duration::from_secs(20);
/// The share of operations that get a far shorter deadline.
const HASTY: f64 = 0.1;
const BALLAST_BYTES: usize = 4 << 10;
const THINK_TIME_US_MAX: u64 = 3_000;

/// Workers that run until they are told to stop.
pub struct Workload {
    keys: Arc<Keys>,
    workers: JoinSet<Vec<Call>>,
    stop: Arc<AtomicBool>,
    acknowledged_count: Arc<AtomicU64>,
}

struct Keys {
    logs: Vec<String>,
    cells: Vec<String>,
}

impl Workload {
    /// Starts work on keys that begin with `name` and that no other client has used before.
    pub fn start(cluster: &Cluster, name: &str, seed: u64) -> Self {
        let numbered = |kind: &str, count| {
            Vec::from_iter((0..count).map(|number| format!("{name}/{kind}{number}")))
        };
        let keys =
            Keys { logs: numbered("log", LOG_KEY_COUNT), cells: numbered("cell", CELL_KEY_COUNT) };
        let mut load = Self {
            keys: Arc::new(keys),
            workers: JoinSet::new(),
            stop: Arc::default(),
            acknowledged_count: Arc::default(),
        };
        for number in 0..WORKER_COUNT {
            let group = CLIENTS[number as usize % CLIENTS.len()];
            let config = cluster.client_config(group);
            let worker = Worker {
                client: Client::connect(&config).expect("a client"),
                config,
                number,
                serial: 0,
                keys: Arc::clone(&load.keys),
                chance: StdRng::seed_from_u64(seed.wrapping_mul(WORKER_COUNT) + number),
                stop: Arc::clone(&load.stop),
                acknowledged_count: Arc::clone(&load.acknowledged_count),
            };
            load.workers.spawn(worker.run());
        }
        load
    }

    /// Writes that were acknowledged so far.
    pub fn acknowledged_count(&self) -> u64 {
        self.acknowledged_count.load(Ordering::Relaxed)
    }

    /// Waits until this many more writes are acknowledged.
    pub async fn advances_by(&self, count: u64) {
        let goal = self.acknowledged_count() + count;
        eventually("the clients to get on", async || self.acknowledged_count() >= goal).await;
    }

    /// Stops the workers and returns their history.
    pub async fn stop(mut self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = History::new();
        while let Some(worker) = self.workers.join_next().await {
            history.extend(worker.expect("a worker does not panic"));
        }
        let keys = self.keys.logs.iter().chain(&self.keys.cells).cloned().collect();
        Done { history, keys }
    }
}

/// The history of a workload that has ended.
pub struct Done {
    history: History,
    keys: Vec<String>,
}

impl Done {
    /// Reads every key and checks that the values fit the whole history. Acknowledged writes never
    /// disappear, so the check may be repeated at any later time.
    ///
    /// # Errors
    /// The violation, or why no verdict is possible.
    pub async fn check(&self, client: &Client) -> Result<(), String> {
        let mut history = self.history.clone();
        for key in &self.keys {
            let called_at = now();
            let heard = client.get(key.clone()).await;
            history.push(Call::of_get(WORKER_COUNT, key.clone(), (called_at, now()), &heard));
            heard.map_err(|error| format!("{key} cannot be read: {error}"))?;
        }
        match check(&history, STEPS_PER_KEY) {
            Verdict::Linearizable => Ok(()),
            Verdict::Violation(violation) => Err(violation.to_string()),
            Verdict::Unknown(why) => Err(format!("not known to be linearizable: {why}")),
        }
    }

    pub fn summary(&self) -> Summary {
        use kv_service::sim::linearizability::Outcome::{Got, NotExecuted, Unknown, Written};
        let mut summary = Summary::default();
        for call in self.history.calls() {
            match (&call.outcome, &call.request) {
                (Written(_), _) => summary.acknowledged += 1,
                (Got(_), _) => summary.reads += 1,
                (Unknown, _) => summary.unknown += 1,
                (NotExecuted, Request::Write(_)) => summary.not_executed += 1,
                (NotExecuted, Request::Get { .. }) => {}
            }
        }
        summary
    }
}

/// How many writes had which outcome, and how many reads were answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub acknowledged: usize,
    pub unknown: usize,
    pub not_executed: usize,
    pub reads: usize,
}

impl Summary {
    pub fn add(&mut self, more: Summary) {
        self.acknowledged += more.acknowledged;
        self.unknown += more.unknown;
        self.not_executed += more.not_executed;
        self.reads += more.reads;
    }
}

/// Nanoseconds of the clock that all histories of a process share.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_nanos()).expect("no test runs for 500 years")
}

struct Worker {
    client: Client,
    config: ClientConfig,
    number: u64,
    /// Number of its last write.
    serial: u64,
    keys: Arc<Keys>,
    chance: StdRng,
    stop: Arc<AtomicBool>,
    acknowledged_count: Arc<AtomicU64>,
}

impl Worker {
    async fn run(mut self) -> Vec<Call> {
        let mut done = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let log = self.keys.logs[self.chance.random_range(0..LOG_KEY_COUNT)].clone();
            let cell = self.keys.cells[self.chance.random_range(0..CELL_KEY_COUNT)].clone();
            let next = match self.chance.random_range(0..20) {
                0..7 => self.write(|value| append(log, value)).await,
                7..11 => self.read(log).await,
                11..13 => self.read(cell).await,
                13..16 => self.write(|value| put(cell, value)).await,
                16 => self.write(|_| Operation::Delete { key: cell.into() }).await,
                17..19 => {
                    let swapped = self.swap(cell, &mut done).await;
                    done.push(swapped);
                    continue;
                }
                _ => {
                    self.put_ballast().await;
                    continue;
                }
            };
            done.push(next);
            sleep(Duration::from_micros(self.chance.random_range(0..THINK_TIME_US_MAX))).await;
        }
        self.client.close().await;
        done
    }

    /// Makes a write whose value no other write has.
    async fn write(&mut self, operation: impl FnOnce(String) -> Operation) -> Call {
        self.serial += 1;
        let operation = operation(format!("{}.{},", self.number, self.serial));
        let client = self.hurried_client();
        let called_at = now();
        let heard = client.write(operation.clone()).await;
        let call = Call::of_write(self.number, operation, (called_at, now()), &heard);
        match heard {
            Ok(_) => {
                self.acknowledged_count.fetch_add(1, Ordering::Relaxed);
            }
            Err(ClientError { outcome: Outcome::Unknown, .. }) => {
                self.client = Client::connect(&self.config).expect("a client");
            }
            Err(ClientError { outcome: Outcome::NotExecuted, .. }) => {}
        }
        call
    }

    async fn read(&mut self, key: String) -> Call {
        let client = self.hurried_client();
        let called_at = now();
        let heard = client.get(key.clone()).await;
        Call::of_get(self.number, key, (called_at, now()), &heard)
    }

    /// Reads the key, and swaps the value if it is still the same.
    async fn swap(&mut self, key: String, done: &mut Vec<Call>) -> Call {
        use kv_service::sim::linearizability::Outcome::Got;
        let read = self.read(key.clone()).await;
        let expect = match &read.outcome {
            Got(seen) => seen.value.clone().map_or(Expect::Version(0), Expect::Value),
            _ => Expect::Version(0),
        };
        done.push(read);
        let swap = |value: String| Operation::CompareAndSwap {
            key: key.into(),
            expect,
            value: value.into(),
        };
        self.write(swap).await
    }

    async fn put_ballast(&mut self) {
        let key = format!("ballast/{}", self.chance.random_range(0..32));
        let value = vec![self.chance.random::<u8>(); BALLAST_BYTES];
        // The write need not succeed.
        let _ = self.hurried_client().put(key, value).await;
    }

    /// The client, with a random deadline for its next operation.
    fn hurried_client(&mut self) -> Client {
        let deadline = match self.chance.random_bool(HASTY) {
            true => Duration::from_millis(self.chance.random_range(1..200)),
            false => DEADLINE,
        };
        self.client.with_deadline(deadline)
    }
}

fn append(key: String, value: String) -> Operation {
    Operation::Append { key: key.into(), value: value.into() }
}

fn put(key: String, value: String) -> Operation {
    Operation::Put { key: key.into(), value: value.into() }
}
