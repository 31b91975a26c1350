//! Everything that a seed decides before a run: the mix of probabilities and limits, and the
//! schedule of faults. Both are data, so a failing run can be shrunk without drawing a new plan.

use std::time::Duration;

use raft_core::consensus::Config;
use raft_core::types::{Configuration, NodeId};

use crate::common::Random;
use crate::fault::{self, Fault};
use crate::profile::Profile;

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The hostile part ends after this many steps at the latest.
    pub steps_max: u64,
    /// And after this many election timeouts of virtual time.
    pub timeouts_max: u64,
}

/// The scale of the 2,000 seeds that every test run repeats.
pub const SHORT: Scale = Scale { steps_max: 2_500, timeouts_max: 60 };

/// The scale of a soak.
pub const LONG: Scale = Scale { steps_max: 30_000, timeouts_max: 600 };

/// Nodes that may be created beside the first voters.
const JOINERS_MAX: u64 = 4;

/// Times are virtual microseconds, probabilities are in thousandths.
#[derive(Clone, Debug)]
pub struct Mix {
    pub voter_count: u64,
    pub election_timeout_us: u64,
    pub pre_vote: bool,
    pub check_quorum: bool,

    pub loss: u64,
    pub copies: u64,
    /// Messages that may overtake earlier ones.
    pub reorder: u64,
    /// An append is followed by another one that starts further back, as from a leader with worse
    /// hints.
    pub needless: u64,
    /// Messages that take far longer than the others, 200 to 2,200 ms.
    pub spikes: u64,
    pub delay_min_us: u64,
    pub delay_mean_us: u64,
    /// Messages in flight on one link; the messages beyond are lost.
    pub link_capacity: u32,

    pub disk_mean_us: u64,
    pub apply_mean_us: u64,
    /// The parts of a `Ready` are processed in any order, instead of the natural one.
    pub shuffle: u64,
    /// Further inputs are gathered before the node's `Ready` is processed.
    pub gather: u64,
    /// Clocks run wrong by up to this many parts per million, all the time.
    pub skew_ppm: u64,

    pub client_gap_us: u64,
    pub reads: u64,
    pub transfers: u64,
    pub batch_max: u64,
    pub command_bytes_max: u64,
    /// Log bytes above which a node takes a snapshot; 0 for never.
    pub snapshot_threshold_bytes: u64,
    pub snapshot_bytes_max: u64,
    pub bandwidth_bytes_per_ms: u64,
    /// Receivers crash while they receive a snapshot, or soon after.
    pub install_crashes: u64,
    /// Nodes that a fault takes down lose their disk.
    pub lost_disks: u64,
    /// Actions of a client that are, instead, a change of the members by an operator.
    pub changes: u64,
    /// A learner becomes a voter once it has kept up for this long.
    pub promotion_delay_us: u64,
    /// The cluster is founded at the start, from disks that the operator has just initialised.
    pub is_founding: bool,
    /// The state machine's state survives a crash without a snapshot, at some earlier position.
    pub durable_machine: bool,
    limits: Limits,

    pub hostile_us: u64,
    pub steps_max: u64,
    /// In the recovery part only a majority works; `fate_of_rest` seeds the fate of the others.
    pub core_only: bool,
    pub fate_of_rest: u64,
}

#[derive(Clone, Debug)]
struct Limits {
    append_bytes_max: u64,
    inflight_count_max: usize,
    inflight_bytes_max: u64,
    uncommitted_bytes_max: u64,
    log_bytes_max: u64,
    apply_bytes_max: u64,
    persists_in_flight_max: usize,
    reads_waiting_max: usize,
    disk_patience_us: u64,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub mix: Mix,
    pub faults: Vec<Fault>,
}

