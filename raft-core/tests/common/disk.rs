//! The disk, which survives a crash, and the state machine, which does not.

use raft_core::consensus::invariants;
use raft_core::types::{
    Batch, Entry, HardState, Index, Loaded, Payload, Position, SnapshotMeta, Term,
};

/// A state machine whose state is everything that was ever applied to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    pub applied: Vec<Entry>,
}

impl Machine {
    pub fn last_applied(&self) -> Position {
        self.applied.last().map_or(Position::ZERO, Entry::position)
    }

    pub fn apply(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.last_applied().index + 1, "applied in order, without a gap");
        self.applied.push(entry);
    }
}

/// One node's log, hard state and snapshot. The default is an empty disk, whose node recovers.
#[derive(Clone, Debug, Default, Hash)]
pub struct Disk {
    pub loaded: Loaded,
    /// The state of the published snapshot.
    pub state: Machine,
    /// Snapshots written in full that wait for the batch that publishes them.
    finished: Vec<(SnapshotMeta, Machine)>,
}

impl Disk {
    /// A log of no-ops of these terms, from index 1, and a hard state without a vote.
    pub fn of_terms(terms: &[Term], term: Term) -> Self {
        let entry =
            |(term, index): (&Term, Index)| Entry { index, term: *term, payload: Payload::Noop };
        let entries = terms.iter().zip(1..).map(entry).collect();
        let hard_state = HardState { term, ..HardState::INITIAL };
        Self { loaded: Loaded { hard_state, entries, ..Loaded::default() }, ..Self::default() }
    }

    /// The disk of a member of a new cluster, as the operator initialises it.
    pub fn new_member() -> Self {
        let loaded = Loaded { hard_state: HardState::FOUNDING, ..Loaded::default() };
        Self { loaded, ..Self::default() }
    }

    pub fn terms(&self) -> Vec<Term> {
        self.loaded.entries.iter().map(|entry| entry.term).collect()
    }

    pub fn finish_snapshot(&mut self, meta: SnapshotMeta, state: Machine) {
        assert_eq!(meta.position, state.last_applied());
        self.finished.push((meta, state));
    }

    /// Writes one batch; asserts what a real backend would refuse.
    pub fn write(&mut self, batch: &Batch) {
        if let Some(publish) = &batch.publish {
            let finished = self.finished.iter().position(|(meta, _)| *meta == publish.meta);
            let (meta, state) = self.finished.remove(finished.expect("only a finished snapshot"));
            self.state = state;
            self.loaded.snapshot = Some(meta.clone());
            if publish.replaces_log {
                self.loaded.entries.clear();
                self.loaded.log_start = meta;
            }
        }
        if let Some(from) = batch.truncate_from {
            assert!(from > self.start().index && from <= self.last().index, "nothing to truncate");
            self.loaded.entries.retain(|entry| entry.index < from);
        }
        for entry in &batch.entries {
            assert_eq!(entry.index, self.last().index + 1, "entries follow the log");
            self.loaded.entries.push(entry.clone());
        }
        if let Some(hard_state) = batch.hard_state {
            let before = &self.loaded.hard_state;
            invariants::hard_state_moves_forward(before, &hard_state)
                .expect("it is not taken back");
            assert!(hard_state.commit_index <= self.last().index, "commit beyond the log");
            self.loaded.hard_state = hard_state;
        }
    }

    pub fn compact(&mut self, through: SnapshotMeta) {
        if through.index() <= self.start().index {
            return;
        }
        assert!(through.index() <= self.loaded.snapshot.as_ref().map_or(0, SnapshotMeta::index));
        self.loaded.entries.retain(|entry| entry.index > through.index());
        self.loaded.log_start = through;
    }

    pub fn start(&self) -> Position {
        self.loaded.log_start.position
    }

    pub fn last(&self) -> Position {
        self.loaded.entries.last().map_or(self.start(), Entry::position)
    }

    pub fn entry(&self, index: Index) -> Option<&Entry> {
        let offset = index.checked_sub(self.start().index + 1)?;
        self.loaded.entries.get(usize::try_from(offset).ok()?)
    }

    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start().index {
            return Some(self.start().term);
        }
        self.entry(index).map(|entry| entry.term)
    }
}
