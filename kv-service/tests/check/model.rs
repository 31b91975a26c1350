//! The checker for models against the definition on small histories, and the shortest histories
//! of violations that are known.

use std::collections::VecDeque;

use kv_service::sim::linearizability::model::{
    Call, History, Model, Outcome, Recorder, STEPS, Verdict, Violation, check,
};
use kv_service::sim::seeds_to_run;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::example::{OneQueue, Operation};
use Operation::{Front, Pop, Push};

type QueueCall = Call<Operation, Option<u64>>;
type QueueViolation = Violation<Operation, Option<u64>>;

fn done(client: u64, operation: Operation, times: (u64, u64), output: Option<u64>) -> QueueCall {
    Call::new(client, operation, times, Outcome::Returned(output))
}

fn violation(calls: &[QueueCall]) -> QueueViolation {
    match check(&OneQueue, &calls.iter().cloned().collect(), STEPS) {
        Verdict::Violation(violation) => violation,
        other => panic!("a violation was missed: {other:?}"),
    }
}

/// The definition, tried out: every order of the calls.
fn has_order(jobs: &VecDeque<u64>, left: &[QueueCall]) -> bool {
    let is_answered = |call: &&QueueCall| matches!(call.outcome, Outcome::Returned(_));
    let Some(first_return) = left.iter().filter(is_answered).map(|call| call.returned_at).min()
    else {
        return true;
    };
    (0..left.len()).any(|at| {
        let call = &left[at];
        let output = match &call.outcome {
            Outcome::Returned(output) => Some(output),
            Outcome::NotExecuted => return false,
            Outcome::Unknown => None,
        };
        let mut others = left.to_vec();
        others.remove(at);
        call.called_at <= first_return
            && OneQueue
                .step(jobs, &call.operation, output)
                .is_some_and(|after| has_order(&after, &others))
    })
}

fn random_calls(rng: &mut StdRng) -> Vec<QueueCall> {
    let count = rng.random_range(1..=7);
    (0..count)
        .map(|at| {
            let operation = match rng.random_range(0..3) {
                0 => Push(at),
                1 => Pop,
                _ => Front,
            };
            let called_at = rng.random_range(0..20);
            let times = (called_at, called_at + rng.random_range(0..8));
            let outcome = match (rng.random_range(0..10), &operation) {
                (0, _) => Outcome::NotExecuted,
                (1 | 2, _) => Outcome::Unknown,
                (_, Push(job)) => Outcome::Returned(Some(*job)),
                _ if rng.random_bool(0.4) => Outcome::Returned(None),
                _ => Outcome::Returned(Some(rng.random_range(0..count))),
            };
            Call::new(at % 3, operation, times, outcome)
        })
        .collect()
}

#[test]
fn the_checker_agrees_with_the_definition_on_small_histories() {
    let (mut legal, mut illegal) = (0, 0);
    for seed in seeds_to_run(0..4_000) {
        let calls = random_calls(&mut StdRng::seed_from_u64(seed));
        let expected = has_order(&VecDeque::new(), &calls);
        match check(&OneQueue, &calls.iter().cloned().collect(), STEPS) {
            Verdict::Linearizable => assert!(expected, "seed {seed}: missed"),
            Verdict::Violation(violation) => {
                assert!(!expected, "seed {seed}: false alarm\n{violation}");
                assert!(!has_order(&VecDeque::new(), &violation.calls), "seed {seed}: {violation}");
                let last = violation.calls.len() - 1;
                assert!(violation.stuck.iter().all(|at| *at <= last), "seed {seed}: {violation}");
            }
            Verdict::Unknown => panic!("seed {seed}: so few calls need few steps"),
        }
        if expected { legal += 1 } else { illegal += 1 }
    }
    assert!(std::env::var_os("SEEDS").is_some() || legal > 500 && illegal > 500);
}

#[test]
fn a_stale_read_among_many_calls_is_shown_by_three() {
    let mut calls = Vec::new();
    for job in 0..20 {
        let at = 100 * job;
        calls.push(done(1, Push(job), (at, at + 10), Some(job)));
        calls.push(done(2, Front, (at + 5, at + 20), Some(job)));
        calls.push(done(3, Pop, (at + 30, at + 40), Some(job)));
    }
    calls.push(done(2, Front, (1_250, 1_260), Some(12)));
    calls.push(done(2, Front, (1_245, 1_247), Some(12)));
    let violation = violation(&calls);
    let shown: Vec<&Operation> = violation.calls.iter().map(|call| &call.operation).collect();
    assert_eq!(shown, [&Push(12), &Pop, &Front], "{violation}");
    assert_eq!((violation.call_count, violation.order.as_slice()), (62, [0, 1].as_slice()));
    assert_eq!((violation.state.as_str(), violation.stuck.as_slice()), ("[]", [2].as_slice()));
}

