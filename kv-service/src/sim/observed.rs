//! Checks every entry that a node of a cluster applies.
//!
//! Raft promises that no term has two leaders (Election Safety, dissertation 3.2) and that no two
//! nodes ever apply different entries at one index (State Machine Safety). The driver promises that
//! each node applies entries in order and each entry once. Both promises are checked here with
//! every message of a leader and every applied entry, whatever else a test checks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_core::state_machine::{Flusher, MachineResult, SnapshotSource, StateMachine};
use raft_core::transport::channel::{ChannelNetwork, Traffic};
use raft_core::types::{
    Entry, Index, Message, MessageBody, NodeId, Payload, Position, SnapshotMeta, Term,
};

use super::Trace;

/// The history of the nodes of one cluster. It grows with the run.
pub(super) struct Witness {
    trace: Trace,
    state: Mutex<ObservedState>,
}

#[derive(Default)]
struct ObservedState {
    /// For each index the entry that was applied there first, by any node.
    entries: BTreeMap<Index, Entry>,
    /// Indexes of the entries that are commands, in order.
    commands: Vec<Index>,
    /// For each term the first node that sent a message as its leader.
    leaders: BTreeMap<Term, NodeId>,
    violation: Option<String>,
}

impl Witness {
    pub(super) fn new(trace: Trace) -> Arc<Self> {
        Arc::new(Self { trace, state: Mutex::default() })
    }

    pub(super) fn listen_to(self: &Arc<Self>, network: &ChannelNetwork) {
        let witness = Arc::clone(self);
        network.listen(move |from, _, traffic| {
            let Traffic::Sent(Message { term, body, .. }) = traffic else { return };
            if let MessageBody::AppendEntries { .. } | MessageBody::Heartbeat { .. } = body {
                witness.led(*term, from);
            }
        });
    }

    /// The command that was applied as the `number`-th, counted from 1, and its index.
    pub(super) fn command(&self, number: u64) -> Option<(Index, Bytes)> {
        let state = self.state();
        let place = usize::try_from(number).ok()?.checked_sub(1)?;
        let index = *state.commands.get(place)?;
        match &state.entries[&index].payload {
            Payload::Command(command) => Some((index, command.clone())),
            other => unreachable!("listed as a command: {other:?}"),
        }
    }

    pub(super) fn command_count(&self) -> u64 {
        self.state().commands.len() as u64
    }

    /// The first violation: two nodes that disagree, or a node that left its own order.
    pub(super) fn violation(&self) -> Option<String> {
        self.state().violation.clone()
    }

    fn state(&self) -> MutexGuard<'_, ObservedState> {
        // A violation is recorded before it panics, so the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, node: NodeId, before: Position, entry: &Entry) {
        self.trace.note(format_args!("{node} applies {entry:?}"));
        let mut state = self.state();
        let is_new = !state.entries.contains_key(&entry.index);
        let first = state.entries.entry(entry.index).or_insert_with(|| entry.clone());
        let violation = if entry.index != before.index + 1 || entry.term < before.term {
            format!("node {node} applies {} after {before}", entry.position())
        } else if first != entry {
            format!("node {node} applies {entry:?}, and another node has applied {first:?}")
        } else {
            if is_new && matches!(entry.payload, Payload::Command(_)) {
                state.commands.push(entry.index);
            }
            return;
        };
        state.fail(violation);
    }

    /// Records a second leader, and does not panic: the network calls this, and a panic would hit
    /// the node that sends just then.
    fn led(&self, term: Term, node: NodeId) {
        let mut state = self.state();
        let first = *state.leaders.entry(term).or_insert(node);
        if first != node {
            let violation = format!("nodes {first} and {node} both lead in term {term}");
            state.violation.get_or_insert(violation);
        }
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

impl ObservedState {
    /// Records the first violation and panics. The panic stops the node; the scenario reports the
    /// violation.
    fn fail(&mut self, violation: String) {
        let violation = self.violation.get_or_insert(violation).clone();
        panic!("{violation}");
    }
}

/// The state machine of a node of a [`Cluster`](super::Cluster): wraps yours, and checks the
/// entries that it applies.
pub struct Observed<M> {
    node: NodeId,
    machine: M,
    witness: Arc<Witness>,
}

impl<M> Observed<M> {
    pub(super) fn new(node: NodeId, machine: M, witness: Arc<Witness>) -> Self {
        Self { node, machine, witness }
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
            self.witness.enter(self.node, before, entry);
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
        self.witness.restored(self.node, self.machine.last_applied(), meta.position);
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

    fn can_snapshot(&self) -> bool {
        self.machine.can_snapshot()
    }

    fn can_apply_inline(&self, entries: &[Entry]) -> bool {
        self.machine.can_apply_inline(entries)
    }
}

#[cfg(test)]
mod tests {
    use raft_core::transport::Transport;

    use super::*;

    fn entry(term: Term, index: Index) -> Entry {
        Entry { index, term, payload: Payload::Command("c".into()) }
    }

    #[tokio::test(start_paused = true)]
    async fn equal_orders_are_fine_and_commands_are_numbered() {
        let witness = Witness::new(Trace::new());
        for node in 1..=2 {
            let noop = Entry { payload: Payload::Noop, ..entry(1, 1) };
            witness.enter(node, Position::ZERO, &noop);
            witness.enter(node, Position::new(1, 1), &entry(2, 2));
        }
        witness.restored(3, Position::ZERO, Position::new(2, 2));
        assert_eq!(witness.violation(), None);
        assert_eq!(witness.command(1), Some((2, "c".into())));
        assert_eq!(
            (witness.command(0), witness.command(2), witness.command_count()),
            (None, None, 1)
        );
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "another node has applied")]
    async fn two_entries_at_one_index_are_noticed() {
        let witness = Witness::new(Trace::new());
        witness.enter(1, Position::ZERO, &entry(1, 1));
        witness.enter(2, Position::ZERO, &entry(2, 1));
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "node 1 applies 3@1 after 1@1")]
    async fn a_gap_is_noticed() {
        let witness = Witness::new(Trace::new());
        witness.enter(1, Position::ZERO, &entry(1, 1));
        witness.enter(1, Position::new(1, 1), &entry(1, 3));
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "is restored to 1@2")]
    async fn a_snapshot_of_what_nobody_applied_is_noticed() {
        let witness = Witness::new(Trace::new());
        witness.enter(1, Position::ZERO, &entry(1, 1));
        witness.restored(2, Position::ZERO, Position::new(2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn two_leaders_in_a_term_are_noticed() {
        let network = ChannelNetwork::new(1);
        let witness = Witness::new(Trace::new());
        witness.listen_to(&network);
        let heartbeat =
            |term| Message::new(term, MessageBody::Heartbeat { round: 1, commit_index: 0 });
        let [one, two] = [1, 2].map(|node| network.transport(node));
        one.send(2, heartbeat(1));
        two.send(1, heartbeat(2));
        assert_eq!(witness.violation(), None);
        two.send(1, heartbeat(1));
        assert_eq!(witness.violation().as_deref(), Some("nodes 1 and 2 both lead in term 1"));
    }
}
