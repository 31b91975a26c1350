//! Programs of two cluster versions: `kv`, and `kv-version-1`, which `scripts/previous` builds from
//! the same sources as an older program. Nodes are upgraded and downgraded under load.

use std::time::Duration;

use integration_tests::processes::binary::Program;
use integration_tests::processes::cluster::{Cluster, NODES, Plan, RECOVERY, eventually};
use integration_tests::processes::workload::Workload;
use kv_service::{Client, Expect, Outcome};
use raft_core::types::NodeId;

/// A day in production.
const UPGRADE_DELAY: Duration = Duration::from_secs(3);

/// A cluster whose nodes all run the older program.
async fn of_the_past() -> Cluster {
    let plan = Plan { program: Program::Previous, ..Plan::default() };
    let mut cluster = Cluster::prepare(plan).await;
    for id in NODES {
        cluster.node(id).edit_config(|config| config.upgrade_delay = UPGRADE_DELAY);
    }
    cluster.start_all();
    cluster.serves_within(RECOVERY * 4).await;
    cluster
}

async fn versions_in_force(cluster: &Cluster) -> Vec<u32> {
    cluster.statuses().await.iter().map(|status| status.versions.in_force).collect()
}

/// Uses the feature of version 2.
async fn swap(client: &Client, value: &str) -> Result<bool, String> {
    let revision = client.put("swapped", "old").await.unwrap().revision;
    match client.compare_and_swap("swapped", Expect::Revision(revision), value.to_owned()).await {
        Ok(swapped) => Ok(swapped.changed),
        Err(error) => {
            assert_eq!(error.outcome, Outcome::NotExecuted, "{error}");
            Err(error.to_string())
        }
    }
}

async fn becomes(cluster: &mut Cluster, id: NodeId, program: Program) {
    assert!(cluster.node(id).stop().await.success());
    cluster.node(id).run_as(program);
    cluster.node(id).start();
    cluster.converges().await;
}

/// S3, S15. While one node is old, nothing of version 2 is proposed, and each node may go back.
/// Once all nodes have been new for the delay, version 2 comes into force; from then on the old
/// program refuses to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_are_rolled_up_and_down_under_load() {
    let mut cluster = of_the_past().await;
    let load = Workload::start(&cluster, "rolled", 31);
    let client = cluster.client();
    let rolls = [
        (1, Program::Current),
        (2, Program::Current),
        (1, Program::Previous),
        (3, Program::Current),
        (2, Program::Previous),
        (2, Program::Current),
    ];
    for (id, program) in rolls {
        becomes(&mut cluster, id, program).await;
        load.advances_by(50).await;
        let refused = swap(&client, "too early").await.unwrap_err();
        assert!(refused.contains("kv upgrade status"), "{refused}");
    }
    // One node is old, so version 2 stays out of force, however long the others are new.
    tokio::time::sleep(UPGRADE_DELAY * 2).await;
    assert_eq!(versions_in_force(&cluster).await, [1, 1, 1]);
    becomes(&mut cluster, 1, Program::Current).await;
    eventually("version 2 to come into force", async || {
        versions_in_force(&cluster).await == [2, 2, 2]
    })
    .await;
    assert_eq!(swap(&client, "new").await, Ok(true));

    assert!(cluster.node(3).stop().await.success());
    cluster.node(3).run_as(Program::Previous);
    cluster.node(3).start();
    let said = cluster.node(3).gives_up().await;
    assert!(said.contains("version 2") && said.contains("newer"), "{said}");
    cluster.node(3).run_as(Program::Current);
    cluster.node(3).start();
    cluster.converges().await;
    load.advances_by(50).await;
    load.stop().await.check(&cluster.client()).await.unwrap();
    cluster.finish().await;
}

/// S3. An operator holds the version, and releases it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_version_stays() {
    let mut cluster = of_the_past().await;
    for id in [1, 2] {
        becomes(&mut cluster, id, Program::Current).await;
    }
    assert!(cluster.node(3).stop().await.success());
    cluster.node(3).run_as(Program::Current);
    cluster.node(3).start();
    eventually("the order to hold to be taken by all", async || {
        cluster.kv(&["upgrade", "hold"]).await.is_ok()
    })
    .await;
    cluster.converges().await;
    tokio::time::sleep(UPGRADE_DELAY * 2).await;
    assert_eq!(versions_in_force(&cluster).await, [1, 1, 1]);
    cluster.kv(&["upgrade", "finalize"]).await.expect("all nodes support version 2");
    eventually("version 2 to be in force", async || versions_in_force(&cluster).await == [2, 2, 2])
        .await;
    assert_eq!(swap(&cluster.client(), "new").await, Ok(true));
    cluster.finish().await;
}
