//! Runs plans, catches failures, and explains how to replay them.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::num::NonZero;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread;

use crate::coverage::Coverage;
use crate::plan::{Plan, SHORT, Scale};
use crate::shrink::{Kept, shrink};
use crate::simulation::Simulation;

/// Lines of the trace that a failure shows.
const TRACE_LINES: usize = 60;

#[derive(Clone, Debug)]
pub struct Failure {
    /// The message of the failed check.
    pub message: String,
    pub place: String,
}

impl Failure {
    /// The invariant, or the place of a failed assertion of the core.
    pub fn label(&self) -> &str {
        match self.message.split_once(' ') {
            Some((label, _)) if label.starts_with('V') => label,
            _ => &self.place,
        }
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub failure: Option<Failure>,
    pub hash: u64,
    pub steps: u64,
    pub coverage: Coverage,
    pub lines: Vec<String>,
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Records the panics of a run; those of the tests themselves are printed as usual.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                return print(info);
            }
            let payload = info.payload();
            let message = payload.downcast_ref::<String>().cloned();
            let message = message.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).into()));
            let message = message.unwrap_or_default();
            // The check's own message follows "assertion `left == right` failed: ".
            let own_words = message.split_once("failed: ").map(|(_, words)| words.to_owned());
            let failure = Failure {
                message: own_words.unwrap_or(message),
                place: info.location().map_or(String::new(), ToString::to_string),
            };
            PANIC.replace(Some(failure));
        }));
    });
}

fn run(plan: Plan, recording: bool) -> Outcome {
    keep_panics();
    let mut simulation = None;
    IS_QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        simulation.insert(Simulation::new(plan, recording)).run();
    }));
    IS_QUIET.set(false);
    let failure = result.err().and_then(|_| PANIC.take());
    let Some(simulation) = simulation else {
        let failure = failure.expect("a run that did not begin has failed");
        return Outcome {
            failure: Some(failure),
            hash: 0,
            steps: 0,
            coverage: Coverage::default(),
            lines: Vec::new(),
        };
    };
    let Simulation { trace, steps, coverage, .. } = simulation;
    Outcome { failure, hash: trace.hash, steps, coverage, lines: trace.into_lines() }
}

pub fn run_quietly(plan: Plan) -> Outcome {
    run(plan, false)
}

pub fn run_recording(plan: Plan) -> Outcome {
    run(plan, true)
}

/// The number of concurrent runs: `SIM_THREADS`, or else the number of cores.
pub fn threads() -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    crate::setting("SIM_THREADS").map_or_else(cores, |count| count as usize)
}

/// Runs seeds from `first` on until `goes_on` returns false, one seed at a time on each thread.
/// Returns the coverage.
///
/// # Panics
/// If a run fails; the message explains how to replay it.
pub fn run_seeds(first: u64, scale: Scale, goes_on: impl Fn(u64) -> bool + Sync) -> Coverage {
    let (next, is_over) = (AtomicU64::new(first), AtomicBool::new(false));
    let coverage = Mutex::new(Coverage::default());
    let failed = Mutex::new(None::<(u64, Failure)>);
    let work = || {
        let mut covered = Coverage::default();
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !goes_on(seed) {
                break;
            }
            let outcome = run_quietly(Plan::draw(seed, scale));
            covered.merge(&outcome.coverage);
            if let Some(failure) = outcome.failure {
                is_over.store(true, Ordering::Relaxed);
                let mut failed = failed.lock().expect("nobody panics with it");
                if failed.as_ref().is_none_or(|(other, _)| seed < *other) {
                    *failed = Some((seed, failure));
                }
            }
        }
        coverage.lock().expect("nobody panics with it").merge(&covered);
    };
    thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(work);
        }
    });
    if let Some((seed, failure)) = failed.into_inner().expect("nobody panics with it") {
        panic!("{}", explain(seed, scale, failure));
    }
    coverage.into_inner().expect("nobody panics with it")
}

/// Describes the shrunk failure, with its trace and the command that replays it.
fn explain(seed: u64, scale: Scale, failure: Failure) -> String {
    let plan = Plan::draw(seed, scale);
    let first = failure.message.clone();
    let (kept, failure) = shrink(&plan, failure, |plan| run_quietly(plan).failure);
    let outcome = run_recording(kept.of(&plan));
    let mut text = format!("seed {seed}: {first}\n\n");
    let _ = writeln!(text, "made smaller: {} ({})", failure.message, failure.place);
    let _ = writeln!(text, "in {} steps of {} nodes", outcome.steps, plan.mix.voter_count);
    for number in &kept.faults {
        let _ = writeln!(text, "  fault {number}: {}", plan.faults[*number]);
    }
    let skip = outcome.lines.len().saturating_sub(TRACE_LINES);
    for line in &outcome.lines[skip..] {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text, "\nthe whole trace: {}", replay_command(seed, scale, &plan, &kept));
    text
}

fn replay_command(seed: u64, scale: Scale, plan: &Plan, kept: &Kept) -> String {
    let mut command = format!("SIM_SEED={seed}");
    if scale != SHORT {
        command += " SIM_SCALE=long";
    }
    if kept.faults.len() < plan.faults.len() {
        let numbers: Vec<String> = kept.faults.iter().map(ToString::to_string).collect();
        let _ = write!(command, " SIM_KEEP={}", numbers.join(","));
    }
    if !kept.off.is_empty() {
        let _ = write!(command, " SIM_OFF={}", kept.off.join(","));
    }
    command + " cargo test -p raft-core --test sim one_seed -- --nocapture"
}
