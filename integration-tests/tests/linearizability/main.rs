//! Tests of the checker itself: against the definition on small histories, on histories of a
//! correct store, and on those of stores with a bug that the responses prove.
//!
//! A failure names its seed; `SEEDS=17..18 cargo test -p integration-tests --test linearizability
//! <test>` runs just seed 17.

mod brute;
#[path = "../../../raft-core/tests/common/random.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with tests that use more of it")]
mod random;
mod small;
mod store;

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_service::sim::linearizability::{
    Applied, Call, History, Outcome, Request, Rule, STEPS_PER_KEY, Seen, Verdict, Written,
    assert_linearizable, assert_linearizable_with_log, check, check_with_log,
};
use kv_service::sim::seeds_to_run;

use crate::store::{Bug, Mix, Workload, run};

/// Returns true if all seeds are run, so that assertions about many of them hold.
pub(crate) fn runs_all_seeds() -> bool {
    std::env::var_os("SEEDS").is_none()
}

const MOST_KINDS: Mix = Mix { get: 40, append: 30, put: 12, delete: 6, swap: 12 };
const NO_SWAPS: Mix = Mix { get: 45, append: 50, put: 5, delete: 0, swap: 0 };
const APPENDS: Mix = Mix { get: 40, append: 60, put: 0, delete: 0, swap: 0 };

const BUSY: Workload = Workload {
    clients: 8,
    calls: 200,
    keys: 3,
    mix: MOST_KINDS,
    unknown_percent: 8,
    refused_percent: 5,
    unique: true,
    tell_versions: false,
    tell_revisions: false,
    span: 20,
};

/// Combinations of reported versions and reported revisions.
const TOLD: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

/// All combinations of reported numbers and of kinds of operations.
fn variants(workload: Workload) -> Vec<Workload> {
    let mut variants = Vec::new();
    for mix in [MOST_KINDS, NO_SWAPS, APPENDS] {
        for (tell_versions, tell_revisions) in TOLD {
            variants.push(Workload { mix, tell_versions, tell_revisions, ..workload });
        }
    }
    variants
}

#[test]
fn a_store_that_is_right_is_never_accused() {
    for workload in variants(BUSY) {
        for seed in seeds_to_run(0..60) {
            let run = run(&workload, Bug::None, seed);
            let verdict = check(&run.history(), STEPS_PER_KEY);
            assert_eq!(verdict, Verdict::Linearizable, "seed {seed}, {workload:?}");
            if workload.tell_revisions {
                let verdict = check_with_log(&run.history(), run.log);
                assert_eq!(verdict, Verdict::Linearizable, "seed {seed}, {workload:?}");
            }
        }
    }
}

/// Checks that the bug is found in every history whose responses prove it, in hundreds of them.
fn is_found(bug: Bug, workload: Workload, proven_min: usize) {
    let mut proven = 0;
    for workload in variants(workload) {
        for seed in seeds_to_run(0..300) {
            let run = run(&workload, bug, seed);
            if !run.proven {
                continue;
            }
            proven += 1;
            let verdict = check(&run.history(), STEPS_PER_KEY);
            assert!(
                matches!(verdict, Verdict::Violation(_)),
                "seed {seed}: {bug:?} was missed: {verdict:?}, {workload:?}"
            );
            if workload.tell_revisions {
                let verdict = check_with_log(&run.history(), run.log);
                assert!(
                    matches!(verdict, Verdict::Violation(_)),
                    "seed {seed}: {bug:?} was missed with the log: {verdict:?}, {workload:?}"
                );
            }
        }
    }
    assert!(
        !runs_all_seeds() || proven >= proven_min,
        "{bug:?} was proven by {proven} histories only"
    );
}

#[test]
fn a_lost_write_is_found() {
    is_found(Bug::Lost, BUSY, 500);
}

#[test]
fn a_stale_read_is_found() {
    is_found(Bug::Stale, BUSY, 500);
}

#[test]
fn a_duplicated_write_is_found() {
    is_found(Bug::Duplicated, BUSY, 500);
}

#[test]
fn reordered_writes_are_found() {
    is_found(Bug::Reordered, BUSY, 500);
}

/// Adds a write, never executed, that makes values ambiguous: the values alone prove nothing, and
/// the search has to decide without knowing where writes belong.
fn ambiguous(run: &store::Run) -> History {
    let mut history = run.history();
    let keys: BTreeSet<Bytes> = run.calls.iter().map(|call| call.key().clone()).collect();
    for key in keys {
        history.push(call(99, Request::append(key, ""), (0, 0), Outcome::NotExecuted));
    }
    history
}

#[test]
fn the_search_alone_finds_the_bugs_as_well() {
    let workload = Workload { calls: 120, unknown_percent: 4, mix: NO_SWAPS, ..BUSY };
    for bug in [Bug::None, Bug::Lost, Bug::Stale, Bug::Duplicated, Bug::Reordered] {
        let mut proven = 0;
        for seed in seeds_to_run(0..100) {
            let run = run(&workload, bug, seed);
            let verdict = check(&ambiguous(&run), STEPS_PER_KEY);
            let expected = match bug {
                Bug::None => verdict == Verdict::Linearizable,
                _ => !run.proven || matches!(verdict, Verdict::Violation(_)),
            };
            assert!(expected, "seed {seed}, {bug:?}: {verdict:?}");
            proven += usize::from(run.proven);
        }
        assert!(!runs_all_seeds() || bug == Bug::None || proven >= 30, "{bug:?}: {proven} proven");
    }
}

