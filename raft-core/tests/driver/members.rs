//! Members that come and go while whole nodes run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raft_core::consensus::{Change, Overrides};
use raft_core::driver::{Node, NodeConfig};
use raft_core::error::{ProposeError, Rejected};
use raft_core::storage::Storage;
use raft_core::transport::channel::ChannelNetwork;
use raft_core::types::{Batch, Entry, HardState, Member, NodeId, Payload};

use crate::support::cluster::{Cluster, Site, in_time};
use crate::support::machine::{Knobs, Machine};
use crate::support::store::Disk;

type Nodes = BTreeMap<NodeId, Node<Machine>>;

async fn start(
    network: &ChannelNetwork,
    id: NodeId,
    voters: impl IntoIterator<Item = NodeId>,
    disk: &Disk,
    incarnation: u64,
) -> Node<Machine> {
    let mut config = NodeConfig::new(id, voters, rand_seed(id));
    config.raft.incarnation = incarnation;
    config.raft.promotion_delay = Duration::from_millis(500);
    let machine = Machine::volatile(&Arc::new(Knobs::default()));
    let transport = network.transport(id);
    Node::start(config, disk.open(), transport, machine).await.expect("its disk is healthy")
}

/// A run repeats itself, and no two nodes draw the same.
fn rand_seed(id: NodeId) -> u64 {
    0x5eed + id
}

/// The leader of the newest term among these nodes.
async fn leader(nodes: &Nodes) -> NodeId {
    loop {
        let leading = nodes.iter().filter(|(_, node)| node.watch().borrow().is_leader);
        let newest = leading.max_by_key(|(_, node)| node.watch().borrow().term);
        if let Some((id, _)) = newest {
            return *id;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn change(nodes: &Nodes, change: &Change, overrides: Overrides) {
    loop {
        let id = leader(nodes).await;
        match nodes[&id].change_members(change.clone(), None, overrides).await {
            Ok(_) => return,
            Err(Rejected::Busy(_) | Rejected::NotLeader { .. }) => {}
            Err(error) => panic!("{change:?} is refused: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn wait_for_voters(node: &Node<Machine>, voters: &[NodeId]) {
    let mut members = node.watch_members();
    let reached = members.wait_for(|seen| {
        let configuration = &seen.configuration;
        seen.is_committed
            && !configuration.is_joint()
            && configuration.voters.iter().eq(voters.iter())
    });
    in_time("the voters are these", reached).await.expect("it runs");
}

async fn write(nodes: &Nodes, text: &'static str) {
    loop {
        let id = leader(nodes).await;
        match nodes[&id].propose_and_wait(text.into()).await {
            Ok(_) => return,
            Err(ProposeError::Rejected(_)) => {}
            Err(error) => panic!("a healthy majority executes: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One node is founded and grows to three; then each of them is replaced by a new one, the first
/// leader included. Nothing that was written is lost, and no node waits for an operator.
#[tokio::test(start_paused = true)]
async fn one_grows_to_three_and_each_of_them_is_replaced() {
    let network = ChannelNetwork::new(1);
    let mut nodes = Nodes::new();
    let mut disks = BTreeMap::from([(1, Disk::of_new_member())]);
    nodes.insert(1, start(&network, 1, [1], &disks[&1], 0).await);
    let mut voters = vec![1];
    for id in 2..=6 {
        write(&nodes, "one").await;
        let disk = disks.entry(id).or_insert_with(Disk::default);
        let joiner = start(&network, id, [], disk, 100 + id).await;
        let wants_vote = id <= 3;
        let member = Member { incarnation: 100 + id, wants_vote, ..Member::default() };
        change(&nodes, &Change::Add { id, member }, Overrides::default()).await;
        nodes.insert(id, joiner);
        if !wants_vote {
            let old = voters.remove(0);
            change(&nodes, &Change::Replace { old, new: id }, Overrides::default()).await;
        }
        voters.push(id);
        wait_for_voters(&nodes[&id], &voters).await;
        if !wants_vote {
            let gone = nodes.remove(&(id - 3)).expect("it runs");
            in_time("it learns that it was removed", async {
                let mut members = gone.watch_members();
                let is_gone = |id| {
                    move |seen: &raft_core::driver::Members| {
                        seen.is_committed && !seen.configuration.is_member(id)
                    }
                };
                members.wait_for(is_gone(id - 3)).await.expect("it runs");
            })
            .await;
            gone.shutdown().await;
        }
    }
    assert_eq!(voters, [4, 5, 6]);
    write(&nodes, "the last").await;
    let leader = leader(&nodes).await;
    let answer = nodes[&leader].query_and_wait((), true).await.expect("it leads");
    assert_eq!(answer.len(), 6, "each write is executed once");
    for (id, node) in nodes {
        node.shutdown().await;
        // A member starts again from its own log, whatever its first start was told.
        let node = start(&network, id, [], &disks[&id], 100 + id).await;
        assert!(node.watch_members().borrow().configuration.is_voter(id));
        node.shutdown().await;
    }
}

/// Found by the simulator: a node that joined wrote views from before the first configuration,
/// which are not published, one after the other. Each of them kept the leader's snapshot out.
#[tokio::test(start_paused = true)]
async fn a_view_that_names_no_members_is_not_written() {
    let mut cluster = Cluster::new(1, 1);
    cluster.configure = Box::new(|config| {
        *config = NodeConfig::new(1, [], 1);
        config.max_raft_state_bytes = 4_000;
    });
    let site = Site::default();
    site.disk.hinder(|disk| disk.write_chunk = Duration::from_millis(10));
    let payload = Payload::Command(vec![b'x'; 200].into());
    let entry = |index| Entry { index, term: 1, payload: payload.clone() };
    let entries: Vec<Entry> = (1..=40).map(entry).collect();
    let hard_state = HardState { term: 1, commit_index: 40, ..HardState::default() };
    let batch = Batch { entries, hard_state: Some(hard_state), ..Batch::default() };
    site.disk.open().persist(batch).await.expect("a healthy disk");
    cluster.sites.insert(1, site);
    cluster.start_all().await;
    cluster.until("the entries are applied", 1, |status| status.last_applied == 40).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let views_count = cluster.sites[&1].knobs.views_count.load(Ordering::SeqCst);
    assert!((1..=61).contains(&views_count), "{views_count} views in a minute");
    assert_eq!(cluster.sites[&1].disk.publications().0, 0);
}
