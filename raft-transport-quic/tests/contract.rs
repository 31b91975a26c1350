//! The QUIC transport keeps the contract of the port, on one thread and on several.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use common::{addresses, config};
use raft_core::testing::transport::{self as contract, Net};
use raft_core::transport::Transport;
use raft_core::types::{Class, NodeId};
use raft_transport_quic::{DevCa, QuicTransport};

/// Three ports on loopback.
struct Loopback {
    ca: DevCa,
    addresses: BTreeMap<NodeId, String>,
    running: Mutex<HashMap<NodeId, Arc<QuicTransport>>>,
}

impl Loopback {
    fn new() -> Self {
        Self {
            ca: DevCa::create("test").unwrap(),
            addresses: addresses(3),
            running: Mutex::default(),
        }
    }
}

#[async_trait]
impl Net for Loopback {
    async fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        let config = config(&self.ca, node, &self.addresses);
        let transport = QuicTransport::bind(config).await.unwrap();
        self.running.lock().unwrap().insert(node, transport.clone());
        transport
    }

    async fn restart(&self, node: NodeId) -> Arc<dyn Transport> {
        let old = self.running.lock().unwrap().remove(&node).unwrap();
        old.close().await;
        // The suite still holds the old transport and streams of it; the port is free nevertheless.
        self.transport(node).await
    }

    fn mailbox_bytes_max(&self, class: Class) -> u64 {
        let config = config(&self.ca, 1, &self.addresses);
        match class {
            Class::Control => config.control_bytes_max,
            Class::Log => config.log_bytes_max,
        }
    }
}

#[tokio::test]
async fn on_one_thread() {
    contract::all(async || Loopback::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_two_threads() {
    contract::all(async || Loopback::new()).await;
}
