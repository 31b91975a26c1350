//! Inputs to a core, and the effects that it requests in return. Effects are processed one by one,
//! in any order, with a crash between any two of them, except that batches stay in order.

use std::mem;

use raft_core::consensus::{Persist, Raft, ReadState, Ready, RoleChange, RoleKind};
use raft_core::types::{
    Batch, Entry, Index, Message, MessageBody, NodeId, SnapshotMeta, Term, Time,
};

use crate::common::render;
use crate::coverage::What;
use crate::disk::Write;
use crate::node::Work;
use crate::simulation::{Event, Simulation};

#[derive(Debug)]
enum Effect {
    Write(Box<Write>),
    Send(NodeId, Message),
    Apply(Vec<Entry>),
    Restore(SnapshotMeta),
    Read(ReadState),
    SendSnapshot(NodeId),
    SnapshotPublished,
    RoleChange(RoleChange),
}

impl Simulation {
    pub fn own_time(&self, id: NodeId) -> Time {
        self.node(id).clock.at(self.now)
    }

    /// Gives one input to one node. The resulting effects are processed at once, or a little later
    /// together with those of the next inputs.
    pub fn with<R>(&mut self, id: NodeId, tell: impl FnOnce(&mut Raft, Time) -> R) -> R {
        let now = self.own_time(id);
        let (gather, is_calm) = (self.plan.mix.gather, self.network.calm);
        let node = self.node_mut(id);
        let (life_number, delay_us) = (node.life_number, node.random.between(1, 1_000));
        let waits = !is_calm && node.random.permille(gather);
        let life = node.life.as_mut().expect("the node is up");
        let result = tell(&mut life.raft, now);
        if !life.will_be_asked && !waits {
            self.settle(id);
            return result;
        }
        if !mem::replace(&mut life.will_be_asked, true) {
            self.schedule(self.now + delay_us, Event::Asked { node: id, life: life_number });
        }
        self.look(id);
        result
    }

    /// Processes the node's `Ready`s until there is none.
    pub fn settle(&mut self, id: NodeId) {
        let now = self.own_time(id);
        for round in 0.. {
            assert!(round < 100, "V24 node {id} never has enough");
            let Some(life) = self.node_mut(id).life.as_mut() else { return };
            let ready = life.raft.ready(now);
            let is_empty = ready.is_empty();
            if round == 0 || !is_empty {
                self.look(id);
            }
            if is_empty {
                break;
            }
            self.process_ready(id, ready);
        }
        self.see_to_snapshots(id);
        self.set_timer(id);
    }

    fn process_ready(&mut self, id: NodeId, ready: Ready) {
        let mut effects = self.take_apart(id, ready);
        let shuffle = if self.network.calm { 0 } else { self.plan.mix.shuffle };
        let random = &mut self.node_mut(id).random;
        if random.permille(shuffle) {
            for count in (2..=effects.len()).rev() {
                effects.swap(count - 1, random.below(count));
            }
        }
        for effect in effects {
            let node = self.node_mut(id);
            match &mut node.crashes_in {
                Some(0) => {
                    self.coverage.count(What::CrashMidway);
                    return self.crash(id);
                }
                Some(left) => *left -= 1,
                None => {}
            }
            self.carry_out_one(id, effect);
        }
    }

