//! The faults that a schedule consists of, and how a schedule is drawn.
//!
//! Each seed uses only a few kinds of faults, but uses them often: faults that coincide find more
//! bugs than faults that are spread thinly.

use std::fmt;

use crate::common::Random;
use crate::plan::Mix;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two groups without links between them.
    Halves,
    /// One node without any links.
    Isolate,
    /// One node that receives nothing.
    SendOnly,
    /// One node whose messages do not arrive.
    HearOnly,
    /// Single links fail, each in one direction.
    OneWay,
    /// Two groups, and one node with links to both.
    Bridge,
    /// Each node has links to its neighbours only, enough of them for a majority: no two nodes
    /// reach the same majority.
    Ring,
    /// A line: each node has links to the one before and the one after.
    Chain,
    /// All links fail except those of one node.
    Star,
    Crash,
    /// A crash between two of the node's next few effects.
    CrashMidway,
    CrashAll,
    /// The leader crashes, and so does each later one (figure 8).
    CrashLeaders,
    /// The disk accepts batches and does not complete them.
    HangDisk,
    SlowDisk,
    /// The process is paused; the clock continues.
    Pause,
    /// The clock runs at another speed.
    Skew,
    /// The clock jumps ahead.
    Jump,
    /// The messages on one link are held back.
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

/// A fault. `dice` seeds the choices left open: which node, which links.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub at_us: u64,
    pub lasts_us: u64,
    pub kind: Kind,
    /// The target is the leader at that moment, if there is one, and not any node.
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
    // A quiet time first, so that there is something to lose.
    let mut at_us = random.between(0, 4 * timeout_us);
    // The gap ranges from one fault after the other to many at once.
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
