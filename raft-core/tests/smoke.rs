//! Random runs of small clusters: whatever is lost, repeated, reordered or crashes, the oracle finds
//! nothing wrong, and once everything works again the cluster agrees.
//!
//! A failure names its seed. `SMOKE_SEEDS=5000 SMOKE_STEPS=2000` looks further.

mod common;

use common::{Cluster, Random};

const SEEDS: usize = 200;
const STEPS: usize = 1000;

fn setting(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(value) => value.parse().expect("a number"),
        Err(_) => default,
    }
}

/// One thing happens, by chance.
fn something_happens(cluster: &mut Cluster, random: &mut Random) {
    let ids = cluster.ids();
    let id = *random.pick(&ids);
    if !cluster.is_up(id) {
        if random.percent(10) {
            cluster.start(id);
        }
        return;
    }
    match random.below(200) {
        0..130 => {
            for _ in 0..4 {
                network(cluster, random);
            }
        }
        130..160 => {
            let _ = cluster.write(id);
        }
        160..164 => cluster.fire(id),
        164..180 => {
            let _ = cluster.propose(id, "x");
        }
        180..186 => {
            let _ = cluster.read(id);
        }
        186..190 => cluster.snapshot(id),
        190..192 => {
            let index = cluster.raft(id).snapshot_index();
            cluster.compact(id, index.saturating_sub(random.below(3) as u64));
        }
        192 => {
            let _ = cluster.with(id, |raft, now| raft.transfer_leadership(now, None));
        }
        193..195 => cluster.crash(id, random.below(3)),
        195 => {
            let peer = *random.pick(&ids);
            cluster.with(id, |raft, now| raft.on_unreachable(now, peer));
        }
        196 => cluster.isolate(id),
        _ => cluster.heal(),
    }
}

fn network(cluster: &mut Cluster, random: &mut Random) {
    // Mostly in order, so that the cluster gets somewhere.
    let count = cluster.flying.len();
    if count == 0 {
        return;
    }
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
    let show = std::env::var("SMOKE_SEED").is_ok();
    let mut cluster = Cluster::with_config(count, |config| {
        // Small limits are reached.
        config.append_bytes_max = 100;
        config.inflight_count_max = 3;
        config.inflight_bytes_max = 200;
    })
    .recording(show);
    for id in cluster.ids() {
        if random.percent(50) {
            cluster.slow_disks.insert(id);
        }
    }
    for _ in 0..setting("SMOKE_STEPS", STEPS) {
        something_happens(&mut cluster, &mut random);
        for line in cluster.take_events() {
            eprintln!("{line}");
        }
    }
    if std::env::var("SMOKE_STATS").is_ok() {
        let terms = cluster.up().into_iter().map(|id| cluster.raft(id).term()).max();
        let starts = cluster.up().into_iter().map(|id| cluster.raft(id).log_start_index()).max();
        eprintln!(
            "{seed}: committed {} terms {terms:?} start {starts:?} {:?}",
            cluster.oracle.committed_index(),
            cluster.stats
        );
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
    let seeds = match std::env::var("SMOKE_SEED") {
        Ok(_) => setting("SMOKE_SEED", 0) as u64..setting("SMOKE_SEED", 0) as u64 + 1,
        Err(_) => 0..setting("SMOKE_SEEDS", SEEDS) as u64,
    };
    for seed in seeds {
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
