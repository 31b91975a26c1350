//! The second part of every run: all faults end, or all except those of a minority. Then the
//! cluster must elect, commit, and become equal everywhere in bounded virtual time (V25). While it
//! is idle, it must send nothing except heartbeats (V24).

use raft_core::consensus::RoleKind;
use raft_core::types::{NodeId, Position};

use crate::common::Random;
use crate::coverage::What;
use crate::members::{can_do_without, joining};
use crate::node::Node;
use crate::simulation::{Event, Simulation};
use crate::watch::Sent;

/// Commands proposed one by one at the end, to count the messages sent for each.
const LAST_COMMANDS: u64 = 6;

/// A node remembers for so long at most how fast its disk was: five seconds by its own clock.
const LATENCIES_KEPT_US: u64 = 8_000_000;

impl Simulation {
    pub fn recover(&mut self) {
        self.tell(|| "everything is well from here on".to_owned());
        self.calm_down();
        self.stop_old_disks();
        self.forget_late_messages();
        let core = self.choose_core();
        self.tell(|| format!("nodes {core:?} must do"));
        self.tell_members();
        let bound_us = self.bound_us();
        let last_before = self.oracle.proposals.len();
        self.run_until(bound_us, "no new command is acknowledged", |simulation| {
            simulation.oracle.last_acknowledged >= Some(last_before)
        });
        self.is_busy = false;
        // Runs until a requested transfer is over.
        self.run_for(2 * self.plan.mix.election_timeout_us);
        // And until no leader remembers slow writes of the hostile part, and leaves its disk.
        self.run_for(LATENCIES_KEPT_US);
        self.run_until(bound_us, "the members stay in motion", |simulation| {
            simulation.is_settled(&core)
        });
        let core = self.remaining(core);
        self.run_until(bound_us, "the nodes do not become equal", |simulation| {
            simulation.are_equal(&core).is_some()
        });
        let leader = self.stay_silent(&core);
        self.ignore_who_is_cut_off(&core, leader);
        self.commit_a_little_more(&core, leader);
        self.oracle.check_acknowledged();
        self.coverage.count(What::Recovery);
    }

    /// Operators empty the old disks: a node that is cut off would not learn that its disk is old.
    fn stop_old_disks(&mut self) {
        for id in self.ids() {
            if self.node(id).is_old {
                self.crash(id);
            }
        }
    }

    /// Drops messages in flight that would arrive long after the faults.
    fn forget_late_messages(&mut self) {
        let horizon = self.now + self.plan.mix.election_timeout_us;
        let late =
            self.take_scheduled(|at, event| at > horizon && matches!(event, Event::Arrives { .. }));
        for event in late {
            if let Event::Arrives { from, to, .. } = event {
                self.network.on_arrival(from, to);
            }
        }
    }

    /// Returns all members, or a majority of each set of voters while the others stay down, are cut
    /// off in one of three ways, or are half alive. The members are those of every configuration
    /// that may still be in force.
    fn choose_core(&mut self) -> Vec<NodeId> {
        let mix = &self.plan.mix;
        let mut dice = Random::new(mix.fate_of_rest);
        let is_core_only = mix.core_only;
        let live = self.live_configurations();
        let is_member = |id: &NodeId| live.iter().any(|one| one.is_member(*id));
        let (mut core, others): (Vec<_>, Vec<_>) = self.ids().into_iter().partition(is_member);
        self.leave_to_themselves(&others, &mut dice);
        // A node that has lost its disk needs all others to recover, and a new cluster needs all
        // members to reach its first term.
        let is_whole = |id: &NodeId| {
            let node = self.node(*id);
            let is_sound = node.lost.is_none() && !node.may_be_void;
            is_sound && !node.recovers() && node.disk.hard_state.term > 0
        };
        if is_core_only && core.len() > 2 && core.iter().all(is_whole) {
            self.coverage.count(What::CoreOnly);
            loop {
                let can_go = |id: &NodeId| {
                    let is_bad = |other| other == *id || !core.contains(&other);
                    live.iter().all(|one| can_do_without(one, is_bad))
                };
                let able: Vec<NodeId> = core.iter().copied().filter(can_go).collect();
                if able.is_empty() {
                    break;
                }
                let id = able[dice.below(able.len())];
                core.retain(|other| *other != id);
                let may_disturb = live.iter().all(|one| !joining(one).contains(&id));
                self.leave_out(id, may_disturb, &mut dice);
            }
        }
        for id in &core {
            if !self.node(*id).is_up() {
                self.start(*id);
            }
        }
        core
    }

    /// Nodes that are no members are stopped, or disturb if that does no harm.
    fn leave_to_themselves(&mut self, others: &[NodeId], dice: &mut Random) {
        let is_disturbing_harmless = self.plan.mix.pre_vote && self.plan.mix.check_quorum;
        for id in others {
            self.outside.push(*id);
            if !is_disturbing_harmless || dice.percent(30) {
                self.stop(*id);
            } else if !self.node(*id).is_up() {
                self.start(*id);
            }
        }
    }

