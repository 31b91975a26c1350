//! A node's disk and state machine at work, its crash, and its restart.

use raft_core::consensus::{Boot, Raft};
use raft_core::types::{Configuration, HardState, NodeId, Time};

use crate::chain::{Log, Stamp};
use crate::clock::Clock;
use crate::common::Random;
use crate::coverage::What;
use crate::disk::Disk;
use crate::node::{EarlierDisk, Life, Node, Own, Promise, Work};
use crate::plan::Plan;
use crate::simulation::{Event, Simulation};
use crate::watch;

impl Node {
    pub fn of_plan(plan: &Plan, id: NodeId, disk: Disk) -> Self {
        let mut random = plan.random(id);
        let skew = random.between(0, 2 * plan.mix.skew_ppm);
        let clock_start = random.scaled(1, 1 << 40);
        let rate = 1_000_000 + skew - plan.mix.skew_ppm;
        Self::new(id, random, Clock::new(clock_start, rate), disk)
    }

    fn new(id: NodeId, random: Random, clock: Clock, disk: Disk) -> Self {
        Self {
            id,
            life: None,
            life_number: 0,
            clock,
            disk,
            disk_number: 0,
            incarnation: 0,
            reached_term: 0,
            lost: None,
            earlier: None,
            is_old: false,
            may_be_void: false,
            was_put_back: false,
            random,
            promise: Promise::default(),
            paused_until: 0,
            hung: 0,
            machine_hangs: false,
            slowness: 1,
            crashes_in: None,
            down_us: 0,
        }
    }
}

impl Simulation {
    /// Starts writing the oldest waiting batch, if the disk is free.
    pub fn keep_disk_busy(&mut self, id: NodeId) {
        let mean_us = if self.network.calm { 200 } else { self.plan.mix.disk_mean_us };
        let node = self.node_mut(id);
        let (hung, slowness, life_number) = (node.hung > 0, node.slowness, node.life_number);
        let Some(life) = node.life.as_mut() else { return };
        if hung || life.disk_is_busy || life.writing.is_empty() {
            return;
        }
        life.disk_is_busy = true;
        let takes_us = node.random.between(1, 2 * mean_us) * slowness;
        self.schedule(self.now + takes_us, Event::Written { node: id, life: life_number });
    }

    pub fn on_written(&mut self, id: NodeId) {
        let is_hung = self.node(id).hung > 0;
        let life = self.life(id);
        life.disk_is_busy = false;
        if is_hung {
            // The disk hung before this batch was finished.
            return;
        }
        let write = life.writing.pop_front().expect("the disk was busy with it");
        let number = write.id;
        self.tell(|| format!("{id} wrote #{number}"));
        self.node_mut(id).disk.write(write);
        self.keep_disk_busy(id);
        self.with(id, |raft, now| raft.on_persisted(now, number));
    }

    pub fn feed_machine(&mut self, id: NodeId, work: Work) {
        let life = self.life(id);
        life.applying.push_back(work);
        if life.applying.len() == 1 {
            self.keep_machine_busy(id);
        }
    }

    fn keep_machine_busy(&mut self, id: NodeId) {
        let mean_us = if self.network.calm { 20 } else { self.plan.mix.apply_mean_us };
        let node = self.node_mut(id);
        let life_number = node.life_number;
        let is_busy = node.life.as_ref().is_some_and(|life| !life.applying.is_empty());
        if is_busy && !node.machine_hangs {
            let takes_us = node.random.between(1, 2 * mean_us);
            self.schedule(self.now + takes_us, Event::Applied { node: id, life: life_number });
        }
    }

    /// The machine has finished its oldest piece of work.
    pub fn on_applied(&mut self, id: NodeId) {
        if self.node(id).machine_hangs {
            // The machine hung before this piece was finished.
            return;
        }
        let work = self.life(id).applying.pop_front().expect("the machine was busy with it");
        let index = match work {
            Work::Apply(entries) => {
                let mut state = self.life(id).machine;
                entries.iter().for_each(|entry| state = state.then(entry));
                self.oracle.on_state(id, state);
                assert!(self.node(id).has_durable(state), "V11 applied before it is on disk");
                self.life(id).machine = state;
                let (first, last) = (entries[0].index, state.position);
                self.tell(|| format!("{id} applied {first} to {last}"));
                self.answer_waiting(id);
                state.index()
            }
            Work::Restore(meta) => {
                self.coverage.count(What::Restore);
                let snapshot = self.node(id).disk.snapshot.clone().expect("one is published");
                assert_eq!(snapshot.meta, meta, "V19 restored before it is published");
                assert!(
                    snapshot.state.index() >= self.life(id).machine.index(),
                    "V7 a snapshot moves the state backwards"
                );
                self.oracle.on_state(id, snapshot.state);
                self.life(id).machine = snapshot.state;
                self.tell(|| format!("{id} restored {}", meta.position));
                if self.plan.mix.durable_machine {
                    self.node_mut(id).disk.machine = snapshot.state;
                }
                meta.index()
            }
        };
        self.keep_machine_busy(id);
        self.with(id, |raft, _| raft.on_applied(index));
        self.answer_reads(id);
    }

