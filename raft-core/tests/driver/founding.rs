//! C31. Founding from new disks on bad networks, and the first moments after it, in virtual time.
//!
//! `FOUND_SEEDS` is the number of seeds that each test tries (default: 40).

use std::sync::Arc;
use std::time::Duration;

use raft_core::driver::{Node, NodeConfig};
use raft_core::error::Fatal;
use raft_core::transport::channel::{ChannelNetwork, LinkFaults};
use raft_core::types::NodeId;
use tokio::time::Instant;

use crate::support::cluster::Cluster;
use crate::support::machine::{Knobs, Machine};
use crate::support::store::Disk;

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("FOUND_SEEDS").map(|count| count.parse().expect("a number"));
    0..count.unwrap_or(40)
}

async fn new_cluster(seed: u64, size: u64, faults: LinkFaults) -> Cluster {
    let mut cluster = Cluster::new(seed, size);
    for site in cluster.sites.values_mut() {
        site.disk = Disk::of_new_member();
    }
    cluster.network.set_default_faults(faults);
    cluster.start_all().await;
    cluster
}

/// A node, other than `except`, that believes that it leads.
fn leader_but(cluster: &Cluster, except: Option<NodeId>) -> Option<NodeId> {
    let leads = |id: &NodeId| cluster.nodes[id].watch().borrow().is_leader;
    cluster.nodes.keys().copied().find(|id| Some(*id) != except && leads(id))
}

/// Proposes to a node that leads, every 20 ms, until one command is executed. Returns the time that
/// this took, or `None` if it exceeded `patience`.
async fn agreement(cluster: &Cluster, patience: Duration) -> Option<Duration> {
    let start = Instant::now();
    let (sender, mut executed) = tokio::sync::mpsc::channel::<()>(1);
    while start.elapsed() < patience {
        if let Some(leader) = leader_but(cluster, None) {
            let sender = sender.clone();
            cluster.nodes[&leader].propose("agreed".into(), move |outcome| {
                if outcome.is_ok() {
                    // One executed command is enough.
                    let _ = sender.try_send(());
                }
            });
        }
        let waits = tokio::time::timeout(Duration::from_millis(20), executed.recv());
        if waits.await.is_ok() {
            return Some(start.elapsed());
        }
    }
    None
}

async fn stop(cluster: Cluster) {
    for node in cluster.nodes.into_values() {
        node.abort().await;
    }
}

/// Three and five new disks. Each message is lost with a probability of 0.1; two thirds of the
/// responses are 0.2 to 2.2 s late. A command is executed within 5 s.
#[tokio::test(start_paused = true)]
async fn c31_founding_on_a_network_that_loses_and_delays() {
    let late = (Duration::from_millis(200), Duration::from_millis(2_200));
    let faults = LinkFaults::none()
        .losing(0.1)
        .delaying(Duration::ZERO, Duration::from_millis(26))
        .answering_late(2.0 / 3.0, late.0, late.1);
    for size in [3, 5] {
        let (mut longest, mut sum) = (Duration::ZERO, Duration::ZERO);
        for seed in seeds() {
            let cluster = new_cluster(seed, size, faults).await;
            let took = agreement(&cluster, Duration::from_secs(5)).await;
            let took = took.unwrap_or_else(|| panic!("seed {seed}: {size} nodes do not agree"));
            (longest, sum) = (longest.max(took), sum + took);
            stop(cluster).await;
        }
        let mean = sum / u32::try_from(seeds().end).expect("a small number");
        println!("{size} nodes, {} seeds: mean {mean:.2?}, longest {longest:.2?}", seeds().end);
    }
}

/// The first leader is cut off one heartbeat interval after its election: the others elect another.
#[tokio::test(start_paused = true)]
async fn c31_the_first_leader_is_cut_off_after_one_heartbeat() {
    let faults = LinkFaults::none().delaying(Duration::from_micros(200), Duration::from_millis(2));
    for size in [3, 5] {
        let mut longest = Duration::ZERO;
        for seed in seeds() {
            let cluster = new_cluster(seed, size, faults).await;
            let first = loop {
                if let Some(leader) = leader_but(&cluster, None) {
                    break leader;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            tokio::time::sleep(cluster.config(first).raft.heartbeat_interval).await;
            cluster.network.isolate(first);
            let start = Instant::now();
            while leader_but(&cluster, Some(first)).is_none() {
                assert!(
                    start.elapsed() < Duration::from_secs(5),
                    "seed {seed}: the others of {size} elect no leader"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            longest = longest.max(start.elapsed());
            stop(cluster).await;
        }
        println!("{size} nodes, {} seeds: another leader after {longest:.2?}", seeds().end);
    }
}

/// C3. The first start stores the voters before any entry is stored.
#[tokio::test(start_paused = true)]
async fn c3_another_list_of_voters_is_refused_before_the_cluster_is_founded() {
    let disk = Disk::of_new_member();
    let start = async |voters: &[NodeId]| {
        let machine = Machine::volatile(&Arc::new(Knobs::default()));
        let transport = ChannelNetwork::new(1).transport(1);
        let config = NodeConfig::new(1, voters.iter().copied(), 1);
        Node::start(config, disk.open(), transport, machine).await
    };
    start(&[1, 2, 3]).await.expect("the first start").abort().await;
    let refused = start(&[1, 2]).await;
    assert!(matches!(refused, Err(Fatal::Config(_))), "another list is accepted");
    start(&[1, 2, 3]).await.expect("the same list").abort().await;
}