    /// Decides the fate of a member that is not needed.
    fn leave_out(&mut self, id: NodeId, may_disturb: bool, dice: &mut Random) {
        let is_disturbing_harmless =
            may_disturb && self.plan.mix.pre_vote && self.plan.mix.check_quorum;
        self.outside.push(id);
        match dice.below(6) {
            0 if is_disturbing_harmless => self.cut_off(id, true, true),
            1 if is_disturbing_harmless => self.cut_off(id, true, false),
            2 if is_disturbing_harmless => self.cut_off(id, false, true),
            3 if is_disturbing_harmless && self.node(id).is_up() => self.half_alive(id, false),
            4 if is_disturbing_harmless && self.node(id).is_up() => self.half_alive(id, true),
            _ => self.stop(id),
        }
    }

    /// Returns true once a leader has left every joint configuration, and has made voters of all
    /// learners that work.
    fn is_settled(&self, core: &[NodeId]) -> bool {
        let Some(leader) = self.leader().filter(|leader| core.contains(leader)) else {
            return false;
        };
        let raft = self.node(leader).raft().expect("it leads");
        let configuration = raft.configuration();
        let joining = joining(configuration);
        configuration == raft.committed_configuration()
            && !configuration.is_joint()
            && configuration.is_voter(leader)
            && !core.iter().any(|id| joining.contains(id))
    }

    /// The nodes of the core that are members in the end. Where that could do harm, the others are
    /// stopped.
    fn remaining(&mut self, core: Vec<NodeId>) -> Vec<NodeId> {
        let members = self.oracle.committed_configuration().members();
        let (core, gone): (Vec<_>, Vec<_>) = core.into_iter().partition(|id| members.contains(id));
        for id in gone {
            self.outside.push(id);
            if !(self.plan.mix.pre_vote && self.plan.mix.check_quorum) {
                self.stop(id);
            }
        }
        self.tell(|| format!("nodes {core:?} are members"));
        core
    }

    /// T2. The node responds to messages and does no work: its disk or its state machine hangs
    /// (C10, C11).
    fn half_alive(&mut self, id: NodeId, with_disk: bool) {
        self.tell(|| format!("{id} stays half alive, its disk works: {with_disk}"));
        self.coverage.count(What::HalfAlive);
        let node = self.node_mut(id);
        if with_disk {
            node.machine_hangs = true;
        } else {
            node.hung += 1;
        }
    }

    fn cut_off(&mut self, id: NodeId, hears_nothing: bool, is_not_heard: bool) {
        self.tell(|| format!("{id} stays cut off"));
        for peer in self.ids() {
            if peer != id && hears_nothing {
                self.network.partition_link(peer, id);
            }
            if peer != id && is_not_heard {
                self.network.partition_link(id, peer);
            }
        }
    }

    /// Time for a few elections, for sending every entry separately, and for snapshots.
    fn bound_us(&self) -> u64 {
        let mix = &self.plan.mix;
        // Entries that a slow disk has not written yet must be sent as well.
        let last_index = |node: &Node| {
            let taken_in = node.raft().map_or(0, |raft| raft.status().last_index);
            taken_in.max(node.disk.log.last_index())
        };
        let last_index = self.nodes.iter().map(last_index).max();
        let transfer_us = 1000 * mix.snapshot_bytes_max / mix.bandwidth_bytes_per_ms;
        // A leader whose state machine hangs notices after 16 timeouts.
        let steps = if mix.changes > 0 { 3 } else { 1 };
        steps * 60 * mix.election_timeout_us
            + 10_000 * last_index.unwrap_or(0)
            + 2 * transfer_us * mix.nodes_max()
    }

    fn run_until(&mut self, bound_us: u64, problem: &str, is_done: impl Fn(&Self) -> bool) {
        let bound = self.now + bound_us;
        while !is_done(self) {
            assert!(self.now <= bound, "V25 {problem} within {} ms", bound_us / 1000);
            assert!(self.step(), "V25 nothing happens any more, and {problem}");
        }
    }

    fn run_for(&mut self, duration_us: u64) {
        let end = self.now + duration_us;
        while self.now < end && self.step() {}
    }

    /// The last position and the leader, if all nodes of the core are equal.
    fn are_equal(&self, core: &[NodeId]) -> Option<(Position, NodeId)> {
        let leader = self.leader().filter(|leader| core.contains(leader))?;
        let life = self.node(leader).life.as_ref()?;
        let last = life.planned.last();
        // The leader must know it, too: an acknowledgement may still be in flight.
        let is_known =
            |id: &NodeId| *id == leader || life.matches[*id as usize - 1] == last.index();
        let is_there = |id: &NodeId| {
            let node = self.node(*id);
            node.life.as_ref().is_some_and(|life| {
                life.machine == last
                    && life.view.last_index == last.index()
                    && life.view.last_applied == last.index()
                    && life.planned.last() == last
                    && life.writing.iter().all(|write| write.entries.is_empty())
                    && !life.receiving
                    && life.raft.leader() == Some(leader)
                    && !life.raft.is_recovering()
            })
        };
        core.iter().all(|id| is_there(id) && is_known(id)).then_some((last.position, leader))
    }

