//! The simulator of the core: nodes are values, network, disks and clocks are data, and one seed
//! decides everything.
//!
//! A run follows a [`plan`]: a mix of probabilities and limits, and a schedule of faults. In its
//! hostile part messages are lost, repeated, delayed and reordered, links are cut in nine patterns,
//! nodes crash between any two effects and lose unwritten batches, disks are slow or hang,
//! processes pause, and clocks run wrong; meanwhile clients propose, read and transfer leadership,
//! and in a third of the runs operators change the members ([`changes`]). Then all faults end, or
//! those of a majority do, and the cluster must recover. After every step the node that changed is
//! checked against the invariants listed in [`oracle`], [`watch`] and [`members`].
//!
//! | | |
//! |---|---|
//! | `SIM_SEEDS=20000` | more fixed seeds than 2,000, and than 300 of each [`profile`] |
//! | `SIM_SECONDS=60` | fresh seeds for as long (none otherwise); `SIM_FIRST` is the first one |
//! | `SIM_SCALE=long` | longer runs |
//! | `SIM_SEED=17` | the trace of one run, by the test `one_seed` |
//! | `SIM_KEEP=0,3` `SIM_OFF=loss,skew` | that run with only these faults, without these chances |
//! | `SIM_THREADS=1` | concurrent runs; by default one for each core |
//!
//! A failing run is shrunk first, and the command that replays it is printed.

// A test binary: nothing in it is reachable from outside.
#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod chain;
mod changes;
mod clock;
mod coverage;
mod disk;
mod effects;
mod fault;
mod machines;
mod members;
mod nemesis;
mod network;
mod node;
mod oracle;
mod plan;
mod profile;
mod recovery;
mod resends;
mod run;
mod shrink;
mod simulation;
mod snapshots;
mod trace;
mod watch;
mod workload;

use std::env;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use coverage::What;
use plan::{KNOBS, LONG, Plan, SHORT, Scale};
use profile::{PROFILES, Profile};
use run::{run_quietly, run_recording, run_seeds, threads};
use shrink::Kept;

const FIXED_SEEDS: u64 = 2_000;
/// Fixed seeds of each profile.
const PROFILE_SEEDS: u64 = 300;

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

fn scale() -> Scale {
    match env::var("SIM_SCALE").as_deref() {
        Ok("long") => LONG,
        Ok("short") | Err(_) => SHORT,
        Ok(other) => panic!("SIM_SCALE is long or short, not {other}"),
    }
}

#[allow(clippy::disallowed_methods, reason = "how long to go on is not part of a run")]
fn now() -> Instant {
    Instant::now()
}

/// The fixed seeds of every test run. A fault that never occurs finds no bugs, so faults are
/// counted.
#[test]
fn fixed_seeds() {
    let count = setting("SIM_SEEDS").unwrap_or(FIXED_SEEDS);
    let since = now();
    let coverage = run_seeds(0, scale(), |seed| seed < count);
    report(&coverage, since.elapsed());
    if count >= FIXED_SEEDS {
        coverage.check();
    }
}

/// T3. The fixed seeds of each profile.
#[test]
fn fixed_seeds_of_profiles() {
    let count = setting("SIM_SEEDS").unwrap_or(PROFILE_SEEDS);
    for profile in PROFILES {
        let (first, since) = (profile.first_seed(), now());
        let coverage = run_seeds(first, scale(), |seed| seed - first < count);
        let steps = coverage.of(What::Step);
        println!("{profile:?}: {count} runs, {steps} steps in {:.1?}", since.elapsed());
        if count >= PROFILE_SEEDS {
            check_profile(profile, &coverage);
        }
    }
}

