//! Executes the schedule of faults, and reverts each fault at its end.

use raft_core::types::NodeId;

use crate::common::Random;
use crate::coverage::What;
use crate::fault::{Fault, Kind};
use crate::simulation::{Event, Simulation};

/// The lasting effect of a fault, to be reverted at its end.
#[derive(Debug)]
pub enum Strike {
    Cut(Vec<(NodeId, NodeId)>),
    Hang(NodeId),
    Slow(NodeId),
    Skew(NodeId),
    /// The leader crashes, and so does each later one.
    CrashLeaders,
}

impl Simulation {
    pub fn begin_fault(&mut self, number: usize) {
        if self.network.calm {
            return;
        }
        let fault = self.plan.faults[number];
        let mut dice = Random::new(fault.dice);
        let leader = self.leader().filter(|_| fault.at_leader);
        let target = leader.unwrap_or_else(|| 1 + dice.below(self.nodes.len()) as u64);
        self.tell(|| format!("fault {number}: {fault}, node {target}"));
        let strike = self.strike(&fault, target, &mut dice);
        if strike.is_some() {
            self.schedule(self.now + fault.lasts_us, Event::FaultEnds(number));
        }
        if let Some(Strike::CrashLeaders) = strike {
            self.schedule(self.now, Event::LeaderCrashes(number));
        }
        self.strikes[number] = strike;
    }

    fn strike(&mut self, fault: &Fault, target: NodeId, dice: &mut Random) -> Option<Strike> {
        let Fault { lasts_us, kind, .. } = *fault;
        match kind {
            Kind::Halves
            | Kind::Isolate
            | Kind::SendOnly
            | Kind::HearOnly
            | Kind::OneWay
            | Kind::Bridge
            | Kind::Ring
            | Kind::Chain
            | Kind::Star => return self.partition(kind, target, dice).map(Strike::Cut),
            Kind::Crash => self.bring_down(target, lasts_us, dice),
            Kind::CrashMidway => {
                self.node_mut(target).down_us = lasts_us;
                self.node_mut(target).crashes_in = Some(dice.between(0, 12));
            }
            Kind::CrashAll => {
                self.coverage.count(What::CrashAll);
                for id in self.ids() {
                    let down_us = dice.between(1, lasts_us);
                    self.bring_down(id, down_us, dice);
                }
            }
            Kind::CrashLeaders => return Some(Strike::CrashLeaders),
            Kind::HangDisk => {
                self.coverage.count(What::Hang);
                self.node_mut(target).hung += 1;
                return Some(Strike::Hang(target));
            }
            Kind::SlowDisk => {
                self.coverage.count(What::SlowDisk);
                self.node_mut(target).slowness = dice.scaled(2, 64);
                return Some(Strike::Slow(target));
            }
            Kind::Pause => {
                self.coverage.count(What::Pause);
                let until = self.now + lasts_us;
                let node = self.node_mut(target);
                node.paused_until = node.paused_until.max(until);
            }
            Kind::Skew => {
                self.coverage.count(What::Skew);
                let (now, rate) = (self.now, dice.between(250_000, 2_000_000));
                self.node_mut(target).clock.run_at(rate, now);
                self.wind_up(target);
                return Some(Strike::Skew(target));
            }
            Kind::Jump => {
                self.coverage.count(What::Jump);
                let ahead_us = dice.scaled(1_000, 10_000_000_000);
                let now = self.now;
                self.node_mut(target).clock.jump(ahead_us, now);
                // The state machine has had no time to apply entries while the clock skipped ahead.
                let own_time = self.own_time(target);
                if let Some(life) = &mut self.node_mut(target).life {
                    life.applying_since = life.applying_since.map(|_| own_time);
                }
                self.wind_up(target);
            }
            Kind::Clog => {
                self.coverage.count(What::Clog);
                let other = 1 + dice.below(self.nodes.len()) as u64;
                self.network.clog(target, other, self.now + lasts_us);
            }
        }
        None
    }

    fn bring_down(&mut self, id: NodeId, down_us: u64, dice: &mut Random) {
        self.node_mut(id).down_us = down_us;
        if !self.node(id).is_up() {
            return;
        }
        self.crash(id);
        let lost_disks = self.plan.mix.lost_disks;
        if lost_disks > 0 && self.disks.permille(lost_disks) {
            self.lose_disk(id);
        }
        for peer in self.ids() {
            if peer != id && dice.percent(50) {
                self.report_unreachable(peer, id, dice);
            }
        }
    }

    /// The transport at `id` reports that its connection to `peer` broke.
    fn report_unreachable(&mut self, id: NodeId, peer: NodeId, dice: &mut Random) {
        let life = self.node(id).life_number;
        let at = self.now + dice.between(1, self.plan.mix.election_timeout_us / 2);
        self.schedule(at, Event::Unreachable { node: id, life, peer });
    }

