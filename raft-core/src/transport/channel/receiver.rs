//! One node's receiving end: hands arriving messages to its [`Inbound`], until it is closed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::transport::{BulkStream, Inbound};
use crate::types::{Message, NodeId};

thread_local! {
    static DELIVERING: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if this thread is inside a call of an [`Inbound`]. A message sent from there is not
/// delivered from there, or two nodes that respond at once would call each other without end.
pub(super) fn is_delivering() -> bool {
    DELIVERING.get()
}

/// The transport that sent a message.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    pub(super) node: NodeId,
    /// Tells this transport from others of the same node. Later ones have larger numbers.
    pub(super) incarnation: u64,
    /// Identity of the node's disk; 0 if it is not known.
    pub(super) disk: u64,
}

pub(super) struct Receiver {
    inbound: Arc<dyn Inbound>,
    /// For each peer, the latest transport from which a message arrived.
    connected: Mutex<BTreeMap<NodeId, u64>>,
    /// Wakes the courier: a message waits, or the transport has left the network.
    pub(super) wake: Notify,
    deliveries_count: AtomicUsize,
    closed: AtomicBool,
    idle: Notify,
}

impl Receiver {
    pub(super) fn new(inbound: Arc<dyn Inbound>) -> Self {
        Self {
            inbound,
            connected: Mutex::default(),
            wake: Notify::new(),
            deliveries_count: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            idle: Notify::new(),
        }
    }

    /// Begins a delivery. Called under the network's lock, and only while the receiver is part of
    /// the network. So once the receiver has left, no further delivery begins.
    pub(super) fn begin(self: &Arc<Self>) -> Delivery {
        self.deliveries_count.fetch_add(1, SeqCst);
        Delivery(Arc::clone(self))
    }

    /// Waits until all deliveries that have begun are over. The receiver has left the network
    /// before.
    pub(super) async fn drained(&self) {
        self.closed.store(true, SeqCst);
        while self.deliveries_count.load(SeqCst) > 0 {
            self.idle.notified().await;
        }
        // Wakes the next caller that waits for the same.
        self.idle.notify_one();
    }
}

/// A delivery that has begun; carried out without the network's lock.
pub(super) struct Delivery(Arc<Receiver>);

impl Delivery {
    /// Delivers a message, unless one of a later transport of the same node has arrived: the node
    /// may run on another disk now.
    pub(super) fn message(self, from: Sender, message: Message) {
        let _inside = Inside::enter();
        // Held while the message is handed over, or one of the next disk could come before it.
        let mut connected = self.0.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let known = connected.get(&from.node).copied().unwrap_or(0);
        if known > from.incarnation {
            return;
        }
        if known < from.incarnation {
            connected.insert(from.node, from.incarnation);
            self.0.inbound.on_connected(from.node, from.disk);
        }
        self.0.inbound.on_message(from.node, message);
    }

    pub(super) fn bulk(self, from: NodeId, stream: Box<dyn BulkStream>) {
        let _inside = Inside::enter();
        self.0.inbound.on_bulk(from, stream);
    }

    pub(super) fn unreachable(self, peer: NodeId) {
        let _inside = Inside::enter();
        self.0.inbound.on_unreachable(peer);
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let remaining = self.0.deliveries_count.fetch_sub(1, SeqCst) - 1;
        if remaining == 0 && self.0.closed.load(SeqCst) {
            self.0.idle.notify_one();
        }
    }
}

/// Marks the thread as delivering until dropped, also when the [`Inbound`] panics.
struct Inside {
    outer: bool,
}

impl Inside {
    fn enter() -> Self {
        Self { outer: DELIVERING.replace(true) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DELIVERING.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MessageBody;

    /// Counts the messages that arrive.
    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Inbound for Counter {
        fn on_message(&self, _: NodeId, _: Message) {
            self.0.fetch_add(1, SeqCst);
        }

        fn on_bulk(&self, _: NodeId, _: Box<dyn BulkStream>) {}

        fn on_unreachable(&self, _: NodeId) {}
    }

    /// A message that was under way while its sender started anew arrives no longer, once one of
    /// the later transport has.
    #[test]
    fn a_message_from_an_earlier_disk_does_not_come_late() {
        let counter = Arc::new(Counter::default());
        let receiver = Arc::new(Receiver::new(Arc::clone(&counter) as Arc<dyn Inbound>));
        let message = || Message::new(1, MessageBody::ReadIndex { id: 1 });
        let from = |incarnation| Sender { node: 1, incarnation, disk: incarnation };
        let late = receiver.begin();
        receiver.begin().message(from(7), message());
        receiver.begin().message(from(8), message());
        late.message(from(7), message());
        assert_eq!(counter.0.load(SeqCst), 2);
        receiver.begin().message(from(8), message());
        assert_eq!(counter.0.load(SeqCst), 3, "the later one is not forgotten");
    }
}
