//! The faults that a schedule is made of, and how a schedule is drawn.
//!
//! Each seed takes a few kinds only, and those often: faults that meet find more than faults that are
//! spread thin.

use std::fmt;

use crate::common::Random;
use crate::plan::Mix;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two groups that do not hear each other.
    Halves,
    /// One node that nobody hears and that hears nobody.
    Isolate,
    /// One node that hears nobody.
    SendOnly,
    /// One node that nobody hears.
    HearOnly,
    /// Single links fail, each in one direction.
    OneWay,
    /// Two groups, and one node that both hear.
    Bridge,
    /// Everybody hears the neighbours only, enough of them for a majority: no two majorities are alike.
    Ring,
    /// A line: everybody hears the one before and the one after.
    Chain,
    /// All links but those of one node.
    Star,
    Crash,
    /// At the next few effects, between two of them.
    CrashMidway,
    CrashAll,
    /// Whoever leads crashes, again and again (figure 8).
    CrashLeaders,
    /// The disk takes batches and does not answer.
    HangDisk,
    SlowDisk,
    /// The process stands still; the clock does not.
    Pause,
    /// The clock runs at another speed.
    Skew,
    /// The clock jumps ahead.
    Jump,
    /// What is sent from one node to another waits.
    Clog,
}

pub const KINDS: [Kind; 19] = [
    Kind::Halves,
    Kind::Isolate,
    Kind::SendOnly,
    Kind::HearOnly,
    Kind::OneWay,
    Kind::Bridge,
    Kind::Ring,
    Kind::Chain,
    Kind::Star,
    Kind::Crash,
    Kind::CrashMidway,
    Kind::CrashAll,
    Kind::CrashLeaders,
    Kind::HangDisk,
    Kind::SlowDisk,
    Kind::Pause,
    Kind::Skew,
    Kind::Jump,
    Kind::Clog,
];

/// `dice` decides what is left open: which node, which links.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at_us: u64,
    pub lasts_us: u64,
    pub kind: Kind,
    /// At whoever leads then, instead of any node.
    pub at_leader: bool,
    pub dice: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { at_us, lasts_us, kind, at_leader, .. } = self;
        let aim = if *at_leader { " at the leader" } else { "" };
        write!(f, "{kind:?}{aim} at {} ms for {} ms", at_us / 1000, lasts_us / 1000)
    }
}

pub fn draw(random: &mut Random, mix: &Mix, candidates: &[Kind]) -> Vec<Fault> {
    let mut kinds = Vec::new();
    for _ in 0..random.below(6) {
        kinds.push(*random.pick(candidates));
    }
    if kinds.is_empty() {
        return Vec::new();
    }
    let timeout_us = mix.election_timeout_us;
    // A quiet stretch in front, so that there is something to lose.
    let mut at_us = random.between(0, 4 * timeout_us);
    // From one after the other to many at once.
    let gap_us = random.scaled(timeout_us / 2, 8 * timeout_us);
    let mut faults = Vec::new();
    while at_us < mix.hostile_us && faults.len() < 200 {
        faults.push(Fault {
            at_us,
            lasts_us: random.scaled(timeout_us / 20, 10 * timeout_us),
            kind: *random.pick(&kinds),
            at_leader: random.percent(50),
            dice: random.next(),
        });
        at_us += random.between(1, 2 * gap_us);
    }
    faults
}
