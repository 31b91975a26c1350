//! The result of a check: a verdict, or the rule that was broken and where.

use std::fmt;

use bytes::Bytes;

use super::history::{Call, quoted};

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains all responses.
    Linearizable,
    /// There is none.
    Violation(Violation),
    /// Not decided, for this reason. Not a pass.
    Unknown(String),
}

/// The kind of a violation, as far as it could be determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// A value was observed that no client can have written (by then).
    Phantom,
    /// An operation that was answered as not executed had an effect.
    Refused,
    /// One write had an effect twice.
    Duplicated,
    /// An acknowledged write is missing.
    Lost,
    /// A response misses a change that was known before the call began.
    Stale,
    /// Versions or revisions do not fit one order.
    Order,
    /// No order of the operations explains all responses.
    NoOrder,
}

/// A proof that the store is wrong, and what to look at first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The kind of the violation.
    pub rule: Rule,
    /// The key whose calls contradict each other.
    pub key: Bytes,
    /// The contradiction in words.
    pub story: String,
    /// The calls that contradict each other; for [`Rule::NoOrder`] the calls at which the search
    /// got stuck.
    pub calls: Vec<Call>,
}

impl Violation {
    pub(super) fn new<'a>(
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