/// The shape of large runs of real clusters. Steps bound the time on every machine.
#[test]
fn large_histories_are_decided_in_few_steps() {
    let large = Workload {
        clients: 50,
        calls: 20_000,
        keys: 10,
        mix: NO_SWAPS,
        unknown_percent: 5,
        refused_percent: 0,
        span: 1_000,
        ..BUSY
    };
    // Deletes and swaps of unknown outcome leave more possibilities, so each key gets fewer calls.
    let of_most_kinds = Workload { keys: 40, mix: MOST_KINDS, ..large };
    for workload in [large, of_most_kinds] {
        for (tell_versions, tell_revisions) in TOLD {
            let workload = Workload { tell_versions, tell_revisions, ..workload };
            let run = run(&workload, Bug::None, 1);
            let verdict = check(&run.history(), 300_000);
            assert_eq!(verdict, Verdict::Linearizable, "{workload:?}");
        }
    }
}

#[test]
fn one_crowded_key_is_decided() {
    let workload = Workload {
        clients: 15,
        calls: 5_000,
        keys: 1,
        mix: NO_SWAPS,
        unknown_percent: 5,
        span: 1_000,
        ..BUSY
    };
    for (tell_versions, tell_revisions) in TOLD {
        let workload = Workload { tell_versions, tell_revisions, ..workload };
        for seed in seeds_to_run(0..3) {
            let run = run(&workload, Bug::None, seed);
            let verdict = check(&run.history(), STEPS_PER_KEY);
            assert_eq!(verdict, Verdict::Linearizable, "seed {seed}, {workload:?}");
        }
    }
}

fn call(client: u64, request: Request, times: (u64, u64), outcome: Outcome) -> Call {
    Call::new(client, request, times, outcome)
}

fn done(client: u64, request: Request, times: (u64, u64)) -> Call {
    call(client, request, times, Outcome::Written(Written::default()))
}

fn done_at(client: u64, request: Request, times: (u64, u64), revision: u64) -> Call {
    let written = Written { revision: Some(revision), ..Written::default() };
    call(client, request, times, Outcome::Written(written))
}

fn got(client: u64, key: &'static str, times: (u64, u64), value: Option<&'static str>) -> Call {
    let seen = Seen { value: value.map(Into::into), ..Seen::default() };
    call(client, Request::get(key), times, Outcome::Got(seen))
}

fn rule(calls: &[Call]) -> Rule {
    match check(&calls.iter().cloned().collect(), STEPS_PER_KEY) {
        Verdict::Violation(violation) => violation.rule,
        other => panic!("a violation was missed: {other:?}"),
    }
}

#[test]
fn what_is_wrong_at_sight_is_named() {
    let put = || done(1, Request::put("k", "a;"), (1, 2));
    let append = || done(1, Request::append("k", "b;"), (3, 4));
    let refused = call(2, Request::append("k", "c;"), (1, 2), Outcome::NotExecuted);
    assert_eq!(rule(&[put(), got(2, "k", (3, 4), Some("x;"))]), Rule::Phantom);
    assert_eq!(rule(&[got(2, "k", (0, 0), Some("a;")), put()]), Rule::Phantom);
    assert_eq!(rule(&[put(), refused, got(2, "k", (3, 4), Some("a;c;"))]), Rule::Refused);
    assert_eq!(rule(&[put(), append(), got(2, "k", (3, 9), Some("a;b;b;"))]), Rule::Duplicated);
    assert_eq!(rule(&[put(), append(), got(2, "k", (5, 6), Some("a;"))]), Rule::Lost);
    let replaced = done(3, Request::put("k", "c;"), (3, 4));
    assert_eq!(rule(&[put(), replaced, got(2, "k", (5, 6), Some("a;"))]), Rule::Stale);
    let back =
        [put(), append(), got(2, "k", (3, 4), Some("a;b;")), got(3, "k", (5, 6), Some("a;"))];
    assert_eq!(rule(&back), Rule::Stale);
    let falling = [
        done_at(1, Request::put("k", "a;"), (1, 2), 7),
        done_at(1, Request::put("l", "b;"), (3, 4), 6),
    ];
    assert_eq!(rule(&falling), Rule::Stale);
    let twice = [
        done_at(1, Request::put("k", "a;"), (1, 2), 7),
        done_at(1, Request::put("l", "b;"), (3, 4), 7),
    ];
    assert_eq!(rule(&twice), Rule::Order);
}

