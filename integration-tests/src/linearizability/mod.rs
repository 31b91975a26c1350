//! Did the store behave as one copy that does one operation at a time, each between its call and its
//! return? Herlihy and Wing's question, asked of what clients heard and of nothing else.
//!
//! A harness records a [`History`] and gives it to [`assert_linearizable`]. If it has the log that the
//! nodes applied, it gives that as well, to [`assert_linearizable_with_log`]: then nothing is left to
//! search, and it is also checked that each write is in the log once, and that nothing else is.
//!
//! | layer | what it decides | cost |
//! |---|---|---|
//! | oracles | finds what is wrong at sight: phantom, lost, duplicated, stale, versions or revisions that fall | O(n log n) |
//! | witness | where answers carry revisions the log's order is the linearization: replays it. Exact | O(n log n) |
//! | search | per key, for an order that explains all answers (Wing and Gong, Lowe). Exact | steps, bounded |
//!
//! An order must also agree with the revisions that were told, since the store claims that its log is
//! the order; so a history can be in violation by its revisions alone. Operations on one key make up
//! the search, which is enough: linearizability is local. The witness of a log is one order of all.
//!
//! [`Verdict::Unknown`] is not a pass. Rules that keep histories decidable: values unique per key and
//! none the beginning of another (end each with a separator), so that each value tells who wrote it;
//! some reads; few unknown outcomes; keys that change once in a while. Everything else is decided too,
//! if the steps suffice.

mod chains;
mod explain;
mod history;
mod live;
mod oracles;
mod problem;
mod search;
mod witness;

use std::fmt;

use bytes::Bytes;

use self::chains::Chains;
pub use self::history::{Call, History, Outcome, Request, Seen, Written};
use self::history::{quoted, text};
use self::problem::Problem;
use self::search::{Found, Search};
pub use self::witness::Applied;

/// Steps for each key that [`assert_linearizable`] allows: about a second, and tens of megabytes.
pub const STEPS_PER_KEY: u64 = 20_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violation(Violation),
    /// It could not be told, for this reason. Not a pass.
    Unknown(String),
}

/// What kind of wrong it is, as far as that could be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A value was seen that nobody can have written (by then).
    Phantom,
    /// What was answered as not executed had an effect.
    Refused,
    /// One write had an effect twice.
    Duplicated,
    /// What was acknowledged is not there.
    Lost,
    /// An answer does not know what was known before it was asked for.
    Stale,
    /// Versions or revisions are not those of one order.
    Order,
    /// No order of the operations explains all answers.
    NoOrder,
}

/// A proof that the store is wrong, and what to look at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub key: Bytes,
    pub story: String,
    /// The calls that contradict each other; for [`Rule::NoOrder`] those where the search got stuck.
    pub calls: Vec<Call>,
}

impl Violation {
    fn new<'a>(
        rule: Rule,
        story: impl Into<String>,
        calls: impl IntoIterator<Item = &'a Call>,
    ) -> Self {
        let calls: Vec<Call> = calls.into_iter().cloned().collect();
        let key = calls.first().expect("a violation names a call").key().clone();
        Self { rule, key, story: story.into(), calls }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}, key {}: {}", self.rule, quoted(&self.key), self.story)?;
        self.calls.iter().try_for_each(|call| write!(out, "\n    {call}"))
    }
}

/// Decides the history; `budget_steps` bounds the search of each key. The same history has the same
/// verdict, on every machine.
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

/// As [`check`], by the log: every write that was applied, with effect or without, each at its
/// revision, up to all that the history tells of. What the session table answered from memory is not
/// applied again, and not in this log.
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

/// # Panics
/// With a report, if the history is not linearizable, if that could not be told, or if nothing in it
/// succeeded, which proves nothing.
#[track_caller]
pub fn assert_linearizable(history: &History) {
    assert_passed(history, check(history, STEPS_PER_KEY));
}

/// # Panics
/// As [`assert_linearizable`].
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

/// Whether the calls of one key have an order; `false` if it cannot be told.
fn check_key(calls: &[&Call], budget_steps: u64) -> Result<bool, Violation> {
    let chains = Chains::of(calls)?;
    oracles::check_key(calls, chains.as_ref())?;
    match witness::check_key(calls) {
        Some(Ok(())) => return Ok(true),
        // Writes of unknown outcome may explain what the others do not.
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
