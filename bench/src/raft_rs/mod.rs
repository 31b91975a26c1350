//! The pure core alone against raft-rs: three values in one thread, messages passed as values, no
//! I/O, no clock. The remaining cost is the CPU time of the protocol itself.
//!
//! In a turn the leader, then each follower, takes in its messages and carries out what follows; a
//! write is durable at once, and an applied entry is counted and dropped. The number of outstanding
//! proposals (of 256 bytes by default) is fixed: as many as the leader committed in a turn are
//! proposed, as one batch, before the next. Both sides keep the last entries of the log and drop
//! the others now and then.

mod kv;
mod peer;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::figures::Figures;
use crate::process;
use crate::report::Report;

/// Entries kept behind what is applied, more than a follower can lag.
const KEPT_ENTRIES: u64 = 16_384;
/// Further entries that may gather before they are dropped.
const FORGET_EVERY: u64 = 16_384;
/// Turns between two readings of the clock.
const TURNS_PER_LOOK: usize = 16;

#[derive(Clone, Debug, clap::Args, Serialize)]
pub(crate) struct Args {
    /// Proposals under way at once; a list
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024,4096")]
    outstanding: Vec<usize>,
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Turns that each side gets in each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one turn
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    #[serde(with = "crate::etcd::seconds")]
    duration: Duration,
    #[arg(long, default_value = "200ms", value_parser = humantime::parse_duration)]
    #[serde(with = "crate::etcd::seconds")]
    warm_up: Duration,
}

/// Three nodes with a leader.
trait Trio {
    /// Proposes these commands to the leader, as one batch.
    fn propose(&mut self, commands: Vec<Vec<u8>>);

    /// Runs each node once. Returns how many commands the leader committed.
    fn turn(&mut self) -> usize;
}

pub(crate) fn run(args: Args) -> anyhow::Result<Report> {
    let mut report = Report::new("raft-rs", &args)?;
    report.note(
        "Peer: the crate raft 0.7.0, protobuf codec, appends batched, proposals handed over as one \
         message. One thread, so CPU per operation is the time of one.",
    );
    let title = format!(
        "three values in one thread, {} byte commands, {} rounds of {:?}; medians",
        args.value_bytes, args.rounds, args.duration
    );
    report.begin_contest(&title, "raft-rs");
    for outstanding in &args.outstanding {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..args.rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    ours.push(closed_loop(&mut kv::Nodes::start()?, *outstanding, &args));
                } else {
                    theirs.push(closed_loop(&mut peer::Nodes::start()?, *outstanding, &args));
                }
            }
        }
        report.contest(&format!("{outstanding} outstanding"), "raft-rs", &ours, &theirs);
    }
    Ok(report)
}

#[allow(clippy::disallowed_methods, reason = "a benchmark of pure values measures real time")]
fn closed_loop(trio: &mut impl Trio, outstanding: usize, args: &Args) -> Figures {
    let mut missing = outstanding;
    // Returns how many commands were committed until then.
    let mut run_until = |end: Instant| {
        let mut committed = 0;
        while Instant::now() < end {
            for _ in 0..TURNS_PER_LOOK {
                if missing > 0 {
                    trio.propose(vec![vec![0; args.value_bytes]; missing]);
                }
                missing = trio.turn();
                committed += missing as u64;
            }
        }
        committed
    };
    run_until(Instant::now() + args.warm_up);
    let (start, cpu) = (Instant::now(), process::own_cpu());
    let ops = run_until(start + args.duration);
    let (elapsed, cpu) = (start.elapsed(), process::own_cpu() - cpu);
    let mut figures =
        Figures { ops, ops_per_s: ops as f64 / elapsed.as_secs_f64(), ..Figures::default() };
    figures.cpu_us_per_op = figures.per_op(cpu);
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything proposed is committed, once, within a few turns, over more entries than are kept.
    fn commits_what_is_proposed(trio: &mut impl Trio) {
        for batch in [1, 16, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 7] {
            trio.propose(vec![vec![0; 256]; batch]);
            let committed: usize = (0..4).map(|_| trio.turn()).sum();
            assert_eq!(committed, batch);
        }
    }

    #[test]
    fn both_sides_do_the_same_work() {
        commits_what_is_proposed(&mut kv::Nodes::start().unwrap());
        commits_what_is_proposed(&mut peer::Nodes::start().unwrap());
    }
}
