//! The adapter: a [`ReplicatedState`] as the [`StateMachine`] that a node drives.
//!
//! The machine is volatile. The log, and the snapshot that replaces its older part, are what
//! survives; the state is built from both at each start. So it works on any storage. A committed
//! command or a snapshot that does not decode stops the node: to leave it out would make this
//! node's state another one than that of the others.

use bytes::{Bytes, BytesMut};

use super::format::{self, CHECKSUM_BYTES, EncodingError};
use super::{ReplicatedState, format::HEAD_BYTES};
use crate::state_machine::{MachineError, MachineResult, SnapshotSource, StateMachine};
use crate::types::{Entry, Payload, Position, SnapshotMeta};

/// A replicated state and its position in the log. [`Replicated`](super::Replicated) runs it; a
/// test can run it in virtual time (`kv_service::sim::Cluster<Machine<S>>`).
///
/// ```
/// # use raft_core::replicated::{Machine, ReplicatedState};
/// use raft_core::state_machine::StateMachine;
/// use raft_core::types::{Entry, Payload};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Default, Serialize, Deserialize)]
/// # struct Counter(u64);
/// # impl ReplicatedState for Counter {
/// #     type Command = u64;
/// #     type Output = u64;
/// #     type Query = ();
/// #     type Answer = u64;
/// #     fn apply(&mut self, number: u64) -> u64 { self.0 += number; self.0 }
/// #     fn query(&self, (): ()) -> u64 { self.0 }
/// # }
///
/// // `Counter` adds the numbers that are its commands.
/// let mut machine = Machine::<Counter>::default();
/// let command = Machine::<Counter>::encode(&5)?;
/// let entry = Entry { index: 1, term: 1, payload: Payload::Command(command) };
/// let mut outputs = Vec::new();
/// machine.apply(&[entry], &mut outputs)?;
/// assert_eq!((outputs, machine.state().0), (vec![5], 5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Machine<S> {
    state: S,
    position: Position,
    /// The snapshot that is being received, while there is one.
    restoring: Option<Restoring>,
    /// Cloning, encoding and decoding a state takes long: the node gives the machine a thread.
    has_thread: bool,
}

#[derive(Clone, Debug)]
struct Restoring {
    position: Position,
    bytes: BytesMut,
}

impl<S: ReplicatedState> Machine<S> {
    /// The default state, on a thread of its own, so that snapshots do not hold up heartbeats.
    pub(super) fn on_a_thread() -> Self {
        Self { state: S::default(), position: Position::ZERO, restoring: None, has_thread: true }
    }

    /// Encodes a command as it is kept in the log.
    ///
    /// # Errors
    /// Serde does not encode the command, or does not decode its own bytes.
    ///
    /// # Panics
    /// If the command needs a version above that of this program.
    pub fn encode(command: &S::Command) -> Result<Bytes, EncodingError> {
        let needed = S::needed_version(command);
        assert!(needed <= S::VERSION, "a program knows the versions of its commands");
        format::encode_command(needed, command)
    }

    /// Decodes a command of the log, such as one from another node's tools.
    ///
    /// # Errors
    /// The command is of a newer program, of another application, or damaged.
    pub fn decode(command: &[u8]) -> Result<S::Command, EncodingError> {
        format::decode_command(S::VERSION, command)
    }

    /// The state.
    pub fn state(&self) -> &S {
        &self.state
    }
}

impl<S: ReplicatedState> StateMachine for Machine<S> {
    type Output = S::Output;
    type Query = S::Query;
    type Answer = S::Answer;

    fn last_applied(&self) -> Position {
        self.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<S::Output>) -> MachineResult<()> {
        for entry in entries {
            let position = entry.position();
            assert_eq!(position.index, self.position.index + 1, "entries come in order, each once");
            if let Payload::Command(command) = &entry.payload {
                let command = Self::decode(command)
                    .map_err(|error| stop(format_args!("the command at {position}"), error))?;
                outputs.push(self.state.apply(command));
            }
            self.position = position;
        }
        Ok(())
    }

    fn query(&mut self, query: S::Query) -> S::Answer {
        self.state.query(query)
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        let stage = ViewStage::Whole(Box::new(self.state.clone()));
        Ok(Box::new(View { position: self.position, stage }))
    }

    fn blocks(&self) -> bool {
        self.has_thread
    }

    /// Few commands are applied sooner than the thread wakes up.
    fn can_apply_inline(&self, _: &[Entry]) -> bool {
        true
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.restoring = Some(Restoring { position: meta.position, bytes: BytesMut::new() });
        Ok(())
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        let restoring = self.restoring.as_mut().expect("a restore has begun");
        let limit_bytes = S::STATE_BYTES_MAX.saturating_add(CHECKSUM_BYTES);
        if chunk.len() > limit_bytes.saturating_sub(restoring.bytes.len()) {
            let error = EncodingError::TooLarge { limit_bytes: S::STATE_BYTES_MAX };
            return Err(stop(format_args!("the snapshot at {}", restoring.position), error));
        }
        restoring.bytes.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        let Restoring { position, bytes } = self.restoring.take().expect("a restore has begun");
        self.state = format::decode_state(S::VERSION, &bytes)
            .map_err(|error| stop(format_args!("the snapshot at {position}"), error))?;
        self.position = position;
        Ok(())
    }
}

fn stop(what: std::fmt::Arguments<'_>, error: EncodingError) -> MachineError {
    MachineError(format!("{what} {error}"))
}

/// The state at one position, encoded when its first chunk is asked for.
struct View<S> {
    position: Position,
    stage: ViewStage<S>,
}

enum ViewStage<S> {
    Whole(Box<S>),
    /// The bytes that the caller has not taken yet.
    Encoded(Bytes),
    /// The state could not be encoded.
    Failed,
}

impl<S: ReplicatedState> SnapshotSource for View<S> {
    fn position(&self) -> Position {
        self.position
    }

    fn next_chunk(&mut self, bytes_max: usize) -> MachineResult<Option<Bytes>> {
        assert!(bytes_max > 0, "a chunk has room for a byte");
        let mut bytes = match std::mem::replace(&mut self.stage, ViewStage::Failed) {
            ViewStage::Whole(state) => self.encode(state)?,
            ViewStage::Encoded(bytes) => bytes,
            ViewStage::Failed => return Err(MachineError("the view was not encoded".to_owned())),
        };
        let chunk = bytes.split_to(bytes.len().min(bytes_max));
        self.stage = ViewStage::Encoded(bytes);
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

impl<S: ReplicatedState> View<S> {
    fn encode(&self, state: Box<S>) -> MachineResult<Bytes> {
        let bytes = format::encode_state(S::VERSION, state, S::STATE_BYTES_MAX)
            .map_err(|error| stop(format_args!("the state at {}", self.position), error))?;
        assert!(bytes.len() >= HEAD_BYTES + CHECKSUM_BYTES, "a state has head and checksum");
        if bytes.len() > S::STATE_BYTES_MAX / 2 {
            tracing::warn!(
                size_bytes = bytes.len(),
                limit_bytes = S::STATE_BYTES_MAX,
                "the state has used half of STATE_BYTES_MAX; at the limit the node stops"
            );
        }
        Ok(bytes)
    }
}
