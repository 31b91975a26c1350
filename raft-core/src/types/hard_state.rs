//! The state a node must remember about elections (figure 3.1), and the commit index it knows.

use serde::{Deserialize, Serialize};

use super::{Index, NodeId, Term};

/// How many of a node's promises (votes and acknowledgements) its disk remembers.
/// The rules are in `consensus::recovery` and `consensus::founding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Memory {
    /// Every promise that this node gave is on this disk. Its votes and acknowledgements count.
    Intact,
    /// The operator initialised this disk as that of a member of a new cluster. The node has
    /// promised nothing since, but cannot know what it promised from an earlier disk. Only in term
    /// 0.
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
    /// Returns true if votes and acknowledgements of this node are counted.
    pub fn counts(self) -> bool {
        matches!(self, Memory::Intact | Memory::Met)
    }
}

/// `term`, `voted_for` and `memory` must be on disk before anything that rests on them leaves the
/// node. `commit_index` is only a hint that spares a restarted node some waiting: it may lag.
///
/// ```
/// use raft_core::types::{HardState, Memory};
///
/// let before = HardState { term: 3, voted_for: Some(1), ..HardState::INITIAL };
/// // A storage syncs a vote, and need not sync a commit index alone.
/// assert!(HardState { voted_for: Some(2), ..before }.promises_other_than(&before));
/// assert!(!HardState { commit_index: 8, ..before }.promises_other_than(&before));
/// // An empty disk may have forgotten promises, so its node is not counted.
/// assert_eq!(HardState::default().memory, Memory::Lost);
/// assert!(!HardState::default().memory.counts());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    /// The newest term this node has observed.
    pub term: Term,
    /// The candidate that has this node's vote in `term`.
    pub voted_for: Option<NodeId>,
    /// Every entry through here is known committed.
    pub commit_index: Index,
    /// Default: [`Memory::Lost`], because an empty disk says nothing about promises made earlier.
    pub memory: Memory,
}

impl HardState {
    /// A node that has promised nothing yet. Its operator vouches for that: no disk of this node
    /// has existed before. If the operator is mistaken, acknowledged writes can be lost; see
    /// [`HardState::FOUNDING`].
    pub const INITIAL: Self =
        Self { term: 0, voted_for: None, commit_index: 0, memory: Memory::Intact };

    /// A node of a cluster that is being founded. Safe even if the operator is mistaken: the node's
    /// votes and acknowledgements are counted only after all voters were found to be new.
    pub const FOUNDING: Self = Self { memory: Memory::New, ..Self::INITIAL };

    /// Returns true if it differs from `before` in more than the commit index, and so has to be
    /// synced.
    pub fn promises_other_than(&self, before: &Self) -> bool {
        Self { commit_index: before.commit_index, ..*self } != *before
    }
}
