//! The labs while the members change: an operator adds, removes, replaces, promotes and demotes
//! servers and moves leadership, clients work, and the faults of the labs overlap both.
//!
//! Three iterations, as in `GenericTest`. The clients of an iteration work for at least five
//! seconds and until the operator's changes are done. Faults come in phases of five seconds, so
//! that changes are begun, carried on and completed under them and between them. In the end every
//! append is there once and in order, the history is linearizable, all members hold the same
//! records and know the same members, and no term had two leaders.
//!
//! A seed decides the changes, the faults and all delays.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_service::NodeId;
use kv_service::members::{MemberInfo, MembersChange, MembersOrder};
use kv_service::sim::for_seeds;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::book::{Book, Clerk};
use crate::cluster::Cluster;
use crate::lab::{ELECTION, ITERATIONS, Lab, MS, WORK, Worker};
use crate::operator::{MOVES, Move, Operator};

/// Between two phases of faults.
const CALM: Duration = Duration::from_secs(3);
/// One server that crashes starts again after this long.
const RESTART: Duration = Duration::from_millis(400);
/// Longest run. The labs allow two minutes for three iterations of five seconds; here, each change
/// may wait for a phase without faults.
const PATIENCE: Duration = Duration::from_secs(240);
/// Longest operation while members change on a reliable network. A leader that is removed or
/// demoted hands leadership over, and one that loses power costs an election.
const OPERATION_MAX: Duration = Duration::from_millis(1500);

/// M-J2. An order that names the members which its operator has seen is carried out, although the
/// log was compacted meanwhile: only other members refuse it.
#[test]
fn an_order_outlives_a_compaction() {
    for_seeds(0..1, async |seed| {
        let cluster = Cluster::new(Lab::new(5, 3).snapshots(), seed).await;
        let client = cluster.client().with_deadline(PATIENCE);
        let is_done = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for number in 0..20 {
            let (client, is_done) = (cluster.client(), Arc::clone(&is_done));
            writers.spawn(async move {
                let key = format!("key {number}");
                while !is_done.load(Ordering::Relaxed) {
                    client.put(key.clone(), "value").await.expect("a whole cluster serves");
                }
            });
        }
        let members = async || client.cluster().members().await.expect("a whole cluster serves");
        let mut moved_count = 0;
        for number in 0..30 {
            let seen = members().await;
            sleep(50 * MS).await;
            moved_count += u32::from(members().await.index != seen.index);
            let zone = format!("zone{number}");
            let info = MemberInfo { zone, ..seen.members[0].info.clone() };
            let mut order = MembersOrder::new(MembersChange::Describe { id: 1, info });
            order.expected = Some(seen.digest);
            client.cluster().order(order).await.expect("the members are as they were");
        }
        assert!(moved_count > 0, "the log was compacted between a look and an order");
        is_done.store(true, Ordering::Relaxed);
        while let Some(written) = writers.join_next().await {
            written.expect("a writer ends");
        }
    });
}

#[test]
fn members_one_client() {
    lab(Lab::new(1, 3));
}

#[test]
fn members_concurrent() {
    lab(Lab::new(5, 5));
}

#[test]
fn members_unreliable() {
    lab(Lab::new(5, 5).unreliable());
}

#[test]
fn members_partitions() {
    lab(Lab::new(5, 5).partitions());
}

#[test]
fn members_persist() {
    lab(Lab::new(5, 5).crash());
}

#[test]
fn members_persist_partition_unreliable() {
    lab(Lab::new(5, 5).unreliable().crash().partitions());
}

#[test]
fn members_snapshot() {
    lab(Lab::new(5, 3).snapshots());
}

#[test]
fn members_snapshot_unreliable_recover_concurrent_partition() {
    lab(Lab::new(5, 5).unreliable().crash().partitions().snapshots());
}

#[test]
fn members_many_clients() {
    lab(Lab::new(20, 5).snapshots());
}

/// All faults at once.
#[test]
fn members_many_clients_all_faults_linearizable() {
    lab(Lab::new(15, 7).unreliable().crash().partitions().snapshots().random_keys());
}

fn lab(lab: Lab) {
    for_seeds(0..2, async |seed| scenario(lab, seed).await);
}

async fn scenario(lab: Lab, seed: u64) {
    let cluster = Cluster::new(lab, seed).await;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut run = Run { lab, cluster: &cluster, book: Book::with_trace(&cluster.trace) };
    let started = Instant::now();
    let mut operator = Operator::new(&cluster, StdRng::seed_from_u64(rng.random())).await;
    // Each change twice, in any order.
    let mut moves = [MOVES, MOVES].concat();
    moves.shuffle(&mut rng);
    let mut overlap_count = 0;
    let share = moves.len().div_ceil(ITERATIONS as usize);
    for (iteration, moves) in (0..).zip(moves.chunks(share)) {
        overlap_count += run.iteration(iteration, &mut operator, moves, &mut rng).await;
    }
    let is_disturbed = lab.crash || lab.partitions;
    assert_eq!(overlap_count > 0, is_disturbed, "faults hit the cluster while members change");
    run.book.check();
    let report = operator.settled().await;
    cluster.converged(report).await;
    cluster.check();
    for id in cluster.members() {
        // The log was compacted before a newcomer was added.
        let must_be_given = id > lab.server_count && lab.max_raft_state > 0;
        assert!(!must_be_given || cluster.was_given_snapshot(id), "{id} was given a snapshot");
    }
    if lab.is_smooth() {
        let slowest = run.book.slowest();
        assert!(slowest <= OPERATION_MAX, "an operation took {slowest:?}");
    }
    assert!(started.elapsed() < PATIENCE, "took {:?}", started.elapsed());
}

