//! Snapshots as the driver handles them, one at a time: the node's own one once the log exceeds its
//! limit, or a leader's, whose transfer time depends on its size.

use raft_core::consensus::{OfferDecision, RoleKind};
use raft_core::types::{Index, NodeId, SnapshotMeta, Term};

use crate::chain::Stamp;
use crate::coverage::What;
use crate::disk::Snapshot;
use crate::node::Own;
use crate::simulation::{Event, Simulation};

/// One attempt to send a snapshot to a peer.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub from: NodeId,
    pub to: NodeId,
    from_life: u64,
    to_life: u64,
    term: Term,
    snapshot: Snapshot,
    /// The `cut_count` of the links when the snapshot was offered.
    cut_count: u64,
    /// The outcome for the sender: the peer has the state through this index.
    through: Option<Index>,
}

impl Simulation {
    /// Advances the node's snapshots after each of its steps.
    pub fn see_to_snapshots(&mut self, id: NodeId) {
        let threshold = self.plan.mix.snapshot_threshold_bytes;
        let is_durable = self.plan.mix.durable_machine;
        let Some(life) = self.node(id).life.as_ref() else { return };
        let raft = &life.raft;
        let idle = life.own == Own::Idle && !life.receiving && !raft.is_restoring();
        if !raft.log_has_room()
            && raft.snapshot_index() > raft.log_start_index()
            && !raft.is_restoring()
        {
            // The node may have crashed before the compaction, and a full log accepts no entries.
            self.compact(id);
        }
        let Some(life) = self.node(id).life.as_ref() else { return };
        let raft = &life.raft;
        let is_too_large = threshold > 0
            && raft.last_applied() > raft.snapshot_index()
            && (life.view.log_bytes > threshold || !raft.log_has_room());
        if idle && is_too_large {
            if is_durable { self.flush(id) } else { self.take_view(id) }
        }
        self.serve_lagging(id);
    }

    fn flush(&mut self, id: NodeId) {
        let mean_us = 4 * self.plan.mix.disk_mean_us;
        let node = self.node_mut(id);
        let (life_number, takes_us) = (node.life_number, node.random.between(1, 2 * mean_us));
        let life = self.life(id);
        life.own = Own::Flushing;
        let state = life.machine;
        self.schedule(self.now + takes_us, Event::Flushed { node: id, life: life_number, state });
    }

    pub fn on_flushed(&mut self, id: NodeId, state: Stamp) {
        self.coverage.count(What::Flush);
        self.tell(|| format!("{id} flushed its machine through {}", state.position));
        let node = self.node_mut(id);
        if node.disk.machine.index() < state.index() {
            node.disk.machine = state;
        }
        self.life(id).own = Own::Idle;
        self.with(id, |raft, _| raft.on_state_durable(state.index()));
        self.compact(id);
    }

    fn take_view(&mut self, id: NodeId) {
        let Some(life) = self.node(id).life.as_ref() else { return };
        let state = life.machine;
        let published = self.node(id).disk.snapshot.as_ref().map(|snapshot| snapshot.state.index());
        let meta = life.raft.snapshot_meta(state.index());
        let meta = meta.filter(|meta| meta.position == state.position);
        // A node that joins has applied the entries before the first configuration. The core does
        // not publish a snapshot of them, and to write it again would keep the leader's out.
        let is_useful = |meta: &SnapshotMeta| {
            published.is_none_or(|index| state.index() > index)
                && meta.index() > life.not_published_through
        };
        let Some(meta) = meta.filter(is_useful) else { return };
        let size_bytes_max = self.plan.mix.snapshot_bytes_max;
        if !meta.configuration.is_empty() {
            self.oracle.on_snapshot(id, &meta, state);
        }
        let node = self.node_mut(id);
        let size_bytes = node.random.scaled(100, size_bytes_max);
        let life_number = node.life_number;
        self.life(id).own = Own::Writing;
        let snapshot = Box::new(Snapshot { meta, state, size_bytes });
        let takes_us = self.transfer_us(size_bytes) / 4 + 10;
        let event = Event::ViewWritten { node: id, life: life_number, snapshot };
        self.schedule(self.now + takes_us, event);
    }

