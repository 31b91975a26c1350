//! Profiles: plans that force combinations of features that are rare otherwise (T3).
//!
//! A bug that needs a lost disk *and* a stale leader took 25,000 seeds that were biased towards it;
//! thousands of uniform ones did not reach it. The profile is the highest byte of a seed, so that a
//! seed alone replays a run.

use crate::fault::{KINDS, Kind};
use crate::plan::Mix;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Uniform,
    /// Disks are lost while deposed leaders still believe that they lead: no check quorum, no
    /// pre-vote.
    LostDiskStaleLeader,
    /// Votes and acknowledgements are held back behind slow and hung disks; no pre-vote.
    NoPreVoteSlowDisks,
    /// Logs are compacted early, and replaced by snapshots while they are being truncated.
    SnapshotsTruncation,
    /// Leadership is transferred all the time, and disks are lost.
    TransferLostDisk,
    /// Nodes recover while links fail.
    RecoveryPartition,
    /// The cluster is founded while messages are lost and late, nodes crash, and disks are lost.
    Founding,
    /// Disks hang while clients read and write.
    HungDiskReads,
    /// Members change while leaders crash and links fail.
    ChangesPartition,
    /// Members change while nodes crash and disks are lost.
    ChangesLostDisk,
    /// Lost disks come back after their nodes have counted on others.
    OldDisks,
}

pub const PROFILES: [Profile; 10] = [
    Profile::LostDiskStaleLeader,
    Profile::NoPreVoteSlowDisks,
    Profile::SnapshotsTruncation,
    Profile::TransferLostDisk,
    Profile::RecoveryPartition,
    Profile::Founding,
    Profile::HungDiskReads,
    Profile::ChangesPartition,
    Profile::ChangesLostDisk,
    Profile::OldDisks,
];

const SHIFT: u32 = 56;

impl Profile {
    /// The profile of a seed.
    pub fn of(seed: u64) -> Self {
        let number = (seed >> SHIFT) as usize;
        number.checked_sub(1).map_or(Profile::Uniform, |place| PROFILES[place % PROFILES.len()])
    }

    /// The first of this profile's seeds.
    pub fn first_seed(self) -> u64 {
        let place = PROFILES.iter().position(|profile| *profile == self);
        place.map_or(0, |place| (place as u64 + 1) << SHIFT)
    }

    /// The kinds of faults that a schedule is drawn from.
    pub fn kinds(self) -> &'static [Kind] {
        use Kind::*;
        match self {
            Profile::Uniform => &KINDS,
            Profile::LostDiskStaleLeader => &[OneWay, Halves, Isolate, Crash, Crash, SendOnly],
            Profile::NoPreVoteSlowDisks => &[HangDisk, SlowDisk, Crash, CrashMidway, Halves, Pause],
            Profile::SnapshotsTruncation => &[Halves, Isolate, CrashLeaders, Crash, CrashMidway],
            Profile::TransferLostDisk => &[Crash, CrashMidway, Isolate, Pause, HangDisk],
            Profile::RecoveryPartition => &[OneWay, Bridge, Ring, Chain, Star, Crash, HearOnly],
            Profile::Founding => &[Crash, CrashMidway, CrashAll, OneWay, Isolate, HangDisk, Pause],
            Profile::HungDiskReads => &[HangDisk, SlowDisk, Bridge, OneWay, Clog],
            Profile::ChangesPartition => &[Halves, Isolate, OneWay, Bridge, CrashLeaders, Crash],
            Profile::ChangesLostDisk => &[Crash, Crash, CrashMidway, CrashAll, Halves, Isolate],
            Profile::OldDisks => &[Crash, Crash, Isolate, OneWay],
        }
    }

    pub fn apply(self, mix: &mut Mix) {
        match self {
            Profile::Uniform => {}
            Profile::LostDiskStaleLeader => {
                (mix.pre_vote, mix.check_quorum) = (false, false);
                mix.voter_count = 3;
                mix.lost_disks = 900;
            }
            Profile::NoPreVoteSlowDisks => {
                mix.pre_vote = false;
                mix.lost_disks = 400;
                mix.disk_mean_us = mix.election_timeout_us / 3;
            }
            Profile::SnapshotsTruncation => {
                mix.snapshot_threshold_bytes = 200;
                mix.install_crashes = 200;
                mix.voter_count = mix.voter_count.max(3);
            }
            Profile::TransferLostDisk => {
                mix.transfers = 60;
                mix.lost_disks = 700;
                mix.voter_count = mix.voter_count.max(3);
            }
            Profile::RecoveryPartition => {
                mix.lost_disks = 900;
                mix.voter_count = mix.voter_count.max(3);
            }
            Profile::Founding => {
                mix.is_founding = true;
                mix.lost_disks = 500;
                mix.loss = 100;
                mix.voter_count = mix.voter_count.max(2);
            }
            Profile::HungDiskReads => {
                mix.reads = 700;
                mix.client_gap_us = mix.election_timeout_us / 50;
                mix.voter_count = mix.voter_count.max(3);
            }
            Profile::ChangesPartition => mix.changes = 200,
            Profile::ChangesLostDisk => {
                mix.changes = 200;
                mix.lost_disks = 600;
            }
            Profile::OldDisks => {
                mix.changes = 10;
                mix.lost_disks = 800;
                mix.voter_count = mix.voter_count.max(3);
            }
        }
    }
}
