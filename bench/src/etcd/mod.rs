//! The durable cluster against etcd: three processes each, on this machine's disk and loopback.
//!
//! Both clusters stay up for the whole run, and take turns: each round of each case asks first the
//! one, then the other, and the next round begins with the other.

pub(crate) mod kills;

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::cluster::etcd::{EtcdArgs, EtcdCluster, EtcdStore};
use crate::cluster::kv::{KvArgs, KvCluster, KvStore, Setup};
use crate::figures::{Figures, spread};
use crate::load::{self, Op, Shape};
use crate::report::Report;

#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Operations to measure
    #[arg(long, value_delimiter = ',', default_value = "put,get,mixed")]
    ops: Vec<Op>,
    /// Requests under way at once; a list
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024")]
    clients: Vec<usize>,
    /// Connections of each side over which the clients are spread
    #[arg(long, default_value_t = 8)]
    connections: usize,
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// After each case of puts, the same clients put again by a timetable, at this share of etcd's
    /// rate. 0 leaves it out
    #[arg(long, default_value_t = 0.9)]
    paced_share: f64,
    /// Turns that each side gets in each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one turn
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    #[serde(with = "crate::etcd::seconds")]
    duration: Duration,
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    #[serde(with = "crate::etcd::seconds")]
    warm_up: Duration,
}

/// Durations in JSON are numbers of seconds.
pub(crate) mod seconds {
    use std::time::Duration;

    pub(crate) fn serialize<S: serde::Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }
}

/// A runtime of one thread: the other cores belong to the servers.
pub(crate) fn one_thread() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

pub(crate) fn run(args: Args) -> anyhow::Result<Report> {
    one_thread()?.block_on(compare(args))
}

async fn compare(args: Args) -> anyhow::Result<Report> {
    let mut report = Report::new("etcd", &args)?;
    report.note(format!(
        "Peer: {}, driven by the etcd-client crate, all connections to its leader, read buffers cleared \
         before gets.",
        EtcdCluster::version(&args.etcd)?
    ));
    let mut etcd = EtcdCluster::start(&args.etcd, &args.kv.dir).await?;
    let kv = KvCluster::start(&args.kv, &Setup::default()).await?;
    let kv_stores = kv.connect(args.connections)?;
    let etcd_stores = etcd.connect(args.connections).await?;
    eprintln!("loading {} keys into each", args.keys);
    load::load_keys(&kv_stores, args.keys, args.value_bytes).await?;
    load::load_keys(&etcd_stores, args.keys, args.value_bytes).await?;
    let mut sides = Sides { kv, etcd, kv_stores, etcd_stores };

    let title = format!(
        "{} byte values, {} keys, {} connections, {} rounds of {:?}; medians",
        args.value_bytes, args.keys, args.connections, args.rounds, args.duration
    );
    report.begin_contest(&title, "etcd");
    for op in &args.ops {
        for clients in &args.clients {
            let mut shape = Shape {
                op: *op,
                clients: *clients,
                keys: args.keys,
                value_bytes: args.value_bytes,
                rate: None,
                data_dir: args.kv.dir.clone(),
                warm_up: args.warm_up,
                duration: args.duration,
            };
            let case = format!("{} {clients}", op.name());
            let (ours, theirs) = sides.take_turns(&shape, args.rounds).await?;
            report.contest(&case, "etcd", &ours, &theirs);
            if *op == Op::Put && args.paced_share > 0.0 {
                let borne = spread(&theirs, |figures| Some(figures.ops_per_s));
                let rate = args.paced_share * borne.context("no rounds")?.median;
                shape.rate = Some(rate);
                let (ours, theirs) = sides.take_turns(&shape, args.rounds).await?;
                report.contest(&format!("{case}, {rate:.0}/s"), "etcd", &ours, &theirs);
            }
        }
    }
    for store in &sides.kv_stores {
        store.close().await;
    }
    Ok(report)
}

/// Both clusters, and the connections to them.
struct Sides {
    kv: KvCluster,
    etcd: EtcdCluster,
    kv_stores: Vec<KvStore>,
    etcd_stores: Vec<EtcdStore>,
}

impl Sides {
    /// Asks both, in turns that change their order from round to round. Returns the figures of kv
    /// and of etcd.
    async fn take_turns(
        &mut self,
        shape: &Shape,
        rounds: usize,
    ) -> anyhow::Result<(Vec<Figures>, Vec<Figures>)> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    ours.push(load::run(&self.kv_stores, shape, &self.kv.pids()).await?);
                    continue;
                }
                if shape.op == Op::Get {
                    self.etcd.clear_read_buffers().await?;
                }
                theirs.push(load::run(&self.etcd_stores, shape, &self.etcd.pids()).await?);
            }
        }
        Ok((ours, theirs))
    }
}