/// A profile that does not cause the events it is meant for finds no bugs.
fn check_profile(profile: Profile, coverage: &coverage::Coverage) {
    let needed: &[(What, u64)] = match profile {
        Profile::Uniform => &[],
        Profile::LostDiskStaleLeader => &[(What::LostDisk, 100), (What::Recovered, 100)],
        Profile::NoPreVoteSlowDisks => &[(What::Hang, 100), (What::LostDisk, 30)],
        Profile::SnapshotsTruncation => &[(What::Truncation, 50), (What::Install, 100)],
        Profile::TransferLostDisk => &[(What::ElectionByTransfer, 30), (What::LostDisk, 50)],
        Profile::RecoveryPartition => &[(What::LostDisk, 50), (What::Recovered, 50)],
        Profile::Founding => &[(What::LostDisk, 30), (What::Recovery, PROFILE_SEEDS)],
        Profile::HungDiskReads => &[(What::Hang, 60), (What::ReadConfirmed, 3_000)],
        Profile::ChangesPartition => &[(What::JointLeft, 100), (What::LeaderLeft, 30)],
        Profile::ChangesLostDisk => &[(What::JointLeft, 100), (What::LostDisk, 30)],
        Profile::OldDisks => &[(What::OldDisk, 30), (What::Recovered, 50)],
    };
    for (what, least) in needed {
        let count = coverage.of(*what);
        assert!(count >= *least, "{profile:?}: {what:?} {count} times, not {least}");
    }
}

/// Seeds that found a bug, and the bug. A change in what a seed draws turns them into other runs;
/// each bug has a test of its own as well.
const FINDINGS: [(u64, &str); 12] = [
    (623820283681, "the refusal of an old vote request was taken for the answer to a newer one"),
    (1012012784633, "entries were sent to a full log with each heartbeat"),
    (183566491209, "entries were sent to a full log with each heartbeat"),
    (
        129252440468,
        "the late word of a node that stays cut off was taken for a storm; a mistake of the check",
    ),
    (381047447987, "a node spoke as recovered before that was on its disk"),
    (
        671492126517,
        "a leader that was paused and stays cut off was taken for a storm; a mistake of the check",
    ),
    (
        83460885750,
        "what was acknowledged from a disk that was lost before it had recovered was not expected; a \
         mistake of the check",
    ),
    (15191, "an acknowledgement below a probe's guess made the leader send on from the guess"),
    (
        454613475785,
        "what a node is sent that lost its disk was taken for a storm; a mistake of the check",
    ),
    (
        862251213874,
        "a vote for itself, which went with the disk, was taken for one that may still elect; a mistake \
         of the check, and a case that the argument of `recovery` left out",
    ),
    (
        267385134105,
        "a leader that lost its disk was elected once more in its own term, by votes for its earlier life",
    ),
    (
        980167590884,
        "140 entries that a slow disk had not taken yet were not expected to take time; a mistake of the \
         check",
    ),
];

/// The same, found since members change.
const FINDINGS_OF_CHANGES: [(u64, &str); 11] = [
    (
        576460752313611735,
        "a candidate that received nothing, and was no longer a voter, asked again without end",
    ),
    (
        648518346346066785,
        "a node that joined wrote snapshots without members, and took none of the leader meanwhile",
    ),
    (821157546241, "a leader that was removed led on whenever its log had just been compacted"),
    (
        565751653344,
        "the rounds for reads of a node that is half cut off were not expected; a mistake of the check",
    ),
    (
        1055967162571,
        "a learner with entries of its own refused each candidate that needed its vote, and did not \
         campaign",
    ),
    (15, "an append that came late brought the members of the operators' files, and was refused"),
    (
        288230376151713664,
        "a configuration was compared with one that was to be replaced, before the logs agreed",
    ),
    (
        648518346346355700,
        "a disk was lost while the last copy of a configuration was in flight; a mistake of the check",
    ),
    (
        7009264,
        "a snapshot that took longer than a leader waits was taken for a storm; a mistake of the check",
    ),
    (971, "a snapshot that was offered late brought earlier members, and was refused"),
    (
        144115188075855891,
        "while joint, a majority that needed the voters that leave was reported as lost",
    ),
];

/// The same, in longer runs.
const LONG_FINDINGS: [(u64, &str); 1] = [(
    144125083680506032,
    "a candidate took a snapshot of an earlier leader, was no voter any more, and went on",
)];

