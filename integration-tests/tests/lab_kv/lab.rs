//! `GenericTest` of the labs, and the profile they run under.
//!
//! Three iterations. Clients work for five seconds and count what they appended; meanwhile the
//! servers are split into random halves every second, and lose power together. In the end all links
//! are healed, all clients return, and their appends are there, each once, in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_service::config::{ByteSize, Timeouts};
use kv_service::net::StreamFaults;
use kv_service::sim::{Digest, LinkFaults, MemoryDisk, Service, for_seeds};
use kv_service::{LocalNetwork, NodeId, ServerConfig};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::book::{Book, Clerk, LAB_PATIENCE};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const ITERATIONS: u64 = 3;
/// How long the clients of an iteration work.
pub(crate) const WORK: Duration = Duration::from_secs(5);
/// Time that a disk takes for a write.
pub(crate) const DISK_LATENCY: Duration = Duration::from_millis(2);
/// How long a lab waits for elections.
pub(crate) const ELECTION: Duration = Duration::from_secs(1);
/// Limit of the persisted log, in multiples of `max_raft_state`.
pub(crate) const RAFT_STATE_FACTOR: u64 = 8;

/// How a client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// The labs to 2024.
    Append,
    /// The labs of 2025: a get, and a put of exactly that version.
    VersionedPut,
}

/// The arguments of `GenericTest`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lab {
    pub(crate) client_count: u64,
    pub(crate) server_count: u64,
    pub(crate) unreliable: bool,
    pub(crate) crash: bool,
    pub(crate) partitions: bool,
    /// In bytes; 0 never compacts.
    pub(crate) max_raft_state: u64,
    /// Clients share keys, instead of having one each.
    pub(crate) random_keys: bool,
    pub(crate) write: Write,
}

impl Lab {
    pub(crate) const fn new(client_count: u64, server_count: u64) -> Self {
        Self {
            client_count,
            server_count,
            unreliable: false,
            crash: false,
            partitions: false,
            max_raft_state: 0,
            random_keys: false,
            write: Write::Append,
        }
    }

    pub(crate) const fn unreliable(self) -> Self {
        Self { unreliable: true, ..self }
    }

    pub(crate) const fn crash(self) -> Self {
        Self { crash: true, ..self }
    }

    pub(crate) const fn partitions(self) -> Self {
        Self { partitions: true, ..self }
    }

    /// The `maxraftstate` of the labs.
    pub(crate) const fn snapshots(self) -> Self {
        Self { max_raft_state: 1000, ..self }
    }

    pub(crate) const fn random_keys(self) -> Self {
        Self { random_keys: true, ..self }
    }

    pub(crate) const fn versioned(self) -> Self {
        Self { write: Write::VersionedPut, ..self }
    }

    /// No message is lost and no server crashes.
    pub(crate) const fn is_smooth(&self) -> bool {
        !self.unreliable && !self.crash && !self.partitions
    }

    /// The lab profile: heartbeats and elections as the handouts ask for, on a local network and
    /// disks with a small latency, or on the labs' unreliable network.
    pub(crate) async fn service(&self, seed: u64) -> Service {
        let lab = *self;
        let service = Service::with_config(seed, self.server_count, move |config| {
            lab.configure(config);
        })
        .await;
        service.slow_disks(DISK_LATENCY);
        self.set_faults(&service.network);
        service
    }

    pub(crate) fn configure(&self, config: &mut ServerConfig) {
        config.timeouts =
            Timeouts { heartbeat: 100 * MS, election: 300 * MS, ..Timeouts::default() };
        config.max_raft_state = ByteSize(self.max_raft_state);
    }

    pub(crate) fn set_faults(&self, network: &LocalNetwork) {
        network.peers().set_default_faults(match self.unreliable {
            false => LinkFaults::none().delaying(MS, 3 * MS),
            // A tenth is lost; the rest takes up to 26 ms, and overtakes freely. Repeated messages,
            // which the labs do not have, come on top.
            true => LinkFaults::none()
                .losing(0.1)
                .delaying(Duration::ZERO, 13 * MS)
                .reordering(0.5, 13 * MS)
                .duplicating(0.02),
        });
        let (loss, delay_min, delay_max) = match self.unreliable {
            false => (0.0, MS, 3 * MS),
            true => (0.1, Duration::ZERO, 26 * MS),
        };
        let refusal_delay_max = 99 * MS;
        network.set_stream_faults(StreamFaults { loss, delay_min, delay_max, refusal_delay_max });
    }