/// A job that was popped twice: the push stays, since without it the first pop were wrong as well.
#[test]
fn a_write_stays_with_the_reads_that_observed_it() {
    let violation = violation(&[
        done(1, Push(1), (0, 1), Some(1)),
        done(1, Push(2), (2, 3), Some(2)),
        done(1, Pop, (4, 5), Some(1)),
        done(2, Pop, (6, 7), Some(1)),
        done(2, Pop, (8, 9), Some(2)),
    ]);
    let shown: Vec<&Operation> = violation.calls.iter().map(|call| &call.operation).collect();
    assert_eq!(shown, [&Push(1), &Pop, &Pop], "{violation}");
}

#[test]
fn a_refused_call_that_had_an_effect_is_shown() {
    let violation = violation(&[
        done(1, Push(1), (0, 1), Some(1)),
        done(1, Pop, (2, 3), Some(1)),
        Call::new(2, Push(2), (4, 5), Outcome::NotExecuted),
        done(3, Front, (6, 7), Some(2)),
    ]);
    let shown: Vec<&Operation> = violation.calls.iter().map(|call| &call.operation).collect();
    assert_eq!(shown, [&Push(2), &Front], "{violation}");
}

#[test]
fn a_violation_is_drawn_for_each_client_in_time() {
    let violation = violation(&[
        done(1, Push(7), (0, 10), Some(7)),
        done(2, Front, (20, 30), None),
        Call::new(1, Pop, (40, 40), Outcome::Unknown),
    ]);
    let expected = "\
not linearizable, shown by 2 of 3 calls:

  client 1   #1  |--|              Push(7) -> Some(7)  [0, 10]
  client 2   #2         |---|      Front -> None  [20, 30]

the longest order from the start is #1; it leaves
    [7]
and by time only #2 can be next, which that state contradicts";
    assert_eq!(violation.to_string(), expected);
}

#[test]
fn an_unknown_call_may_take_effect_late_or_never() {
    let calls = |seen| {
        [
            Call::new(1, Push(1), (0, 1), Outcome::Unknown),
            done(2, Front, (10, 11), None),
            done(2, Front, (20, 21), seen),
        ]
    };
    for seen in [None, Some(1)] {
        check(&OneQueue, &calls(seen).into_iter().collect(), STEPS).assert_linearizable();
    }
    assert_eq!(violation(&calls(Some(2))).calls.len(), 1);
}

#[test]
#[should_panic(expected = "not known to be linearizable")]
fn a_search_without_steps_is_not_a_pass() {
    let calls = [done(1, Push(1), (0, 1), Some(1))];
    check(&OneQueue, &calls.into_iter().collect(), 0).assert_linearizable();
}

/// Counters by number, each a partition.
struct Counters;

impl Model for Counters {
    type State = u64;
    type Operation = u64;
    type Output = u64;

    fn initial(&self) -> u64 {
        0
    }

    fn step(&self, count: &u64, _counter: &u64, output: Option<&u64>) -> Option<u64> {
        let after = count + 1;
        output.is_none_or(|output| *output == after).then_some(after)
    }

    fn partition(&self, counter: &u64) -> u64 {
        *counter
    }
}

#[test]
fn partitions_are_checked_by_themselves() {
    let mut history = History::new();
    // Forty counters, each with calls of unknown outcome: too many for one search.
    for counter in 0..40 {
        for time in 0..3 {
            history.push(Call::new(1, counter, (time, time), Outcome::Unknown));
        }
        history.push(Call::new(2, counter, (10, 11), Outcome::Returned(1 + counter % 4)));
    }
    check(&Counters, &history, 1_000).assert_linearizable();
    history.push(Call::new(2, 7, (20, 21), Outcome::Returned(4)));
    let Verdict::Violation(violation) = check(&Counters, &history, 1_000) else { panic!("missed") };
    assert!(violation.calls.iter().all(|call| call.operation == 7), "{violation}");
}

#[test]
fn a_recorder_tells_which_call_returned_before_another_began() {
    let recorder = Recorder::new();
    recorder.call(1, "first").returned(1);
    recorder.call(2, "second").finish(Ok(2));
    drop(recorder.call(3, "third"));
    let calls = recorder.history();
    let [first, second, third] = calls.calls() else { panic!("{calls:?}") };
    assert!(first.returned_at < second.called_at && second.returned_at < third.called_at);
    assert_eq!(third.outcome, Outcome::Unknown);
}