    /// Stops a node between two of its effects. The first few of the batches at its disk survive.
    pub fn crash(&mut self, id: NodeId) {
        self.forget_waiting(id);
        let is_durable = self.plan.mix.durable_machine;
        let node = self.node_mut(id);
        node.crashes_in = None;
        let Some(life) = node.life.take() else { return };
        let survive = node.random.below(life.writing.len() + 1);
        let lost = life.writing.len() - survive;
        if life.receiving || life.raft.is_restoring() {
            self.coverage.count(What::InstallCrash);
        }
        let node = self.node_mut(id);
        if is_durable && node.random.percent(30) {
            // The machine had flushed more than it was asked to.
            node.disk.machine = life.machine;
        }
        life.writing.into_iter().take(survive).for_each(|write| node.disk.write(write));
        let (life_number, down_us) = (node.life_number, node.down_us);
        self.coverage.count(What::Crash);
        self.coverage.add(What::LostWrite, lost as u64);
        self.coverage.add(What::KeptWrite, survive as u64);
        self.tell(|| format!("{id} crashed; {survive} batches survive, {lost} are lost"));
        self.schedule(self.now + down_us, Event::Restarts { node: id, life: life_number });
        if self.node(id).is_old {
            self.wipe_old_disk(id);
        } else if self.node(id).earlier.is_some() && self.disks.percent(80) {
            self.put_back_disk(id);
        }
    }

    /// Replaces the disk of a node that is down by an empty one, also while it is refilled after
    /// an earlier loss. Does nothing if so many disks are lost that another loss might destroy the
    /// last copy of a committed entry.
    pub fn lose_disk(&mut self, id: NodeId) {
        let node = self.node(id);
        let again = node.lost.is_some();
        let is_filled = again && node.recovers() && !node.is_old;
        if (again && !is_filled) || !self.tolerates_loss_of(id) {
            return;
        }
        // While the cluster is being founded the operator initialises the empty disk again; later
        // this happens sometimes, by mistake.
        let founders = self.plan.mix.voter_count as usize;
        let has_term = |node: &&Node| node.disk.hard_state.term > 0;
        let with_a_term = self.nodes.iter().filter(has_term).count();
        let mut is_initialised = with_a_term < founders / 2 + 2 || self.disks.percent(30);
        // An operator who declares all disks of the first voters new founds another cluster.
        let is_founder = |node: &&Node| node.id != id && node.id as usize <= founders;
        if self.oracle.has_changed_members() {
            is_initialised &= self.nodes.iter().filter(is_founder).any(|node| has_term(&node));
        }
        self.coverage.count(if again { What::LostAgain } else { What::LostDisk });
        self.oracle.on_disk_lost(id);
        self.tell(|| format!("{id} has lost its disk, initialised again: {is_initialised}"));
        let incarnation = self.draw_incarnation();
        let disk_number = self.oracle.disk_of(id);
        let node = self.node_mut(id);
        let never_counted = node.is_joiner(founders) && node.recovers();
        let mut disk = Disk::default();
        if is_initialised {
            disk.hard_state = HardState::FOUNDING;
        }
        let lost = node.take_disk(EarlierDisk::blank(disk, disk_number, incarnation));
        if again {
            // The disk before this one may still come back, unless this one was recorded.
            if self.oracle.has_recorded(id, lost.incarnation) {
                self.node_mut(id).earlier = None;
            }
            return;
        }
        node.lost = Some(if never_counted { Log::default() } else { lost.disk.log.clone() });
        node.may_be_void = false;
        let may_return = !never_counted && lost.incarnation != 0;
        node.earlier = may_return.then(|| Box::new(lost));
    }

    /// Puts the lost disk back into a node that is down. If another disk of the node is recorded
    /// (R4), and the node counts on it, that one is lost now. If the node was not counted since,
    /// nothing was lost, unless a leader records the other disk nevertheless.
    pub fn put_back_disk(&mut self, id: NodeId) {
        let node = self.node(id);
        let has_counted = self.oracle.has_recorded(id, node.incarnation);
        let is_due = match has_counted {
            true => node.lost.is_none() && !node.recovers() && self.tolerates_loss_of(id),
            false => node.lost.is_some() && node.recovers(),
        };
        if !is_due || !self.oracle.committed_configuration().founded {
            return;
        }
        let Some(earlier) = self.node_mut(id).earlier.take() else { return };
        self.coverage.count(if has_counted { What::OldDisk } else { What::FoundDisk });
        self.oracle.on_disk_lost(id);
        self.tell(|| format!("{id} is given the disk again that it lost"));
        let node = self.node_mut(id);
        let lost = node.take_disk(*earlier);
        node.lost = has_counted.then_some(lost.disk.log);
        (node.is_old, node.may_be_void) = (has_counted, !has_counted);
        node.was_put_back = true;
        self.forget_messages_of_lost_disk(id);
        self.forget_what_was_sent_to(id);
    }

