//! NetworkState that all transports of a network share: nodes, links, and messages under way.
//!
//! One lock over plain data. Nothing here waits, and no [`Inbound`](crate::transport::Inbound) is
//! called under the lock: a message to be delivered is returned with a [`Delivery`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::bulk::{Stream, StreamEnd};
use super::faults::{DeliveryPlan, LinkFaults, Rng};
use super::receiver::{Delivery, Receiver, is_delivering};
use super::stats::ChannelStats;
use super::traffic::Traffic;
use crate::transport::TransportError;
use crate::types::{Class, Message, NodeId};

/// Bytes of control messages under way to one node from one peer; beyond, messages are dropped. A
/// single larger message travels alone.
pub const CONTROL_MAILBOX_BYTES_MAX: u64 = 1 << 20;
/// Bytes of log messages under way to one node from one peer; beyond, messages are dropped. A
/// single larger message travels alone.
pub const LOG_MAILBOX_BYTES_MAX: u64 = 32 << 20;

/// Open bulk streams of a network; beyond, opening one fails.
const BULK_STREAMS_MAX: usize = 1024;

/// Called for all traffic.
pub(super) type Listener = dyn FnMut(NodeId, NodeId, Traffic<'_>) + Send;

pub(super) struct Network {
    state: Mutex<NetworkState>,
}

struct NetworkState {
    seed: u64,
    default_faults: LinkFaults,
    links: BTreeMap<(NodeId, NodeId), ChannelLink>,
    endpoints: BTreeMap<NodeId, Endpoint>,
    streams: Vec<(NodeId, NodeId, Weak<Stream>)>,
    listeners: Vec<Box<Listener>>,
    next_incarnation: u64,
    next_sequence: u64,
}

/// The link from one node to another.
struct ChannelLink {
    faults: Option<LinkFaults>,
    cut: bool,
    chance: Rng,
    mailboxes: [Mailbox; Class::ALL.len()],
}

/// Messages of one class under way on a link. They wait in the queues of the receiving endpoint.
#[derive(Default)]
struct Mailbox {
    /// Includes a message that the courier is just delivering.
    waiting_count: usize,
    waiting_bytes: u64,
    last_due: Option<Instant>,
    stats: ChannelStats,
}

impl Mailbox {
    /// Also forgets a message that the courier is just delivering: it is not counted against a
    /// later endpoint.
    fn forget_waiting(&mut self) {
        self.waiting_count = 0;
        self.waiting_bytes = 0;
    }
}

struct Endpoint {
    incarnation: u64,
    receiver: Option<Arc<Receiver>>,
    /// By class, then by the time of arrival.
    queues: [BTreeMap<(Instant, u64), Parcel>; Class::ALL.len()],
}

struct Parcel {
    from: NodeId,
    message: Message,
}

/// The next step of a node's courier.
pub(super) enum Step {
    /// Deliver this message, then call [`Network::delivered`].
    Deliver {
        delivery: Delivery,
        from: NodeId,
        message: Message,
    },
    Wait(Option<Instant>),
    /// The transport is no longer part of the network.
    Gone,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        let state = NetworkState {
            seed,
            default_faults: LinkFaults::none(),
            links: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            streams: Vec::new(),
            listeners: Vec::new(),
            next_incarnation: 1,
            next_sequence: 0,
        };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, NetworkState> {
        // Nothing that is done under the lock panics, except by a defect of ours.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a transport of the node and returns its incarnation. An earlier transport of the node
    /// leaves the network.
    pub(super) fn join(&self, node: NodeId) -> u64 {
        let before = self.lock().endpoints.get(&node).map(|endpoint| endpoint.incarnation);
        if let Some(before) = before {
            self.leave(node, before);
        }
        let mut state = self.lock();
        let incarnation = state.next_incarnation;
        state.next_incarnation += 1;
        let queues = Default::default();
        state.endpoints.insert(node, Endpoint { incarnation, receiver: None, queues });
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
                state.peers_that_hear(node)
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
        if let Some((delivery, message)) = direct {
            delivery.message(from, message);
        }
    }

    /// Returns the next step of a node's courier.
    pub(super) fn next_step(&self, node: NodeId, incarnation: u64) -> Step {
        let mut state = self.lock();
        let Some(endpoint) = state.endpoint(node, incarnation) else { return Step::Gone };
        let firsts = || endpoint.queues.iter().filter_map(|queue| queue.keys().next());
        let Some((first_due, _)) = firsts().min() else { return Step::Wait(None) };
        let now = Instant::now();
        if *first_due > now {
            return Step::Wait(Some(*first_due));
        }
        // If several classes have a message due, the more urgent class comes first.
        let is_due = |queue: &&mut BTreeMap<(Instant, u64), Parcel>| {
            queue.keys().next().is_some_and(|(due, _)| *due <= now)
        };
        let queue = endpoint.queues.iter_mut().find(is_due).expect("the first of all is due");
        let (_, Parcel { from, message }) = queue.pop_first().expect("it has a first");
        let receiver = endpoint.receiver.as_ref().expect("messages wait for started nodes only");
        let delivery = receiver.begin();
        state.show(from, node, Traffic::Delivered(&message));
        Step::Deliver { delivery, from, message }
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
        let end = |side, own, peer| StreamEnd {
            stream: Arc::clone(&stream),
            side,
            own,
            peer,
            network: Arc::clone(self),
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
    pub(super) fn delay_of_frame(&self, from: NodeId, to: NodeId, frame: &Bytes) -> Duration {
        let mut state = self.lock();
        state.show(from, to, Traffic::Frame(frame));
        let faults = state.faults(from, to);
        faults.delay(&mut state.link(from, to).chance)
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

impl NetworkState {
    fn link(&mut self, from: NodeId, to: NodeId) -> &mut ChannelLink {
        let seed = self.seed;
        self.links.entry((from, to)).or_insert_with(|| ChannelLink {
            faults: None,
            cut: false,
            chance: Rng::of_link(seed, from, to),
            mailboxes: Default::default(),
        })
    }

    fn mailbox(&mut self, from: NodeId, to: NodeId, class: Class) -> &mut Mailbox {
        &mut self.link(from, to).mailboxes[class as usize]
    }

    fn faults(&mut self, from: NodeId, to: NodeId) -> LinkFaults {
        let default_faults = self.default_faults;
        self.link(from, to).faults.unwrap_or(default_faults)
    }

    fn show(&mut self, from: NodeId, to: NodeId, traffic: Traffic<'_>) {
        for listener in &mut self.listeners {
            listener(from, to, traffic);
        }
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.cut)
    }

    /// Returns the node's endpoint if it still belongs to this transport.
    fn endpoint(&mut self, node: NodeId, incarnation: u64) -> Option<&mut Endpoint> {
        self.endpoints.get_mut(&node).filter(|endpoint| endpoint.incarnation == incarnation)
    }

    fn begin_delivery(&self, to: NodeId) -> Option<Delivery> {
        Some(self.endpoints.get(&to)?.receiver.as_ref()?.begin())
    }

    /// Begins a delivery to each node that a message from `node` could reach.
    fn peers_that_hear(&self, node: NodeId) -> Vec<Delivery> {
        let peers = self.endpoints.keys().filter(|peer| **peer != node);
        let peers = peers.filter(|peer| !self.is_cut(node, **peer));
        peers.filter_map(|peer| self.begin_delivery(*peer)).collect()
    }

    fn reachability(
        &self,
        from: NodeId,
        incarnation: u64,
        to: NodeId,
    ) -> Result<(), TransportError> {
        let own = self.endpoints.get(&from);
        if own.is_none_or(|own| own.incarnation != incarnation) {
            return Err(TransportError::new("this transport is closed"));
        }
        if from == to {
            return Err(TransportError::new("a node is not its own peer"));
        }
        if self.endpoints.get(&to).is_none_or(|endpoint| endpoint.receiver.is_none()) {
            return Err(TransportError::new(format!("node {to} is not running")));
        }
        if self.is_cut(from, to) || self.is_cut(to, from) {
            return Err(TransportError::new(format!("the link to node {to} is cut")));
        }
        Ok(())
    }

    /// Decides whether and when a message arrives. Returns it if the caller is to deliver it now.
    fn post(
        &mut self,
        from: NodeId,
        incarnation: u64,
        to: NodeId,
        message: Message,
    ) -> Option<(Delivery, Message)> {
        if from == to || self.endpoint(from, incarnation).is_none() {
            return None;
        }
        self.show(from, to, Traffic::Sent(&message));
        let class = message.class();
        let bytes = message.size_bytes();
        let faults = self.faults(from, to);
        let is_answer = message.is_answer();
        let can_arrive = self.endpoints.get(&to).is_some_and(|to| to.receiver.is_some());
        let link = self.link(from, to);
        let plan = match can_arrive && !link.cut {
            true => faults.plan(&mut link.chance, is_answer),
            false => DeliveryPlan::Lost,
        };
        let mailbox = &mut link.mailboxes[class as usize];
        mailbox.stats.sent += 1;
        mailbox.stats.sent_bytes += bytes;
        let DeliveryPlan::Arrives { delay, held_up, again } = plan else {
            mailbox.stats.lost += 1;
            return None;
        };
        let at_once = delay.is_zero() && mailbox.waiting_count == 0 && !is_delivering();
        if at_once {
            mailbox.stats.delivered += 1;
            mailbox.stats.delivered_bytes += bytes;
        } else {
            self.queue(from, to, message.clone(), delay, held_up);
        }
        if let Some(delay) = again {
            self.mailbox(from, to, class).stats.duplicated += 1;
            self.queue(from, to, message.clone(), delay, true);
        }
        at_once.then(|| {
            self.show(from, to, Traffic::Delivered(&message));
            (self.begin_delivery(to).expect("it can arrive"), message)
        })
    }

    /// Queues a message for the receiver's courier, if the mailbox has room.
    fn queue(
        &mut self,
        from: NodeId,
        to: NodeId,
        message: Message,
        delay: Duration,
        held_up: bool,
    ) {
        let class = message.class();
        let bytes = message.size_bytes();
        let mut due = Instant::now() + delay;
        let mailbox = self.mailbox(from, to, class);
        let room = mailbox_bytes_max(class).saturating_sub(mailbox.waiting_bytes);
        if mailbox.waiting_count > 0 && bytes > room {
            mailbox.stats.dropped_full += 1;
            return;
        }
        mailbox.waiting_count += 1;
        mailbox.waiting_bytes += bytes;
        if !held_up {
            due = mailbox.last_due.map_or(due, |last| last.max(due));
            mailbox.last_due = Some(due);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let endpoint = self.endpoints.get_mut(&to).expect("it can arrive");
        endpoint.queues[class as usize].insert((due, sequence), Parcel { from, message });
        endpoint.receiver.as_ref().expect("it can arrive").wake.notify_one();
    }

    fn lose_under_way(&mut self, chosen: impl Fn(NodeId, NodeId) -> bool) {
        let mut lost = Vec::new();
        for (to, endpoint) in &mut self.endpoints {
            for queue in &mut endpoint.queues {
                queue.retain(|_, parcel| {
                    let chosen = chosen(parcel.from, *to);
                    if chosen {
                        let Parcel { from, message } = parcel;
                        lost.push((*from, *to, message.class(), message.size_bytes()));
                    }
                    !chosen
                });
            }
        }
        for (from, to, class, bytes) in lost {
            let mailbox = self.mailbox(from, to, class);
            mailbox.waiting_count -= 1;
            mailbox.waiting_bytes -= bytes;
            mailbox.stats.lost += 1;
        }
    }

    fn take_streams(&mut self, chosen: impl Fn(NodeId, NodeId) -> bool) -> Vec<Arc<Stream>> {
        let taken = self.streams.extract_if(.., |(from, to, _)| chosen(*from, *to));
        taken.filter_map(|(_, _, stream)| stream.upgrade()).collect()
    }
}

/// Limit of the bytes under way of one class, from one node to another.
fn mailbox_bytes_max(class: Class) -> u64 {
    match class {
        Class::Control => CONTROL_MAILBOX_BYTES_MAX,
        Class::Log => LOG_MAILBOX_BYTES_MAX,
    }
}
