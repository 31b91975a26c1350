//! Throughput and latencies against the size of values and state and the number of nodes, clients
//! and sessions.

use super::{Args, Case, KEYS, VALUE_BYTES, cluster, tell, turn};
use crate::cluster::kv::Setup;
use crate::load::{self, Op, Store};
use crate::process;
use crate::report::Report;

/// Bytes under way at once, so that large values do not only measure a full queue.
const BYTES_UNDER_WAY_MAX: usize = 8 << 20;

fn cases<T>(all: &[T], name: impl Fn(&T) -> String) -> Vec<Case> {
    all.iter().map(|one| Case { name: name(one), rounds: Vec::new() }).collect()
}

/// Returns the place of the wanted case, or of the first one.
fn base<T: PartialEq>(all: &[T], wanted: &T) -> usize {
    all.iter().position(|one| one == wanted).unwrap_or(0)
}

pub(super) async fn values(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (kv, stores) = cluster(args, &Setup::default()).await?;
    let mut all = cases(&args.values, |bytes| format!("{bytes} B"));
    for _ in 0..args.rounds {
        for (bytes, case) in args.values.iter().zip(&mut all) {
            let mut shape = args.shape(Op::Put);
            shape.value_bytes = *bytes;
            shape.clients = shape.clients.min(BYTES_UNDER_WAY_MAX.div_ceil(*bytes));
            // Large values overwrite fewer keys, so that the state stays within a gigabyte.
            shape.keys = shape.keys.min((1 << 30) / *bytes as u64);
            case.rounds.push(turn(&kv, &stores, &shape).await?);
        }
    }
    tell(report, "put against the size of values", &all, base(&args.values, &VALUE_BYTES));
    Ok(())
}

pub(super) async fn nodes(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let mut all = cases(&args.nodes, |count| format!("{count} node(s)"));
    for _ in 0..args.rounds {
        for (count, case) in args.nodes.iter().zip(&mut all) {
            // A fresh cluster each time: idle ones would take time from the others.
            let setup = Setup { nodes: *count, ..Setup::default() };
            let (kv, stores) = cluster(args, &setup).await?;
            case.rounds.push(turn(&kv, &stores, &args.shape(Op::Put)).await?);
        }
    }
    tell(report, "put against the number of nodes", &all, base(&args.nodes, &3));
    Ok(())
}

/// A state only grows, so a cluster with a small one runs beside it as the base case.
pub(super) async fn keys(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (small, small_stores) = cluster(args, &Setup::default()).await?;
    load::load_keys(&small_stores, KEYS, VALUE_BYTES).await?;
    // Another cluster on ports of its own.
    let mut beside = args.clone();
    beside.kv.base_port += 50;
    let (large, large_stores) = cluster(&beside, &Setup::default()).await?;
    let mut loaded = 0;
    for count in &args.keys {
        load::load_range(&large_stores, loaded..*count, VALUE_BYTES).await?;
        loaded = *count;
        process::settled(&large.pids()).await?;
        for op in [Op::Put, Op::Get] {
            let named = |keys: u64| Case { name: format!("{keys} keys"), rounds: Vec::new() };
            let mut both = [named(KEYS), named(*count)];
            for _ in 0..args.rounds {
                let mut shape = args.shape(op);
                both[0].rounds.push(turn(&small, &small_stores, &shape).await?);
                shape.keys = *count;
                both[1].rounds.push(turn(&large, &large_stores, &shape).await?);
            }
            tell(report, &format!("{} against the number of keys", op.name()), &both, 0);
        }
    }
    Ok(())
}

pub(super) async fn clients(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (kv, stores) = cluster(args, &Setup::default()).await?;
    let mut all = cases(&args.clients, |count| format!("{count} client(s)"));
    for _ in 0..args.rounds {
        for (count, case) in args.clients.iter().zip(&mut all) {
            let mut shape = args.shape(Op::Put);
            shape.clients = *count;
            case.rounds.push(turn(&kv, &stores, &shape).await?);
        }
    }
    tell(report, "put against the number of clients", &all, base(&args.clients, &64));
    Ok(())
}

/// Puts against the number of sessions that other clients opened and left open; beside it a cluster
/// without them.
pub(super) async fn sessions(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (few, few_stores) = cluster(args, &Setup::default()).await?;
    let mut beside = args.clone();
    beside.kv.base_port += 50;
    let (many, many_stores) = cluster(&beside, &Setup::default()).await?;
    let mut opened = 0;
    for count in &args.sessions {
        for number in opened..*count {
            // The client does not close its session, so the session stays.
            let mut store = many.connect(1)?.remove(0);
            store.put(load::key(number as u64), load::random_value(VALUE_BYTES)).await?;
        }
        opened = *count;
        let named = |name: String| Case { name, rounds: Vec::new() };
        let mut both = [named("none".to_owned()), named(format!("{count} sessions"))];
        for _ in 0..args.rounds {
            let shape = args.shape(Op::Put);
            both[0].rounds.push(turn(&few, &few_stores, &shape).await?);
            both[1].rounds.push(turn(&many, &many_stores, &shape).await?);
        }
        tell(report, "put against the number of sessions left open", &both, 0);
    }
    Ok(())
}
