//! Whole nodes on a network that loses, repeats, delays and reorders messages, and is partitioned.
//! Each scenario runs with many seeds; a failure prints its seed.
//!
//! Checked for every proposal: an acknowledged one is applied once, with the reported output; a
//! rejected one is never applied; one of unknown outcome is applied at most once. All are applied
//! in the order in which they were proposed.

use std::collections::BTreeMap;
use std::time::Duration;

use integration_tests::counter::{Counters, command, commands, counters};
use kv_service::sim::{LinkFaults, for_seeds, run};
use raft_core::error::ProposeError;
use raft_core::types::NodeId;
use tokio::sync::oneshot;

const SEEDS: std::ops::Range<u64> = 0..20;
const MS: Duration = Duration::from_millis(1);

fn bad() -> LinkFaults {
    LinkFaults::none().losing(0.2).duplicating(0.05).delaying(MS, 10 * MS).reordering(0.1, 20 * MS)
}

/// The number of a command, and a receiver for its outcome.
type Answer = (usize, oneshot::Receiver<Result<u64, ProposeError>>);

/// The outcomes of the commands of a run, by number.
#[derive(Default)]
struct Ledger {
    outcomes: BTreeMap<usize, Result<u64, ProposeError>>,
    acknowledged_count: usize,
}

impl Ledger {
    fn next(&self) -> usize {
        self.outcomes.len() + 1
    }

    fn enter(&mut self, number: usize, outcome: Result<u64, ProposeError>) {
        self.acknowledged_count += usize::from(outcome.is_ok());
        self.outcomes.insert(number, outcome);
    }

    /// Proposes in waves to the leader among `ids` until this many more commands are acknowledged.
    async fn propose(&mut self, cluster: &Counters, ids: &[NodeId], wave: usize, count: usize) {
        let enough = self.acknowledged_count + count;
        while self.acknowledged_count < enough {
            let leader = cluster.leader_among(ids).await;
            let missing = enough - self.acknowledged_count;
            let answers = self.begin(cluster, leader, wave.min(missing));
            self.finish(answers).await;
            // A node that has lost its leadership rejects at once; the others take their time to
            // notice.
            tokio::time::sleep(MS).await;
        }
    }

    /// Proposes the next commands to this node, all at once.
    fn begin(&self, cluster: &Counters, to: NodeId, count: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        for number in self.next()..self.next() + count {
            let (sender, answer) = oneshot::channel();
            cluster.nodes[&to].propose(command(number), move |outcome| {
                sender.send(outcome).expect("somebody waits for it");
            });
            answers.push((number, answer));
        }
        answers
    }

    async fn finish(&mut self, answers: Vec<Answer>) {
        for (number, answer) in answers {
            self.enter(number, answer.await.expect("each proposal is answered"));
        }
    }

    /// Ends a run: the network is healed, and all nodes must hold the commands that the outcomes
    /// require.
    async fn check(mut self, cluster: &Counters) {
        let marker = self.next();
        cluster.converged(command(marker)).await;
        let applied = commands(cluster).await;
        let numbers: Vec<usize> = applied.iter().map(number_of).filter(|n| *n < marker).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "each once, in order: {numbers:?}");
        for (number, outcome) in std::mem::take(&mut self.outcomes) {
            let place = numbers.binary_search(&number).ok().map(|place| place as u64 + 1);
            match outcome {
                Ok(output) => assert_eq!(place, Some(output), "command {number} was acknowledged"),
                Err(ProposeError::Rejected(error)) => {
                    assert_eq!(place, None, "command {number} was rejected: {error}");
                }
                Err(ProposeError::Unknown(_)) => {}
            }
        }
    }
}

fn number_of(command: &bytes::Bytes) -> usize {
    let text = std::str::from_utf8(command).expect("the tests send text");
    let number = text.strip_prefix("command ").expect("the tests send commands");
    number.parse().expect("with a number")
}