struct Run<'a> {
    lab: Lab,
    cluster: &'a Cluster,
    book: Book,
}

impl Run<'_> {
    /// Returns the number of faults that hit the cluster during a change.
    async fn iteration(
        &mut self,
        iteration: u64,
        operator: &mut Operator<'_>,
        moves: &[Move],
        rng: &mut StdRng,
    ) -> usize {
        let before = self.book.call_count();
        let done = Arc::new(AtomicBool::new(false));
        let working: Vec<_> = (0..self.lab.client_count)
            .map(|client| {
                let worker = Worker {
                    lab: self.lab,
                    iteration,
                    client,
                    clerk: self.clerk(client),
                    chance: StdRng::seed_from_u64(rng.random()),
                    done: Arc::clone(&done),
                };
                tokio::spawn(worker.work())
            })
            .collect();
        let until = Instant::now() + WORK;
        let is_done = Cell::new(false);
        let changes = async {
            for change in moves {
                operator.carry_out(*change).await;
            }
            sleep_until(until).await;
            is_done.set(true);
        };
        let ((), overlap_count) = tokio::join!(changes, self.disturb(rng, &is_done));
        done.store(true, Ordering::Relaxed);
        self.crash_once_more().await;
        for (client, working) in (0..).zip(working) {
            let result = working.await.expect("a client's own checks pass");
            self.lab.check_own(&self.clerk(client), client, &result).await;
        }
        self.cluster.check();
        let calls = (self.book.call_count() - before) as u64;
        assert!(calls >= self.lab.client_count, "only {calls} operations");
        overlap_count
    }

    fn clerk(&self, client: u64) -> Clerk {
        self.book.clerk_of(self.cluster.client(), client + 1)
    }

    /// Phases of the lab's faults, and of none, until the operator is done.
    async fn disturb(&self, rng: &mut StdRng, is_done: &Cell<bool>) -> usize {
        let mut overlap_count = 0;
        while !is_done.get() && (self.lab.crash || self.lab.partitions) {
            for (at, fault) in self.plan(rng) {
                sleep_until(at).await;
                assert!(self.book.open_count() > 0, "{fault:?} meets no client at work");
                overlap_count += usize::from(self.cluster.is_changing.get());
                match fault {
                    Fault::Partition => self.throw_into_halves(rng),
                    Fault::CrashOne => self.crash_one(rng),
                    Fault::PowerOff => self.power_off(),
                    Fault::PowerOn => self.cluster.start_all().await,
                    Fault::Heal => self.cluster.heal(),
                }
            }
            sleep(CALM).await;
        }
        overlap_count
    }

    /// The faults of one phase. Each of them ends within it.
    fn plan(&self, rng: &mut StdRng) -> Vec<(Instant, Fault)> {
        let start = Instant::now();
        let mut plan = vec![(start + WORK, Fault::Heal)];
        if self.lab.partitions {
            let mut at = start + ELECTION;
            while at < start + WORK {
                plan.push((at, Fault::Partition));
                at += rng.random_range(1000..1200_u32) * MS;
            }
        }
        if self.lab.crash {
            let off = start + rng.random_range(1500..3000_u32) * MS + MS / 2;
            let on = off + Duration::from_secs(1);
            plan.extend([(off, Fault::PowerOff), (on, Fault::PowerOn)]);
            for after in [start, on] {
                let at = after + rng.random_range(200..1000_u32) * MS;
                plan.extend([(at, Fault::CrashOne), (at + RESTART, Fault::PowerOn)]);
            }
        }
        plan.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Puts each server on one of two sides; all may land on one.
    fn throw_into_halves(&self, rng: &mut StdRng) {
        let running = self.cluster.running().into_iter();
        let (one, other): (Vec<NodeId>, Vec<NodeId>) = running.partition(|_| rng.random());
        self.cluster.partition(&[&one, &other]);
    }

    fn crash_one(&self, rng: &mut StdRng) {
        if let Some(id) = self.cluster.running().choose(rng) {
            self.cluster.crash(*id);
        }
    }

    fn power_off(&self) {
        for id in self.cluster.running() {
            self.cluster.crash(id);
        }
    }

    /// Ends an iteration as the labs do: servers that may crash do so once more.
    async fn crash_once_more(&self) {
        if self.lab.crash {
            self.power_off();
            sleep(ELECTION).await;
            self.cluster.start_all().await;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Partition,
    /// One server loses power for a moment: a member, or one that was removed and does not know it.
    CrashOne,
    PowerOff,
    PowerOn,
    Heal,
}
