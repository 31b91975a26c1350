//! What a node must remember of elections (figure 3.1), and how far it knows the log committed.

use serde::{Deserialize, Serialize};

use super::{Index, NodeId, Term};

/// How much a node's disk remembers of the promises (votes and acknowledgements) that the node gave.
/// The rules are in `consensus::recovery` and `consensus::founding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Memory {
    /// Every promise that this node gave is on this disk. Its votes and acknowledgements count.
    Intact,
    /// The operator initialised this disk as that of a member of a new cluster. The node has promised
    /// nothing since, but cannot know what it promised from an earlier disk. Only in term 0.
    New,
    /// New, and every other voter was seen to be new or met as well. Counts like `Intact`. Only in
    /// term 0: a node that has met all others becomes `Intact` with its first term.
    Met,
    /// An empty disk of unknown past: promises may be lost. The node recovers: its votes and
    /// acknowledgements are not counted, and it never campaigns, until a leader has readmitted it.
    #[default]
    Lost,
}

impl Memory {
    /// Votes and acknowledgements of this node count.
    pub fn counts(self) -> bool {
        matches!(self, Memory::Intact | Memory::Met)
    }
}

/// `term`, `voted_for` and `memory` must be on disk before anything that rests on them leaves the
/// node. `commit_index` is only a hint that spares a restarted node some waiting: it may lag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    pub term: Term,
    pub voted_for: Option<NodeId>,
    pub commit_index: Index,
    /// Default: [`Memory::Lost`], which is what an empty disk says of its past.
    pub memory: Memory,
}

impl HardState {
    /// A node that has promised nothing yet, and whose owner vouches for that: no disk of this node
    /// has existed before. An owner who is mistaken can lose acknowledged writes; see
    /// [`HardState::FOUNDING`].
    pub const INITIAL: Self =
        Self { term: 0, voted_for: None, commit_index: 0, memory: Memory::Intact };

    /// A node of a cluster that is being founded. Safe also if the owner is mistaken: the node counts
    /// only after all voters have been seen to be new.
    pub const FOUNDING: Self = Self { memory: Memory::New, ..Self::INITIAL };

    /// Differs from `before` in more than the commit index, so that it has to be synced.
    pub fn promises_other_than(&self, before: &Self) -> bool {
        Self { commit_index: before.commit_index, ..*self } != *before
    }
}