fn others(cluster: &Counters, id: NodeId) -> Vec<NodeId> {
    cluster.nodes.keys().copied().filter(|other| *other != id).collect()
}

fn all(cluster: &Counters) -> Vec<NodeId> {
    cluster.nodes.keys().copied().collect()
}

#[test]
fn five_hundred_proposals_survive_losses() {
    for_seeds(SEEDS, async |seed| {
        let cluster = counters(seed, 3, 0).await;
        cluster.network.set_default_faults(bad());
        let mut ledger = Ledger::default();
        ledger.propose(&cluster, &all(&cluster), 10, 500).await;
        cluster.network.set_default_faults(LinkFaults::none());
        ledger.check(&cluster).await;
    });
}

#[test]
fn a_leader_that_is_not_heard_is_replaced() {
    for_seeds(SEEDS, async |seed| {
        let cluster = counters(seed, 3, 0).await;
        cluster.network.set_default_faults(LinkFaults::none().delaying(MS, 3 * MS));
        let mut ledger = Ledger::default();
        ledger.propose(&cluster, &all(&cluster), 5, 20).await;
        let mute = cluster.leader().await;
        let rest = others(&cluster, mute);
        rest.iter().for_each(|id| cluster.network.partition_link(mute, *id));
        ledger.propose(&cluster, &rest, 5, 20).await;
        // The mute node receives the new leader's messages, so it follows, though its own are lost.
        let next = cluster.leader_among(&rest).await;
        let mut watch = cluster.nodes[&mute].watch();
        watch.wait_for(|seen| seen.leader == Some(next)).await.unwrap();
        cluster.network.heal();
        ledger.check(&cluster).await;
    });
}

#[test]
fn a_leader_that_hears_nobody_steps_down_and_is_replaced() {
    for_seeds(SEEDS, async |seed| {
        let cluster = counters(seed, 3, 0).await;
        cluster.network.set_default_faults(LinkFaults::none().delaying(MS, 3 * MS));
        let mut ledger = Ledger::default();
        ledger.propose(&cluster, &all(&cluster), 5, 20).await;
        let deaf = cluster.leader().await;
        let rest = others(&cluster, deaf);
        rest.iter().for_each(|id| cluster.network.partition_link(*id, deaf));
        let lost = cluster.nodes[&deaf].propose_and_wait(command(ledger.next())).await;
        assert!(matches!(lost, Err(ProposeError::Unknown(_))), "{lost:?}");
        ledger.enter(ledger.next(), lost);
        ledger.propose(&cluster, &rest, 5, 20).await;
        cluster.network.heal();
        ledger.check(&cluster).await;
    });
}

#[test]
fn a_follower_that_does_not_hear_its_leader_disturbs_nobody() {
    for_seeds(SEEDS, async |seed| {
        let cluster = counters(seed, 3, 0).await;
        cluster.network.set_default_faults(LinkFaults::none().delaying(MS, 3 * MS));
        let mut ledger = Ledger::default();
        ledger.propose(&cluster, &all(&cluster), 5, 20).await;
        let leader = cluster.leader().await;
        let deaf = others(&cluster, leader)[0];
        let before = *cluster.nodes[&leader].watch().borrow();
        cluster.network.partition_link(leader, deaf);
        let until = tokio::time::Instant::now() + Duration::from_secs(30);
        while tokio::time::Instant::now() < until {
            ledger.propose(&cluster, &[leader, others(&cluster, leader)[1]], 5, 5).await;
            tokio::time::sleep(200 * MS).await;
        }
        assert_eq!(*cluster.nodes[&leader].watch().borrow(), before, "the leader still leads");
        cluster.network.heal();
        ledger.check(&cluster).await;
    });
}

