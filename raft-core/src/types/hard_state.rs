//! What a node must remember of elections (figure 3.1), and how far it knows the log committed.

use serde::{Deserialize, Serialize};

use super::{Index, NodeId, Term};

/// `term` and `voted_for` must be on disk before anything that rests on them leaves the node.
/// `commit_index` is only a hint that spares a restarted node some waiting: it may lag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    pub term: Term,
    pub voted_for: Option<NodeId>,
    pub commit_index: Index,
}