    /// An operator empties the old disk once its node has stopped.
    fn wipe_old_disk(&mut self, id: NodeId) {
        self.oracle.on_disk_lost(id);
        self.tell(|| format!("{id} has its old disk emptied"));
        let incarnation = self.draw_incarnation();
        let disk_number = self.oracle.disk_of(id);
        let node = self.node_mut(id);
        let old = node.take_disk(EarlierDisk::blank(Disk::default(), disk_number, incarnation));
        node.lost.get_or_insert(old.disk.log);
        (node.is_old, node.may_be_void) = (false, false);
    }

    /// The network is required not to mix up two disks of one node.
    fn forget_messages_of_lost_disk(&mut self, id: NodeId) {
        let messages = self.take_scheduled(
            |_, event| matches!(event, Event::Arrives { from, to, .. } if *from == id || *to == id),
        );
        for event in messages {
            if let Event::Arrives { from, to, .. } = event {
                self.network.on_arrival(from, to);
            }
        }
    }

    /// Starts a node from its disk, as a driver would.
    pub fn start(&mut self, id: NodeId) {
        let now = self.own_time(id);
        let is_durable = self.plan.mix.durable_machine;
        let node = self.node_mut(id);
        assert!(!node.is_up(), "node {id} is up");
        if node.lost.is_some() && node.is_blank() {
            self.forget_messages_of_lost_disk(id);
            self.forget_what_was_sent_to(id);
        }
        let node = self.node_mut(id);
        node.life_number += 1;
        let seed = node.random.next();
        let life_number = node.life_number;
        let machine = bring_up_to_date(&mut node.disk, is_durable);
        let mix = &self.plan.mix;
        let bootstrap = match id <= mix.voter_count {
            true => mix.bootstrap(),
            false => Configuration::default(),
        };
        let boot =
            Boot { loaded: self.node(id).disk.load(), last_applied: machine.position, bootstrap };
        let mut config = self.plan.mix.config(id, seed);
        config.incarnation = self.node(id).incarnation;
        let raft = Raft::new(config, boot, now).expect("what a core wrote, a core can start from");
        self.oracle.on_state(id, machine);
        let nodes_max = self.plan.mix.nodes_max() as usize;
        let node = self.node_mut(id);
        node.life = Some(Life {
            view: watch::view(&raft.status()),
            configuration: raft.configuration().clone(),
            peers: Default::default(),
            left_out_since: None,
            was_readmitted: false,
            raft,
            planned: node.disk.log.clone(),
            writing: Default::default(),
            disk_is_busy: false,
            batch_term: node.disk.hard_state.term,
            batch_commit: node.disk.hard_state.commit_index,
            machine,
            applying: Default::default(),
            leads_since: Time::ZERO,
            applying_since: None,
            reads: Vec::new(),
            waiting: Default::default(),
            own: Own::Idle,
            receiving: false,
            not_published_through: 0,
            wanted_by: Default::default(),
            sending_to: Default::default(),
            heard: vec![Time::ZERO; nodes_max],
            matches: vec![0; nodes_max],
            disks: vec![None; nodes_max],
            timer_at: u64::MAX,
            will_be_asked: false,
            winds_up_for: None,
            has_refused: false,
            was_told: false,
        });
        self.tell(|| format!("{id} is up, life {life_number}"));
        self.check_recovery(id);
        self.settle(id);
        self.report_restart(id);
    }

    /// The transport of each other node finds, sooner or later, that the connection broke.
    fn report_restart(&mut self, id: NodeId) {
        let at = self.now + self.plan.mix.heartbeat_us();
        for node in self.ids() {
            if node != id && self.node(node).is_up() {
                let life = self.node(node).life_number;
                self.schedule(at, Event::Unreachable { node, life, peer: id });
            }
        }
    }
}

/// The state machine's state at a start. A machine in memory starts from the snapshot; a durable
/// one does so only if the log cannot bring it up to date.
fn bring_up_to_date(disk: &mut Disk, is_durable: bool) -> Stamp {
    let mut machine = if is_durable { disk.machine } else { Stamp::ZERO };
    if let Some(snapshot) = &disk.snapshot
        && snapshot.state.index() > machine.index()
        && (!is_durable || machine.index() < disk.log.start.index())
    {
        machine = snapshot.state;
        if is_durable {
            disk.machine = machine;
        }
    }
    assert!(machine.index() >= disk.log.start.index(), "V21 no state fills the gap to the log");
    machine
}
