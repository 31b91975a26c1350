//! The condition for all other tests: a seed determines a run. Every message, every applied entry
//! and every fault is in the trace, with its time.

use kv_service::sim::{Digest, run};

use super::harness::{Lab, Links, Setup, nodes};
use super::{compaction, persistence};

/// Runs a test with many faults, and reduces its trace to a digest.
fn trace(setup: Setup, seed: u64, test: impl AsyncFn(&mut Lab)) -> Digest {
    run(seed, async |seed| {
        let mut lab = Lab::new(seed, setup).await;
        test(&mut lab).await;
        lab.end().await;
        lab.cluster.trace.digest()
    })
}

fn assert_repeats(setup: Setup, test: impl AsyncFn(&mut Lab)) {
    let first = trace(setup, 1, &test);
    assert!(first.event_count > 2_000, "something happens: {first:?}");
    assert_eq!(first, trace(setup, 1, &test), "the same seed gave another run");
    assert_ne!(first, trace(setup, 2, &test), "another seed gave the same run");
}

#[test]
fn crashes_repeat() {
    assert_repeats(nodes(5), persistence::leaders_crash);
}

#[test]
fn cuts_and_late_answers_repeat() {
    assert_repeats(nodes(5).with(Links::Unreliable), persistence::leaders_are_cut_off);
}

#[test]
fn concurrent_clients_repeat() {
    assert_repeats(nodes(5).with(Links::Unreliable), persistence::churn);
}

#[test]
fn snapshots_repeat() {
    assert_repeats(compaction::UNRELIABLE, compaction::install_unreliable);
}
