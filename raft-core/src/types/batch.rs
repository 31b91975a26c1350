//! What storage writes as one, and what it gives back at boot.

use super::{Entry, HardState, Index, SnapshotMeta};

/// One atomic, durable write. Its parts take effect in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Batch {
    /// Make a finished snapshot the published one.
    pub publish: Option<PublishSnapshot>,
    /// Forget the entries from this index on (a conflicting tail).
    pub truncate_from: Option<Index>,
    /// Contiguous; the first directly follows what the log holds after the steps above.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
}

/// Publishing is part of a [`Batch`] and not of the snapshot's writer, because a snapshot that
/// replaces the log must do so in order with the log's own writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublishSnapshot {
    /// Of a snapshot whose writer has finished.
    pub meta: SnapshotMeta,
    /// The log does not contain `meta.position`: forget all of it and start behind the snapshot.
    pub replaces_log: bool,
}

/// All that survived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Loaded {
    pub hard_state: HardState,
    /// What the log starts behind: position and configuration of the last compaction, or of a
    /// snapshot that replaced the log. Default for a log that starts at index 1.
    pub log_start: SnapshotMeta,
    /// The published snapshot. Its index is at least `log_start`'s unless the state machine itself
    /// vouches for the state (then there may be none).
    pub snapshot: Option<SnapshotMeta>,
    /// Contiguous, the first at `log_start.index() + 1`.
    pub entries: Vec<Entry>,
}