#[test]
fn intervals_that_touch_overlap() {
    let read_before = got(2, "k", (2, 3), None);
    let put = done(1, Request::put("k", "a;"), (1, 2));
    assert_linearizable(&[put.clone(), read_before].into_iter().collect());
    assert_eq!(rule(&[put, got(2, "k", (3, 4), None)]), Rule::NoOrder);
}

#[test]
fn a_report_names_the_key_and_the_answer_without_explanation() {
    let mut calls: Vec<Call> = (0..20)
        .map(|at| done(1, Request::append("k", format!("{at};")), (10 * at, 10 * at + 5)))
        .collect();
    calls.push(got(2, "k", (300, 310), None));
    calls.push(done(3, Request::delete("other"), (300, 310)));
    let verdict = check(&calls.iter().cloned().collect(), STEPS_PER_KEY);
    let Verdict::Violation(violation) = verdict else { panic!("missed: {verdict:?}") };
    assert_eq!((violation.rule, violation.key.as_ref()), (Rule::NoOrder, b"k".as_slice()));
    assert_eq!(violation.calls[0], calls[20]);
    assert!(violation.calls.len() <= 13, "an excerpt: {violation}");
    assert!(
        violation.to_string().contains("[300, 310] client 2: get(k) -> nothing"),
        "{violation}"
    );
}

#[test]
fn a_search_without_steps_is_not_a_pass() {
    let calls = [done(1, Request::put("k", "a;"), (1, 2)), got(1, "k", (3, 4), Some("a;"))];
    let history: History = calls.into_iter().collect();
    assert!(matches!(check(&history, 1), Verdict::Unknown(_)));
    assert_linearizable(&history);
}

#[test]
#[should_panic(expected = "nothing succeeded")]
fn a_history_in_which_nothing_succeeded_is_not_a_pass() {
    let unknown = call(1, Request::put("k", "a;"), (1, 2), Outcome::Unknown);
    assert_linearizable(&[unknown].into_iter().collect());
}

#[test]
#[should_panic(expected = "not linearizable")]
fn a_violation_is_not_a_pass() {
    let calls = [done(1, Request::put("k", "a;"), (1, 2)), got(1, "k", (3, 4), None)];
    assert_linearizable(&calls.into_iter().collect());
}

/// The log of a put, an append of unknown outcome and a read that did not observe it.
fn with_log(read: Call, log: &[(u64, Request)]) -> Verdict {
    let put = done_at(1, Request::put("k", "a;"), (1, 2), 5);
    let append = call(2, Request::append("k", "b;"), (3, 4), Outcome::Unknown);
    let refused = call(3, Request::append("k", "c;"), (3, 4), Outcome::NotExecuted);
    let log = log.iter().map(|(revision, request)| match request {
        Request::Write(operation) => Applied { revision: *revision, operation: operation.clone() },
        Request::Get { .. } => panic!("a read is not in the log"),
    });
    check_with_log(&[put, append, refused, read].into_iter().collect(), log)
}

#[test]
fn the_log_tells_what_became_of_unknown_outcomes() {
    let read = || got(4, "k", (5, 6), Some("a;"));
    let (put, append) = (Request::put("k", "a;"), Request::append("k", "b;"));
    let rule = |verdict| match verdict {
        Verdict::Violation(violation) => Some(violation.rule),
        Verdict::Linearizable => None,
        Verdict::Unknown(why) => panic!("{why}"),
    };
    let judge = |log: &[(u64, &Request)]| {
        let log: Vec<_> = log.iter().map(|(at, request)| (*at, (*request).clone())).collect();
        rule(with_log(read(), &log))
    };
    assert_eq!(judge(&[(5, &put)]), None);
    assert_eq!(judge(&[(5, &put), (6, &append)]), None, "the append came after the read");
    assert_eq!(judge(&[(3, &append), (5, &put)]), Some(Rule::Stale), "it was called later");
    assert_eq!(judge(&[]), Some(Rule::Lost));
    assert_eq!(judge(&[(4, &put), (5, &append)]), Some(Rule::Duplicated));
    assert_eq!(judge(&[(5, &put), (6, &append), (7, &append)]), Some(Rule::Duplicated));
    assert_eq!(judge(&[(5, &put), (6, &Request::append("k", "c;"))]), Some(Rule::Refused));
    assert_eq!(judge(&[(5, &put), (6, &Request::append("k", "d;"))]), Some(Rule::Phantom));

    // The index at which a read was served comes from a node, not from the client.
    let served = |served_at| {
        let mut read = read();
        let Outcome::Got(seen) = &mut read.outcome else { unreachable!("it is a read") };
        seen.served_at = Some(served_at);
        rule(with_log(read, &[(5, put.clone()), (6, append.clone())]))
    };
    assert_eq!(served(5), None);
    assert_eq!(served(6), Some(Rule::Stale));
    assert_eq!(served(4), Some(Rule::Stale));
}

#[test]
fn the_log_of_a_store_that_is_right_is_a_witness() {
    let workload = Workload { tell_versions: true, tell_revisions: true, ..BUSY };
    for seed in seeds_to_run(100..120) {
        let run = run(&workload, Bug::None, seed);
        assert_linearizable_with_log(&run.history(), run.log);
    }
}
