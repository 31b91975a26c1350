//! The network between the nodes: directed links, each with an rng of its own.
//!
//! Messages of one class keep their order on a link unless the mix says otherwise; a copy arrives
//! at any time. A link that is cut loses the messages that would arrive, including those already in
//! flight.

use raft_core::types::{Class, NodeId};

use crate::common::Random;
use crate::coverage::{Coverage, What};
use crate::plan::{Mix, Plan};

#[derive(Debug)]
struct Link {
    random: Random,
    /// Number of present faults that cut this link.
    cuts: u32,
    /// Number of cuts so far: a transfer that began before a cut is interrupted.
    cut_count: u64,
    clogged_until_us: u64,
    on_the_way: u32,
    last_arrival_us: [u64; 2],
}

#[derive(Debug)]
pub struct Network {
    count: u64,
    links: Vec<Link>,
    /// Set while there are no faults except cuts.
    pub calm: bool,
}

/// The times at which a message and its copy arrive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    pub first_us: Option<u64>,
    pub copy_us: Option<u64>,
}

impl Network {
    pub fn new(plan: &Plan) -> Self {
        let count = plan.mix.nodes_max();
        let link = |number| Link {
            random: plan.random(1000 + number),
            cuts: 0,
            cut_count: 0,
            clogged_until_us: 0,
            on_the_way: 0,
            last_arrival_us: [0; 2],
        };
        Self { count, links: (0..count * count).map(link).collect(), calm: false }
    }

    fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        &mut self.links[((from - 1) * self.count + to - 1) as usize]
    }

    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.links[((from - 1) * self.count + to - 1) as usize].cuts > 0
    }

    /// A number that changes whenever either direction is cut.
    pub fn cut_count(&mut self, one: NodeId, other: NodeId) -> u64 {
        self.link(one, other).cut_count + self.link(other, one).cut_count
    }

    pub fn partition_link(&mut self, from: NodeId, to: NodeId) {
        let link = self.link(from, to);
        link.cuts += 1;
        link.cut_count += 1;
    }

    pub fn heal_link(&mut self, from: NodeId, to: NodeId) {
        self.link(from, to).cuts -= 1;
    }

    pub fn clog(&mut self, from: NodeId, to: NodeId, until_us: u64) {
        let link = self.link(from, to);
        link.clogged_until_us = link.clogged_until_us.max(until_us);
    }

    pub fn unclog(&mut self) {
        for link in &mut self.links {
            link.clogged_until_us = 0;
            link.last_arrival_us = [0; 2];
        }
    }

    /// The delay of a small message that is neither lost nor repeated, such as a response on a
    /// stream.
    pub fn delay_us(&mut self, from: NodeId, to: NodeId, mix: &Mix) -> u64 {
        let calm = self.calm;
        let random = &mut self.link(from, to).random;
        match calm {
            true => random.between(200, 2_000),
            false => mix.delay_min_us + random.between(0, 2 * mix.delay_mean_us),
        }
    }

    pub fn send(
        &mut self,
        now: u64,
        (from, to): (NodeId, NodeId),
        class: Class,
        mix: &Mix,
        coverage: &mut Coverage,
    ) -> Arrivals {
        let calm = self.calm;
        let delay_us = self.delay_us(from, to, mix);
        let link = self.link(from, to);
        let fate = &mut link.random;
        let mut arrivals = Arrivals::default();
        let mut at = now + delay_us;
        let mut keeps_place = true;
        if !calm {
            if link.on_the_way >= mix.link_capacity {
                coverage.count(What::Overflow);
                return arrivals;
            }
            if fate.permille(mix.loss) {
                coverage.count(What::Loss);
                return arrivals;
            }
            if fate.permille(mix.spikes) {
                coverage.count(What::Spike);
                at += fate.between(200_000, 2_200_000);
                keeps_place = false;
            }
            if fate.permille(mix.copies) {
                let later_us = if fate.percent(10) { 2_000_000 } else { 4 * mix.delay_mean_us };
                arrivals.copy_us = Some(at + fate.between(0, later_us));
                link.on_the_way += 1;
            }
            keeps_place &= !fate.permille(mix.reorder);
        }
        at = at.max(link.clogged_until_us);
        let last = &mut link.last_arrival_us[class as usize];
        if keeps_place {
            at = at.max(*last);
            *last = at;
        } else if at < *last {
            coverage.count(What::Reordered);
        }
        link.on_the_way += 1;
        arrivals.first_us = Some(at);
        arrivals
    }

    pub fn on_arrival(&mut self, from: NodeId, to: NodeId) {
        self.link(from, to).on_the_way -= 1;
    }
}
