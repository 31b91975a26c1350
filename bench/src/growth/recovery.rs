//! How long a restart takes against the amount of data to read, and how fast a node that missed
//! entries catches up while the others go on under load.

use std::time::Duration;

use kv_service::config::ByteSize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Args, MB_VALUE_BYTES, cluster, keys_of_mb};
use crate::cluster::kv::{KvCluster, Setup};
use crate::load::{self, Op, Store};
use crate::report::{Report, number};

/// A log that is not compacted while it is filled.
const NEVER: ByteSize = ByteSize(0);
/// A log that holds little.
const SMALL: ByteSize = ByteSize(4 << 20);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(300);

/// Kills all nodes with -9 and starts them at once. Measures the time until a write succeeds, and
/// until all nodes have applied everything.
pub(super) async fn restart(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let columns = ["MB", "in", "first write after ms", "all nodes whole after ms"];
    report.begin_table("restart of all three nodes after kill -9", &columns);
    for (max_raft_state, place) in [(SMALL, "the state"), (NEVER, "the log")] {
        for mb in &args.restart {
            let setup = Setup { max_raft_state: Some(max_raft_state), ..Setup::default() };
            let (mut kv, stores) = cluster(args, &setup).await?;
            load::load_keys(&stores, keys_of_mb(*mb), MB_VALUE_BYTES).await?;
            for number in 0..3 {
                kv.processes().kill(number)?;
            }
            let start = Instant::now();
            for number in 0..3 {
                kv.processes().start(number)?;
            }
            let mut store = kv.connect(1)?.remove(0);
            while store.put(load::key(0), load::random_value(MB_VALUE_BYTES)).await.is_err() {
                kv.processes().ensure_running()?;
            }
            let first_write_ms = start.elapsed().as_secs_f64() * 1e3;
            kv.settle().await?;
            let whole_ms = start.elapsed().as_secs_f64() * 1e3;
            let row =
                vec![mb.to_string(), place.to_owned(), number(first_write_ms), number(whole_ms)];
            report.row(row);
            report.measured(json!({
                "part": "restart", "mb": mb, "in": place, "first_write_ms": first_write_ms,
                "whole_ms": whole_ms,
            }));
        }
    }
    Ok(())
}

/// Kills a follower, lets it miss this much, and starts it again while clients go on writing.
/// Measures how fast it reaches the leader's commit index at its start, and how much slower the
/// clients are meanwhile.
pub(super) async fn catch_up(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let columns = [
        "MB missed",
        "by",
        "caught up after ms",
        "MB/s",
        "puts/s meanwhile, over before",
        "p99 over",
    ];
    report.begin_table("a follower catches up while the leader is loaded", &columns);
    for (max_raft_state, by) in [(NEVER, "log"), (SMALL, "snapshot")] {
        for mb in &args.catch_up {
            let setup = Setup { max_raft_state: Some(max_raft_state), ..Setup::default() };
            let (mut kv, stores) = cluster(args, &setup).await?;
            let lagging = (kv.leader().await? + 1) % 3;
            kv.processes().kill(lagging)?;
            load::load_keys(&stores, keys_of_mb(*mb), MB_VALUE_BYTES).await?;
            let mut shape = args.shape(Op::Put);
            shape.keys = keys_of_mb(*mb);
            shape.value_bytes = MB_VALUE_BYTES;
            let before = load::run(&stores, &shape, &kv.pids()).await?;
            let leader = kv.leader().await?;
            let target = kv.status(leader).await?.commit_index;
            kv.processes().start(lagging)?;
            let pids = kv.pids();
            let (caught_up, meanwhile) =
                tokio::join!(caught_up(&kv, lagging, target), load::run(&stores, &shape, &pids));
            let (caught_up, meanwhile) = (caught_up?.as_secs_f64(), meanwhile?);
            let written = (before.ops as usize * MB_VALUE_BYTES) as f64 / 1e6;
            let missed_mb = *mb as f64 + if by == "log" { written } else { 0.0 };
            let p99_over =
                meanwhile.p99_us.zip(before.p99_us).map(|(after, before)| after / before);
            report.row(vec![
                number(missed_mb),
                by.to_owned(),
                number(caught_up * 1e3),
                number(missed_mb / caught_up),
                number(meanwhile.ops_per_s / before.ops_per_s),
                p99_over.map_or_else(|| "-".to_owned(), number),
            ]);
            report.measured(json!({
                "part": "catch-up", "missed_mb": missed_mb, "by": by, "caught_up_s": caught_up,
                "before": before, "meanwhile": meanwhile,
            }));
        }
    }
    Ok(())
}

async fn caught_up(kv: &KvCluster, node: usize, target: u64) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let store = kv.connect(1)?.remove(0);
    loop {
        if let Ok(status) = store.status(node).await
            && status.last_applied >= target
        {
            return Ok(start.elapsed());
        }
        anyhow::ensure!(
            start.elapsed() < CATCH_UP_PATIENCE,
            "node {} does not catch up within {CATCH_UP_PATIENCE:?}",
            node + 1
        );
        sleep(LOOK_AGAIN_AFTER).await;
    }
}