#[test]
fn two_majorities_with_a_bridge_still_get_on() {
    for_seeds(SEEDS, async |seed| {
        let cluster = counters(seed, 5, 0).await;
        cluster.network.set_default_faults(bad().losing(0.01));
        let mut ledger = Ledger::default();
        ledger.propose(&cluster, &all(&cluster), 5, 20).await;
        // Depending on the seed, the leader is on one of the sides or is the bridge.
        let leader = cluster.leader().await;
        let mut ring = all(&cluster);
        ring.rotate_left((leader + seed) as usize % 5);
        let before = *cluster.nodes[&leader].watch().borrow();
        cluster.network.partition(&[&ring[..2], &ring[3..]]);
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        while tokio::time::Instant::now() < until {
            ledger.propose(&cluster, &all(&cluster), 5, 5).await;
            tokio::time::sleep(200 * MS).await;
        }
        // Nodes that receive nothing from the leader campaign in vain: the bridge still receives
        // its heartbeats.
        assert_eq!(*cluster.nodes[&leader].watch().borrow(), before, "the leader still leads");
        cluster.network.heal();
        cluster.network.set_default_faults(LinkFaults::none());
        ledger.check(&cluster).await;
    });
}

#[test]
fn a_lagging_follower_gets_its_snapshot_despite_losses() {
    for_seeds(SEEDS, async |seed| {
        let mut cluster = counters(seed, 3, 2_000).await;
        let mut ledger = Ledger::default();
        let leader = cluster.leader().await;
        let away = others(&cluster, leader)[seed as usize % 2];
        cluster.stop(away).await;
        ledger.propose(&cluster, &all(&cluster), 5, 500).await;
        let status = cluster.nodes[&cluster.leader().await].status();
        assert!(status.log_bytes < 16_000, "compacted, so the log cannot serve: {status:?}");
        cluster.network.set_default_faults(bad());
        cluster.start(away).await;
        // The log grows, and is compacted, while the snapshot is being sent.
        ledger.propose(&cluster, &all(&cluster), 5, 200).await;
        let mut status = cluster.nodes[&away].watch_status();
        status.wait_for(|status| status.last_applied > 500).await.unwrap();
        cluster.network.set_default_faults(LinkFaults::none());
        ledger.check(&cluster).await;
    });
}

/// One node after another loses power while proposals are under way, the leader more often than
/// not.
#[test]
fn nothing_acknowledged_is_lost_by_crashes() {
    for_seeds(SEEDS, async |seed| {
        let mut cluster = counters(seed, 3, 2_000).await;
        cluster.slow_disks(2 * MS);
        cluster.network.set_default_faults(bad());
        let mut ledger = Ledger::default();
        for round in 0..30 {
            ledger.propose(&cluster, &all(&cluster), 5, 10).await;
            let leader = cluster.leader().await;
            let answers = ledger.begin(&cluster, leader, 5);
            tokio::time::sleep((seed as u32 * 7 + round * 11) % 30 * MS).await;
            let victim = if round % 3 == 0 { 1 + leader % 3 } else { leader };
            cluster.crash(victim);
            tokio::time::sleep((seed as u32 + round * 13) % 40 * MS * (1 + 20 * (round % 2))).await;
            cluster.start(victim).await;
            ledger.finish(answers).await;
        }
        cluster.network.set_default_faults(LinkFaults::none());
        ledger.check(&cluster).await;
    });
}

#[test]
fn equal_seeds_give_equal_runs() {
    let trace = async |seed| {
        let cluster = counters(seed, 3, 2_000).await;
        cluster.network.set_default_faults(bad());
        let mut ledger = Ledger::default();
        ledger.propose(&cluster, &all(&cluster), 5, 100).await;
        let statuses: Vec<_> = cluster.nodes.values().map(|node| node.status()).collect();
        (ledger.outcomes, cluster.network.stats(), statuses)
    };
    let mut previous = None;
    for seed in SEEDS {
        let first = run(seed, trace);
        assert!(first == run(seed, trace), "seed {seed} gave two runs");
        assert!(previous.as_ref() != Some(&first), "seed {seed} gave the run of another");
        previous = Some(first);
    }
}
