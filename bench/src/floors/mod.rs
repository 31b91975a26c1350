//! A single client's put beside its parts: syncs, round trips, copies, each measured alone.
//!
//! A put by one client waits for the round trip of the client's request; within that, for a round
//! trip from the leader to a follower; and within that, for the follower's disk, while the leader's
//! own disk works beside it. So no implementation over this network and on this disk is faster than
//! one synced write and two round trips; the rest is our cost. The parts and the put take turns in
//! each round.

mod disk;
mod network;

use std::hint::black_box;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::json;

use crate::cluster::kv::{KvArgs, KvCluster, Setup};
use crate::etcd::{one_thread, seconds};
use crate::figures::{Spread, latencies};
use crate::load::{self, Op, Shape};
use crate::report::{Report, middle, number, with_range};

#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    kv: KvArgs,
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement in a round
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    #[serde(with = "seconds")]
    duration: Duration,
}

/// A part of a put, and how often a put waits for it, one after the other.
struct Floor {
    name: &'static str,
    in_a_put: f64,
    measure: fn(&Args) -> anyhow::Result<Histogram<u64>>,
}

const FLOORS: [Floor; 5] = [
    Floor {
        name: "fdatasync of a preallocated file",
        in_a_put: 1.0,
        measure: |args| disk::synced_writes(args, 1),
    },
    Floor {
        name: "the same, three files at once",
        in_a_put: 1.0,
        measure: |args| disk::synced_writes(args, 3),
    },
    Floor { name: "UDP round trip", in_a_put: 2.0, measure: network::udp },
    Floor { name: "QUIC round trip", in_a_put: 2.0, measure: network::quic },
    // Client, leader, two followers: into and out of a socket, a log, a state.
    Floor { name: "memcpy of the value", in_a_put: 16.0, measure: |args| Ok(copies(args)) },
];
const THREE_SYNCS: usize = 1;
const QUIC: usize = 3;

pub(crate) fn run(args: Args) -> anyhow::Result<Report> {
    let mut report = Report::new("floors", &args)?;
    let runtime = one_thread()?;
    let kv = runtime.block_on(KvCluster::start(&args.kv, &Setup::default()))?;
    let stores = {
        let _context = runtime.enter();
        kv.connect(1)?
    };
    runtime.block_on(load::load_keys(&stores, args.keys, args.value_bytes))?;
    let shape = Shape {
        op: Op::Put,
        clients: 1,
        keys: args.keys,
        value_bytes: args.value_bytes,
        rate: None,
        data_dir: args.kv.dir.clone(),
        warm_up: args.duration / 4,
        duration: args.duration,
    };

    let mut floors: Vec<Vec<(f64, f64)>> = vec![Vec::new(); FLOORS.len()];
    let mut puts = Vec::new();
    for _ in 0..args.rounds {
        for (floor, rounds) in FLOORS.iter().zip(&mut floors) {
            let measured = (floor.measure)(&args)?;
            let at = |quantile| measured.value_at_quantile(quantile) as f64 / 1e3;
            rounds.push((at(0.5), at(0.99)));
        }
        puts.push(runtime.block_on(load::run(&stores, &shape, &kv.pids()))?);
    }
    runtime.block_on(stores[0].close());

    let title = format!("a put of {} bytes by one client, and its pieces", args.value_bytes);
    let columns = ["", "p50 us (min..max)", "p99 us", "times in a put", "share of its p50"];
    report.begin_table(title, &columns);
    let put_us: Vec<f64> = puts.iter().filter_map(|figures| figures.p50_us).collect();
    for (floor, rounds) in FLOORS.iter().zip(&floors) {
        let shares = rounds.iter().zip(&put_us).map(|((p50, _), put)| floor.in_a_put * p50 / put);
        report.row(vec![
            floor.name.to_owned(),
            with_range(Spread::of(rounds.iter().map(|(p50, _)| *p50))),
            middle(Spread::of(rounds.iter().map(|(_, p99)| *p99))),
            number(floor.in_a_put),
            with_range(Spread::of(shares)),
        ]);
        let p50_us: Vec<f64> = rounds.iter().map(|(p50, _)| *p50).collect();
        report.measured(json!({ "floor": floor.name, "p50_us": p50_us }));
    }
    let p99 = Spread::of(puts.iter().filter_map(|figures| figures.p99_us));
    let whole = with_range(Spread::of(put_us.iter().copied()));
    report.row(vec!["put".to_owned(), whole, middle(p99), "1".to_owned(), "1".to_owned()]);
    let pieces = floors[THREE_SYNCS].iter().zip(&floors[QUIC]);
    let pieces = pieces.map(|((sync, _), (trip, _))| sync + 2.0 * trip);
    let ratios = put_us.iter().zip(pieces).map(|(put, pieces)| put / pieces);
    report.note(format!(
        "A put takes {} of its floor: three syncs at once and two QUIC round trips.",
        with_range(Spread::of(ratios))
    ));
    report.measured(json!({ "put": puts }));
    Ok(report)
}

/// Measures copies of one value, each as the share of many.
#[allow(clippy::disallowed_methods, reason = "a floor is measured in real time")]
fn copies(args: &Args) -> Histogram<u64> {
    const TOGETHER: u32 = 1024;
    let value = load::random_value(args.value_bytes);
    let mut target = vec![0; args.value_bytes];
    let mut all = latencies();
    let until = Instant::now() + args.duration / 10;
    while Instant::now() < until {
        let start = Instant::now();
        for _ in 0..TOGETHER {
            target.copy_from_slice(black_box(&value));
            black_box(&mut target);
        }
        record(&mut all, start.elapsed() / TOGETHER);
    }
    all
}

fn record(all: &mut Histogram<u64>, latency: Duration) {
    all.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
}
