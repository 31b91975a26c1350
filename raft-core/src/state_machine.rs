//! The port to the replicated state machine.
//!
//! The methods are not `async`. A machine in memory is driven on the node's own task. A machine
//! that may wait for a disk declares so by [`StateMachine::blocks`] and gets a thread of its own,
//! except for entries that [`StateMachine::can_apply_inline`] accepts, which the event loop applies
//! inline. Either way only the driver calls the machine, one call at a time.

use bytes::Bytes;

use crate::types::{Entry, Index, Position, SnapshotMeta};

/// The state machine cannot continue; the node stops. The text is shown to the operator.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(pub String);

/// The result of a call that may stop the node.
pub type MachineResult<T> = Result<T, MachineError>;

/// A deterministic machine: equal entries lead to equal states and outputs on every node, whatever
/// the time, the locale or the order of a hash map.
///
/// A counter in memory. Its state is eight bytes, so a snapshot is one chunk:
///
/// ```
/// use bytes::Bytes;
/// use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
/// use raft_core::types::{Entry, Payload, Position, SnapshotMeta};
///
/// #[derive(Clone, Default)]
/// struct Counter {
///     sum: u64,
///     last_applied: Position,
///     restoring: Option<(Position, Vec<u8>)>,
/// }
///
/// impl StateMachine for Counter {
///     type Output = u64;
///     type Query = ();
///     type Answer = u64;
///
///     fn last_applied(&self) -> Position {
///         self.last_applied
///     }
///
///     fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<u64>) -> MachineResult<()> {
///         for entry in entries {
///             if let Payload::Command(command) = &entry.payload {
///                 self.sum += command.len() as u64;
///                 outputs.push(self.sum);
///             }
///             self.last_applied = entry.position();
///         }
///         Ok(())
///     }
///
///     fn query(&mut self, (): ()) -> u64 {
///         self.sum
///     }
///
///     fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
///         Ok(Box::new(View { at: self.last_applied, sum: Some(self.sum) }))
///     }
///
///     fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
///         self.restoring = Some((meta.position, Vec::new()));
///         Ok(())
///     }
///
///     fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
///         let (_, bytes) = self.restoring.as_mut().expect("begun");
///         bytes.extend_from_slice(&chunk);
///         Ok(())
///     }
///
///     fn finish_restore(&mut self) -> MachineResult<()> {
///         let (position, bytes) = self.restoring.take().expect("begun");
///         let sum = bytes.try_into().map_err(|_| MachineError("a snapshot has 8 bytes".into()))?;
///         (self.sum, self.last_applied) = (u64::from_le_bytes(sum), position);
///         Ok(())
///     }
/// }
///
/// struct View {
///     at: Position,
///     sum: Option<u64>,
/// }
///
/// impl SnapshotSource for View {
///     fn position(&self) -> Position {
///         self.at
///     }
///
///     fn next_chunk(&mut self, _: usize) -> MachineResult<Option<Bytes>> {
///         Ok(self.sum.take().map(|sum| Bytes::copy_from_slice(&sum.to_le_bytes())))
///     }
/// }
///
/// let mut counter = Counter::default();
/// let mut outputs = Vec::new();
/// let entry = Entry { index: 1, term: 1, payload: Payload::Command("four".into()) };
/// counter.apply(&[entry], &mut outputs)?;
/// assert_eq!(outputs, [4]);
///
/// let mut copy = Counter::default();
/// let mut source = counter.snapshot()?;
/// copy.begin_restore(&SnapshotMeta { position: source.position(), ..SnapshotMeta::default() })?;
/// while let Some(chunk) = source.next_chunk(1 << 20)? {
///     copy.restore_chunk(chunk)?;
/// }
/// copy.finish_restore()?;
/// assert_eq!((copy.query(()), copy.last_applied()), (4, Position::new(1, 1)));
/// # Ok::<(), MachineError>(())
/// ```
pub trait StateMachine: Send + 'static {
    /// The output of a command, returned to the caller that proposed it.
    type Output: Send + 'static;
    /// A read-only request.
    type Query: Send + 'static;
    /// The response to a query.
    type Answer: Send + 'static;

    /// The position of the last entry that this machine applied, whether it held a command or not,
    /// or of the last snapshot that it restored. After a restart it is the last one that survived,
    /// and [`Position::ZERO`] for an empty or a volatile machine. A durable machine stores it in
    /// the same atomic write as the data.
    fn last_applied(&self) -> Position;

    /// Applies entries in order, each once; the first directly follows `last_applied`, which is the
    /// position of the last one afterwards. Pushes exactly one output for each `Payload::Command`,
    /// in order.
    ///
    /// # Errors
    /// Only if this machine cannot continue at all. A command that makes no sense gets an output
    /// that says so.
    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<Self::Output>) -> MachineResult<()>;

    /// Reads the state as of `last_applied`. Must not change it.
    fn query(&mut self, query: Self::Query) -> Self::Answer;

    /// Returns true if [`StateMachine::snapshot`] may be called now. After a false the driver asks
    /// again a second later; the log grows meanwhile.
    fn can_snapshot(&self) -> bool {
        true
    }

    /// Returns a consistent view of the state, in O(1); the driver streams it later while `apply`
    /// goes on. The view may be of an earlier index than the last applied one. A view that is not
    /// newer than the published snapshot is dropped, and the driver asks again a second later.
    ///
    /// # Errors
    /// Only if this machine cannot continue at all.
    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>>;

    /// Begins to replace the state by that of a snapshot: a call of `restore_chunk` for each chunk
    /// follows, then `finish_restore`. A crash in between leaves the old state or the new one.
    ///
    /// # Errors
    /// Only if this machine cannot continue at all.
    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()>;

    /// Takes the next bytes of the snapshot, in order.
    ///
    /// # Errors
    /// Only if this machine cannot continue at all.
    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()>;

    /// Completes the restore: the state is now that of the snapshot. In a durable machine it also
    /// survives a crash.
    ///
    /// # Errors
    /// Only if this machine cannot continue at all.
    fn finish_restore(&mut self) -> MachineResult<()>;

    /// Returns a handle that makes durable what was applied. `None`: the machine lives in memory,
    /// and only a stored snapshot can replace the log.
    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        None
    }

    /// Returns true if calls may wait for a disk.
    fn blocks(&self) -> bool {
        false
    }

    /// Returns true if applying these few entries, the next ones in the log, cannot block. The
    /// driver then applies them inline instead of waking the thread of a machine that `blocks`,
    /// which takes longer than the entries do.
    fn can_apply_inline(&self, entries: &[Entry]) -> bool {
        let _ = entries;
        false
    }
}

/// The bytes of one consistent view, front to back.
pub trait SnapshotSource: Send {
    /// The last position whose effect the view contains.
    fn position(&self) -> Position;

    /// Returns the next chunk, about `bytes_max` long; `None` at the end.
    ///
    /// # Errors
    /// Only if the state machine cannot continue; the node stops.
    fn next_chunk(&mut self, bytes_max: usize) -> MachineResult<Option<Bytes>>;
}

/// Makes a durable machine's state survive a crash. Called on a thread that may wait.
pub trait Flusher: Send {
    /// Returns the index through which everything applied is now on disk.
    ///
    /// # Errors
    /// Only if the state machine cannot continue; the node stops.
    fn flush(&mut self) -> MachineResult<Index>;
}