    /// Splits a `Ready` into effects. The oracle checks them all first, in the order of their
    /// creation.
    fn take_apart(&mut self, id: NodeId, ready: Ready) -> Vec<Effect> {
        let Ready {
            persist,
            messages,
            committed,
            restore,
            read_states,
            snapshot_requests,
            snapshot_published,
            role_change,
            alarms,
            notices,
        } = ready;
        self.coverage.add(What::LeftSlowDisk, notices.len() as u64);
        let is_false = |alarm: &String| !self.is_superseded_alarm(id, alarm);
        assert!(!alarms.iter().any(is_false), "V26 node {id} raises an alarm: {alarms:?}");
        let mut effects = Vec::with_capacity(messages.len() + 4);
        effects.extend(role_change.map(Effect::RoleChange));
        if let Some(persist) = persist {
            let write = self.see_batch(id, persist);
            effects.push(Effect::Write(Box::new(write)));
        }
        for (to, message) in messages {
            self.see_message(id, &message);
            self.check_hung_disk_is_silent(id, &message);
            effects.push(Effect::Send(to, message));
        }
        if !committed.is_empty() {
            effects.push(Effect::Apply(committed));
        }
        effects.extend(restore.map(Effect::Restore));
        effects.extend(read_states.into_iter().map(Effect::Read));
        effects.extend(snapshot_requests.into_iter().map(Effect::SendSnapshot));
        effects.extend(snapshot_published.map(|_| Effect::SnapshotPublished));
        effects
    }

    fn see_batch(&mut self, id: NodeId, Persist { id: number, batch }: Persist) -> Write {
        self.tell(|| format!("{id} writes #{number}: {}", render::batch(&batch)));
        let Batch { publish, withdraw_snapshot: _, truncate_from, entries, hard_state } = batch;
        let since_us = self.own_time(id).as_micros();
        let publish = publish.map(|publish| (publish.meta, publish.replaces_log));
        if let Some((meta, true)) = &publish {
            let state = self.node(id).disk.finished(meta).state;
            let life = self.life(id);
            assert_ne!(life.raft.role(), RoleKind::Leader, "V3 a leader's log is replaced");
            life.planned.start_over(state);
        }
        if let Some(from) = truncate_from {
            self.coverage.count(What::Truncation);
            self.check_truncation(id, from);
            self.life(id).planned.truncate_from(from);
        }
        let mut stamped = Vec::new();
        if let Some(first) = entries.first() {
            let previous = self.life(id).planned.last();
            assert_eq!(first.index, previous.index() + 1, "V21 a batch does not follow the last");
            stamped = self.oracle.on_entries(id, previous, entries);
            let life = self.life(id);
            stamped.iter().for_each(|entry| life.planned.push(entry.clone()));
        }
        let life = self.life(id);
        life.batch_term = life.raft.term();
        life.batch_commit = life.view.commit_index;
        Write { id: number, since_us, publish, truncate_from, entries: stamped, hard_state }
    }

    fn see_message(&mut self, id: NodeId, message: &Message) {
        let (MessageBody::AppendEntries { commit_index, .. }
        | MessageBody::Heartbeat { commit_index, .. }) = &message.body
        else {
            return;
        };
        assert!(
            *commit_index <= self.oracle.committed_index(),
            "V6 node {id} says that {commit_index} is committed"
        );
        if let MessageBody::AppendEntries { previous, entries, .. } = &message.body {
            // A node that joins is first asked for the leader's last entry, and the disk may have
            // no room for that one yet. It is checked once it is written.
            if self.oracle.has_seen(*previous) {
                let previous = self.oracle.stamp(*previous);
                self.oracle.on_sent_entries(id, previous, entries);
            }
        }
    }

    fn carry_out_one(&mut self, id: NodeId, effect: Effect) {
        match effect {
            Effect::Write(write) => {
                self.life(id).writing.push_back(*write);
                self.keep_disk_busy(id);
            }
            Effect::Send(to, message) => self.send(id, to, message),
            Effect::Apply(entries) => self.feed_machine(id, Work::Apply(entries)),
            Effect::Restore(meta) => self.feed_machine(id, Work::Restore(meta)),
            Effect::Read(state) => self.on_read_state(id, state),
            Effect::SendSnapshot(peer) => {
                self.life(id).wanted_by.insert(peer);
            }
            Effect::SnapshotPublished => self.on_published(id),
            Effect::RoleChange(change) => self.on_role_change(id, change),
        }
    }

