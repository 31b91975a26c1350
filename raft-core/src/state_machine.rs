//! The port to what is replicated.
//!
//! The methods are not `async`: a machine in memory is driven on the node's own task, and one that
//! waits for a disk says so by [`StateMachine::blocks`] and gets a thread of its own, but for what it
//! says that it does at once. Either way nothing but the driver calls it, one call at a time.

use bytes::Bytes;

use crate::types::{Entry, Index, Position, SnapshotMeta};

/// Why a state machine cannot go on; the node stops.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(pub String);

pub type MachineResult<T> = Result<T, MachineError>;

/// A deterministic machine: equal entries lead to equal states and outputs on every node, whatever
/// the time, the locale or the order of a hash map.
pub trait StateMachine: Send + 'static {
    /// What a command answers to whoever proposed it.
    type Output: Send + 'static;
    /// A question that changes nothing.
    type Query: Send + 'static;
    type Answer: Send + 'static;

    /// The last position whose effect is in this machine; after a restart the last that survived,
    /// [`Position::ZERO`] for an empty or a volatile one. It is remembered in the same atomic write
    /// as the data.
    fn last_applied(&self) -> Position;

    /// Applies entries in order, each once; the first directly follows `last_applied`. Pushes
    /// exactly one output for each `Payload::Command`, in order.
    ///
    /// # Errors
    /// Only if this machine cannot go on at all. A command that makes no sense has an output that
    /// says so.
    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<Self::Output>) -> MachineResult<()>;

    fn query(&mut self, query: Self::Query) -> Self::Answer;

    /// Whether [`StateMachine::snapshot`] may be called now. A machine that says no is asked again a
    /// second later; the log grows meanwhile.
    fn can_snapshot(&self) -> bool {
        true
    }

    /// A consistent view of the state, in O(1); streamed later while `apply` goes on. The view may be
    /// of an earlier index than the last applied one, but one that is not newer than the published
    /// snapshot is of no use, and the machine is asked again a second later.
    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>>;

    /// The state is about to be replaced by that of a snapshot: a call of `restore_chunk` for each
    /// piece, then `finish_restore`. A crash in between leaves the old state or the new one.
    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()>;

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()>;

    /// The state is now that of the snapshot; of a durable machine also after a crash.
    fn finish_restore(&mut self) -> MachineResult<()>;

    /// A handle that makes durable what was applied. `None`: the machine lives in memory, and only
    /// a stored snapshot can stand for the log.
    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        None
    }

    /// Whether calls may wait for a disk.
    fn blocks(&self) -> bool {
        false
    }

    /// Whether these few entries, which come next, are surely applied without waiting for anything. Then the
    /// driver need not wake the thread of a machine that `blocks`, which takes longer than to apply them.
    fn applies_at_once(&self, entries: &[Entry]) -> bool {
        let _ = entries;
        false
    }
}

/// The bytes of one consistent view, front to back.
pub trait SnapshotSource: Send {
    /// The last position whose effect the view contains.
    fn position(&self) -> Position;

    /// The next piece, about `bytes_max` long; `None` at the end.
    fn next_chunk(&mut self, bytes_max: usize) -> MachineResult<Option<Bytes>>;
}

/// Makes a durable machine's state survive a crash; called on a thread that may wait.
pub trait Flusher: Send {
    /// Returns the index through which everything applied is now on disk.
    fn flush(&mut self) -> MachineResult<Index>;
}
