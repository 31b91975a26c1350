//! T6. Random runs of whole nodes around snapshots: large states, slow copies and transfers, busy
//! receivers, senders that lose leadership, disks that hang for a while, and more writes than the
//! log may hold. At the end all nodes hold the same state, it contains every acknowledged write,
//! and no published snapshot is left that no node needs.
//!
//! `CHAOS_SEEDS=0..1000 cargo test -p raft-core --test driver chaos` tries more seeds.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use raft_core::driver::NodeConfig;
use raft_core::types::NodeId;

use crate::support::cluster::{Cluster, in_time};

const LIMIT_BYTES: u64 = 4_000;
const STEPS_COUNT: u64 = 60;

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

struct Run {
    chance: Chance,
    cluster: Cluster,
    acknowledged: BTreeSet<Bytes>,
    next_command: u64,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let size = chance.one_of(&[3, 3, 5]);
        let mut cluster = Cluster::new(seed, size);
        cluster.configure = Box::new(|config: &mut NodeConfig| {
            config.max_raft_state_bytes = LIMIT_BYTES;
            config.raft.log_bytes_max = 8 * LIMIT_BYTES;
            config.raft.uncommitted_bytes_max = LIMIT_BYTES;
            config.raft.append_bytes_max = LIMIT_BYTES;
            config.command_bytes_max = LIMIT_BYTES / 2;
        });
        cluster.durable = chance.below(2) == 0;
        for site in cluster.sites.values() {
            let padding_bytes = chance.one_of(&[0, 1 << 18, 1 << 21]);
            site.knobs.padding_bytes.store(padding_bytes, Ordering::SeqCst);
        }
        cluster.start_all().await;
        cluster.leader().await;
        Self { chance, cluster, acknowledged: BTreeSet::new(), next_command: 0 }
    }

    fn any_node(&mut self) -> NodeId {
        1 + self.chance.below(self.cluster.sites.len() as u64)
    }

    /// Proposes commands to a leader, one after the other, and waits up to 2 s for each outcome.
    async fn write_some(&mut self) {
        let count = self.chance.one_of(&[1, 5, 40, 120]);
        for _ in 0..count {
            self.next_command += 1;
            let mut command = vec![b'x'; 200];
            command[..8].copy_from_slice(&self.next_command.to_be_bytes());
            let command = Bytes::from(command);
            let leads = |node: &&raft_core::driver::Node<_>| node.watch().borrow().is_leader;
            let Some(leader) = self.cluster.nodes.values().find(leads) else { return };
            let wait = Duration::from_secs(2);
            let outcome = tokio::time::timeout(wait, leader.propose_and_wait(command.clone()));
            match outcome.await {
                Ok(Ok(_)) => self.acknowledged.insert(command),
                Ok(Err(_)) | Err(_) => return,
            };
        }
    }

    async fn step(&mut self) {
        let node = self.any_node();
        match self.chance.below(14) {
            0 if self.cluster.nodes.len() > 1 => self.cluster.crash(node).await,
            0..=2 => {
                if !self.cluster.nodes.contains_key(&node) {
                    // A node may need its snapshot to start.
                    self.cluster.sites[&node].disk.hinder(|disk| disk.bad_snapshot = false);
                    self.cluster.start(node).await;
                }
            }
            3 => self.cluster.network.isolate(node),
            4 => self.cluster.network.heal(),
            5 => {
                let [slow_write, slow_read] = [0, 1]
                    .map(|_| Duration::from_millis(self.chance.one_of(&[0, 10, 1_000, 15_000])));
                self.cluster.sites[&node].disk.hinder(|disk| {
                    disk.write_chunk = slow_write;
                    disk.read_chunk = slow_read;
                });
            }
            6 => {
                let slow = Duration::from_millis(self.chance.one_of(&[0, 0, 20, 200]));
                self.cluster.sites[&node].disk.hinder(|disk| disk.persist = slow);
            }
            7 => {
                let is_bad = self.chance.below(4) == 0;
                self.cluster.sites[&node].disk.hinder(|disk| disk.bad_snapshot = is_bad);
            }
            8 => {
                if let Some(node) = self.cluster.nodes.get(&node) {
                    node.take_snapshot();
                    node.transfer_leadership(None);
                }
            }
            _ => self.write_some().await,
        }
        let pause = Duration::from_millis(self.chance.one_of(&[0, 50, 500, 3_000]));
        tokio::time::sleep(pause).await;
        for (id, node) in &self.cluster.nodes {
            let status = node.status();
            // The last append may exceed the limit.
            let bytes_max = 8 * LIMIT_BYTES + LIMIT_BYTES;
            assert!(status.log_bytes <= bytes_max, "node {id} holds {} bytes", status.log_bytes);
        }
    }

    async fn settle(&mut self) {
        self.cluster.network.heal();
        for id in self.cluster.sites.keys().copied().collect::<Vec<_>>() {
            self.cluster.sites[&id].disk.hinder(|disk| *disk = Default::default());
            let has_stopped = match self.cluster.nodes.get(&id) {
                Some(node) => tokio::time::timeout(Duration::ZERO, node.stopped()).await.is_ok(),
                None => true,
            };
            if has_stopped {
                self.cluster.crash(id).await;
                self.cluster.start(id).await;
            }
        }
        self.cluster.write("the last").await;
        let leader = self.cluster.leader().await;
        let commit_index = self.cluster.nodes[&leader].status().commit_index;
        let expected = self.cluster.commands(leader).await;
        for command in &self.acknowledged {
            assert!(expected.contains(command), "an acknowledged write is lost");
        }
        for id in self.cluster.sites.keys().copied() {
            let caught_up = self
                .cluster
                .until("it catches up", id, |status| status.last_applied >= commit_index);
            caught_up.await;
            assert_eq!(self.cluster.commands(id).await.len(), expected.len(), "node {id}");
            assert!(self.cluster.commands(id).await == expected, "node {id}");
        }
        if self.cluster.durable {
            let copies_count = || {
                let sites = self.cluster.sites.values();
                sites.filter(|site| site.disk.published().is_some()).count()
            };
            in_time("no copy is left that nobody needs", async {
                while copies_count() > 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            })
            .await;
        }
        for id in self.cluster.sites.keys().copied().collect::<Vec<_>>() {
            self.cluster.crash(id).await;
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("CHAOS_SEEDS") else { return 0..60 };
    let parts =
        text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    let (from, to) = parts.expect("CHAOS_SEEDS is a range of numbers, such as 0..1000");
    from..to
}

#[test]
fn random_runs_around_snapshots() {
    for seed in seeds() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime with a clock can be built");
        let run = std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async {
                let mut run = Run::new(seed).await;
                for _ in 0..STEPS_COUNT {
                    run.step().await;
                }
                run.settle().await;
            });
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed}: CHAOS_SEEDS={seed}..{} replays it", seed + 1);
            std::panic::resume_unwind(panic);
        }
    }
}