    /// Runs `GenericTest` for each seed.
    pub(crate) fn run(self) {
        for_seeds(0..1, async |seed| {
            self.scenario(seed).await;
        });
    }

    pub(crate) async fn scenario(self, seed: u64) -> Digest {
        let mut service = self.service(seed).await;
        let book = Book::new(&service);
        let mut chance = StdRng::seed_from_u64(seed);
        let started = Instant::now();
        let mut swapped = BTreeMap::new();
        for iteration in 0..ITERATIONS {
            let before = book.call_count();
            let done = Arc::new(AtomicBool::new(false));
            let working: Vec<_> = (0..self.client_count)
                .map(|client| {
                    let worker = Worker {
                        lab: self,
                        iteration,
                        client,
                        clerk: book.clerk(&service, client + 1),
                        chance: StdRng::seed_from_u64(chance.random()),
                        done: Arc::clone(&done),
                    };
                    tokio::spawn(worker.work())
                })
                .collect();
            self.disturb(&mut service, &mut chance, &book).await;
            done.store(true, Ordering::Relaxed);
            self.end_of_iteration(&mut service).await;
            for (client, working) in (0..).zip(working) {
                let result = working.await.expect("a client's own checks pass");
                self.check_own(&book.clerk(&service, client + 1), client, &result).await;
                for (key, count) in result.swapped {
                    *swapped.entry(key).or_insert(0) += count;
                }
            }
            self.check_sizes(&service);
            let calls = (book.call_count() - before) as u64;
            // Far fewer than without faults: a lost chunk takes its connection with it, a half with
            // a bare quorum needs every vote, and all servers are off for a second. The worst lab,
            // fifteen clients of seven servers, comes to 47 to 322 in sixty seeds.
            assert!(calls >= self.client_count, "only {calls} operations in {WORK:?}");
        }
        book.check();
        for (key, record) in service.converged().await {
            let key = String::from_utf8(key.to_vec()).expect("the labs write text");
            if self.write == Write::VersionedPut {
                assert_eq!(
                    Some(&record.version),
                    swapped.get(&key),
                    "one version for each success"
                );
            }
        }
        assert!(started.elapsed() < LAB_PATIENCE, "took {:?}", started.elapsed());
        service.trace.digest()
    }

    /// Five seconds with the lab's faults, or without any.
    async fn disturb(&self, service: &mut Service, chance: &mut StdRng, book: &Book) {
        let start = Instant::now();
        let mut plan = BTreeMap::new();
        if self.partitions {
            let mut at = start + ELECTION;
            while at < start + WORK {
                plan.insert(at, Trouble::Partition);
                at += chance.random_range(1000..1200_u32) * MS;
            }
        }
        if self.crash {
            let at = start + chance.random_range(1500..3000_u32) * MS + MS / 2;
            plan.insert(at, Trouble::PowerOff);
            plan.insert(at + Duration::from_secs(1), Trouble::PowerOn);
        }
        for (at, trouble) in plan {
            sleep_until(at).await;
            assert!(book.open_count() > 0, "{trouble:?} meets nobody at work");
            match trouble {
                Trouble::Partition => throw_into_halves(service, chance),
                Trouble::PowerOff => power_off(service),
                Trouble::PowerOn => power_on(service).await,
            }
        }
        sleep_until(start + WORK).await;
    }

    /// Ends an iteration as the labs do: all links are healed, and servers that may crash do so
    /// once more.
    async fn end_of_iteration(&self, service: &mut Service) {
        if self.partitions {
            service.heal();
            sleep(ELECTION).await;
        }
        if self.crash {
            power_off(service);
            sleep(ELECTION).await;
            power_on(service).await;
        }
    }

    pub(crate) async fn check_own(&self, clerk: &Clerk, client: u64, result: &Done) {
        if !self.random_keys && self.write == Write::Append {
            let value = clerk.value(&client.to_string()).await;
            assert_eq!(value, result.expected, "client {client}: each once, in order");
        }
    }