impl Plan {
    pub fn draw(seed: u64, scale: Scale) -> Self {
        let mut random = Random::new(seed);
        random.stir();
        let mut mix = Mix::draw(&mut random, scale);
        let profile = Profile::of(seed);
        let faults = fault::draw(&mut random, &mix, profile.kinds());
        // A random stream of its own, so that the seeds that found bugs still draw the same plans.
        let mut random = Random::new(seed ^ 0xd15c_0000_0000_0000);
        random.stir();
        mix.is_founding = random.percent(15);
        mix.lost_disks = random.sometimes(50, 100, 900);
        // Likewise.
        let mut random = Random::new(seed ^ 0xc4a9_0000_0000_0000);
        random.stir();
        mix.changes = random.sometimes(33, 20, 300);
        mix.promotion_delay_us = mix.election_timeout_us * random.between(0, 3);
        profile.apply(&mut mix);
        Self { seed, mix, faults }
    }

    /// A separate rng for each purpose, so that the removal of a fault changes little else.
    pub fn random(&self, purpose: u64) -> Random {
        let mut random = Random::new(self.seed.wrapping_mul(0x1000_0001).wrapping_add(purpose));
        random.stir();
        random
    }
}

/// Parts of a mix that a failing run may do without, by their names in `SIM_OFF`.
pub const KNOBS: [&str; 17] = [
    "loss",
    "copies",
    "reorder",
    "needless",
    "spikes",
    "capacity",
    "disk",
    "shuffle",
    "gather",
    "skew",
    "reads",
    "transfers",
    "snapshots",
    "disks",
    "changes",
    "limits",
    "rest",
];

impl Mix {
    fn draw(random: &mut Random, scale: Scale) -> Self {
        let election_timeout_us = 1000 * *random.pick(&[50, 100, 100, 300, 1000]);
        let (pre_vote, check_quorum) = match random.below(10) {
            0 => (false, false),
            1 => (false, true),
            _ => (true, true),
        };
        let durable_machine = random.percent(30);
        let limits = Limits::draw(random, election_timeout_us);
        let snapshot_threshold_bytes = match random.below(10) {
            // A log with a limit must be compacted.
            0 if limits.log_bytes_max == u64::MAX => 0,
            0..7 => random.scaled(100, 2_000).min(limits.log_bytes_max / 4),
            _ => random.scaled(2_000, 20_000).min(limits.log_bytes_max / 4),
        };
        Self {
            voter_count: *random.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7]),
            election_timeout_us,
            pre_vote,
            check_quorum,
            loss: random.sometimes(60, 1, 300),
            copies: random.sometimes(60, 1, 500),
            reorder: random.sometimes(60, 1, 1000),
            needless: random.sometimes(40, 5, 200),
            spikes: random.sometimes(40, 1, 20),
            delay_min_us: random.scaled(20, election_timeout_us / 40),
            delay_mean_us: random.scaled(100, election_timeout_us / 8),
            link_capacity: if random.percent(20) { random.between(2, 20) as u32 } else { 1000 },
            disk_mean_us: random.scaled(50, election_timeout_us / 4),
            apply_mean_us: random.scaled(10, election_timeout_us / 10),
            shuffle: random.sometimes(60, 50, 1000),
            gather: random.sometimes(50, 50, 900),
            skew_ppm: random.sometimes(50, 1_000, 100_000),
            client_gap_us: random.scaled(election_timeout_us / 200, election_timeout_us / 4),
            reads: random.between(50, 500),
            transfers: random.sometimes(50, 1, 30),
            batch_max: random.scaled(1, 8),
            command_bytes_max: random.scaled(9, 200),
            snapshot_threshold_bytes,
            snapshot_bytes_max: random.scaled(1_000, 10_000_000),
            bandwidth_bytes_per_ms: random.scaled(1_000, 100_000),
            install_crashes: random.sometimes(40, 20, 500),
            lost_disks: 0,
            changes: 0,
            promotion_delay_us: 0,
            is_founding: false,
            durable_machine,
            limits,
            hostile_us: election_timeout_us
                * random.between(scale.timeouts_max / 5, scale.timeouts_max),
            steps_max: random.between(scale.steps_max / 3, scale.steps_max),
            core_only: random.percent(50),
            fate_of_rest: random.next(),
        }
    }

    pub fn switch_off(&mut self, knob: &str) {
        match knob {
            "loss" => self.loss = 0,
            "copies" => self.copies = 0,
            "reorder" => self.reorder = 0,
            "needless" => self.needless = 0,
            "spikes" => self.spikes = 0,
            "capacity" => self.link_capacity = 1000,
            "disk" => self.disk_mean_us = 100,
            "shuffle" => self.shuffle = 0,
            "gather" => self.gather = 0,
            "skew" => self.skew_ppm = 0,
            "reads" => self.reads = 0,
            "transfers" => self.transfers = 0,
            "snapshots" => {
                self.snapshot_threshold_bytes = 0;
                self.install_crashes = 0;
                self.limits.log_bytes_max = u64::MAX;
            }
            "disks" => {
                self.lost_disks = 0;
                self.is_founding = false;
            }
            "changes" => self.changes = 0,
            "limits" => self.limits = Limits::roomy(self.election_timeout_us),
            "rest" => self.core_only = false,
            _ => panic!("there is no knob {knob}; there are {KNOBS:?}"),
        }
    }

    pub fn config(&self, id: NodeId, seed: u64) -> Config {
        let limits = &self.limits;
        let mut config = Config::new(id, id);
        config.election_timeout = Duration::from_micros(self.election_timeout_us);
        config.heartbeat_interval = Duration::from_micros(self.heartbeat_us());
        config.append_bytes_max = limits.append_bytes_max;
        config.inflight_count_max = limits.inflight_count_max;
        config.inflight_bytes_max = limits.inflight_bytes_max;
        config.uncommitted_bytes_max = limits.uncommitted_bytes_max;
        config.log_bytes_max = limits.log_bytes_max;
        config.apply_bytes_max = limits.apply_bytes_max;
        config.persists_in_flight_max = limits.persists_in_flight_max;
        config.reads_waiting_max = limits.reads_waiting_max;
        config.disk_patience = Duration::from_micros(limits.disk_patience_us);
        config.stall_patience = Duration::from_micros(16 * self.election_timeout_us);
        config.promotion_delay = Duration::from_micros(self.promotion_delay_us);
        config.pre_vote = self.pre_vote;
        config.check_quorum = self.check_quorum;
        config.seed = seed;
        config
    }

    /// Number of nodes that a run may create.
    pub fn nodes_max(&self) -> u64 {
        self.voter_count + if self.changes > 0 { JOINERS_MAX } else { 0 }
    }

    /// The members as the operators' files name them. Where members change, the first leader
    /// appends the configuration, so that a node which joins finds it in the log.
    pub fn bootstrap(&self) -> Configuration {
        let founded = !self.is_founding && self.changes == 0;
        Configuration {
            founded,
            cluster_version: u32::from(founded),
            ..Configuration::of_voters(1..=self.voter_count)
        }
    }

    pub fn log_bytes_max(&self) -> u64 {
        self.limits.log_bytes_max
    }

    pub fn heartbeat_us(&self) -> u64 {
        self.election_timeout_us / 5
    }
}

