//! A network inside the process: several nodes that exchange messages without sockets.
//!
//! It is part of the product, for a service that runs several nodes in one process, and tests use
//! it to lose, delay, repeat and reorder messages and to partition links. Nothing else differs
//! between the two uses.
//!
//! * *Cheap.* On a link without faults a message is handed over by the sender's own call; no task,
//!   no clock, no second queue. A message sent from within an [`Inbound`] is the exception: a task
//!   of the receiving node, its courier, delivers it, so that two nodes that respond at once do not
//!   call each other without end.
//! * *Deterministic.* Randomness comes from one seed, time from tokio's clock, order from the order
//!   of calls. On a single-threaded runtime with a paused clock, equal seeds give equal traces.
//! * *Bounded.* The bytes under way are limited for each pair of nodes and class
//!   ([`CONTROL_MAILBOX_BYTES_MAX`], [`LOG_MAILBOX_BYTES_MAX`]); a message that does not fit is
//!   dropped and counted.
//!
//! A partition is silent, as it is on a wire: messages under way are lost, and no node is notified.
//! A transport that closes, is dropped or is replaced by a new one of the same node is noticed: its
//! peers receive [`Inbound::on_unreachable`], unless the link to them is partitioned.
//!
//! Not simulated: bandwidth, and corruption (messages are values here, and the port promises that
//! bytes that do not decode never arrive). Delays are kept to the millisecond, which is what
//! tokio's timers can do.

mod bulk;
mod faults;
mod network;
mod receiver;
mod state;
mod stats;
#[cfg(test)]
mod tests;
mod traffic;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::time::timeout_at;

use crate::transport::{BulkStream, Inbound, Transport, TransportError};
use crate::types::{Class, Message, NodeId};
use network::{CourierStep, Network};
use receiver::Receiver;

pub use faults::LinkFaults;
pub use state::{CONTROL_MAILBOX_BYTES_MAX, LOG_MAILBOX_BYTES_MAX};
pub use stats::ChannelStats;
pub use traffic::Traffic;

/// The network: makes transports, and decides what happens between them. Clones share one network.
///
/// ```
/// use std::time::Duration;
///
/// use raft_core::transport::channel::{ChannelNetwork, LinkFaults};
///
/// let network = ChannelNetwork::new(42);
/// let (min, max) = (Duration::from_millis(1), Duration::from_millis(20));
/// network.set_default_faults(LinkFaults::none().losing(0.1).delaying(min, max));
/// // Only messages from 1 to 2 are lost.
/// network.partition_link(1, 2);
/// network.heal();
/// assert_eq!(network.stats().lost, 0);
/// ```
#[derive(Clone)]
pub struct ChannelNetwork {
    network: Arc<Network>,
}

impl ChannelNetwork {
    /// Creates a network without faults. The seed matters once there are some.
    pub fn new(seed: u64) -> Self {
        Self { network: Arc::new(Network::new(seed)) }
    }

    /// Returns a transport for the node. It replaces an earlier one of the same node, as a restart
    /// does: messages under way to the earlier one are lost, and its peers receive
    /// [`Inbound::on_unreachable`].
    pub fn transport(&self, node: NodeId) -> Arc<ChannelTransport> {
        self.transport_on(node, 0)
    }

    /// Returns a transport like [`ChannelNetwork::transport`] for a node whose disk has an identity
    /// ([`Config::incarnation`](crate::consensus::Config::incarnation)). Peers are told it
    /// ([`Inbound::on_connected`]). Nodes of a cluster whose members change need one: without it a
    /// node that is added is not counted before all voters have met it.
    pub fn transport_on(&self, node: NodeId, incarnation: u64) -> Arc<ChannelTransport> {
        Arc::new(ChannelTransport {
            node,
            incarnation: self.network.join(node, incarnation),
            network: Arc::clone(&self.network),
            receiving: Mutex::new(None),
        })
    }

    /// Sets the faults of all links that have none of their own.
    ///
    /// # Panics
    /// If a probability is not between 0 and 1, or the least delay exceeds the greatest.
    pub fn set_default_faults(&self, faults: LinkFaults) {
        self.network.set_default_faults(faults);
    }

    /// Sets the faults of the link from one node to another. Messages under way stay as they were.
    ///
    /// # Panics
    /// As [`ChannelNetwork::set_default_faults`].
    pub fn set_faults(&self, from: NodeId, to: NodeId, faults: LinkFaults) {
        self.network.set_faults(from, to, Some(faults));
    }

    /// Gives the link the default faults again.
    pub fn unset_faults(&self, from: NodeId, to: NodeId) {
        self.network.set_faults(from, to, None);
    }

    /// Partitions the link in this direction. Bulk streams between the two nodes break, since they
    /// need both directions.
    pub fn partition_link(&self, from: NodeId, to: NodeId) {
        self.network.partition(&[from, to], |a, b| (a, b) == (from, to));
    }