    fn transfer_us(&self, size_bytes: u64) -> u64 {
        1000 * size_bytes / self.plan.mix.bandwidth_bytes_per_ms
    }

    pub fn on_view_written(&mut self, id: NodeId, snapshot: Snapshot) {
        let meta = snapshot.meta.clone();
        self.tell(|| format!("{id} has written snapshot {}", meta.position));
        self.node_mut(id).disk.finish_snapshot(snapshot);
        // Before the node's `Ready`s are processed: one of them may say at once that it is
        // published.
        let (index, names_members) = (meta.index(), !meta.configuration.is_empty());
        let life = self.life(id);
        life.own = match life.raft.publish_snapshot(meta) {
            true => Own::Publishing,
            false => Own::Idle,
        };
        assert!(life.own == Own::Idle || names_members, "V20 node {id} publishes no members");
        if !names_members {
            life.not_published_through = index;
        }
        self.with(id, |_, _| ());
    }

    pub fn on_published(&mut self, id: NodeId) {
        self.coverage.count(What::Snapshot);
        self.life(id).own = Own::Idle;
        self.compact(id);
    }

    /// Compacts the covered part of the log, except half a limit's worth, and except the entries
    /// that a peer will need after the snapshot that is being sent to it.
    fn compact(&mut self, id: NodeId) {
        let leave_bytes = self.plan.mix.snapshot_threshold_bytes / 2;
        let mean_us = self.plan.mix.disk_mean_us;
        let Some(life) = self.node_mut(id).life.as_mut() else { return };
        let mut index = life.raft.index_leaving_bytes(leave_bytes).min(life.raft.snapshot_index());
        if let Some(sent) = life.sending_to.values().min()
            && life.raft.log_has_room()
        {
            index = index.min(*sent);
        }
        let Some(through) = life.raft.compact(index) else { return };
        life.planned.compact(through.index());
        self.coverage.count(What::Compaction);
        self.tell(|| format!("{id} compacts through {}", through.position));
        let node = self.node_mut(id);
        let (life_number, takes_us) = (node.life_number, node.random.between(1, 2 * mean_us));
        let through = Box::new(through);
        let event = Event::Compacted { node: id, life: life_number, through };
        self.schedule(self.now + takes_us, event);
    }

    fn serve_lagging(&mut self, id: NodeId) {
        let node = self.node(id);
        let Some(life) = node.life.as_ref() else { return };
        if life.wanted_by.is_empty() || life.raft.role() != RoleKind::Leader {
            return;
        }
        let start_index = life.raft.log_start_index();
        let usable = node.disk.snapshot.as_ref();
        let usable = usable.filter(|snapshot| snapshot.state.index() >= start_index);
        match usable {
            Some(snapshot) if life.own != Own::Publishing => {
                let snapshot = snapshot.clone();
                for peer in std::mem::take(&mut self.life(id).wanted_by) {
                    self.offer(id, peer, snapshot.clone());
                }
            }
            _ if life.own == Own::Idle && !life.receiving => self.take_view(id),
            _ => {}
        }
    }

    fn offer(&mut self, from: NodeId, to: NodeId, snapshot: Snapshot) {
        self.coverage.count(What::Offer);
        self.note_reason(from, to);
        let life = self.life(from);
        life.sending_to.insert(to, snapshot.state.index());
        let term = life.raft.term();
        let (from_life, to_life) = (self.node(from).life_number, self.node(to).life_number);
        let cut_count = self.network.cut_count(from, to);
        self.tell(|| format!("{from} offers {to} snapshot {}", snapshot.meta.position));
        let at = self.now + self.network.delay_us(from, to, &self.plan.mix);
        let transfer =
            Transfer { from, to, from_life, to_life, term, snapshot, cut_count, through: None };
        self.schedule(at, Event::Offered(Box::new(transfer)));
    }