impl Limits {
    /// The limits are mostly small, so that they are reached.
    fn draw(random: &mut Random, election_timeout_us: u64) -> Self {
        if random.percent(30) {
            return Self::roomy(election_timeout_us);
        }
        let append_bytes_max = random.scaled(1, 2_000);
        let uncommitted_bytes_max = random.scaled(200, 20_000);
        let log_bytes_max = match random.percent(30) {
            true => uncommitted_bytes_max.max(random.scaled(4_000, 40_000)),
            false => u64::MAX,
        };
        Self {
            append_bytes_max,
            inflight_count_max: random.scaled(1, 16) as usize,
            inflight_bytes_max: append_bytes_max + random.scaled(1, 2_000),
            uncommitted_bytes_max,
            log_bytes_max,
            apply_bytes_max: random.scaled(1, 4_000),
            persists_in_flight_max: random.between(1, 4) as usize,
            reads_waiting_max: random.scaled(1, 100) as usize,
            disk_patience_us: election_timeout_us * random.between(1, 6),
        }
    }

    fn roomy(election_timeout_us: u64) -> Self {
        Self {
            append_bytes_max: 1 << 20,
            inflight_count_max: 256,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            log_bytes_max: u64::MAX,
            apply_bytes_max: 4 << 20,
            persists_in_flight_max: 2,
            reads_waiting_max: 65_536,
            disk_patience_us: 4 * election_timeout_us,
        }
    }
}
