//! The replicated key-value store as a state machine.
//!
//! [`KvMachine`] decodes what Raft has committed, sees to it that each request takes effect exactly
//! once (`sessions`), executes it (`execute`) on one of two engines (`engine`), and turns the state
//! into a stream and back (`snapshot`). Equal entries lead to equal states on every node: whatever
//! decides travels in the command, time included.
//!
//! * Data, sessions, clock and position change together or not at all, in memory as on disk.
//! * A command that makes no sense is answered [`Output::Malformed`] by every node, and changes
//!   nothing but the position.
//! * A snapshot taken by one engine can be restored by the other.
//!
//! Who may write what, how large a frame may be, and where a leader's time comes from is the
//! server's business.

mod answers;
mod codec;
pub mod command;
mod engine;
mod execute;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod sessions;
mod snapshot;

use bytes::Bytes;
use raft_core::state_machine::{
    Flusher, MachineError, MachineResult, SnapshotSource, StateMachine,
};
use raft_core::types::{Entry, Index, Payload, Position, SnapshotMeta};
use serde::{Deserialize, Serialize};

pub use codec::DecodeError;
pub use command::{Command, KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT};
#[cfg(feature = "rocksdb")]
pub use engine::rocksdb::RocksStateOptions;
pub use sessions::SESSION_WINDOW;

use crate::operation::{self, Operation, Refusal, SessionId, WriteAnswer};
use engine::{Engine, Head};
use sessions::{Admission, Sessions};
use snapshot::{SnapshotDecoder, SnapshotEncoder};

/// About how many bytes of keys and values one page of a scan holds; a page has at least one record.
pub const SCAN_PAGE_BYTES_MAX: usize = 1 << 20;

/// What an engine holds back before it must write: a replay after a restart comes in one piece.
const COMMIT_ENTRIES_MAX: usize = 1024;
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// What a command answers to whoever proposed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    SessionOpened {
        session: SessionId,
    },
    /// Also when there was no such session.
    SessionClosed,
    Written(WriteAnswer),
    Refused(Refusal),
    /// The entry is no command that this version understands. It changed nothing.
    Malformed,
}

/// What the machine can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Read(operation::Query),
    /// The machine's clock in milliseconds of replicated time; a new leader stamps from there.
    ClockMs,
}

/// The answer to a [`Question`], variant for variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Read(operation::Answer),
    ClockMs(u64),
}

/// The key-value store; see the module.
pub struct KvMachine {
    engine: Box<dyn Engine>,
    /// Runs ahead of what the engine has committed only while a batch is being applied.
    head: Head,
    sessions: Sessions,
    restoring: Option<SnapshotDecoder>,
}

impl KvMachine {
    /// A store that lives in memory: volatile, so that a stored snapshot must stand for the log.
    pub fn memory() -> Self {
        let engine = engine::memory::MemoryEngine::default();
        Self::over(Box::new(engine), Head::default(), Sessions::default())
    }

    fn over(engine: Box<dyn Engine>, head: Head, sessions: Sessions) -> Self {
        Self { engine, head, sessions, restoring: None }
    }

    fn execute(&mut self, index: Index, bytes: &Bytes) -> MachineResult<Output> {
        let Ok(command) = Command::decode(bytes.clone()) else {
            return Ok(Output::Malformed);
        };
        let (Command::OpenSession { time_ms, .. }
        | Command::CloseSession { time_ms, .. }
        | Command::Write { time_ms, .. }) = command;
        self.head.clock_ms = self.head.clock_ms.max(time_ms);
        self.sessions.expire(self.head.clock_ms);
        Ok(match command {
            Command::OpenSession { ttl_ms, session_count_max, .. } => {
                self.sessions.open(index, self.head.clock_ms, ttl_ms, session_count_max);
                Output::SessionOpened { session: index }
            }
            Command::CloseSession { session, .. } => {
                self.sessions.close(session);
                Output::SessionClosed
            }
            Command::Write {
                session,
                sequence,
                lowest_unanswered,
                value_bytes_max,
                operation,
                ..
            } => {
                let clock_ms = self.head.clock_ms;
                match self.sessions.admit(session, sequence, lowest_unanswered, clock_ms) {
                    Admission::Refused(refusal) => Output::Refused(refusal),
                    Admission::Answered(outcome) => Output::from(outcome),
                    Admission::Execute => {
                        let outcome = self.write(operation, index, value_bytes_max)?;
                        self.sessions.answer(session, sequence, outcome);
                        Output::from(outcome)
                    }
                }
            }
        })
    }

