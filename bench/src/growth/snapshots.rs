//! Snapshots and compaction under load: how much they slow clients down, and how much they write.
//!
//! For each engine and size of the state: a cluster that takes a snapshot whenever its log exceeds
//! 16 MiB, beside one that never does. "Longest" is the longest wait of any client for any
//! response.

use kv_service::config::ByteSize;
use serde_json::json;

use super::{Args, Case, Engine, MB_VALUE_BYTES, cluster, keys_of_mb, tell, turn};
use crate::cluster::kv::Setup;
use crate::load::{self, Op};
use crate::report::Report;

const OFTEN: ByteSize = ByteSize(16 << 20);
const NEVER: ByteSize = ByteSize(0);

pub(super) async fn run(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    for engine in &args.engines {
        for mb in &args.snapshots {
            let never = under_load(args, *engine, *mb, NEVER).await?;
            let often = under_load(args, *engine, *mb, OFTEN).await?;
            let title =
                format!("put while snapshots are taken, {}, state of {mb} MB", engine.name());
            tell(report, &title, &[never.case, often.case], 0);
            anyhow::ensure!(
                never.snapshot_index == 0,
                "a cluster that is told never to snapshot has done so"
            );
            if often.snapshot_index <= often.snapshot_index_before {
                report.note(format!(
                    "{title}: no snapshot was taken within the measured time; a longer --duration helps"
                ));
            }
            report.measured(json!({
                "part": title,
                "snapshot_index": often.snapshot_index,
                "disk_bytes_never": never.disk_bytes,
                "disk_bytes_often": often.disk_bytes,
            }));
        }
    }
    Ok(())
}

struct UnderLoad {
    case: Case,
    snapshot_index_before: u64,
    snapshot_index: u64,
    disk_bytes: u64,
}

async fn under_load(
    args: &Args,
    engine: Engine,
    mb: u64,
    max_raft_state: ByteSize,
) -> anyhow::Result<UnderLoad> {
    let setup =
        Setup { storage: engine.kind(), max_raft_state: Some(max_raft_state), ..Setup::default() };
    let (mut kv, stores) = cluster(args, &setup).await?;
    let keys = keys_of_mb(mb);
    load::load_keys(&stores, keys, MB_VALUE_BYTES).await?;
    kv.settle().await?;
    let snapshot_index_before = kv.status(0).await?.snapshot_index;
    let mut shape = args.shape(Op::Put);
    shape.keys = keys;
    shape.value_bytes = MB_VALUE_BYTES;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(turn(&kv, &stores, &shape).await?);
    }
    let name = match max_raft_state {
        NEVER => "never".to_owned(),
        size => format!("log over {size}"),
    };
    Ok(UnderLoad {
        case: Case { name, rounds },
        snapshot_index_before,
        snapshot_index: kv.status(0).await?.snapshot_index,
        disk_bytes: kv.disk_bytes()?,
    })
}
