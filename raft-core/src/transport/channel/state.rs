//! Plain data of a simulated network: nodes, links, and messages under way; and the decisions about
//! a message. All of it is under the network's lock: nothing here waits or calls an `Inbound`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::bulk::Stream;
use super::faults::{DeliveryPlan, LinkFaults, Rng};
use super::receiver::{Delivery, Receiver, Sender, is_delivering};
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

/// Called for all traffic.
pub(super) type Listener = dyn FnMut(NodeId, NodeId, Traffic<'_>) + Send;

pub(super) struct NetworkState {
    pub(super) seed: u64,
    pub(super) default_faults: LinkFaults,
    pub(super) links: BTreeMap<(NodeId, NodeId), ChannelLink>,
    pub(super) endpoints: BTreeMap<NodeId, Endpoint>,
    pub(super) streams: Vec<(NodeId, NodeId, Weak<Stream>)>,
    pub(super) listeners: Vec<Box<Listener>>,
    pub(super) next_incarnation: u64,
    pub(super) next_sequence: u64,
}

/// The link from one node to another.
pub(super) struct ChannelLink {
    pub(super) faults: Option<LinkFaults>,
    pub(super) cut: bool,
    pub(super) rng: Rng,
    pub(super) mailboxes: [Mailbox; Class::ALL.len()],
}

/// Messages of one class under way on a link. They wait in the queues of the receiving endpoint.
#[derive(Default)]
pub(super) struct Mailbox {
    /// Includes a message that the courier is just delivering.
    pub(super) waiting_count: usize,
    pub(super) waiting_bytes: u64,
    pub(super) last_due: Option<Instant>,
    pub(super) stats: ChannelStats,
}

impl Mailbox {
    /// Also forgets a message that the courier is just delivering: it is not counted against a
    /// later endpoint.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting_count = 0;
        self.waiting_bytes = 0;
    }
}

pub(super) struct Endpoint {
    pub(super) incarnation: u64,
    /// Identity of the node's disk; 0 if it is not known.
    pub(super) disk: u64,
    pub(super) receiver: Option<Arc<Receiver>>,
    /// By class, then by the time of arrival.
    pub(super) queues: [BTreeMap<(Instant, u64), Parcel>; Class::ALL.len()],
}

pub(super) struct Parcel {
    pub(super) from: Sender,
    pub(super) message: Message,
}

impl NetworkState {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            default_faults: LinkFaults::none(),
            links: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            streams: Vec::new(),
            listeners: Vec::new(),
            next_incarnation: 1,
            next_sequence: 0,
        }
    }

    pub(super) fn link(&mut self, from: NodeId, to: NodeId) -> &mut ChannelLink {
        let seed = self.seed;
        self.links.entry((from, to)).or_insert_with(|| ChannelLink {
            faults: None,
            cut: false,
            rng: Rng::of_link(seed, from, to),
            mailboxes: Default::default(),
        })
    }

    pub(super) fn mailbox(&mut self, from: NodeId, to: NodeId, class: Class) -> &mut Mailbox {
        &mut self.link(from, to).mailboxes[class as usize]
    }

    pub(super) fn faults(&mut self, from: NodeId, to: NodeId) -> LinkFaults {
        let default_faults = self.default_faults;
        self.link(from, to).faults.unwrap_or(default_faults)
    }

    pub(super) fn show(&mut self, from: NodeId, to: NodeId, traffic: Traffic<'_>) {
        for listener in &mut self.listeners {
            listener(from, to, traffic);
        }
    }

    pub(super) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.cut)
    }

    /// Returns the node's endpoint if it still belongs to this transport.
    pub(super) fn endpoint(&mut self, node: NodeId, incarnation: u64) -> Option<&mut Endpoint> {
        self.endpoints.get_mut(&node).filter(|endpoint| endpoint.incarnation == incarnation)
    }

    pub(super) fn begin_delivery(&self, to: NodeId) -> Option<Delivery> {
        Some(self.endpoints.get(&to)?.receiver.as_ref()?.begin())
    }

    /// Begins a delivery to each node that a message from `node` could reach.
    pub(super) fn peers_in_reach(&self, node: NodeId) -> Vec<Delivery> {
        let peers = self.endpoints.keys().filter(|peer| **peer != node);
        let peers = peers.filter(|peer| !self.is_cut(node, **peer));
        peers.filter_map(|peer| self.begin_delivery(*peer)).collect()
    }

    pub(super) fn reachability(
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
    pub(super) fn post(
        &mut self,
        from: NodeId,
        incarnation: u64,
        to: NodeId,
        message: Message,
    ) -> Option<(Delivery, Sender, Message)> {
        let disk = self.endpoint(from, incarnation).filter(|_| from != to)?.disk;
        let sender = Sender { node: from, incarnation, disk };
        self.show(from, to, Traffic::Sent(&message));
        let class = message.class();
        let bytes = message.size_bytes();
        let is_answer = message.body.is_answer();
        let can_arrive = self.endpoints.get(&to).is_some_and(|to| to.receiver.is_some());
        let default_faults = self.default_faults;
        let link = self.link(from, to);
        let faults = link.faults.unwrap_or(default_faults);
        let plan = if can_arrive && !link.cut {
            faults.plan(&mut link.rng, is_answer)
        } else {
            DeliveryPlan::Lost
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
            self.queue(sender, to, message.clone(), delay, held_up);
        }
        if let Some(delay) = again {
            self.mailbox(from, to, class).stats.duplicated += 1;
            self.queue(sender, to, message.clone(), delay, true);
        }
        at_once.then(|| {
            self.show(from, to, Traffic::Delivered(&message));
            (self.begin_delivery(to).expect("it can arrive"), sender, message)
        })
    }

    /// Queues a message for the receiver's courier, if the mailbox has room.
    fn queue(
        &mut self,
        from: Sender,
        to: NodeId,
        message: Message,
        delay: Duration,
        held_up: bool,
    ) {
        let class = message.class();
        let bytes = message.size_bytes();
        let mut due = Instant::now() + delay;
        let mailbox = self.mailbox(from.node, to, class);
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

    pub(super) fn lose_under_way(&mut self, chosen: impl Fn(NodeId, NodeId) -> bool) {
        let mut lost = Vec::new();
        for (to, endpoint) in &mut self.endpoints {
            for queue in &mut endpoint.queues {
                queue.retain(|_, parcel| {
                    let chosen = chosen(parcel.from.node, *to);
                    if chosen {
                        let Parcel { from, message } = parcel;
                        lost.push((from.node, *to, message.class(), message.size_bytes()));
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

    pub(super) fn take_streams(
        &mut self,
        chosen: impl Fn(NodeId, NodeId) -> bool,
    ) -> Vec<Arc<Stream>> {
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
