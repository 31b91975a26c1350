//! The unit that storage writes, and what it returns at boot.

use super::{Entry, HardState, Index, SnapshotMeta};

/// Numbers batches from 1, in the order in which they must be written.
pub type PersistId = u64;

/// One atomic, durable write. Its parts take effect in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Batch {
    /// Make a finished snapshot the published one.
    pub publish: Option<PublishSnapshot>,
    /// Withdraw the published snapshot: no reader can open it from now on, and its bytes are
    /// removed once no open reader needs them. Not together with `publish`.
    pub withdraw_snapshot: bool,
    /// Forget the entries from this index on (a conflicting tail).
    pub truncate_from: Option<Index>,
    /// Contiguous; the first directly follows what the log holds after the steps above.
    pub entries: Vec<Entry>,
    /// The hard state to remember, if this batch writes one.
    pub hard_state: Option<HardState>,
}

impl Batch {
    /// Returns true if the batch can be written together with the batch before it.
    pub(crate) fn only_appends(&self) -> bool {
        self.publish.is_none() && !self.withdraw_snapshot && self.truncate_from.is_none()
    }

    /// Takes over the next batch, which only appends: one write then does the work of two.
    pub(crate) fn absorb(&mut self, next: Batch) {
        assert!(next.only_appends());
        let last = self.entries.last().map(|entry| entry.index);
        let follows = next.entries.first().map(|entry| entry.index);
        assert!(last.zip(follows).is_none_or(|(last, next)| next == last + 1), "no gap");
        self.entries.extend(next.entries);
        self.hard_state = next.hard_state.or(self.hard_state.take());
    }
}

/// A finished snapshot to publish. Publishing is part of a [`Batch`] and not of the snapshot's
/// writer, because a snapshot that replaces the log must do so in order with the log's own writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublishSnapshot {
    /// The meta of a snapshot whose writer has finished.
    pub meta: SnapshotMeta,
    /// The log does not contain `meta.position`: forget all of it and start after the snapshot.
    pub replaces_log: bool,
}

/// Everything that survived on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Loaded {
    /// The last hard state written; the default on an empty disk.
    pub hard_state: HardState,
    /// Position and configuration before the log's first entry: those of the last compaction, or of
    /// a snapshot that replaced the log. Default for a log that starts at index 1.
    pub log_start: SnapshotMeta,
    /// The published snapshot. Its index is at least that of `log_start`, unless the state machine
    /// itself holds a durable state (then there may be no snapshot).
    pub snapshot: Option<SnapshotMeta>,
    /// Contiguous, the first at `log_start.index() + 1`.
    pub entries: Vec<Entry>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Payload, Position};

    fn batch(indexes: std::ops::Range<Index>, term: Option<u64>) -> Batch {
        let entry = |index| Entry { index, term: 1, payload: Payload::Noop };
        let hard_state = term.map(|term| HardState { term, ..HardState::INITIAL });
        Batch { entries: indexes.map(entry).collect(), hard_state, ..Batch::default() }
    }

    #[test]
    fn what_appends_is_absorbed_and_the_last_hard_state_counts() {
        let mut first = batch(1..3, Some(1));
        first.truncate_from = Some(1);
        for next in [batch(3..5, None), batch(0..0, Some(2))] {
            assert!(next.only_appends());
            first.absorb(next);
        }
        assert_eq!(first, Batch { truncate_from: Some(1), ..batch(1..5, Some(2)) });
    }

    #[test]
    fn what_does_more_than_append_is_written_by_itself() {
        let meta = SnapshotMeta { position: Position::new(1, 1), ..SnapshotMeta::default() };
        let publish = Some(PublishSnapshot { meta, replaces_log: false });
        assert!(!Batch { truncate_from: Some(2), ..batch(2..3, None) }.only_appends());
        assert!(!Batch { publish, ..batch(3..4, None) }.only_appends());
    }
}