    fn send(&mut self, id: NodeId, to: NodeId, message: Message) {
        assert_ne!(id, to, "V24 node {id} writes to itself");
        self.check_promise(id, to, &message);
        self.count_sent(id, to, &message);
        if let MessageBody::AppendEntries { previous, commit_index, .. } = &message.body {
            self.send_needless(id, to, message.term, previous.index, *commit_index);
        }
        self.put_on_the_way(id, to, message);
    }

    /// Sometimes sends an append that starts further back than necessary. Raft allows a leader to
    /// do so, but this core, with its exact hints, never does; a follower that relies on that would
    /// go unnoticed.
    fn send_needless(
        &mut self,
        id: NodeId,
        to: NodeId,
        term: Term,
        previous_index: Index,
        commit_index: Index,
    ) {
        let (chance, is_calm) = (self.plan.mix.needless, self.network.calm);
        let node = self.node_mut(id);
        let random = &mut node.random;
        let life = node.life.as_ref().expect("the node is up");
        let (first, last) = (life.planned.start.index(), life.planned.last_index());
        let is_leader = life.raft.role() == RoleKind::Leader && life.raft.term() == term;
        if is_calm || !random.permille(chance) || !is_leader || previous_index.min(last) < first {
            return;
        }
        let index = random.between(first, previous_index.min(last));
        let previous = life.planned.at(index).expect("it is in the log").position;
        let entries = life.planned.slice(index, random.below(4));
        self.coverage.count(What::Needless);
        let message =
            Message::new(term, MessageBody::AppendEntries { previous, entries, commit_index });
        self.put_on_the_way(id, to, message);
    }

    fn put_on_the_way(&mut self, id: NodeId, to: NodeId, message: Message) {
        let class = message.class();
        let mix = &self.plan.mix;
        let disk = self.node(id).incarnation;
        let arrivals = self.network.send(self.now, (id, to), class, mix, &mut self.coverage);
        if let Some(at) = arrivals.copy_us {
            let message = message.clone();
            self.schedule(at, Event::Arrives { from: id, disk, to, message, is_copy: true });
        }
        match arrivals.first_us {
            Some(at) => {
                self.schedule(at, Event::Arrives { from: id, disk, to, message, is_copy: false });
            }
            None => self.tell(|| format!("{id} -x {to}  {}", render::message(&message))),
        }
    }

    fn on_role_change(&mut self, id: NodeId, change: RoleChange) {
        let RoleChange { role, term, leader, is_recovering } = change;
        let whose = leader.map_or(String::new(), |leader| format!(" of {leader}"));
        let word = if is_recovering { ", recovering" } else { "" };
        self.tell(|| format!("{id} is {}{whose} in t{term}{word}", role.name()));
        if role != RoleKind::Leader {
            self.life(id).wanted_by.clear();
            self.forget_waiting(id);
        }
    }

    pub fn set_timer(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.node_mut(id);
        let life_number = node.life_number;
        let Some(life) = node.life.as_mut() else { return };
        let deadline = life.raft.next_deadline();
        if deadline == Time::NEVER {
            return;
        }
        let at = node.clock.when(deadline).max(now);
        // A timer that is too early is set again when it fires.
        if at < life.timer_at || life.timer_at < now {
            life.timer_at = at;
            self.schedule(at, Event::Timer { node: id, life: life_number, at });
        }
    }

    pub fn on_timer(&mut self, id: NodeId) {
        let now = self.own_time(id);
        let life = self.life(id);
        life.timer_at = u64::MAX;
        if now < life.raft.next_deadline() {
            return self.set_timer(id);
        }
        let role_before = life.raft.role();
        life.raft.on_timeout(now);
        assert!(life.raft.next_deadline() > now, "V24 node {id} wants to be woken up at once");
        let role = life.raft.role();
        self.tell(|| format!("{id} is woken up ({})", role.name()));
        self.count_step_down(id, role_before);
        self.settle(id);
    }
}
