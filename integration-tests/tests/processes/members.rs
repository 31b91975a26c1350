//! Members that come and go, and leadership that moves, under load.
//!
//! In a run of all tests the scenarios are short. With `BARS=1` (`scripts/bars`) they have the
//! promised size, and the times are compared with the promised ones; that needs a machine without
//! other load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use integration_tests::processes::cluster::{Cluster, Plan};
use integration_tests::processes::workload::Workload;
use kv_service::members::{ClusterReport, MemberRole, MembersChange};
use kv_service::{Client, ClientConfig};
use raft_core::types::NodeId;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const WRITERS: usize = 64;
/// Longest time without an acknowledged write while members change.
pub(super) const GAP_MAX: Duration = Duration::from_secs(1);
/// The same, in the median, when a leader is removed or hands leadership over.
const LEADER_GAP_MEDIAN_MAX: Duration = Duration::from_millis(150);

pub(super) fn is_full_size() -> bool {
    std::env::var("BARS").is_ok_and(|wish| wish == "1")
}

/// Writers that note the longest time in which no write was acknowledged.
pub(super) struct Pace {
    writers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    longest: Arc<Mutex<Longest>>,
    count: Arc<AtomicU64>,
}

struct Longest {
    last: Instant,
    gap: Duration,
}

impl Pace {
    pub(super) fn start(config: &ClientConfig) -> Self {
        let longest = Longest { last: Instant::now(), gap: Duration::ZERO };
        let mut pace = Self {
            writers: JoinSet::new(),
            stop: Arc::default(),
            longest: Arc::new(Mutex::new(longest)),
            count: Arc::default(),
        };
        let clients: Vec<Client> = (0..4).map(|_| Client::connect(config).unwrap()).collect();
        for number in 0..WRITERS {
            let client = clients[number % clients.len()].clone();
            let (stop, longest) = (Arc::clone(&pace.stop), Arc::clone(&pace.longest));
            let count = Arc::clone(&pace.count);
            pace.writers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let turn = count.fetch_add(1, Ordering::Relaxed);
                    let key = format!("pace/{number}/{}", turn % 16);
                    let written = client.put(key.clone(), turn.to_string()).await;
                    written.expect("no write fails while members change");
                    longest.lock().unwrap().note();
                    if turn.is_multiple_of(4) {
                        client.get(key).await.expect("no read fails while members change");
                    }
                }
            });
        }
        pace
    }

    /// The longest gap since the last call.
    pub(super) fn take_gap(&self) -> Duration {
        let mut longest = self.longest.lock().unwrap();
        let gap = longest.gap.max(longest.last.elapsed());
        (longest.gap, longest.last) = (Duration::ZERO, Instant::now());
        gap
    }

    pub(super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(writer) = self.writers.join_next().await {
            writer.unwrap();
        }
    }
}

impl Longest {
    fn note(&mut self) {
        self.gap = self.gap.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

pub(super) async fn start(node_count: u64) -> Cluster {
    Cluster::start(Plan { node_count, relayed: false, ..Plan::default() }).await
}

fn voters(report: &ClusterReport) -> Vec<NodeId> {
    let voters = report.members.iter().filter(|member| member.role == MemberRole::Voter);
    voters.map(|member| member.id).collect()
}

/// One node grows to three, and in full size to five; each machine is replaced by another one;
/// then the cluster shrinks again. No write fails, is lost or doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_each_machine_is_replaced_under_load() {
    let mut cluster = start(1).await;
    let load = Workload::start(&cluster, "members", 1);
    let pace = Pace::start(cluster.direct_config());
    let mut slowest = Duration::ZERO;
    let size = if is_full_size() { 5 } else { 3 };
    let mut note = |what: String, gap: Duration| {
        eprintln!("{what}: longest gap {gap:?}");
        slowest = slowest.max(gap);
    };
    for _ in 1..size {
        let id = cluster.add_node(true).await;
        cluster.settles().await;
        note(format!("node {id} is a voter"), pace.take_gap());
    }
    for old in 1..=size {
        let new = cluster.add_node(false).await;
        cluster.change(MembersChange::Replace { old, new }).await;
        cluster.settles().await;
        cluster.is_gone(old).await;
        note(format!("node {new} for node {old}"), pace.take_gap());
    }
    for old in size + 1..=2 * size - 3 {
        cluster.change(MembersChange::Remove { id: old }).await;
        cluster.settles().await;
        cluster.is_gone(old).await;
        note(format!("node {old} is removed"), pace.take_gap());
    }
    assert_eq!(voters(&cluster.settles().await).len(), 3);
    pace.stop().await;
    let done = load.stop().await;
    eprintln!("{:?}", done.summary());
    done.check(&cluster.operator()).await.unwrap();
    assert!(!is_full_size() || slowest < GAP_MAX, "no write for {slowest:?}");
    cluster.converges().await;
    cluster.finish().await;
}

/// M-J12, M-R1. Leadership moves, by order or because the leader is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_under_load() {
    let mut cluster = start(3).await;
    let rounds = if is_full_size() { 20 } else { 3 };
    let load = Workload::start(&cluster, "leaders", 2);
    let pace = Pace::start(cluster.direct_config());
    let (mut moved, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        pace.take_gap();
        cluster.members().transfer_leadership(None).await.unwrap();
        moved.push(pace.take_gap());
    }
    for _ in 0..rounds {
        cluster.add_node(true).await;
        let leader = cluster.settles().await.node_id;
        pace.take_gap();
        cluster.change(MembersChange::Remove { id: leader }).await;
        cluster.settles().await;
        removed.push(pace.take_gap());
        cluster.is_gone(leader).await;
    }
    pace.stop().await;
    load.stop().await.check(&cluster.operator()).await.unwrap();
    for (what, gaps) in [("moved", &mut moved), ("removed", &mut removed)] {
        gaps.sort();
        let median = gaps[gaps.len() / 2];
        eprintln!("leadership {what}: no write for {median:?} in the median of {gaps:?}");
        assert!(!is_full_size() || median < LEADER_GAP_MEDIAN_MAX, "{what}: {median:?}");
    }
    cluster.finish().await;
}

