//! Watches what every node of a cluster applies.
//!
//! Raft promises that no two nodes ever apply different entries at one index (State Machine Safety,
//! dissertation 3.2), and the driver that each node applies them in order and each once. Here both are
//! checked with every entry, whatever else a test looks at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_core::state_machine::{Flusher, MachineResult, SnapshotSource, StateMachine};
use raft_core::types::{Entry, Index, NodeId, Position, SnapshotMeta};

use super::Trace;

/// What the nodes of one cluster have applied.
pub(super) struct Applied {
    trace: Trace,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first to be applied at its index, by whichever node.
    entries: BTreeMap<Index, Entry>,
    violation: Option<String>,
}

impl Applied {
    pub(super) fn new(trace: Trace) -> Arc<Self> {
        Arc::new(Self { trace, state: Mutex::default() })
    }

    /// What two nodes, or a node and its own order, disagree about.
    pub(super) fn violation(&self) -> Option<String> {
        self.state().violation.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A violation panics only once it has been written down.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, node: NodeId, before: Position, entry: &Entry) {
        self.trace.note(format_args!("{node} applies {entry:?}"));
        let mut state = self.state();
        let first = state.entries.entry(entry.index).or_insert_with(|| entry.clone());
        let violation = if entry.index != before.index + 1 || entry.term < before.term {
            format!("node {node} applies {} after {before}", entry.position())
        } else if first != entry {
            format!("node {node} applies {entry:?}, and another node has applied {first:?}")
        } else {
            return;
        };
        state.fail(violation);
    }

    fn restored(&self, node: NodeId, before: Position, after: Position) {
        self.trace.note(format_args!("{node} is restored to {after}"));
        let mut state = self.state();
        let applied = state.entries.get(&after.index).map(Entry::position);
        if after.index < before.index || applied != Some(after) {
            state.fail(format!(
                "node {node}, at {before}, is restored to {after}, where {applied:?} was applied"
            ));
        }
    }
}

impl State {
    /// A panic of the state machine stops its node; what the scenario hears is the violation.
    fn fail(&mut self, violation: String) {
        let violation = self.violation.get_or_insert(violation).clone();
        panic!("{violation}");
    }
}

/// The state machine of a node of a [`Cluster`](super::Cluster): yours, watched.
pub struct Observed<M> {
    node: NodeId,
    machine: M,
    applied: Arc<Applied>,
}

impl<M> Observed<M> {
    pub(super) fn new(node: NodeId, machine: M, applied: Arc<Applied>) -> Self {
        Self { node, machine, applied }
    }
}

impl<M: StateMachine> StateMachine for Observed<M> {
    type Output = M::Output;
    type Query = M::Query;
    type Answer = M::Answer;

    fn last_applied(&self) -> Position {
        self.machine.last_applied()
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<M::Output>) -> MachineResult<()> {
        let mut before = self.machine.last_applied();
        for entry in entries {
            self.applied.enter(self.node, before, entry);
            before = entry.position();
        }
        self.machine.apply(entries, outputs)
    }

    fn query(&mut self, query: M::Query) -> M::Answer {
        self.machine.query(query)
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        self.machine.snapshot()
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.applied.restored(self.node, self.machine.last_applied(), meta.position);
        self.machine.begin_restore(meta)
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        self.machine.restore_chunk(chunk)
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        self.machine.finish_restore()
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        self.machine.flusher()
    }

    fn blocks(&self) -> bool {
        self.machine.blocks()
    }
}
