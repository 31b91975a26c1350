//! The events between nodes (delivery, loss, partitions), and the passing of time.

use std::collections::VecDeque;
use std::time::Duration;

use raft_core::consensus::Raft;
use raft_core::consensus::{OfferDecision, RoleKind};
use raft_core::types::{Index, Message, NodeId, SnapshotMeta, Term};

use super::cluster::Cluster;
use super::disk::Machine;
use super::render;

/// A unit of transmission.
#[derive(Clone, Debug)]
pub enum Parcel {
    Message(Message),
    /// A whole snapshot. Its sender, if still running, learns the outcome at once.
    Snapshot {
        term: Term,
        meta: SnapshotMeta,
        state: Machine,
        incarnation: u64,
    },
}

#[derive(Clone, Debug)]
pub struct Envelope {
    pub from: NodeId,
    pub to: NodeId,
    pub parcel: Parcel,
}

impl Cluster {
    pub fn partition_link(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    /// Cuts all links between nodes of different groups; the groups name every node.
    pub fn partition(&mut self, groups: &[&[NodeId]]) {
        self.cut.clear();
        for one in groups {
            for other in groups.iter().filter(|other| *other != one) {
                let links = one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b)));
                self.cut.extend(links);
            }
        }
    }

    /// Cuts one node off from all others.
    pub fn isolate(&mut self, id: NodeId) {
        let others: Vec<NodeId> = self.ids().into_iter().filter(|other| *other != id).collect();
        self.partition(&[&[id], &others]);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Takes a parcel out of the network and hands it to its receiver. It is lost if the link is
    /// cut or the receiver is down.
    pub fn deliver(&mut self, position: usize) {
        let envelope = self.flying.remove(position).expect("a parcel at this position");
        let Envelope { from, to, .. } = &envelope;
        if self.cut.contains(&(*from, *to)) || !self.is_there(*to) {
            return self.lose(envelope);
        }
        let Envelope { from, to, parcel } = envelope;
        match parcel {
            Parcel::Message(message) => {
                self.tell(|| format!("{from} -> {to}  {}", render::message(&message)));
                self.step(from, to, message);
            }
            Parcel::Snapshot { term, meta, state, incarnation } => {
                self.install(from, to, term, meta, state, incarnation);
            }
        }
    }

    pub fn drop_parcel(&mut self, position: usize) {
        let envelope = self.flying.remove(position).expect("a parcel at this position");
        self.lose(envelope);
    }

    fn lose(&mut self, Envelope { from, to, parcel }: Envelope) {
        match parcel {
            Parcel::Message(message) => {
                self.tell(|| format!("{from} -x {to}  {}", render::message(&message)));
            }
            Parcel::Snapshot { meta, incarnation, .. } => {
                self.tell(|| format!("{from} -x {to}  snapshot {}", meta.position));
                self.report_snapshot(from, to, None, incarnation);
            }
        }
    }

    fn install(
        &mut self,
        from: NodeId,
        to: NodeId,
        term: Term,
        meta: SnapshotMeta,
        state: Machine,
        incarnation: u64,
    ) {
        let answer = self.with(to, |raft, now| raft.on_snapshot_offer(now, from, term, &meta));
        self.tell(|| format!("{from} => {to}  t{term} snapshot {}: {answer:?}", meta.position));
        let sent = match answer {
            OfferDecision::Stale { .. } | OfferDecision::Refused => None,
            OfferDecision::NotNeeded => Some(meta.index()),
            OfferDecision::Wanted => {
                let index = meta.index();
                let node = self.node_mut(to);
                node.disk.finish_snapshot(meta.clone(), state.clone());
                node.log.finish_snapshot(meta.clone(), state);
                self.with(to, |raft, now| raft.on_snapshot_received(now, from, term, meta));
                Some(index)
            }
        };
        self.report_snapshot(from, to, sent, incarnation);
    }

    pub(super) fn report_snapshot(
        &mut self,
        from: NodeId,
        to: NodeId,
        sent: Option<Index>,
        incarnation: u64,
    ) {
        if self.is_up(from) && self.node(from).incarnation == incarnation {
            self.with(from, |raft, now| raft.on_snapshot_sent(now, to, sent));
        }
    }

    /// Takes the messages that a node has sent out of the network, to be inspected, not delivered.
    pub fn sent_by(&mut self, id: NodeId) -> Vec<(NodeId, Message)> {
        let (sent, others) = self.flying.drain(..).partition(|envelope| envelope.from == id);
        self.flying = others;
        let sent: VecDeque<Envelope> = sent;
        let message = |Envelope { to, parcel, .. }: Envelope| match parcel {
            Parcel::Message(message) => Some((to, message)),
            Parcel::Snapshot { .. } => None,
        };
        sent.into_iter().filter_map(message).collect()
    }

    /// Delivers until no parcel is in flight.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.flying.is_empty() {
                return;
            }
            self.deliver(0);
        }
        panic!("the cluster does not come to rest");
    }

    /// Lets time pass. Deadlines fire in order. With `deliver`, every parcel arrives at once.
    pub fn advance(&mut self, duration: Duration, deliver: bool) {
        let end = self.now + duration;
        loop {
            if deliver {
                self.settle();
            }
            let deadline = |id: &NodeId| self.raft(*id).next_deadline();
            let next = self.up().into_iter().min_by_key(deadline);
            match next.filter(|id| self.raft(*id).next_deadline() <= end) {
                Some(id) => {
                    self.now = self.now.max(self.raft(id).next_deadline());
                    self.with(id, Raft::on_timeout);
                }
                None => break,
            }
        }
        self.now = end;
    }

    /// Time passes, and everything arrives.
    pub fn run(&mut self, millis: u64) {
        self.advance(Duration::from_millis(millis), true);
    }

    /// Makes this node the leader: its deadline passes and everything arrives.
    pub fn elect(&mut self, id: NodeId) {
        self.fire(id);
        self.settle();
        assert_eq!(self.role(id), RoleKind::Leader, "node {id} was not elected");
    }

    /// Makes another node the leader, by a transfer.
    pub fn elect_again(&mut self, id: NodeId) {
        let leader = self.leader().expect("a leader");
        let told = self.with(leader, |raft, now| raft.transfer_leadership(now, Some(id)));
        told.expect("another voter");
        self.settle();
        assert_eq!(self.role(id), RoleKind::Leader, "node {id} did not take over");
    }

    /// Delivers until only pre-vote requests are in flight.
    pub fn settle_but_pre_votes(&mut self) {
        let is_other = |one: &Envelope| match &one.parcel {
            Parcel::Message(message) => {
                !matches!(message.body, raft_core::types::MessageBody::RequestPreVote { .. })
            }
            Parcel::Snapshot { .. } => true,
        };
        while let Some(at) = self.flying.iter().position(is_other) {
            self.deliver(at);
        }
    }
}