    /// Heals the link in this direction: undoes [`ChannelNetwork::partition_link`].
    pub fn heal_link(&self, from: NodeId, to: NodeId) {
        self.network.heal(|a, b| (a, b) == (from, to));
    }

    /// Partitions all links between nodes of different groups. A node in no group keeps its links,
    /// and is then a bridge. Links that were partitioned before stay so.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        let group_of = |node| groups.iter().position(|group| group.contains(&node));
        self.network.partition(&groups.concat(), |from, to| match (group_of(from), group_of(to)) {
            (Some(of_from), Some(of_to)) => of_from != of_to,
            _ => false,
        });
    }

    /// Partitions the links between this node and all others that the network knows by now: those
    /// with a transport, and those with a link that was used or set up. A node that left before any
    /// of its links was used is not known, and is not partitioned when it comes back: isolate again
    /// after a restart.
    pub fn isolate(&self, node: NodeId) {
        self.network.partition(&[node], |from, to| from == node || to == node);
    }

    /// Heals all links. Their faults stay.
    pub fn heal(&self) {
        self.network.heal(|_, _| true);
    }

    /// Calls the listener for all traffic from now on, with sender and receiver. On a
    /// single-threaded runtime the order is the same for equal seeds. The listener is called while
    /// the network is locked, so it must not use the network itself. Listeners stay as long as the
    /// network does.
    pub fn listen(&self, listener: impl FnMut(NodeId, NodeId, Traffic<'_>) + Send + 'static) {
        self.network.listen(Box::new(listener));
    }

    /// Returns the counts of all links, summed.
    pub fn stats(&self) -> ChannelStats {
        self.network.stats(|_, _, _| true)
    }

    /// Returns the counts of the messages of one class from one node to another.
    pub fn link_stats(&self, from: NodeId, to: NodeId, class: Class) -> ChannelStats {
        self.network.stats(|a, b, of| (a, b, of) == (from, to, class))
    }
}

/// One node's endpoint of a [`ChannelNetwork`]. Dropping it leaves the network, as a crash would.
pub struct ChannelTransport {
    node: NodeId,
    /// Tells this transport from others of the same node.
    incarnation: u64,
    network: Arc<Network>,
    receiving: Mutex<Option<Receiving>>,
}

struct Receiving {
    receiver: Arc<Receiver>,
    courier: tokio::task::JoinHandle<()>,
}

#[async_trait]
impl Transport for ChannelTransport {
    /// Must be called within a tokio runtime.
    fn start(&self, inbound: Arc<dyn Inbound>) {
        let receiver = Arc::new(Receiver::new(inbound));
        if !self.network.start(self.node, self.incarnation, &receiver) {
            return;
        }
        let network = Arc::clone(&self.network);
        let courier =
            tokio::spawn(carry(network, self.node, self.incarnation, Arc::clone(&receiver)));
        let receiving = Receiving { receiver, courier };
        *self.receiving.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiving);
    }

    fn send(&self, to: NodeId, message: Message) {
        self.network.send(self.node, self.incarnation, to, message);
    }

    /// Unlimited: nothing is encoded, and an empty mailbox takes a message of any size.
    fn entry_bytes_max(&self) -> u64 {
        u64::MAX
    }

    async fn open_bulk(&self, to: NodeId) -> Result<Box<dyn BulkStream>, TransportError> {
        Ok(Box::new(self.network.open_bulk(self.node, self.incarnation, to)?))
    }

    fn reachability(&self, peer: NodeId) -> Result<(), TransportError> {
        self.network.reachability(self.node, self.incarnation, peer)
    }

    async fn close(&self) {
        self.network.leave(self.node, self.incarnation);
        let receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Receiving { receiver, courier }) = receiving {
            // A courier ends with its transport. If the `Inbound` made it panic, it has ended too.
            let _ = courier.await;
            receiver.drained().await;
        }
    }
}

impl Drop for ChannelTransport {
    fn drop(&mut self) {
        self.network.leave(self.node, self.incarnation);
    }
}

/// The courier: delivers the messages to one node that a sender's call could not deliver.
async fn carry(network: Arc<Network>, node: NodeId, incarnation: u64, receiver: Arc<Receiver>) {
    loop {
        match network.next_step(node, incarnation) {
            CourierStep::Deliver { delivery, from, message } => {
                let (class, bytes) = (message.class(), message.size_bytes());
                delivery.message(from, message);
                network.delivered(from.node, node, incarnation, class, bytes);
                // Other tasks get their turn during a flood.
                tokio::task::consume_budget().await;
            }
            CourierStep::Wait(None) => receiver.wake.notified().await,
            // Woken early or on time, the courier checks again.
            CourierStep::Wait(Some(due)) => drop(timeout_at(due, receiver.wake.notified()).await),
            CourierStep::Gone => return,
        }
    }
}
