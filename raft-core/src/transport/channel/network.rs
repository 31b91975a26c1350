//! The network that all its transports share: one lock over [`NetworkState`].
//!
//! Nothing here waits, and no [`Inbound`](crate::transport::Inbound) is called under this lock: a
//! message to be delivered is returned with a [`Delivery`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::bulk::{Stream, StreamEnd};
use super::faults::LinkFaults;
use super::receiver::{Delivery, Receiver, Sender};
use super::state::{Endpoint, Listener, Mailbox, NetworkState, Parcel};
use super::stats::ChannelStats;
use super::traffic::Traffic;
use crate::transport::TransportError;
use crate::types::{Class, Message, NodeId};

/// Open bulk streams of a network; beyond, opening one fails.
const BULK_STREAMS_MAX: usize = 1024;

pub(super) struct Network {
    state: Mutex<NetworkState>,
}

/// The next step of a node's courier.
pub(super) enum CourierStep {
    /// Deliver this message, then call [`Network::delivered`].
    Deliver {
        delivery: Delivery,
        from: Sender,
        message: Message,
    },
    Wait(Option<Instant>),
    /// The transport is no longer part of the network.
    Gone,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: Mutex::new(NetworkState::new(seed)) }
    }

    fn lock(&self) -> MutexGuard<'_, NetworkState> {
        // Nothing that is done under the lock panics, except by a defect of ours.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a transport of the node and returns its incarnation. An earlier transport of the node
    /// leaves the network.
    pub(super) fn join(&self, node: NodeId, disk: u64) -> u64 {
        let before = self.lock().endpoints.get(&node).map(|endpoint| endpoint.incarnation);
        if let Some(before) = before {
            self.leave(node, before);
        }
        let mut state = self.lock();
        let incarnation = state.next_incarnation;
        state.next_incarnation += 1;
        let queues = Default::default();
        state.endpoints.insert(node, Endpoint { incarnation, disk, receiver: None, queues });
        incarnation
    }

    /// Starts receiving. Returns false if the transport has left the network, or was started
    /// before. Messages still under way from an earlier transport of the node are lost: the node
    /// may have another disk now.
    pub(super) fn start(&self, node: NodeId, incarnation: u64, receiver: &Arc<Receiver>) -> bool {
        let mut state = self.lock();
        match state.endpoint(node, incarnation) {
            Some(endpoint) if endpoint.receiver.is_none() => {
                endpoint.receiver = Some(Arc::clone(receiver));
            }
            _ => return false,
        }
        state.lose_under_way(|from, _| from == node);
        true
    }

    /// The transport leaves the network: messages under way to it are lost, its streams break, and
    /// its peers receive `on_unreachable`. Repeated, it does nothing.
    pub(super) fn leave(&self, node: NodeId, incarnation: u64) {
        let mut state = self.lock();
        if state.endpoint(node, incarnation).is_none() {
            return;
        }
        state.lose_under_way(|_, to| to == node);
        for ((_, to), link) in &mut state.links {
            if *to == node {
                link.mailboxes.iter_mut().for_each(Mailbox::forget_waiting);
            }
        }
        let endpoint = state.endpoints.remove(&node).expect("just seen");
        let streams = state.take_streams(|one, other| one == node || other == node);
        let bereft = match &endpoint.receiver {
            Some(receiver) => {
                receiver.wake.notify_one();
                state.peers_in_reach(node)
            }
            None => Vec::new(),
        };
        drop(state);
        let why = TransportError::new(format!("node {node} has left the network"));
        streams.iter().for_each(|stream| stream.break_off(&why));
        bereft.into_iter().for_each(|delivery| delivery.unreachable(node));
    }

    /// Sends a message. Delivers it within this call if it has no delay, waits behind no other, and
    /// is not sent from within an `Inbound`.
    pub(super) fn send(&self, from: NodeId, incarnation: u64, to: NodeId, message: Message) {
        let direct = self.lock().post(from, incarnation, to, message);
        if let Some((delivery, sender, message)) = direct {
            delivery.message(sender, message);
        }
    }

    /// Returns the next step of a node's courier.
    pub(super) fn next_step(&self, node: NodeId, incarnation: u64) -> CourierStep {
        let mut state = self.lock();
        let Some(endpoint) = state.endpoint(node, incarnation) else { return CourierStep::Gone };
        let firsts = || endpoint.queues.iter().filter_map(|queue| queue.keys().next());
        let Some((first_due, _)) = firsts().min() else { return CourierStep::Wait(None) };
        let now = Instant::now();
        if *first_due > now {
            return CourierStep::Wait(Some(*first_due));
        }
        // If several classes have a message due, the more urgent class comes first.
        let is_due = |queue: &&mut BTreeMap<(Instant, u64), Parcel>| {
            queue.keys().next().is_some_and(|(due, _)| *due <= now)
        };
        let queue = endpoint.queues.iter_mut().find(is_due).expect("the first of all is due");
        let (_, Parcel { from, message }) = queue.pop_first().expect("it has a first");
        let receiver = endpoint.receiver.as_ref().expect("messages wait for started nodes only");
        let delivery = receiver.begin();
        state.show(from.node, node, Traffic::Delivered(&message));
        CourierStep::Deliver { delivery, from, message }
    }

    /// The courier has delivered a message.
    pub(super) fn delivered(
        &self,
        from: NodeId,
        to: NodeId,
        incarnation: u64,
        class: Class,
        bytes: u64,
    ) {
        let mut state = self.lock();
        let stands = state.endpoint(to, incarnation).is_some();
        let mailbox = state.mailbox(from, to, class);
        mailbox.stats.delivered += 1;
        mailbox.stats.delivered_bytes += bytes;
        if stands {
            mailbox.waiting_count -= 1;
            mailbox.waiting_bytes -= bytes;
        }
    }

    pub(super) fn open_bulk(
        self: &Arc<Self>,
        from: NodeId,
        incarnation: u64,
        to: NodeId,
    ) -> Result<StreamEnd, TransportError> {
        let stream = Arc::new(Stream::new());
        let delivery = {
            let mut state = self.lock();
            state.reachability(from, incarnation, to)?;
            state.streams.retain(|(_, _, stream)| stream.strong_count() > 0);
            if state.streams.len() >= BULK_STREAMS_MAX {
                return Err(TransportError::new(format!("{BULK_STREAMS_MAX} streams are open")));
            }
            state.streams.push((from, to, Arc::downgrade(&stream)));
            state.begin_delivery(to).expect("it is reachable")
        };
        let end = |side, own, peer| {
            let network = Arc::clone(self);
            let delay = move |frame: &Bytes| network.delay_of_frame(own, peer, frame);
            StreamEnd { stream: Arc::clone(&stream), side, own, delay: Box::new(delay) }
        };
        delivery.bulk(from, Box::new(end(1, to, from)));
        Ok(end(0, from, to))
    }

    pub(super) fn reachability(
        &self,
        from: NodeId,
        incarnation: u64,
        to: NodeId,
    ) -> Result<(), TransportError> {
        self.lock().reachability(from, incarnation, to)
    }

    pub(super) fn listen(&self, listener: Box<Listener>) {
        self.lock().listeners.push(listener);
    }

    /// Returns the delay of a frame of a bulk stream.
    fn delay_of_frame(&self, from: NodeId, to: NodeId, frame: &Bytes) -> Duration {
        let mut state = self.lock();
        state.show(from, to, Traffic::Frame(frame));
        let faults = state.faults(from, to);
        faults.delay(&mut state.link(from, to).rng)
    }

    /// Partitions the `chosen` links among `nodes` and all nodes that the network knows.
    pub(super) fn partition(&self, nodes: &[NodeId], chosen: impl Fn(NodeId, NodeId) -> bool) {
        let why = TransportError::new("the link was cut");
        let streams = {
            let mut state = self.lock();
            let mut known: Vec<NodeId> = state.links.keys().flat_map(|(a, b)| [*a, *b]).collect();
            known.extend(state.endpoints.keys());
            known.extend(nodes);
            known.sort_unstable();
            known.dedup();
            for from in &known {
                for to in known.iter().filter(|to| *to != from && chosen(*from, **to)) {
                    state.link(*from, *to).cut = true;
                }
            }
            state.lose_under_way(&chosen);
            state.take_streams(|from, to| chosen(from, to) || chosen(to, from))
        };
        streams.iter().for_each(|stream| stream.break_off(&why));
    }

    pub(super) fn heal(&self, chosen: impl Fn(NodeId, NodeId) -> bool) {
        for ((from, to), link) in &mut self.lock().links {
            if chosen(*from, *to) {
                link.cut = false;
            }
        }
    }

    pub(super) fn set_default_faults(&self, faults: LinkFaults) {
        faults.check();
        self.lock().default_faults = faults;
    }

    pub(super) fn set_faults(&self, from: NodeId, to: NodeId, faults: Option<LinkFaults>) {
        faults.iter().for_each(LinkFaults::check);
        self.lock().link(from, to).faults = faults;
    }

    pub(super) fn stats(&self, chosen: impl Fn(NodeId, NodeId, Class) -> bool) -> ChannelStats {
        let mut sum = ChannelStats::default();
        for ((from, to), link) in &self.lock().links {
            for class in Class::ALL.into_iter().filter(|class| chosen(*from, *to, *class)) {
                sum += link.mailboxes[class as usize].stats;
            }
        }
        sum
    }
}
