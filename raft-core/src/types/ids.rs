//! Numbers that name nodes, terms and places in the log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A server of the cluster. Never 0.
pub type NodeId = u64;

/// Leadership clock; 0 before the first election.
pub type Term = u64;

/// No node gets here by counting. A term beyond it, taken over, would leave no room to count on, so
/// every decoder refuses it.
pub const TERM_MAX: Term = (1 << 63) - 1;

/// A place in the log; the first entry is at 1, so 0 is "before everything".
pub type Index = u64;

/// As [`TERM_MAX`], for the place of something that is stored, or sent to be stored.
pub const INDEX_MAX: Index = (1 << 63) - 1;

/// Term and index of one entry. Two entries of equal position are the same entry, and so are all
/// entries before them (log matching, 3.5). The order is that of the election restriction (3.6.1):
/// the later term wins, then the longer log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Position {
    pub term: Term,
    pub index: Index,
}

impl Position {
    /// Before the first entry.
    pub const ZERO: Position = Position { term: 0, index: 0 };

    pub const fn new(term: Term, index: Index) -> Self {
        Self { term, index }
    }

    /// Whether a log can go on from here.
    pub const fn is_in_range(self) -> bool {
        self.term <= TERM_MAX && self.index <= INDEX_MAX
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}