    fn stay_silent(&mut self, core: &[NodeId]) -> NodeId {
        let (last, leader) = self.are_equal(core).expect("just seen");
        let term = self.node(leader).raft().map(|raft| raft.term());
        let before = self.sent;
        self.run_for(10 * self.plan.mix.heartbeat_us());
        let raft = self.node(leader).raft();
        assert_eq!(
            raft.filter(|raft| raft.role() == RoleKind::Leader).map(|raft| raft.term()),
            term,
            "V25 leader {leader} was disturbed for no reason"
        );
        let now = self.are_equal(core);
        assert_eq!(now, Some((last, leader)), "V25 the nodes do not stay equal");
        let Sent { messages, heartbeats, appends, entries, .. } = self.sent;
        let peers = self.nodes.len() as u64 - 1;
        let heartbeats = heartbeats - before.heartbeats;
        // A node outside that reaches the leader, and receives nothing, asks for a read index once
        // in each election timeout.
        let rounds = if core.len() == self.nodes.len() { 13 } else { 16 };
        assert!(heartbeats <= rounds * peers, "V24 {heartbeats} heartbeats in ten intervals");
        assert_eq!(entries - before.entries, 0, "V24 entries are sent, and there are no new ones");
        let appends = appends - before.appends;
        assert!(appends <= peers, "V24 {appends} appends, and there is nothing to say");
        if core.len() == self.nodes.len() {
            let messages = messages - before.messages;
            assert!(messages <= 28 * peers, "V24 {messages} messages in ten idle intervals");
        }
        leader
    }

    /// One follower does not receive from the leader, but from all others: it must not disturb
    /// them.
    fn ignore_who_is_cut_off(&mut self, core: &[NodeId], leader: NodeId) {
        let mix = &self.plan.mix;
        let dice = mix.fate_of_rest >> 8;
        let followers: Vec<NodeId> = core.iter().copied().filter(|id| *id != leader).collect();
        let is_ignored = mix.pre_vote && mix.check_quorum;
        let voters = &self.oracle.committed_configuration().voters;
        let others = followers.iter().filter(|id| voters.contains(id)).count();
        if !is_ignored || others < voters.len() / 2 + 1 || dice.is_multiple_of(2) {
            return;
        }
        self.coverage.count(What::Disturbed);
        let cut_off = followers[(dice >> 1) as usize % followers.len()];
        self.network.partition_link(leader, cut_off);
        if (dice >> 8).is_multiple_of(2) {
            self.network.partition_link(cut_off, leader);
        }
        let term = self.node(leader).raft().map(|raft| raft.term());
        self.run_for(5 * self.plan.mix.election_timeout_us);
        let raft = self.node(leader).raft();
        assert_eq!(
            raft.filter(|raft| raft.role() == RoleKind::Leader).map(|raft| raft.term()),
            term,
            "V25 leader {leader} was disturbed by {cut_off}, which cannot hear it"
        );
        self.network.heal_link(leader, cut_off);
        if (dice >> 8).is_multiple_of(2) {
            self.network.heal_link(cut_off, leader);
        }
        let bound_us = self.bound_us();
        self.run_until(bound_us, "the nodes do not become equal again", |simulation| {
            simulation.are_equal(core).is_some_and(|(_, again)| again == leader)
        });
    }

    /// Each new entry goes to each peer once. It is sent again only to a peer that rejected it, or
    /// did not accept it within an election timeout, such as one whose log is full while it writes
    /// a snapshot.
    fn commit_a_little_more(&mut self, core: &[NodeId], leader: NodeId) {
        let (before, elections) = (self.sent, self.coverage.of(What::Election));
        let bound_us = self.bound_us();
        for _ in 0..LAST_COMMANDS {
            let end = self.now + bound_us;
            let position = loop {
                if let Some(position) = self.propose(leader, 1) {
                    break position;
                }
                assert!(self.now <= end, "V25 leader {leader} takes no proposals");
                self.run_for(self.plan.mix.heartbeat_us());
            };
            self.run_until(bound_us, "the last commands are not applied", |simulation| {
                simulation.are_equal(core).is_some_and(|(last, _)| last >= position)
            });
        }
        if self.coverage.of(What::Election) > elections {
            // A voter whose log is full writes a snapshot for longer than a leader waits for it.
            // The next leader sends again.
            return;
        }
        let peers = self.nodes.len() as u64 - 1;
        let early = self.sent.repeated.early - before.repeated.early;
        assert_eq!(early, 0, "V24 entries are sent again for no reason");
        let due = self.sent.repeated.due - before.repeated.due;
        let entries = self.sent.entries - before.entries - due;
        assert!(entries <= LAST_COMMANDS * peers, "V24 {entries} for {LAST_COMMANDS} new entries");
        let appends = self.sent.appends - before.appends;
        let bound = 3 * LAST_COMMANDS * peers + 2 * due;
        assert!(appends <= bound, "V24 {appends} appends for the last few");
    }
}
