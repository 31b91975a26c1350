//! Transports with recording receivers, and helpers that wait for recorded events.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by test files that use parts of it"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raft_core::testing::free_ports;
use raft_core::transport::{BulkStream, Inbound, Transport};
use raft_core::types::{Entry, Message, MessageBody, NodeId, Payload, Position};
use raft_transport_quic::{DevCa, QuicConfig, QuicTransport, TlsConfig};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Long enough for a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Records every call.
#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Default)]
pub struct Seen {
    pub messages: Vec<(NodeId, Message)>,
    pub bulk: Vec<(NodeId, Box<dyn BulkStream>)>,
    pub unreachable: Vec<NodeId>,
    /// The incarnation of each peer, as it was told last.
    pub incarnations: BTreeMap<NodeId, u64>,
    /// Sender and incarnation of each message.
    pub origins: Vec<(NodeId, Option<u64>)>,
}

impl Recorder {
    /// Waits until `look` finds something.
    pub async fn wait<T>(&self, what: &str, mut look: impl FnMut(&mut Seen) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = look(&mut self.seen.lock().unwrap()) {
                    return found;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    pub async fn messages(&self, count: usize) -> Vec<(NodeId, Message)> {
        let wanted = |seen: &mut Seen| {
            (seen.messages.len() >= count).then(|| std::mem::take(&mut seen.messages))
        };
        self.wait(&format!("{count} messages"), wanted).await
    }

    pub async fn bulk(&self) -> (NodeId, Box<dyn BulkStream>) {
        self.wait("a bulk stream", |seen| seen.bulk.pop()).await
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.changed.notify_one();
    }
}

impl Inbound for Recorder {
    fn on_message(&self, from: NodeId, message: Message) {
        self.change(|seen| {
            seen.origins.push((from, seen.incarnations.get(&from).copied()));
            seen.messages.push((from, message));
        });
    }

    fn on_connected(&self, peer: NodeId, incarnation: u64) {
        self.change(|seen| _ = seen.incarnations.insert(peer, incarnation));
    }

    fn on_bulk(&self, from: NodeId, stream: Box<dyn BulkStream>) {
        self.change(|seen| seen.bulk.push((from, stream)));
    }

    fn on_unreachable(&self, peer: NodeId) {
        self.change(|seen| seen.unreachable.push(peer));
    }
}

/// One address per node, from node 1 on.
pub fn addresses(count: u64) -> BTreeMap<NodeId, String> {
    let ports = free_ports(count.try_into().unwrap());
    (1..).zip(ports.map(|port| format!("127.0.0.1:{port}"))).collect()
}

pub fn config(ca: &DevCa, id: NodeId, peers: &BTreeMap<NodeId, String>) -> QuicConfig {
    with_tls(ca.issue_node(id).unwrap(), id, peers)
}

pub fn with_tls(tls: TlsConfig, id: NodeId, peers: &BTreeMap<NodeId, String>) -> QuicConfig {
    let listen: SocketAddr = peers[&id].parse().unwrap();
    QuicConfig::new("test", id, 1, listen, peers.clone(), tls, [id as u8; 64])
}

pub struct Node {
    pub transport: Arc<QuicTransport>,
    pub inbound: Arc<Recorder>,
}

impl Node {
    pub async fn start(config: QuicConfig) -> Self {
        let transport = QuicTransport::bind(config).await.unwrap();
        let inbound = Arc::new(Recorder::default());
        transport.start(inbound.clone());
        Self { transport, inbound }
    }

    pub fn send(&self, to: NodeId, message: Message) {
        self.transport.send(to, message);
    }

    pub async fn connected_to(&self, peer: NodeId) {
        eventually("a connection", || self.transport.reachability(peer).is_ok()).await;
    }

    /// Waits until the peer is unreachable for a reason that contains the text.
    pub async fn fails_with(&self, peer: NodeId, text: &str) -> String {
        let mut last = String::new();
        let waiting = async {
            loop {
                match self.transport.reachability(peer) {
                    Err(error) if error.0.contains(text) => return error.0,
                    other => last = format!("{other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("expected a failure with `{text}`, got {last}"),
        }
    }
}

/// Polls a condition that nothing announces.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// Transports of one cluster, all connected.
pub async fn cluster(count: u64) -> Vec<Node> {
    let ca = DevCa::create("test").unwrap();
    let peers = addresses(count);
    let mut nodes = Vec::new();
    for id in 1..=count {
        nodes.push(Node::start(config(&ca, id, &peers)).await);
    }
    for (node, id) in nodes.iter().zip(1..) {
        for peer in (1..=count).filter(|peer| *peer != id) {
            node.connected_to(peer).await;
        }
    }
    nodes
}

pub fn control(id: u64) -> Message {
    Message::new(1, MessageBody::ReadIndex { id })
}

/// An append of commands of these lengths after `previous`, all of term 3.
pub fn append(previous: u64, lengths: &[usize]) -> Message {
    let entries = lengths.iter().zip(previous + 1..).map(|(&length, index)| Entry {
        index,
        term: 3,
        payload: Payload::Command(Bytes::from(vec![index as u8; length])),
    });
    let previous = Position::new(if previous == 0 { 0 } else { 3 }, previous);
    Message::new(
        3,
        MessageBody::AppendEntries { previous, entries: entries.collect(), commit_index: 0 },
    )
}
