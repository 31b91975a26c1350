//! The channel transport passes the transport contract suite with and without delays, with losses,
//! on a paused clock and on real threads.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use raft_core::testing::transport::{self as contract, Net};
use raft_core::transport::Transport;
use raft_core::transport::channel::{
    CONTROL_MAILBOX_BYTES_MAX, ChannelNetwork, LOG_MAILBOX_BYTES_MAX, LinkFaults,
};
use raft_core::types::{Class, NodeId};

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
