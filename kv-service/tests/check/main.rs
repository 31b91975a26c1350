//! Tests of the checker for models: the example with and without its bug, and the checker itself
//! against the definition.

#[path = "../../examples/check.rs"]
#[allow(dead_code, reason = "the example has a `main` of its own")]
mod example;
mod model;

use kv_service::sim::run;

use crate::example::{report, scenario};

/// Seeds within which the bug must show. On the code of this version every second one shows it.
const SEED_COUNT: u64 = 10;

#[test]
fn the_bug_is_found_and_its_seed_replays_it() {
    let report = (0..SEED_COUNT).find_map(|seed| report(seed, true)).expect("the bug shows");
    assert!(report.contains("not linearizable, shown by"), "{report}");
    let command = report.lines().last().expect("a report has lines").trim();
    let start = "cargo run -p kv-service --features sim --example check -- --bug --seed ";
    let seed = command.strip_prefix(start).expect("the last line replays the seed");
    let seed: u64 = seed.parse().expect("a seed is a number");
    let [once, again] = [(); 2].map(|()| run(seed, async |seed| scenario(seed, true).await));
    assert_eq!(once, again, "a seed is a history");
    assert_eq!(example::report(seed, true).as_ref(), Some(&report), "and a report");
}

#[test]
fn without_the_bug_the_same_seeds_pass() {
    for seed in 0..SEED_COUNT {
        assert_eq!(report(seed, false), None, "seed {seed}");
    }
}
