//! The leader killed with -9 under load: how long no write succeeds, and how long until the cluster
//! is whole again once the process is started again. kv and etcd take turns.
//!
//! The gap is the longest time between two successful writes of any client, around the kill. An
//! etcd client stays with one member. If that member refuses a write, or does not respond within
//! 100 ms (several times what a write takes under this load), the client goes on to the next one: a
//! write that was forwarded to a dead leader is lost without an error. A kv client does that by
//! itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{one_thread, seconds};
use crate::cluster::Processes;
use crate::cluster::etcd::{EtcdArgs, EtcdCluster, EtcdStore};
use crate::cluster::kv::{KvArgs, KvCluster, KvStore, Setup};
use crate::figures::Spread;
use crate::load::{self, Store, key};
use crate::report::{Report, number, with_range};

/// How long an etcd client waits for its member.
const MEMBER_PATIENCE: Duration = Duration::from_millis(100);
/// Pause of a client after a write that failed.
const REST_AFTER_ERROR: Duration = Duration::from_millis(5);

#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Kills of each side
    #[arg(long, default_value_t = 10)]
    kills: usize,
    #[arg(long, default_value_t = 16)]
    clients: usize,
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Load before the kill
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    #[serde(with = "seconds")]
    before: Duration,
    /// Load after the kill; longer than a gap
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    #[serde(with = "seconds")]
    after: Duration,
}

pub(crate) fn run(args: Args) -> anyhow::Result<Report> {
    one_thread()?.block_on(compare(args))
}

/// One kill.
#[derive(Clone, Copy, Debug, Serialize)]
struct Kill {
    gap_ms: f64,
    /// From the start of the killed process until the cluster is whole.
    whole_ms: f64,
    writes: usize,
}

async fn compare(args: Args) -> anyhow::Result<Report> {
    let mut report = Report::new("kills", &args)?;
    report.note(format!("Peer: {}.", EtcdCluster::version(&args.etcd)?));
    let mut etcd = EtcdCluster::start(&args.etcd, &args.kv.dir).await?;
    let mut kv = KvCluster::start(&args.kv, &Setup::default()).await?;
    load::load_keys(&kv.connect(1)?, args.keys, args.value_bytes).await?;
    load::load_keys(&etcd.connect(1).await?, args.keys, args.value_bytes).await?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..args.kills {
        for turn in 0..2 {
            if (number + turn) % 2 == 0 {
                ours.push(kill_kv(&mut kv, &args).await?);
            } else {
                theirs.push(kill_etcd(&mut etcd, &args).await?);
            }
        }
        let (kv, etcd) = (ours[number].gap_ms, theirs[number].gap_ms);
        eprintln!("  kill {}: kv {kv:.0} ms, etcd {etcd:.0} ms", number + 1);
    }

    let title = format!(
        "leader killed with -9, {} clients, median (min..max) of {} kills",
        args.clients, args.kills
    );
    report.begin_table(title, &["", "kv ms", "etcd ms", "kv / etcd"]);
    let rows: [(&str, fn(&Kill) -> f64); 2] = [
        ("no write succeeds for", |kill| kill.gap_ms),
        ("whole after its restart", |kill| kill.whole_ms),
    ];
    for (what, of) in rows {
        let [kv, etcd] = [&ours, &theirs].map(|kills| Spread::of(kills.iter().map(of)));
        let quotient = kv.zip(etcd).map(|(kv, etcd)| kv.median / etcd.median);
        let quotient = quotient.map_or_else(|| "-".to_owned(), number);
        report.row(vec![what.to_owned(), with_range(kv), with_range(etcd), quotient]);
    }
    report.measured(json!({ "kv": ours, "etcd": theirs }));
    Ok(report)
}

async fn kill_kv(kv: &mut KvCluster, args: &Args) -> anyhow::Result<Kill> {
    let leader = kv.leader().await?;
    let stores = kv.connect(args.clients)?;
    let clients = stores.iter().cloned().map(Patient::Kv).collect();
    let (gap, writes) = gap(clients, kv.processes(), leader, args).await?;
    let started = Instant::now();
    kv.processes().start(leader)?;
    kv.settle().await?;
    let whole = started.elapsed();
    for store in &stores {
        store.close().await;
    }
    Ok(Kill { gap_ms: millis(gap), whole_ms: millis(whole), writes })
}

async fn kill_etcd(etcd: &mut EtcdCluster, args: &Args) -> anyhow::Result<Kill> {
    let leader = etcd.leader().await?;
    let mut clients = Vec::new();
    for number in 0..args.clients {
        let members = etcd.connect_to_each(3).await?;
        clients.push(Patient::Etcd { members, current: number % 3 });
    }
    let (gap, writes) = gap(clients, etcd.processes(), leader, args).await?;
    let started = Instant::now();
    etcd.processes().start(leader)?;
    etcd.settle().await?;
    Ok(Kill { gap_ms: millis(gap), whole_ms: millis(started.elapsed()), writes })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A client that goes on until a write succeeds.
enum Patient {
    Kv(KvStore),
    Etcd { members: Vec<EtcdStore>, current: usize },
}

impl Patient {
    /// Returns true if the write succeeded.
    async fn put(&mut self, key: Bytes, value: Bytes) -> bool {
        match self {
            Patient::Kv(store) => store.put(key, value).await.is_ok(),
            Patient::Etcd { members, current } => {
                let put = timeout(MEMBER_PATIENCE, members[*current].put(key, value)).await;
                let done = matches!(put, Ok(Ok(())));
                if !done {
                    *current = (*current + 1) % members.len();
                }
                done
            }
        }
    }
}

/// Writes, kills the leader, and writes on. Returns the longest time without a successful write,
/// and the number of successful writes.
async fn gap(
    clients: Vec<Patient>,
    processes: &mut Processes,
    leader: usize,
    args: &Args,
) -> anyhow::Result<(Duration, usize)> {
    let start = Instant::now();
    let until = start + args.before + args.after;
    let successes = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for mut client in clients {
        let (successes, keys) = (Arc::clone(&successes), args.keys);
        let value = load::random_value(args.value_bytes);
        tasks.spawn(async move {
            while Instant::now() < until {
                let key = key(rand::rng().random_range(0..keys));
                if client.put(key, value.clone()).await {
                    successes.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                } else {
                    sleep(REST_AFTER_ERROR).await;
                }
            }
        });
    }
    sleep(args.before).await;
    processes.kill(leader)?;
    let killed = Instant::now();
    while let Some(done) = tasks.join_next().await {
        done?;
    }
    let mut successes = successes.lock().unwrap_or_else(PoisonError::into_inner);
    successes.sort_unstable();
    anyhow::ensure!(
        successes.last().is_some_and(|last| *last > killed) && successes[0] < killed,
        "no write succeeded before or after the kill: a longer --after may help"
    );
    // From the last success before the kill on.
    let before = successes.partition_point(|success| *success < killed) - 1;
    let gaps = successes[before..].windows(2).map(|pair| pair[1] - pair[0]);
    Ok((gaps.max().unwrap_or_default(), successes.len()))
}
