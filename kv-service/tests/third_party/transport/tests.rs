//! The transport keeps the contract.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raft_core::testing::transport::{self as contract, Net};
use raft_core::transport::Transport;
use raft_core::types::{Class, Message, MessageBody, NodeId};

use super::TcpTransport;
use crate::addresses;

struct Loopback {
    addresses: BTreeMap<NodeId, SocketAddr>,
    nodes: Mutex<BTreeMap<NodeId, Arc<TcpTransport>>>,
}

impl Loopback {
    fn new() -> Self {
        Self { addresses: addresses(), nodes: Mutex::default() }
    }
}

#[async_trait]
impl Net for Loopback {
    async fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        let transport = TcpTransport::bind(node, &self.addresses).await.unwrap();
        self.nodes.lock().unwrap().insert(node, Arc::clone(&transport));
        transport
    }

    async fn restart(&self, node: NodeId) -> Arc<dyn Transport> {
        let old = self.nodes.lock().unwrap().remove(&node).unwrap();
        old.close().await;
        self.transport(node).await
    }

    fn mailbox_bytes_max(&self, class: Class) -> u64 {
        super::peer::mailbox_bytes_max(class)
    }
}

#[tokio::test]
async fn the_transport_keeps_the_contract() {
    contract::all(async || Loopback::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_transport_keeps_the_contract_on_threads() {
    contract::all(async || Loopback::new()).await;
}

/// A message to a peer that is not there is dropped and counted.
#[tokio::test]
async fn dropped_messages_are_counted() {
    let transport = TcpTransport::bind(1, &addresses()).await.unwrap();
    for to in 2..=4 {
        transport.send(to, Message::new(1, MessageBody::ReadIndex { id: 1 }));
    }
    assert_eq!(transport.dropped_count(), 3);
}
