//! The channel transport passes the transport contract suite with and without delays, with losses,
//! on a paused clock and on real threads.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use raft_core::testing::transport::{self as contract, Net};
use raft_core::transport::channel::{
    CONTROL_MAILBOX_BYTES_MAX, ChannelNetwork, LOG_MAILBOX_BYTES_MAX, LinkFaults,
};
use raft_core::transport::{BulkStream, Inbound, Transport};
use raft_core::types::{Class, Message, MessageBody, NodeId};

struct InProcess(ChannelNetwork);

impl InProcess {
    fn with(faults: LinkFaults) -> Self {
        let network = ChannelNetwork::new(5);
        network.set_default_faults(faults);
        Self(network)
    }
}

#[async_trait]
impl Net for InProcess {
    async fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        self.0.transport(node)
    }

    async fn restart(&self, node: NodeId) -> Arc<dyn Transport> {
        self.0.transport(node)
    }

    fn mailbox_bytes_max(&self, class: Class) -> u64 {
        match class {
            Class::Control => CONTROL_MAILBOX_BYTES_MAX,
            Class::Log => LOG_MAILBOX_BYTES_MAX,
        }
    }
}

fn slow() -> LinkFaults {
    LinkFaults::none().delaying(Duration::from_millis(1), Duration::from_millis(5))
}

#[tokio::test(start_paused = true)]
async fn keeps_the_contract_at_once() {
    contract::all(async || InProcess::with(LinkFaults::none())).await;
}

#[tokio::test(start_paused = true)]
async fn keeps_the_contract_with_delays() {
    contract::all(async || InProcess::with(slow())).await;
    let even = Duration::from_millis(3);
    contract::all(async || InProcess::with(LinkFaults::none().delaying(even, even))).await;
}

#[tokio::test(start_paused = true)]
async fn keeps_the_contract_with_losses() {
    contract::all(async || InProcess::with(slow().losing(0.3))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keeps_the_contract_on_threads() {
    contract::all(async || InProcess::with(LinkFaults::none())).await;
    contract::all(async || InProcess::with(slow())).await;
}

/// The suite detects a violation: a network that reorders messages fails it.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "out of order")]
async fn a_network_that_reorders_does_not_keep_the_contract() {
    let net = InProcess::with(LinkFaults::none().reordering(0.01, Duration::from_millis(50)));
    contract::messages_of_a_class_stay_in_order(&net).await;
}

/// The disks and the messages of its peers that one node was told, in their order.
#[derive(Default)]
struct Told(Mutex<Vec<(NodeId, &'static str, u64)>>);

impl Inbound for Told {
    fn on_message(&self, from: NodeId, message: Message) {
        let MessageBody::ReadIndex { id } = message.body else { return };
        self.0.lock().unwrap().push((from, "message", id));
    }

    fn on_connected(&self, peer: NodeId, incarnation: u64) {
        self.0.lock().unwrap().push((peer, "disk", incarnation));
    }

    fn on_bulk(&self, _: NodeId, _: Box<dyn BulkStream>) {}

    fn on_unreachable(&self, _: NodeId) {}
}

/// R4. A node learns the disk of a peer before the first message from it, once for each transport.
#[tokio::test(start_paused = true)]
async fn the_disk_of_a_peer_is_told_before_its_messages() {
    let network = ChannelNetwork::new(1);
    let two = network.transport(2);
    let told = Arc::new(Told::default());
    two.start(Arc::clone(&told) as Arc<dyn Inbound>);
    let send = |transport: &dyn Transport, id| {
        transport.send(2, Message::new(1, MessageBody::ReadIndex { id }));
    };
    let first = network.transport_on(1, 71);
    send(&*first, 1);
    send(&*first, 2);
    let second = network.transport_on(1, 72);
    send(&*first, 3);
    send(&*second, 4);
    send(&*network.transport(1), 5);
    let expected = [("disk", 71), ("message", 1), ("message", 2), ("disk", 72), ("message", 4)];
    let expected = expected.into_iter().chain([("disk", 0), ("message", 5)]);
    let expected: Vec<_> = expected.map(|(kind, number)| (1, kind, number)).collect();
    assert_eq!(*told.0.lock().unwrap(), expected);
}
