//! Numbers that name nodes, terms and places in the log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A server of the cluster. Never 0.
pub type NodeId = u64;

/// Leadership clock; 0 before the first election.
pub type Term = u64;

/// Largest valid term. No node gets here by counting. A node that adopted a term beyond it would
/// have no room to count on, so every decoder rejects such a term.
pub const TERM_MAX: Term = (1 << 63) - 1;

/// A place in the log; the first entry is at 1, so 0 is "before everything".
pub type Index = u64;

/// Largest valid index of an entry that is stored, or sent to be stored; see [`TERM_MAX`].
pub const INDEX_MAX: Index = (1 << 63) - 1;

/// Term and index of one entry. Two entries of equal position are the same entry, and so are all
/// entries before them (log matching, 3.5). The order is that of the election restriction (3.6.1):
/// the later term wins, then the longer log.
///
/// ```
/// use raft_core::types::Position;
///
/// let (shorter, longer) = (Position::new(3, 5), Position::new(2, 9));
/// assert!(shorter > longer, "of the later term");
/// assert_eq!(shorter.to_string(), "5@3");
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Term of the leader that appended the entry.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
}

impl Position {
    /// Before the first entry.
    pub const ZERO: Position = Position { term: 0, index: 0 };

    /// The position of the entry of this term and index.
    pub const fn new(term: Term, index: Index) -> Self {
        Self { term, index }
    }

    /// Returns true if a log can continue from here.
    pub const fn is_in_range(self) -> bool {
        self.term <= TERM_MAX && self.index <= INDEX_MAX
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}
