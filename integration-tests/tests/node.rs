//! Whole nodes (driver, memory storage) with a small machine, on a paused clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use integration_tests::counter::Counter;
use raft_core::driver::{Node, NodeConfig};
use raft_core::transport::{BulkStream, Inbound, Transport, TransportError};
use raft_core::types::{Message, NodeId};
use raft_storage::memory::MemoryDisk;
use tokio::sync::mpsc;

#[derive(Default)]
struct Net {
    inbound: Mutex<BTreeMap<NodeId, Arc<dyn Inbound>>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

struct Wire {
    id: NodeId,
    net: Arc<Net>,
}

struct Bulk {
    tx: Option<mpsc::Sender<Bytes>>,
    rx: mpsc::Receiver<Bytes>,
}

#[async_trait]
impl BulkStream for Bulk {
    async fn send(&mut self, frame: Bytes) -> Result<(), TransportError> {
        let tx = self.tx.as_ref().expect("not finished");
        tx.send(frame).await.map_err(|_| TransportError::new("closed"))
    }
    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        Ok(self.rx.recv().await)
    }
    async fn finish(&mut self) -> Result<(), TransportError> {
        self.tx = None;
        Ok(())
    }
}

#[async_trait]
impl Transport for Wire {
    fn start(&self, inbound: Arc<dyn Inbound>) {
        self.net.inbound.lock().unwrap().insert(self.id, inbound);
    }
    fn send(&self, to: NodeId, message: Message) {
        let cut = self.net.cut.lock().unwrap();
        if cut.contains(&to) || cut.contains(&self.id) {
            return;
        }
        drop(cut);
        let inbound = self.net.inbound.lock().unwrap().get(&to).cloned();
        if let Some(inbound) = inbound {
            inbound.on_message(self.id, message);
        }
    }
    async fn open_bulk(&self, to: NodeId) -> Result<Box<dyn BulkStream>, TransportError> {
        let (a, b) = mpsc::channel(4);
        let (c, d) = mpsc::channel(4);
        let inbound = self.net.inbound.lock().unwrap().get(&to).cloned();
        let inbound = inbound.ok_or_else(|| TransportError::new("down"))?;
        inbound.on_bulk(self.id, Box::new(Bulk { tx: Some(a), rx: d }));
        Ok(Box::new(Bulk { tx: Some(c), rx: b }))
    }
    fn reachability(&self, _peer: NodeId) -> Result<(), TransportError> {
        Ok(())
    }
    async fn close(&self) {
        self.net.inbound.lock().unwrap().remove(&self.id);
    }
}

struct Cluster {
    net: Arc<Net>,
    disks: BTreeMap<NodeId, MemoryDisk>,
    nodes: BTreeMap<NodeId, Node<Counter>>,
    max_raft_state_bytes: u64,
}

impl Cluster {
    async fn new(max_raft_state_bytes: u64) -> Self {
        let mut cluster = Self {
            net: Arc::default(),
            disks: (1..=3).map(|id| (id, MemoryDisk::new())).collect(),
            nodes: BTreeMap::new(),
            max_raft_state_bytes,
        };
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster
    }

    async fn start(&mut self, id: NodeId) {
        let mut config = NodeConfig::new(id, 1..=3);
        config.max_raft_state_bytes = self.max_raft_state_bytes;
        let wire = Arc::new(Wire { id, net: Arc::clone(&self.net) });
        let storage = Arc::new(self.disks[&id].storage());
        let node = Node::start(config, storage, wire, Counter::default()).await.unwrap();
        self.nodes.insert(id, node);
    }

    async fn leader(&self) -> NodeId {
        let mut watches: Vec<_> = self.nodes.values().map(Node::watch).collect();
        loop {
            for (id, node) in &self.nodes {
                let leadership = *node.watch().borrow();
                let followed =
                    self.nodes.values().filter(|n| n.watch().borrow().leader == Some(*id));
                if leadership.is_leader && followed.count() * 2 > 3 {
                    return *id;
                }
            }
            let changed = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
            let _ = futures_any(changed.collect()).await;
        }
    }

    async fn stop(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).unwrap();
        node.shutdown().await;
    }
}

async fn futures_any<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    std::future::poll_fn(move |cx| {
        for future in &mut futures {
            if let std::task::Poll::Ready(out) = std::pin::Pin::new(future).poll(cx) {
                return std::task::Poll::Ready(out);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

fn command(number: usize) -> Bytes {
    Bytes::from(format!("command {number}"))
}

#[tokio::test(start_paused = true)]
async fn elects_commits_and_reads_everywhere() {
    let cluster = Cluster::new(0).await;
    let leader = cluster.leader().await;
    for number in 1..=100 {
        let output = cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
        assert_eq!(output, number as u64);
    }
    for node in cluster.nodes.values() {
        let commands = node.query_and_wait((), true).await.unwrap();
        assert_eq!(commands, (1..=100).map(command).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_was_away_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(2_000).await;
    let leader = cluster.leader().await;
    let away = 1 + leader % 3;
    cluster.stop(away).await;
    for number in 1..=1_000 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    let status = cluster.nodes[&leader].status();
    assert!(status.log_bytes <= 16_000, "{status:?}");
    assert!(status.snapshot_index > 0);
    cluster.start(away).await;
    let mut watch = cluster.nodes[&away].watch_status();
    watch.wait_for(|status| status.last_applied >= 1_001).await.unwrap();
    let commands = cluster.nodes[&away].query_and_wait((), false).await.unwrap();
    assert_eq!(commands.len(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::new(0).await;
    let leader = cluster.leader().await;
    cluster.nodes[&leader].propose_and_wait(command(1)).await.unwrap();
    cluster.net.cut.lock().unwrap().insert(leader);
    let lost = cluster.nodes[&leader].propose_and_wait(command(99)).await;
    assert!(matches!(lost, Err(raft_core::error::ProposeError::Unknown(_))), "{lost:?}");
    let old = cluster.nodes.remove(&leader).unwrap();
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    assert_eq!(cluster.nodes[&next].propose_and_wait(command(2)).await.unwrap(), 2);
    cluster.net.cut.lock().unwrap().clear();
    let mut watch = old.watch_status();
    watch
        .wait_for(|status| status.leader_id == Some(next) && status.last_applied >= 4)
        .await
        .unwrap();
    assert_eq!(old.query_and_wait((), false).await.unwrap(), [command(1), command(2)]);
}

#[tokio::test(start_paused = true)]
async fn all_restart_and_a_leader_hands_over() {
    let mut cluster = Cluster::new(500).await;
    let leader = cluster.leader().await;
    for number in 1..=200 {
        cluster.nodes[&leader].propose_and_wait(command(number)).await.unwrap();
    }
    let before = tokio::time::Instant::now();
    cluster.stop(leader).await;
    cluster.leader().await;
    assert!(before.elapsed() < Duration::from_millis(300), "handed over, not timed out");
    let ids: Vec<NodeId> = cluster.nodes.keys().copied().collect();
    for id in ids {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    let leader = cluster.leader().await;
    assert_eq!(cluster.nodes[&leader].propose_and_wait(command(201)).await.unwrap(), 201);
}
