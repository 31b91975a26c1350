//! How the durable cluster bears growth: larger values, clusters and states, more clients and
//! sessions; how much snapshots and compaction slow down clients that write meanwhile; how long a
//! restart and a node's catching up take.
//!
//! Each part compares cases with a base case of its own, within rounds.

mod load_growth;
mod recovery;
mod snapshots;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use kv_service::config::StorageKind;
use serde::Serialize;
use serde_json::json;

use crate::cluster::kv::{KvArgs, KvCluster, KvStore, Setup};
use crate::etcd::{one_thread, seconds};
use crate::figures::{Figures, ratio, spread};
use crate::load::{self, Op, Shape};
use crate::report::{Report, middle, with_range};

#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    kv: KvArgs,
    /// Parts to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "values,nodes,keys,clients,sessions,snapshots,restart,catch-up"
    )]
    parts: Vec<Part>,
    /// Bytes of a value; the base case of the other parts is 256
    #[arg(long, value_delimiter = ',', default_value = "16,256,4096,65536,1048576")]
    values: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "1,3,5,7")]
    nodes: Vec<u64>,
    /// Keys in the state; ascending
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000,10000000")]
    keys: Vec<u64>,
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024,4096")]
    clients: Vec<usize>,
    /// Open sessions; ascending
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    sessions: Vec<usize>,
    /// MB in the state, for snapshots
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,3000")]
    snapshots: Vec<u64>,
    /// Engines, for snapshots
    #[arg(long, value_delimiter = ',', default_value = "rocksdb,memory")]
    engines: Vec<Engine>,
    /// MB in the state, or in the log, for restarts
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    restart: Vec<u64>,
    /// MB that a node misses, for catching up
    #[arg(long, value_delimiter = ',', default_value = "10,100,500")]
    catch_up: Vec<u64>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one turn
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    #[serde(with = "seconds")]
    duration: Duration,
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    #[serde(with = "seconds")]
    warm_up: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Part {
    Values,
    Nodes,
    Keys,
    Clients,
    Sessions,
    Snapshots,
    Restart,
    CatchUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Engine {
    #[value(name = "rocksdb")]
    RocksDb,
    Memory,
}

impl Engine {
    fn kind(self) -> StorageKind {
        match self {
            Engine::RocksDb => StorageKind::RocksDb,
            Engine::Memory => StorageKind::Memory,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Engine::RocksDb => "rocksdb",
            Engine::Memory => "memory",
        }
    }
}

const CLIENTS: usize = 64;
const CONNECTIONS: usize = 8;
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
/// Bytes of a value in the parts whose cases are in MB, so that filling a large state takes a while
/// and not an hour.
const MB_VALUE_BYTES: usize = 1024;

pub(crate) fn run(mut args: Args) -> anyhow::Result<Report> {
    // Built once, and not by each of many clusters.
    args.kv.kv = Some(binary(&args.kv)?);
    let mut report = Report::new("growth", &args)?;
    one_thread()?.block_on(async {
        for part in args.parts.clone() {
            eprintln!("{part:?}");
            match part {
                Part::Values => load_growth::values(&args, &mut report).await?,
                Part::Nodes => load_growth::nodes(&args, &mut report).await?,
                Part::Keys => load_growth::keys(&args, &mut report).await?,
                Part::Clients => load_growth::clients(&args, &mut report).await?,
                Part::Sessions => load_growth::sessions(&args, &mut report).await?,
                Part::Snapshots => snapshots::run(&args, &mut report).await?,
                Part::Restart => recovery::restart(&args, &mut report).await?,
                Part::CatchUp => recovery::catch_up(&args, &mut report).await?,
            }
        }
        anyhow::Ok(())
    })?;
    Ok(report)
}

fn binary(kv: &KvArgs) -> anyhow::Result<PathBuf> {
    match &kv.kv {
        Some(path) => Ok(path.clone()),
        None => crate::cluster::kv::build(),
    }
}

impl Args {
    fn shape(&self, op: Op) -> Shape {
        Shape {
            op,
            clients: CLIENTS,
            keys: KEYS,
            value_bytes: VALUE_BYTES,
            rate: None,
            data_dir: self.kv.dir.clone(),
            warm_up: self.warm_up,
            duration: self.duration,
        }
    }
}

/// A cluster, and clients of it.
async fn cluster(args: &Args, setup: &Setup) -> anyhow::Result<(KvCluster, Vec<KvStore>)> {
    let cluster = KvCluster::start(&args.kv, setup).await?;
    let stores = cluster.connect(CONNECTIONS)?;
    Ok((cluster, stores))
}

/// Returns how many keys make up this many MB, with values of [`MB_VALUE_BYTES`].
fn keys_of_mb(mb: u64) -> u64 {
    (mb * 1_000_000).div_ceil(MB_VALUE_BYTES as u64)
}

/// One case and its rounds.
struct Case {
    name: String,
    rounds: Vec<Figures>,
}

/// Reports cases beside the base case, which is one of them.
fn tell(report: &mut Report, title: &str, cases: &[Case], base: usize) {
    let columns = [
        "case",
        "ops/s",
        "over the base case (min..max)",
        "p50 us",
        "p99 us",
        "longest us",
        "CPU us/op",
        "MiB",
        "written per put byte",
    ];
    report.begin_table(format!("{title}; base case: {}", cases[base].name), &columns);
    let rate = |figures: &Figures| Some(figures.ops_per_s);
    for Case { name, rounds } in cases {
        let over = ratio(rounds, &cases[base].rounds, rate);
        report.row(vec![
            name.clone(),
            middle(spread(rounds, rate)),
            with_range(over),
            middle(spread(rounds, |figures| figures.p50_us)),
            middle(spread(rounds, |figures| figures.p99_us)),
            middle(spread(rounds, |figures| figures.max_us)),
            middle(spread(rounds, |figures| figures.cpu_us_per_op)),
            middle(spread(rounds, |figures| figures.memory_mib)),
            middle(spread(rounds, |figures| figures.written_per_put_byte)),
        ]);
        report.measured(json!({ "part": title, "case": name, "over_base": over, "kv": rounds }));
    }
}

/// Measures one turn in one cluster.
async fn turn(cluster: &KvCluster, stores: &[KvStore], shape: &Shape) -> anyhow::Result<Figures> {
    load::run(stores, shape, &cluster.pids()).await
}