    fn check_sizes(&self, service: &Service) {
        for id in service.ids() {
            self.check_size(id, service.disk(id));
        }
    }

    /// # Panics
    /// If a server has persisted more log than the labs allow, or has a snapshot although it never
    /// compacts, or none although it does.
    pub(crate) fn check_size(&self, id: NodeId, disk: &MemoryDisk) {
        if self.max_raft_state > 0 {
            check_log(id, disk, self.max_raft_state);
        }
        let has_snapshot = disk.snapshot_bytes().is_some();
        assert_eq!(has_snapshot, self.max_raft_state > 0, "a snapshot on server {id}");
    }
}

#[derive(Debug)]
enum Trouble {
    Partition,
    PowerOff,
    PowerOn,
}

/// # Panics
/// If a server has persisted more log than the labs allow.
pub(crate) fn check_raft_state(service: &Service, max_raft_state: u64) {
    for id in service.ids() {
        check_log(id, service.disk(id), max_raft_state);
    }
}

fn check_log(id: NodeId, disk: &MemoryDisk, max_raft_state: u64) {
    let bytes = disk.log_bytes();
    assert!(bytes <= RAFT_STATE_FACTOR * max_raft_state, "server {id} persists {bytes} bytes");
}

/// Puts each server on one of two sides; all may land on one.
fn throw_into_halves(service: &Service, chance: &mut StdRng) {
    let (one, other): (Vec<u64>, Vec<u64>) = service.ids().partition(|_| chance.random());
    service.heal();
    service.partition(&[&one, &other]);
}

fn power_off(service: &mut Service) {
    for id in service.ids() {
        service.crash(id);
    }
}

async fn power_on(service: &mut Service) {
    for id in service.ids() {
        service.start(id).await;
    }
}

/// One client of an iteration.
pub(crate) struct Worker {
    pub(crate) lab: Lab,
    pub(crate) iteration: u64,
    pub(crate) client: u64,
    pub(crate) clerk: Clerk,
    pub(crate) chance: StdRng,
    pub(crate) done: Arc<AtomicBool>,
}

/// The knowledge of a client at its end.
pub(crate) struct Done {
    /// The expected content of its own key.
    expected: String,
    /// Number of its versioned puts that had an effect, by key.
    swapped: BTreeMap<String, u64>,
}

impl Worker {
    pub(crate) async fn work(mut self) -> Done {
        let Lab { random_keys, client_count, write, .. } = self.lab;
        let mut result = Done { expected: String::new(), swapped: BTreeMap::new() };
        if !random_keys && write == Write::Append {
            result.expected = format!("x {} {} start y", self.iteration, self.client);
            self.clerk.put(&self.client.to_string(), &result.expected).await;
        }
        for number in 0.. {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            let key = match random_keys {
                true => self.chance.random_range(0..client_count).to_string(),
                false => self.client.to_string(),
            };
            // No two values are equal, and none is a prefix of another: the value tells which
            // client wrote it.
            let value = format!("x {} {} {number} y", self.iteration, self.client);
            match write {
                Write::Append => self.append(&key, &value, &mut result).await,
                Write::VersionedPut => self.versioned_put(&key, &value, &mut result).await,
            }
        }
        result
    }

    async fn append(&mut self, key: &str, value: &str, result: &mut Done) {
        if self.chance.random_bool(0.5) {
            self.clerk.append(key, value).await;
            result.expected += value;
        } else if self.lab.random_keys && self.chance.random_bool(0.1) {
            self.clerk.put(key, value).await;
        } else {
            let seen = self.clerk.value(key).await;
            if !self.lab.random_keys {
                assert_eq!(seen, result.expected, "client {} sees what it wrote", self.client);
            }
        }
    }

    async fn versioned_put(&mut self, key: &str, value: &str, result: &mut Done) {
        let version = self.clerk.get(key).await.map_or(0, |record| record.version);
        let put = self.clerk.try_put(key, value, version).await.expect("a write is answered");
        if put.changed {
            *result.swapped.entry(key.to_owned()).or_insert(0) += 1;
        } else {
            assert!(self.lab.random_keys, "nobody else writes the key of client {}", self.client);
        }
    }
}
