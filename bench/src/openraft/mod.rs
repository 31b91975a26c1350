//! The core and its driver against openraft: three nodes in one process, logs in memory, messages
//! passed as values, a state machine that does nothing, empty requests.
//!
//! Each turn builds a cluster on a runtime of its own, so that neither side inherits memory, timers
//! or a full log. Nodes and clients share the worker threads.

mod kv;
mod peer;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::figures::{Figures, latencies};
use crate::process;
use crate::report::Report;

#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Args {
    /// Requests under way at once; a list
    #[arg(long, value_delimiter = ',', default_value = "1,64,256,1024,4096")]
    clients: Vec<usize>,
    /// Worker threads; a list
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    workers: Vec<usize>,
    /// Turns that each side gets in each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one turn
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    #[serde(with = "crate::etcd::seconds")]
    duration: Duration,
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    #[serde(with = "crate::etcd::seconds")]
    warm_up: Duration,
    /// How openraft's appends travel
    #[arg(long, value_enum, default_value = "pipelined")]
    peer_network: PeerNetwork,
    /// Where openraft's clients run
    #[arg(long, value_enum, default_value = "shared")]
    peer_clients: PeerClients,
}

/// openraft leaves the network to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum PeerNetwork {
    /// As a stream: the next append does not wait for the response to the last one
    Pipelined,
    /// One at a time to each follower, which is what its own benchmark does
    Sequential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum PeerClients {
    /// On the threads of the nodes
    Shared,
    /// On as many threads of their own, which is what its own benchmark does
    Apart,
}

/// Latencies kept by all clients together: each client keeps the first ones of its measured time.
const LATENCIES_MAX: usize = 1 << 18;

/// A running cluster that commits empty commands.
trait Group: Clone + Send + Sync + 'static {
    fn commit(&self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

pub(crate) fn run(args: Args) -> anyhow::Result<Report> {
    let mut report = Report::new("openraft", &args)?;
    report.note(
        "Peer: openraft 0.10.0-alpha.37. CPU is that of the whole process, clients included.",
    );
    let title = format!(
        "three nodes in one process, in memory, {} rounds of {:?}; medians",
        args.rounds, args.duration
    );
    report.begin_contest(&title, "openraft");
    for workers in &args.workers {
        for clients in &args.clients {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..args.rounds {
                for turn in 0..2 {
                    if (round + turn) % 2 == 0 {
                        ours.push(measure_kv(&args, *workers, *clients)?);
                    } else {
                        theirs.push(measure_peer(&args, *workers, *clients)?);
                    }
                }
            }
            let case = format!("{workers} worker(s), {clients} clients");
            report.contest(&case, "openraft", &ours, &theirs);
        }
    }
    Ok(report)
}

fn threads(workers: usize) -> anyhow::Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(workers).enable_all().build()?)
}

fn measure_kv(args: &Args, workers: usize, clients: usize) -> anyhow::Result<Figures> {
    let runtime = threads(workers)?;
    runtime.block_on(async {
        let cluster = kv::Cluster::start().await?;
        // Spawned, so that it runs on a worker thread and not on this thread beside them.
        let figures = tokio::spawn(closed_loop(cluster.leader(), clients, args.clone())).await??;
        cluster.stop().await;
        Ok(figures)
    })
}

fn measure_peer(args: &Args, workers: usize, clients: usize) -> anyhow::Result<Figures> {
    let runtime = threads(workers)?;
    let apart = match args.peer_clients {
        PeerClients::Shared => None,
        PeerClients::Apart => Some(threads(workers)?),
    };
    let pipelined = args.peer_network == PeerNetwork::Pipelined;
    let cluster = runtime.block_on(peer::Cluster::start(pipelined))?;
    let load = closed_loop(cluster.leader(), clients, args.clone());
    let on = apart.as_ref().unwrap_or(&runtime);
    let figures = on.block_on(on.spawn(load))??;
    runtime.block_on(cluster.stop());
    Ok(figures)
}

/// Each client commits its next command when the last one is committed and applied on the leader.
async fn closed_loop<G: Group>(group: G, clients: usize, args: Args) -> anyhow::Result<Figures> {
    let (counting, stopping) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let committed = Arc::new(AtomicU64::new(0));
    let kept_max = LATENCIES_MAX / clients;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let group = group.clone();
        let (counting, stopping) = (Arc::clone(&counting), Arc::clone(&stopping));
        let committed = Arc::clone(&committed);
        tasks.spawn(async move {
            let mut kept = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                let start = Instant::now();
                group.commit().await?;
                committed.fetch_add(1, Ordering::Relaxed);
                if kept.len() < kept_max && counting.load(Ordering::Relaxed) {
                    kept.push(start.elapsed());
                }
            }
            anyhow::Ok(kept)
        });
    }
    sleep(args.warm_up).await;
    process::forget_peaks(&[std::process::id()])?;
    counting.store(true, Ordering::Relaxed);
    let (start, cpu) = (Instant::now(), process::own_cpu());
    let before = committed.load(Ordering::Relaxed);
    sleep(args.duration).await;
    let ops = committed.load(Ordering::Relaxed) - before;
    let (elapsed, cpu) = (start.elapsed(), process::own_cpu() - cpu);
    let peak_bytes = process::peak_bytes(&[std::process::id()])?;
    stopping.store(true, Ordering::Relaxed);
    let mut all = latencies();
    while let Some(done) = tasks.join_next().await {
        for latency in done?.context("a command was not committed")? {
            all.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    let mut figures = Figures::of(&all, 0, elapsed);
    figures.ops = ops;
    figures.ops_per_s = ops as f64 / elapsed.as_secs_f64();
    figures.cpu_us_per_op = figures.per_op(cpu);
    figures.memory_mib = Some(peak_bytes as f64 / f64::from(1 << 20));
    Ok(figures)
}
