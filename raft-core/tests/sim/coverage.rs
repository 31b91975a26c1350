//! What has happened, and how often it must have happened over all fixed seeds: a fault that never
//! strikes finds nothing.

use std::fmt::Write as _;

macro_rules! things {
    ($($name:ident: $minimum:expr, $text:literal;)*) => {
        #[derive(Clone, Copy, Debug)]
        pub enum What { $($name,)* }

        /// With the least number over the 2,000 fixed seeds, about a third of what was seen.
        const THINGS: &[(&str, u64)] = &[$(($text, $minimum),)*];
    };
}

things! {
    Step: 0, "steps";
    Election: 0, "elections";
    ElectionByTransfer: 0, "elections because a leader wanted it";
    StepDown: 0, "leaders that stopped leading";
    SilentStepDown: 0, "leaders that lost their quorum and noticed by themselves";
    HungStepDown: 0, "leaders that gave up because of a hung disk";
    Commit: 0, "entries committed";
    Proposal: 0, "commands appended";
    Refusal: 0, "commands refused";
    Acknowledged: 0, "commands acknowledged";
    Unknown: 0, "commands of unknown fate";
    ReadConfirmed: 0, "reads confirmed";
    ReadForwarded: 0, "reads confirmed at a follower";
    ReadFailed: 0, "reads that failed";
    Truncation: 0, "logs truncated";
    Rejection: 0, "appends rejected";
    Snapshot: 0, "own snapshots published";
    Flush: 0, "durable machines flushed";
    Compaction: 0, "logs compacted";
    Offer: 0, "snapshots offered";
    Install: 0, "snapshots received in full";
    Restore: 0, "snapshots taken over";
    Interrupted: 0, "transfers interrupted";
    InstallCrash: 0, "crashes while a snapshot was received or taken over";
    Loss: 0, "messages lost";
    Overflow: 0, "messages lost because a link was full";
    Copy: 0, "messages delivered again";
    Reordered: 0, "messages that overtook others";
    Spike: 0, "messages delayed beyond reason";
    CutOff: 0, "messages lost on a cut link";
    Crash: 0, "crashes";
    CrashMidway: 0, "crashes between two effects";
    LostWrite: 0, "batches lost in a crash";
    KeptWrite: 0, "batches that survived a crash without a report";
    CrashAll: 0, "crashes of everybody";
    Hang: 0, "disks hung";
    SlowDisk: 0, "disks slowed down";
    Pause: 0, "pauses";
    Skew: 0, "clocks that changed their speed";
    Jump: 0, "clocks that jumped";
    Clog: 0, "links clogged";
    Unreachable: 0, "reports of a lost connection";
    Halves: 0, "partitions in two";
    LeaderInMinority: 0, "of these with the leader in the minority";
    LeaderInMajority: 0, "of these with the leader in the majority";
    Isolate: 0, "partitions of one node";
    SendOnly: 0, "partitions of one node that can still send";
    HearOnly: 0, "partitions of one node that can still hear";
    OneWay: 0, "partitions of links in one direction";
    Bridge: 0, "bridges";
    Ring: 0, "rings";
    Chain: 0, "chains";
    Star: 0, "stars";
    Disturbed: 0, "followers that cannot hear a leader whom the others hear";
    CoreOnly: 0, "recoveries with a majority only";
    Recovery: 0, "recoveries";
}

#[derive(Clone, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self { counts: vec![0; THINGS.len()] }
    }
}

impl Coverage {
    pub fn count(&mut self, what: What) {
        self.counts[what as usize] += 1;
    }

    pub fn add(&mut self, what: What, count: u64) {
        self.counts[what as usize] += count;
    }

    pub fn of(&self, what: What) -> u64 {
        self.counts[what as usize]
    }

    pub fn merge(&mut self, other: &Coverage) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    pub fn table(&self) -> String {
        let mut table = String::new();
        for ((text, minimum), count) in THINGS.iter().zip(&self.counts) {
            let _ = writeln!(table, "{count:>12}  {text} (at least {minimum})");
        }
        table
    }

    /// # Panics
    /// If something happened too seldom for these runs to mean anything.
    pub fn check(&self) {
        for ((text, minimum), count) in THINGS.iter().zip(&self.counts) {
            assert!(count >= minimum, "only {count} {text}, not {minimum}:\n{}", self.table());
        }
    }
}