#[test]
fn seeds_that_found_something() {
    for (seed, finding) in FINDINGS {
        let mut plan = Plan::draw(seed, SHORT);
        // They were found before members changed.
        plan.mix.switch_off("changes");
        must_pass(seed, plan, finding);
    }
    for (seed, finding) in FINDINGS_OF_CHANGES {
        must_pass(seed, Plan::draw(seed, SHORT), finding);
    }
    for (seed, finding) in LONG_FINDINGS {
        must_pass(seed, Plan::draw(seed, LONG), finding);
    }
}

fn must_pass(seed: u64, plan: Plan, finding: &str) {
    if let Some(failure) = run_recording(plan).failure {
        panic!("seed {seed} again ({finding}?): {} ({})", failure.message, failure.place);
    }
}

/// Runs fresh seeds, if `SIM_SECONDS` is set: `scripts/soak`, and a minute of them in CI.
#[test]
fn fresh_seeds() {
    let Some(seconds) = setting("SIM_SECONDS").filter(|seconds| *seconds > 0) else {
        println!("NOT RUN: no SIM_SECONDS");
        return;
    };
    let first =
        setting("SIM_FIRST").unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 24);
    println!("seeds from {first} on, for {seconds} seconds");
    let since = now();
    let coverage = run_seeds(first, scale(), |_| since.elapsed() < Duration::from_secs(seconds));
    report(&coverage, since.elapsed());
    for profile in PROFILES {
        // A tenth of the time for each profile; its seeds differ from its fixed ones.
        let (first, since) = (profile.first_seed() + (first >> 16), now());
        let limit = Duration::from_millis(100 * seconds);
        let coverage = run_seeds(first, scale(), |_| since.elapsed() < limit);
        println!("{profile:?}: {} runs from seed {first}", coverage.of(What::Recovery));
    }
    assert!(coverage.of(What::Recovery) > 0, "not a single run in {seconds} seconds");
}

fn report(coverage: &coverage::Coverage, took: Duration) {
    let steps = coverage.of(What::Step);
    println!("{}", coverage.table());
    let per_second = steps as f64 / took.as_secs_f64();
    println!(
        "{} runs, {steps} steps in {took:.1?}: {per_second:.0} steps per second on {} threads",
        coverage.of(What::Recovery),
        threads()
    );
}

/// Runs one seed and records its trace. Recording does not change the run.
#[test]
fn one_seed() {
    let seed = setting("SIM_SEED");
    let plan = Plan::draw(seed.unwrap_or(1), scale());
    let mut kept = Kept::all(&plan);
    if let Ok(faults) = env::var("SIM_KEEP") {
        let numbers = faults.split(',').filter(|number| !number.is_empty());
        kept.faults = numbers.map(|number| number.parse().expect("a number")).collect();
    }
    if let Ok(off) = env::var("SIM_OFF") {
        kept.off = KNOBS.into_iter().filter(|knob| off.split(',').any(|o| o == *knob)).collect();
    }
    let plan = kept.of(&plan);
    let outcome = run_recording(plan.clone());
    if seed.is_some() {
        println!("{plan:#?}");
        outcome.lines.iter().for_each(|line| println!("{line}"));
        println!("{} steps, trace {:016x}", outcome.steps, outcome.hash);
    }
    assert!(outcome.failure.is_some() || outcome.lines.len() > 100, "a run has something to tell");
    assert_eq!(run_quietly(plan).hash, outcome.hash, "telling a run changes it");
    if let Some(failure) = outcome.failure {
        panic!("{} ({})", failure.message, failure.place);
    }
}

/// V27: two runs of one seed are identical.
#[test]
fn a_seed_is_a_run() {
    let count = 40;
    let hashes = |seed| {
        let hash = || run_quietly(Plan::draw(seed, SHORT)).hash;
        (hash(), hash())
    };
    let runs: Vec<(u64, u64)> = (0..count).map(hashes).collect();
    for (seed, (once, again)) in runs.iter().enumerate() {
        assert_eq!(once, again, "seed {seed} is not one run");
    }
    let mut different: Vec<u64> = runs.iter().map(|(hash, _)| *hash).collect();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len() as u64, count, "each seed is another run");
}