    /// Returns true if both ends still run and no link between them was cut.
    fn is_whole(&mut self, transfer: &Transfer) -> bool {
        let Transfer { from, to, from_life, to_life, cut_count, .. } = *transfer;
        self.is_alive(from, from_life)
            && self.is_alive(to, to_life)
            && self.network.cut_count(from, to) == cut_count
            && !self.network.is_cut(from, to)
            && !self.network.is_cut(to, from)
    }

    pub fn on_offer(&mut self, mut transfer: Box<Transfer>) {
        if !self.is_whole(&transfer) {
            return self.interrupt(transfer);
        }
        let Transfer { from, to, term, .. } = *transfer;
        let life = self.life(to);
        if life.raft.is_restoring() || life.receiving || life.own != Own::Idle {
            return self.answer(transfer);
        }
        self.life(to).receiving = true;
        let meta = transfer.snapshot.meta.clone();
        let answer = self.with(to, |raft, now| raft.on_snapshot_offer(now, from, term, &meta));
        self.tell(|| format!("{to} is offered {} by {from}: {answer:?}", meta.position));
        if !self.node(to).is_up() {
            return self.interrupt(transfer);
        }
        if answer == OfferDecision::Wanted {
            self.maybe_crash_soon(to);
            let at = self.now + self.transfer_us(transfer.snapshot.size_bytes) + 1;
            return self.schedule(at, Event::Transferred(transfer));
        }
        self.life(to).receiving = false;
        if answer == OfferDecision::NotNeeded {
            transfer.through = Some(meta.index());
        }
        self.answer(transfer);
    }

    /// Sometimes lets the node crash while it receives the snapshot, or between two steps of the
    /// installation.
    fn maybe_crash_soon(&mut self, id: NodeId) {
        let (chance, timeout_us) =
            (self.plan.mix.install_crashes, self.plan.mix.election_timeout_us);
        let is_calm = self.network.calm;
        let node = self.node_mut(id);
        let (is_due, effects, down_us) = (
            node.random.permille(chance),
            node.random.between(0, 12),
            node.random.between(1, 4 * timeout_us),
        );
        if is_due && !is_calm {
            node.crashes_in = Some(effects);
            node.down_us = down_us;
        }
    }

    pub fn on_transferred(&mut self, mut transfer: Box<Transfer>) {
        let Transfer { from, to, to_life, term, .. } = *transfer;
        if !self.is_whole(&transfer) {
            if self.is_alive(to, to_life) {
                self.life(to).receiving = false;
            }
            return self.interrupt(transfer);
        }
        self.coverage.count(What::Install);
        let snapshot = transfer.snapshot.clone();
        self.oracle.on_snapshot(to, &snapshot.meta, snapshot.state);
        let meta = snapshot.meta.clone();
        self.tell(|| format!("{to} received snapshot {} of {from}", meta.position));
        self.node_mut(to).disk.finish_snapshot(snapshot);
        transfer.through = Some(meta.index());
        self.life(to).receiving = false;
        self.with(to, |raft, now| raft.on_snapshot_received(now, from, term, meta));
        self.answer(transfer);
    }

    fn answer(&mut self, transfer: Box<Transfer>) {
        let at = self.now + self.network.delay_us(transfer.to, transfer.from, &self.plan.mix);
        self.schedule(at, Event::Sent(transfer));
    }

    /// The sender notices the interruption after a while.
    fn interrupt(&mut self, mut transfer: Box<Transfer>) {
        self.coverage.count(What::Interrupted);
        transfer.through = None;
        let at = self.now + self.plan.mix.election_timeout_us;
        self.schedule(at, Event::Sent(transfer));
    }

    pub fn on_sent(&mut self, transfer: &Transfer) {
        let Transfer { from, to, from_life, through, .. } = *transfer;
        if !self.is_alive(from, from_life) {
            return;
        }
        self.life(from).sending_to.remove(&to);
        self.note_reason(from, to);
        // A response on a link that was cut meanwhile does not arrive.
        let through = through.filter(|_| !self.network.is_cut(to, from));
        self.tell(|| format!("{from} hears of its snapshot to {to}: {through:?}"));
        self.with(from, |raft, now| raft.on_snapshot_sent(now, to, through));
    }
}
