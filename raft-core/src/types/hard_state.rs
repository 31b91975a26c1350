//! What a node must remember of elections (figure 3.1), and how far it knows the log committed.

use serde::{Deserialize, Serialize};

use super::{Index, NodeId, Term};

/// `term`, `voted_for` and `recovering` must be on disk before anything that rests on them leaves the node.
/// `commit_index` is only a hint that spares a restarted node some waiting: it may lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    pub term: Term,
    pub voted_for: Option<NodeId>,
    pub commit_index: Index,
    /// What this node promised before may be lost, so its word counts only together with everybody
    /// else's, until a leader has filled it up; see `consensus::recovery`.
    pub recovering: bool,
}

impl HardState {
    /// Of a node that has promised nothing yet, and knows that.
    pub const INITIAL: Self = Self { term: 0, voted_for: None, commit_index: 0, recovering: false };

    /// Whether it differs from `before` in more than the commit index, so that it has to be synced.
    pub fn promises_other_than(&self, before: &Self) -> bool {
        Self { commit_index: before.commit_index, ..*self } != *before
    }
}

/// What an empty disk says: nothing is known, least of all that nothing was promised.
impl Default for HardState {
    fn default() -> Self {
        Self { recovering: true, ..Self::INITIAL }
    }
}
