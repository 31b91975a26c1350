//! Counts of events, and the minimum of each over all fixed seeds: a fault that never occurs finds
//! no bugs.

use std::fmt::Write as _;

macro_rules! things {
    ($($name:ident: $minimum:expr, $text:literal;)*) => {
        #[derive(Clone, Copy, Debug)]
        pub enum What { $($name,)* }

        /// Names and minimums over the 2,000 fixed seeds; a minimum is about a third of the
        /// measured count.
        const THINGS: &[(&str, u64)] = &[$(($text, $minimum),)*];
    };
}

things! {
    Step: 1_500_000, "steps";
    Election: 1400, "elections";
    ElectionByTransfer: 35, "elections because a leader wanted it";
    StepDown: 360, "leaders that stopped leading";
    SilentStepDown: 180, "leaders that lost their quorum and noticed by themselves";
    LeftSlowDisk: 10, "leaders that handed over because of a slow disk";
    HungStepDown: 25, "leaders that gave up because of a hung disk";
    Commit: 120_000, "entries committed";
    Proposal: 120_000, "commands appended";
    Refusal: 320_000, "commands refused";
    Acknowledged: 110_000, "commands acknowledged";
    Unknown: 14_000, "commands of unknown fate";
    ReadConfirmed: 27_000, "reads confirmed";
    ReadForwarded: 13_000, "reads confirmed at a follower";
    ReadFailed: 36_000, "reads that failed";
    Truncation: 130, "logs truncated";
    Rejection: 10_000, "appends rejected";
    Snapshot: 26_000, "own snapshots published";
    Flush: 10_000, "durable machines flushed";
    Compaction: 34_000, "logs compacted";
    Offer: 1500, "snapshots offered";
    Install: 1200, "snapshots received in full";
    Restore: 1100, "snapshots taken over";
    Interrupted: 35, "transfers interrupted";
    InstallCrash: 20, "crashes while a snapshot was received or taken over";
    Loss: 16_000, "messages lost";
    Overflow: 1600, "messages lost because a link was full";
    Copy: 15_000, "messages delivered again";
    Reordered: 1900, "messages that overtook others";
    Needless: 3300, "appends that start further back than need be";
    Spike: 1100, "messages delayed beyond reason";
    CutOff: 41_000, "messages lost on a cut link";
    Crash: 1300, "crashes";
    LostDisk: 45, "disks lost";
    LostAgain: 3, "disks lost while they were filled after an earlier loss";
    OldDisk: 3, "lost disks that came back after the node had counted on another one";
    FoundDisk: 3, "lost disks that came back before that";
    Recovered: 45, "nodes that were filled up again, and their word counted again";
    CrashMidway: 190, "crashes between two effects";
    LostWrite: 150, "batches lost in a crash";
    KeptWrite: 160, "batches that survived a crash without a report";
    CrashAll: 250, "crashes of everybody";
    Hang: 180, "disks hung";
    SlowDisk: 130, "disks slowed down";
    Pause: 200, "pauses";
    Skew: 180, "clocks that changed their speed";
    Jump: 190, "clocks that jumped";
    Clog: 180, "links clogged";
    Unreachable: 2600, "reports of a lost connection";
    Halves: 170, "partitions in two";
    LeaderInMinority: 35, "of these with the leader in the minority";
    LeaderInMajority: 40, "of these with the leader in the majority";
    Isolate: 150, "partitions of one node";
    SendOnly: 180, "partitions of one node that can still send";
    HearOnly: 200, "partitions of one node that can still hear";
    OneWay: 170, "partitions of links in one direction";
    Bridge: 120, "bridges";
    Ring: 150, "rings";
    Chain: 170, "chains";
    Star: 160, "stars";
    Disturbed: 100, "followers that cannot hear a leader whom the others hear";
    HalfAlive: 50, "nodes that stay half alive: they answer, and do no work";
    CoreOnly: 270, "recoveries with a majority only";
    Joiner: 350, "nodes created to be added";
    Change: 600, "changes of the members appended";
    ChangeRefused: 5000, "changes of the members refused";
    Joint: 230, "joint configurations committed";
    JointLeft: 230, "joint configurations left";
    Promotion: 160, "learners that became voters";
    Removal: 140, "members removed";
    LeaderLeft: 50, "leaders that stepped down because they were removed";
    Recovery: 2000, "recoveries";
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
    /// If an event occurred too seldom for these runs to mean anything.
    pub fn check(&self) {
        for ((text, minimum), count) in THINGS.iter().zip(&self.counts) {
            assert!(count >= minimum, "only {count} {text}, not {minimum}:\n{}", self.table());
        }
    }
}