    fn write(
        &mut self,
        operation: Operation,
        index: Index,
        value_bytes_max: u64,
    ) -> MachineResult<Result<WriteAnswer, Refusal>> {
        let value_bytes_max = value_bytes_max.min(VALUE_BYTES_LIMIT as u64);
        execute::execute(&mut *self.engine, operation, index, value_bytes_max)
    }

    fn commit(&mut self) -> MachineResult<()> {
        self.engine.commit(self.head, &self.sessions)?;
        self.sessions.clear_changed();
        Ok(())
    }
}

impl From<Result<WriteAnswer, Refusal>> for Output {
    fn from(outcome: Result<WriteAnswer, Refusal>) -> Self {
        match outcome {
            Ok(answer) => Output::Written(answer),
            Err(refusal) => Output::Refused(refusal),
        }
    }
}

impl StateMachine for KvMachine {
    type Output = Output;
    type Query = Question;
    type Answer = MachineResult<Reply>;

    fn last_applied(&self) -> Position {
        self.head.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<Output>) -> MachineResult<()> {
        let (mut pending_count, mut pending_bytes) = (0, 0);
        for entry in entries {
            assert_eq!(entry.index, self.head.position.index + 1, "entries come in order, once");
            if let Payload::Command(bytes) = &entry.payload {
                outputs.push(self.execute(entry.index, bytes)?);
            }
            self.head.position = entry.position();
            pending_count += 1;
            pending_bytes += entry.size_bytes();
            if pending_count >= COMMIT_ENTRIES_MAX || pending_bytes >= COMMIT_BYTES_MAX {
                self.commit()?;
                (pending_count, pending_bytes) = (0, 0);
            }
        }
        if pending_count > 0 { self.commit() } else { Ok(()) }
    }

    fn query(&mut self, question: Question) -> MachineResult<Reply> {
        Ok(match question {
            Question::ClockMs => Reply::ClockMs(self.head.clock_ms),
            Question::Read(operation::Query::Get { key }) => {
                Reply::Read(operation::Answer::Get(self.engine.get(&key)?))
            }
            Question::Read(operation::Query::Scan { start, end, limit }) => {
                let page = self.engine.scan(&start, &end, limit.max(1), SCAN_PAGE_BYTES_MAX)?;
                Reply::Read(operation::Answer::Scan(page))
            }
        })
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        let view = self.engine.view()?;
        Ok(Box::new(SnapshotEncoder::new(self.head, self.sessions.view(), view)))
    }

    fn begin_restore(&mut self, meta: &SnapshotMeta) -> MachineResult<()> {
        self.restoring = Some(SnapshotDecoder::new(meta.position));
        self.engine.begin_restore()
    }

    fn restore_chunk(&mut self, chunk: Bytes) -> MachineResult<()> {
        let decoder = self.restoring.as_mut().ok_or_else(no_restore)?;
        decoder.push(chunk, &mut *self.engine)
    }

    fn finish_restore(&mut self) -> MachineResult<()> {
        let decoder = self.restoring.take().ok_or_else(no_restore)?;
        let (head, sessions) = decoder.finish()?;
        self.engine.finish_restore(head, &sessions)?;
        (self.head, self.sessions) = (head, sessions);
        Ok(())
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        self.engine.flusher()
    }

    fn blocks(&self) -> bool {
        self.engine.blocks()
    }

    fn applies_at_once(&self, entries: &[Entry]) -> bool {
        entries.iter().all(|entry| match &entry.payload {
            Payload::Command(bytes) => match Command::decode(bytes.clone()) {
                Ok(Command::Write { operation, .. }) => {
                    execute::reads_versions_only(&operation)
                        && self.engine.writes_at_once(operation.key())
                }
                // Rare.
                Ok(Command::OpenSession { .. } | Command::CloseSession { .. }) | Err(_) => false,
            },
            Payload::Noop | Payload::Configuration(_) => false,
        })
    }
}

fn no_restore() -> MachineError {
    MachineError("a piece of a snapshot came without a restore under way".into())
}