/// M-R8, R1, R2. The directory of a node that was added is lost, and the node comes back under its
/// own id, without a command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_directory_is_lost_is_whole_again() {
    let mut cluster = start(1).await;
    for _ in 0..2 {
        cluster.add_node(true).await;
        cluster.settles().await;
    }
    let load = Workload::start(&cluster, "wiped", 3);
    for round in 0..if is_full_size() { 50 } else { 3 } {
        load.advances_by(20).await;
        let id = 1 + round % 3;
        cluster.wipe(id).await;
        cluster.node(id).start();
        // Until its votes and acknowledgements are counted again.
        cluster.converges().await;
    }
    load.advances_by(20).await;
    load.stop().await.check(&cluster.operator()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}

/// M-R8, R4. The directory of a founder is lost, the node recovers on another one, and the lost one
/// comes back. It is refused, and the newer one is not, both of a leader and of a follower.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_directory_that_comes_back_is_refused() {
    let mut cluster = start(3).await;
    let load = Workload::start(&cluster, "old disk", 4);
    for id in [cluster.leader().await, 2] {
        load.advances_by(20).await;
        let old = cluster.set_aside(id).await;
        cluster.node(id).start();
        cluster.converges().await;
        load.advances_by(20).await;
        let new = cluster.set_aside(id).await;
        cluster.put_back(id, &old);
        for _ in 0..2 {
            cluster.node(id).start();
            let status = cluster.node(id).ended().await;
            let said = cluster.node(id).said();
            assert_eq!(status.code(), Some(6), "{said}");
            assert!(said.contains("is an old data directory of node"), "{said}");
            load.advances_by(20).await;
        }
        cluster.set_aside(id).await;
        cluster.put_back(id, &new);
        cluster.node(id).start();
        cluster.converges().await;
    }
    load.stop().await.check(&cluster.operator()).await.unwrap();
    cluster.finish().await;
}

/// M-D5. A node that was removed while it was away learns of it at its return, stops with a code of
/// its own, and its directory is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_while_it_was_away_is_told() {
    let mut cluster = start(3).await;
    let id = cluster.add_node(true).await;
    cluster.settles().await;
    cluster.node(id).kill().await;
    cluster.change(MembersChange::Remove { id }).await;
    cluster.settles().await;
    cluster.node(id).start();
    let status = cluster.node(id).ended().await;
    let said = cluster.node(id).said();
    assert_eq!(status.code(), Some(5), "{said}");
    assert!(said.contains("its id is never used again"), "{said}");
    cluster.node(id).start();
    let status = cluster.node(id).ended().await;
    assert_eq!(status.code(), Some(5), "{}", cluster.node(id).said());
    cluster.is_gone(id).await;
    cluster.finish().await;
}

/// The leader dies at any moment of a change, and the next one carries it through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_outlives_its_leader() {
    let mut cluster = start(3).await;
    let load = Workload::start(&cluster, "outlives", 4);
    for round in 0..4_u64 {
        let new = cluster.add_node(false).await;
        let before = cluster.members().members().await.unwrap();
        let leader = before.node_id;
        let old = *voters(&before).iter().find(|id| **id != leader).unwrap();
        cluster.change(MembersChange::Replace { old, new }).await;
        // The learner becomes a voter after half a second.
        sleep(Duration::from_millis(200 * round)).await;
        cluster.node(leader).signal(Signal::KILL);
        cluster.node(leader).ended().await;
        cluster.node(leader).start();
        let report = cluster.settles().await;
        assert!(report.member(old).is_none(), "{report:?}");
        cluster.is_gone(old).await;
    }
    load.stop().await.check(&cluster.operator()).await.unwrap();
    cluster.converges().await;
    cluster.finish().await;
}
