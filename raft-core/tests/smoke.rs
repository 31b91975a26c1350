//! Random runs of small clusters: whatever is lost, repeated, reordered or crashes, the oracle finds
//! nothing wrong, and once everything works again the cluster agrees.

mod common;

use common::{Cluster, Random};

const SEEDS: u64 = 200;
const STEPS: usize = 400;

/// One thing happens, by chance.
fn something_happens(cluster: &mut Cluster, random: &mut Random) {
    let ids = cluster.ids();
    let id = *random.pick(&ids);
    let up = cluster.is_up(id);
    match random.below(100) {
        0..60 if !cluster.flying.is_empty() => network(cluster, random),
        60..72 if up => {
            let _ = cluster.write(id);
        }
        72..80 if up => cluster.fire(id),
        80..88 if up => {
            let _ = cluster.propose(id, "x");
        }
        88..91 if up => {
            let _ = cluster.read(id);
        }
        91..93 if up => cluster.snapshot(id),
        93..94 if up => {
            let index = cluster.raft(id).snapshot_index();
            cluster.compact(id, index.saturating_sub(random.below(3) as u64));
        }
        94..95 if up => {
            let _ = cluster.with(id, |raft, now| raft.transfer_leadership(now, None));
        }
        95..96 if up => cluster.crash(id, random.below(3)),
        96..97 if up => {
            let peer = *random.pick(&ids);
            cluster.with(id, |raft, now| raft.on_unreachable(now, peer));
        }
        97..98 => match random.percent(50) {
            true => cluster.isolate(id),
            false => cluster.heal(),
        },
        _ if !up => cluster.start(id),
        _ => {}
    }
}

fn network(cluster: &mut Cluster, random: &mut Random) {
    // Mostly in order, so that the cluster gets somewhere.
    let count = cluster.flying.len();
    let position = if random.percent(70) { 0 } else { random.below(count) };
    match random.below(100) {
        0..10 => cluster.drop_parcel(position),
        10..15 if count < 200 => {
            let again = cluster.flying[position].clone();
            cluster.flying.push_back(again);
        }
        _ => cluster.deliver(position),
    }
}

fn run(seed: u64) {
    let mut random = Random::new(seed);
    let count = if seed.is_multiple_of(2) { 3 } else { 5 };
    let mut cluster = Cluster::with_config(count, |config| {
        // Small limits are reached.
        config.append_bytes_max = 100;
        config.inflight_count_max = 3;
        config.inflight_bytes_max = 200;
    })
    .quiet();
    for id in cluster.ids() {
        if random.percent(50) {
            cluster.slow_disks.insert(id);
        }
    }
    for _ in 0..STEPS {
        something_happens(&mut cluster, &mut random);
    }
    converge(&mut cluster);
}

fn converge(cluster: &mut Cluster) {
    cluster.heal();
    cluster.slow_disks.clear();
    for id in cluster.ids() {
        if cluster.is_up(id) {
            while cluster.write(id) {}
        } else {
            cluster.start(id);
        }
    }
    cluster.run(5000);
    let leader = cluster.leader().expect("a leader after five seconds of quiet");
    cluster.propose(leader, "last").expect("the leader takes proposals");
    cluster.run(1000);
    let expected = &cluster.node(leader).machine;
    assert!(expected.last_applied().index > 1);
    for id in cluster.ids() {
        assert_eq!(&cluster.node(id).machine, expected, "node {id} has not converged");
        assert!(cluster.node(id).alarms.is_empty(), "{:?}", cluster.node(id).alarms);
    }
}

#[test]
fn random_runs_are_safe_and_converge() {
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = result {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Each seed, run twice, does the same.
#[test]
fn a_seed_is_a_run() {
    let trace = |seed| {
        let mut random = Random::new(seed);
        let mut cluster = Cluster::new(3);
        for _ in 0..STEPS {
            something_happens(&mut cluster, &mut random);
        }
        cluster.take_events()
    };
    assert_eq!(trace(7), trace(7));
}
