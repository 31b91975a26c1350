//! The checker of linearizability: that of the store here, and one for a state machine of your own
//! in [`model`].
//!
//! Checks that the store behaved as one copy that executes one operation at a time, each between
//! its call and its return: linearizability (Herlihy and Wing), decided from the responses that
//! clients received and from nothing else.
//!
//! A harness records a [`History`] and gives it to [`assert_linearizable`]. A harness that has the
//! log that the nodes applied gives that as well, to [`assert_linearizable_with_log`]: then nothing
//! is left to search, and it is also checked that each write is in the log once, and that nothing
//! else is.
//!
//! | step | what it decides | cost |
//! |---|---|---|
//! | oracles | phantom, lost, duplicated, stale values; falling versions, revisions | O(n log n) |
//! | witness | responses that carry revisions: replays the order of the log. Exact | O(n log n) |
//! | search | per key: an order for all responses (Wing and Gong, Lowe). Exact | steps, bounded |
//!
//! An order must also agree with the reported revisions, since the store claims that its log is the
//! order; so revisions alone can put a history in violation. The search handles one key at a time,
//! which is enough: linearizability is local. The witness of a log is one order of all keys.
//!
//! [`Verdict::Unknown`] is not a pass. Rules that keep histories decidable: values unique per key
//! and none a prefix of another (end each with a separator), so that each value tells which call
//! wrote it; some reads; few unknown outcomes; keys that change once in a while. Other histories
//! are decided too, if the steps suffice.
//!
//! ```
//! use kv_service::sim::linearizability::{Call, History, Rule, STEPS_PER_KEY, Verdict, check};
//! use kv_service::sim::{Service, run};
//! use kv_service::Operation;
//! use tokio::time::Instant;
//!
//! let history = run(1, async |seed| {
//!     let service = Service::new(seed, 3).await;
//!     let client = service.client(1);
//!     let start = Instant::now();
//!     let now = || start.elapsed().as_micros() as u64;
//!     let mut history = History::new();
//!
//!     let operation = Operation::Put { key: "k".into(), value: "a;".into() };
//!     let called_at = now();
//!     let response = client.write(operation.clone()).await;
//!     history.push(Call::of_write(1, operation, (called_at, now()), &response));
//!
//!     let called_at = now();
//!     let response = client.get("k").await;
//!     history.push(Call::of_get(1, "k", (called_at, now()), &response));
//!     history
//! });
//! assert_eq!(check(&history, STEPS_PER_KEY), Verdict::Linearizable);
//!
//! // A read that began later and did not see the key.
//! let mut history = history;
//! history.push(Call::of_get(2, "k", (u64::MAX - 1, u64::MAX), &Ok(None)));
//! let Verdict::Violation(violation) = check(&history, STEPS_PER_KEY) else { panic!("missed") };
//! assert_eq!(violation.rule, Rule::Stale, "{violation}");
//! ```

mod chains;
mod explain;
mod history;
mod live;
pub mod model;
mod oracles;
mod pending;
mod problem;
mod search;
mod verdict;
mod witness;

use self::chains::Chains;
use self::history::text;
pub use self::history::{Call, History, Outcome, Request, Seen, Written};
use self::problem::Problem;
use self::search::{Found, Search};
pub use self::verdict::{Rule, Verdict, Violation};
pub use self::witness::Applied;

/// Steps that [`assert_linearizable`] allows for each key: about a second, and tens of megabytes.
pub const STEPS_PER_KEY: u64 = 20_000_000;

/// Decides the history; `budget_steps` bounds the search of each key. The same history has the same
/// verdict on every machine.
pub fn check(history: &History, budget_steps: u64) -> Verdict {
    if let Err(violation) = oracles::check_revisions(history) {
        return Verdict::Violation(violation);
    }
    let mut undecided = Vec::new();
    for (key, calls) in history.by_key() {
        match check_key(&calls, budget_steps) {
            Ok(true) => {}
            Ok(false) => undecided.push(text(key)),
            Err(violation) => return Verdict::Violation(violation),
        }
    }
    if undecided.is_empty() {
        return Verdict::Linearizable;
    }
    let keys = undecided.join(", ");
    Verdict::Unknown(format!("{budget_steps} steps did not suffice for the keys: {keys}"))
}

/// Decides the history like [`check`], but by the log. `log` holds every write that was applied,
/// with or without effect, each at its revision, up to everything that the history reports. A
/// response that the session table repeats is not applied again, and not in this log.
pub fn check_with_log(history: &History, log: impl IntoIterator<Item = Applied>) -> Verdict {
    let at_sight = || -> Result<(), Violation> {
        oracles::check_revisions(history)?;
        for calls in history.by_key().values() {
            oracles::check_key(calls, Chains::of(calls)?.as_ref())?;
        }
        Ok(())
    };
    match at_sight() {
        Ok(()) => witness::check_log(history, log.into_iter().collect()),
        Err(violation) => Verdict::Violation(violation),
    }
}

/// Decides the history in [`STEPS_PER_KEY`], and fails unless it is linearizable.
///
/// # Panics
/// With a report, if the history is not linearizable, if that could not be decided, or if no call
/// in it succeeded, since such a history proves nothing.
#[track_caller]
pub fn assert_linearizable(history: &History) {
    assert_passed(history, check(history, STEPS_PER_KEY));
}

/// Decides the history by the log, and fails unless it is linearizable.
///
/// # Panics
/// Under the conditions of [`assert_linearizable`].
#[track_caller]
pub fn assert_linearizable_with_log(history: &History, log: impl IntoIterator<Item = Applied>) {
    assert_passed(history, check_with_log(history, log));
}

#[track_caller]
fn assert_passed(history: &History, verdict: Verdict) {
    let done = history.calls().iter().filter(|call| call.is_ok()).count();
    match verdict {
        Verdict::Linearizable => assert!(done > 0, "nothing succeeded: this proves nothing"),
        Verdict::Violation(violation) => panic!("not linearizable. {violation}"),
        Verdict::Unknown(why) => panic!("not known to be linearizable: {why}"),
    }
}

/// Returns true if the calls of one key have an order, and false if the steps did not suffice to
/// decide.
fn check_key(calls: &[&Call], budget_steps: u64) -> Result<bool, Violation> {
    let chains = Chains::of(calls)?;
    oracles::check_key(calls, chains.as_ref())?;
    match witness::check_key(calls) {
        Some(Ok(())) => return Ok(true),
        // Writes of unknown outcome may explain the contradiction.
        Some(Err(violation)) if !calls.iter().any(|call| call.is_open_write()) => {
            return Err(violation);
        }
        Some(Err(_)) | None => {}
    }
    let problem = Problem::new(calls, chains.as_ref());
    match Search::new(&problem, budget_steps).run() {
        Found::Order => Ok(true),
        Found::OutOfSteps => Ok(false),
        Found::NoOrder => Err(explain::no_order(calls, budget_steps)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "not known to be linearizable: too many orders")]
    fn what_is_not_known_does_not_pass() {
        assert_passed(&History::default(), Verdict::Unknown("too many orders".to_owned()));
    }

    #[test]
    #[should_panic(expected = "nothing succeeded")]
    fn nothing_does_not_pass() {
        assert_passed(&History::default(), Verdict::Linearizable);
    }
}
