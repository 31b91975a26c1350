//! Numbers that name nodes, terms and places in the log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A server of the cluster. Never 0.
pub type NodeId = u64;

/// Leadership clock; 0 before the first election.
pub type Term = u64;

/// A place in the log; the first entry is at 1, so 0 is "before everything".
pub type Index = u64;

/// Term and index of one entry. Two entries of equal position are the same entry, and so are all
/// entries before them (log matching, 3.5). The order is that of the election restriction (3.6.1):
/// the later term wins, then the longer log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
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
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}
