//! Finds the place to look at when no order explains the responses of a key.
//!
//! The responses up to some time are a history of their own, in which every call still under way
//! has an unknown outcome. Later responses repair nothing, so the first response without an
//! explanation is found by bisection. The report names it, the value at the end of the best
//! attempt, and the calls that could not be placed after that.

use super::chains::Chains;
use super::history::{Call, Outcome, quoted};
use super::live::Value;
use super::problem::Problem;
use super::search::{Found, Furthest, Search};
use super::verdict::{Rule, Violation};

/// Most calls in a report that lead to where the search got stuck, and most calls that it could not
/// place.
const LED_THERE_MAX: usize = 4;
const STUCK_MAX: usize = 8;

/// `calls` are those of one key, and have no order.
pub(super) fn no_order(calls: &[&Call], budget_steps: u64) -> Violation {
    let mut answers: Vec<u64> =
        calls.iter().filter(|call| call.is_ok()).map(|call| call.returned_at).collect();
    answers.sort_unstable();
    answers.dedup();
    let without_order = |time: u64| {
        let known = known_at(calls, time);
        search(&known, budget_steps).0 == Found::NoOrder
    };
    // The last response has no explanation, since the whole history has none. A part for which the
    // steps do not suffice is taken to have one; the excerpt is then longer.
    let first = answers.partition_point(|time| !without_order(*time));
    let time = answers[first.min(answers.len() - 1)];
    let known = known_at(calls, time);
    let (_, furthest, value) = search(&known, budget_steps);
    tell(&known, time, &furthest, &value)
}

/// The calls that had begun by `time`, with the outcomes known by then.
fn known_at(calls: &[&Call], time: u64) -> Vec<Call> {
    let begun = calls.iter().filter(|call| call.called_at <= time);
    begun
        .map(|call| {
            let mut call = (*call).clone();
            if call.is_ok() && call.returned_at > time {
                call.outcome = Outcome::Unknown;
            }
            call
        })
        .collect()
}

/// Runs the search; returns its verdict, how far it came, and the value that it had reached.
fn search(calls: &[Call], budget_steps: u64) -> (Found, Vec<Call>, String) {
    let calls: Vec<&Call> = calls.iter().collect();
    let Ok(chains) = Chains::of(&calls) else {
        return (Found::NoOrder, Vec::new(), "a value that contradicts others".to_owned());
    };
    let problem = Problem::new(&calls, chains.as_ref());
    let (found, Furthest { order, state }) = Search::new(&problem, budget_steps).run_and_tell();
    let value = match state.value {
        Value::Missing => "nothing".to_owned(),
        Value::Dead => "a value that no call saw".to_owned(),
        Value::Live { first, len, .. } => quoted(problem.live.bytes(first, len)),
    };
    let placed = order.iter().map(|id| problem.items[*id].call.clone()).collect();
    (found, placed, value)
}

fn tell(known: &[Call], time: u64, placed: &[Call], value: &str) -> Violation {
    let answers = known.iter().filter(|call| call.is_ok());
    let last: Vec<&Call> = answers.filter(|call| call.returned_at == time).collect();
    let stuck = known.iter().filter(|call| call.is_ok() && !placed.contains(call));
    let led_there = &placed[placed.len().saturating_sub(LED_THERE_MAX)..];
    let story = format!(
        "no order of the operations explains all answers up to the time {time}, that of the first \
         call below. The longest order found ends with the next {} calls and leaves {value}; none of \
         the calls after these can follow",
        led_there.len(),
    );
    let stuck = stuck.filter(|call| call.returned_at != time).take(STUCK_MAX);
    Violation::new(Rule::NoOrder, story, last.into_iter().take(1).chain(led_there).chain(stuck))
}