    fn partition(
        &mut self,
        kind: Kind,
        target: NodeId,
        dice: &mut Random,
    ) -> Option<Vec<(NodeId, NodeId)>> {
        let ids = self.ids();
        if ids.len() < 2 || (ids.len() == 2 && matches!(kind, Kind::Bridge | Kind::Chain)) {
            return None;
        }
        let mut order = ids.clone();
        for count in (2..=order.len()).rev() {
            order.swap(count - 1, dice.below(count));
        }
        let place =
            |id: NodeId| order.iter().position(|other| *other == id).expect("all are in it");
        let first_count = 1 + dice.below(ids.len() - 1);
        let majority = ids.len() / 2 + 1;
        let reach = (majority - 1).div_ceil(2);
        let chances: u64 = dice.between(100, 700);
        let mut is_cut = |from: NodeId, to: NodeId| {
            let (here, there) = (place(from), place(to));
            let apart = here.abs_diff(there);
            match kind {
                Kind::Halves => (here < first_count) != (there < first_count),
                Kind::Isolate => from == target || to == target,
                Kind::SendOnly => to == target,
                Kind::HearOnly => from == target,
                Kind::OneWay => dice.permille(chances),
                // The last node has links to both halves.
                Kind::Bridge => {
                    let last = ids.len() - 1;
                    let half = last.div_ceil(2);
                    here != last && there != last && (here < half) != (there < half)
                }
                Kind::Ring => apart.min(ids.len() - apart) > reach,
                Kind::Chain => apart > 1,
                Kind::Star => from != target && to != target,
                _ => unreachable!("not a partition"),
            }
        };
        let mut links = Vec::new();
        for from in &ids {
            links.extend(ids.iter().filter(|to| from != *to).map(|to| (*from, *to)));
        }
        links.retain(|(from, to)| is_cut(*from, *to));
        if kind == Kind::Halves
            && let Some(leader) = self.leader()
        {
            let with_leader =
                if place(leader) < first_count { first_count } else { ids.len() - first_count };
            let is_majority = with_leader >= majority;
            self.coverage.count(match is_majority {
                true => What::LeaderInMajority,
                false => What::LeaderInMinority,
            });
        }
        self.coverage.count(covered(kind));
        for (from, to) in &links {
            self.network.partition_link(*from, *to);
            if dice.percent(30) {
                self.report_unreachable(*from, *to, dice);
            }
        }
        Some(links)
    }

    pub fn end_fault(&mut self, number: usize) {
        let Some(strike) = self.strikes[number].take() else { return };
        self.tell(|| format!("fault {number} ends"));
        match strike {
            Strike::Cut(links) => {
                links.into_iter().for_each(|(from, to)| self.network.heal_link(from, to));
            }
            Strike::Hang(id) => {
                self.node_mut(id).hung -= 1;
                self.keep_disk_busy(id);
            }
            Strike::Slow(id) => self.node_mut(id).slowness = 1,
            Strike::Skew(id) => {
                let now = self.now;
                self.node_mut(id).clock.run_as_built(now);
                self.wind_up(id);
            }
            Strike::CrashLeaders => {}
        }
    }

    /// Sets the timer again after a change of the clock.
    fn wind_up(&mut self, id: NodeId) {
        if let Some(life) = self.node_mut(id).life.as_mut() {
            life.timer_at = u64::MAX;
            self.set_timer(id);
        }
    }

    pub fn crash_leader(&mut self, number: usize) {
        if self.strikes[number].is_none() {
            return;
        }
        let timeout_us = self.plan.mix.election_timeout_us;
        let mut dice = Random::new(self.plan.faults[number].dice ^ self.steps);
        dice.next();
        if let Some(leader) = self.leader() {
            let down_us = dice.scaled(timeout_us / 50, 2 * timeout_us);
            self.bring_down(leader, down_us, &mut dice);
        }
        // Mostly soon, sometimes after the next leader has made progress.
        let gap_us = if dice.percent(30) { 2 * timeout_us } else { timeout_us / 10 };
        let at = self.now + dice.between(1, gap_us);
        self.schedule(at, Event::LeaderCrashes(number));
    }

    /// Ends all faults.
    pub fn calm_down(&mut self) {
        for number in 0..self.strikes.len() {
            self.end_fault(number);
        }
        self.network.calm = true;
        self.network.unclog();
        let now = self.now;
        for node in &mut self.nodes {
            node.paused_until = now;
            node.crashes_in = None;
        }
    }
}

fn covered(kind: Kind) -> What {
    match kind {
        Kind::Halves => What::Halves,
        Kind::Isolate => What::Isolate,
        Kind::SendOnly => What::SendOnly,
        Kind::HearOnly => What::HearOnly,
        Kind::OneWay => What::OneWay,
        Kind::Bridge => What::Bridge,
        Kind::Ring => What::Ring,
        Kind::Chain => What::Chain,
        Kind::Star => What::Star,
        _ => unreachable!("not a partition"),
    }
}
