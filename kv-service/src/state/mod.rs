//! The replicated key-value store as a state machine.
//!
//! [`KvMachine`] decodes committed entries, executes each request exactly once (`sessions`,
//! `execute`) on one of two engines (`engine`), and turns the state into a stream and back
//! (`snapshot`). Equal entries lead to equal states on every node: everything that decides the
//! effect of a command travels in the command, time and limits included.
//!
//! * Data, sessions, clock and position change together or not at all, in memory as on disk.
//! * An entry that this program cannot decode stops the node (S3). No node skips an entry: a newer
//!   node may have executed it. Only nodes of the cluster propose entries, and [`Command::encode`]
//!   asserts that the cluster version is one that this program reads. So an entry of no version at
//!   all was damaged, or was proposed past the server. The node stops there as well, because it
//!   cannot tell if its peers read the same bytes.
//! * A snapshot taken by one engine can be restored by the other.
//!
//! The server, not the machine, decides about permissions, the size of frames and a leader's time.

mod answers;
mod codec;
pub mod command;
mod engine;
mod execute;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod idle;
mod output_counts;
mod session;
mod sessions;
mod snapshot;

use bytes::Bytes;
use raft_core::state_machine::{
    Flusher, MachineError, MachineResult, SnapshotSource, StateMachine,
};
use raft_core::types::{Configuration, Entry, Index, Payload, Position, SnapshotMeta};
use serde::{Deserialize, Serialize};

pub use codec::DecodeError;
pub use command::{Action, Command, KEY_BYTES_LIMIT, Opening, VALUE_BYTES_LIMIT, WriteLimits};
#[cfg(feature = "rocksdb")]
pub use engine::rocksdb::RocksStateOptions;
pub use session::ANSWER_BYTES;

use crate::protocol::operation::{self, Refusal, SessionId, WriteResponse};
use crate::protocol::version::{VERSION_MAX, VERSION_MIN};
use engine::{AppliedMeta, Engine, ScanLimits};
use sessions::{Admission, Place, Sessions};
use snapshot::{SnapshotDecoder, SnapshotEncoder};

/// How many requests of a session may be unanswered, by default (`Opening::window`).
pub const SESSION_WINDOW: u32 = 1024;

/// Bytes of the outputs that all sessions remember, by default (`WriteLimits::answer_bytes_max`).
pub const SESSION_ANSWER_BYTES_MAX: u64 = 64 << 20;

/// About how many bytes of keys and values one page of a scan holds, at most.
pub const SCAN_PAGE_BYTES_MAX: usize = 1 << 20;

/// Keys, deleted ones included, that one page of a scan examines at most (S13).
pub const SCAN_KEYS_MAX: usize = 16 << 10;

/// Entries and bytes that are applied before the engine must commit, because a replay after a
/// restart comes in one piece.
const COMMIT_ENTRIES_MAX: usize = 1024;
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// The output of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// A session was opened.
    SessionOpened {
        session: SessionId,
        /// How many of its requests may be unanswered.
        window: u32,
    },
    /// The session is closed, or did not exist.
    SessionClosed,
    /// The write was executed, now or by an earlier copy of the request.
    Written(WriteResponse),
    /// This copy of the request was not executed; [`Refusal`] tells about earlier copies.
    Refused(Refusal),
}

/// A query of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineQuery {
    /// A client's read.
    Read(operation::Query),
    /// The machine's clock in milliseconds of replicated time. A new leader's timestamps continue
    /// from it.
    ClockMs,
}

/// The output of a [`MachineQuery`], variant for variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryOutput {
    /// The output of a client's read.
    Read(operation::Answer),
    /// Milliseconds of replicated time.
    ClockMs(u64),
}

/// The key-value store; see the module.
pub struct KvMachine {
    engine: Box<dyn Engine>,
    /// Runs ahead of what the engine has committed only while a batch is being applied.
    applied_meta: AppliedMeta,
    sessions: Sessions,
    restoring: Option<SnapshotDecoder>,
}

impl KvMachine {
    /// A store in memory. It is volatile: the log may be compacted only up to a stored snapshot.
    pub fn memory() -> Self {
        let engine = engine::memory::MemoryEngine::default();
        Self::over(Box::new(engine), AppliedMeta::default(), Sessions::default())
    }

    fn over(engine: Box<dyn Engine>, applied_meta: AppliedMeta, sessions: Sessions) -> Self {
        Self { engine, applied_meta, sessions, restoring: None }
    }

    fn execute(&mut self, index: Index, bytes: &Bytes) -> MachineResult<Output> {
        let (command, encoded_operation) =
            Command::decode_parts(bytes).map_err(|error| unreadable(index, error))?;
        self.applied_meta.clock_ms = self.applied_meta.clock_ms.max(command.time_ms);
        self.applied_meta.rules = self.applied_meta.rules.max(command.rules);
        let clock_ms = self.applied_meta.clock_ms;
        self.sessions.expire(clock_ms);
        Ok(match command.action {
            Action::OpenSession(opening) => {
                self.sessions.open(index, clock_ms, &opening);
                let session = SessionId { index, nonce: opening.nonce };
                Output::SessionOpened { session, window: opening.window.max(1) }
            }
            Action::CloseSession { session } => {
                self.sessions.close(session);
                Output::SessionClosed
            }
            Action::Write { session, sequence, lowest_unanswered, limits, operation } => {
                let digest = command::digest(encoded_operation);
                let place = Place { session, sequence, lowest_unanswered, digest };
                match self.sessions.admit(&place, clock_ms) {
                    Admission::Refused(refusal) => Output::Refused(refusal),
                    Admission::Answered(outcome) => Output::from(outcome),
                    Admission::Execute => {
                        let outcome =
                            execute::execute(&mut *self.engine, operation, index, &limits)?;
                        if outcome.is_ok_and(|answer| answer.changed) {
                            self.applied_meta.revision = index;
                        }
                        self.sessions.answer(&place, outcome, limits.answer_bytes_max);
                        Output::from(outcome)
                    }
                }
            }
        })
    }

    /// Stops the node at a cluster version that this program does not support, before it applies
    /// any entry of that version.
    fn on_configuration(
        &mut self,
        index: Index,
        configuration: &Configuration,
    ) -> MachineResult<()> {
        let rules = configuration.cluster_version;
        if rules > VERSION_MAX {
            return Err(unreadable(index, DecodeError::NewerRules(rules)));
        }
        self.applied_meta.rules = self.applied_meta.rules.max(rules);
        self.applied_meta.generation = self.applied_meta.generation.max(configuration.generation);
        Ok(())
    }

    fn commit(&mut self) -> MachineResult<()> {
        assert!(self.applied_meta.revision <= self.applied_meta.position.index);
        self.engine.commit(self.applied_meta, &self.sessions)?;
        self.sessions.clear_changed();
        Ok(())
    }
}

impl From<Result<WriteResponse, Refusal>> for Output {
    fn from(outcome: Result<WriteResponse, Refusal>) -> Self {
        match outcome {
            Ok(answer) => Output::Written(answer),
            Err(refusal) => Output::Refused(refusal),
        }
    }
}

impl StateMachine for KvMachine {
    type Output = Output;
    type Query = MachineQuery;
    type Answer = MachineResult<QueryOutput>;

    fn last_applied(&self) -> Position {
        self.applied_meta.position
    }

    fn apply(&mut self, entries: &[Entry], outputs: &mut Vec<Output>) -> MachineResult<()> {
        let (mut pending_count, mut pending_bytes) = (0, 0);
        for entry in entries {
            assert_eq!(
                entry.index,
                self.applied_meta.position.index + 1,
                "entries come in order, once"
            );
            match &entry.payload {
                Payload::Command(bytes) => outputs.push(self.execute(entry.index, bytes)?),
                Payload::Configuration(configuration) => {
                    self.on_configuration(entry.index, configuration)?;
                }
                Payload::Noop => {}
            }
            self.applied_meta.position = entry.position();
            pending_count += 1;
            pending_bytes += entry.size_bytes();
            if pending_count >= COMMIT_ENTRIES_MAX || pending_bytes >= COMMIT_BYTES_MAX {
                self.commit()?;
                (pending_count, pending_bytes) = (0, 0);
            }
        }
        let last_index = entries.last().map(|entry| entry.index);
        assert!(last_index.is_none_or(|last| last == self.applied_meta.position.index));
        if pending_count > 0 { self.commit() } else { Ok(()) }
    }

    fn query(&mut self, question: MachineQuery) -> MachineResult<QueryOutput> {
        Ok(match question {
            MachineQuery::ClockMs => QueryOutput::ClockMs(self.applied_meta.clock_ms),
            MachineQuery::Read(operation::Query::Get { key }) => {
                QueryOutput::Read(operation::Answer::Get(self.engine.get(&key)?))
            }
            MachineQuery::Read(operation::Query::Scan { start, end, limit }) => {
                let limits = ScanLimits {
                    records_max: limit.max(1) as usize,
                    bytes_max: SCAN_PAGE_BYTES_MAX,
                    keys_max: SCAN_KEYS_MAX,
                };
                let page = self.engine.scan(&start, &end, &limits)?;
                QueryOutput::Read(operation::Answer::Scan(page))
            }
        })
    }

    fn snapshot(&mut self) -> MachineResult<Box<dyn SnapshotSource>> {
        let view = self.engine.view()?;
        Ok(Box::new(SnapshotEncoder::new(self.applied_meta, self.sessions.view(), view)))
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
        let (applied_meta, sessions) = decoder.finish()?;
        self.engine.finish_restore(applied_meta, &sessions)?;
        (self.applied_meta, self.sessions) = (applied_meta, sessions);
        Ok(())
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        self.engine.flusher()
    }

    fn blocks(&self) -> bool {
        self.engine.blocks()
    }

    fn can_apply_inline(&self, entries: &[Entry]) -> bool {
        entries.iter().all(|entry| match &entry.payload {
            Payload::Command(bytes) => match Command::decode(bytes) {
                Ok(Command { action: Action::Write { operation, .. }, .. }) => {
                    execute::reads_versions_only(&operation)
                        && self.engine.can_write_inline(operation.key())
                }
                // Too rare to be worth a decision.
                Ok(Command { .. }) | Err(_) => false,
            },
            Payload::Noop | Payload::Configuration(_) => false,
        })
    }
}

/// A committed entry that cannot be decoded. The node stops, so every text says what to start.
fn unreadable(index: Index, error: DecodeError) -> MachineError {
    MachineError(if error.is_newer() {
        format!(
            "entry {index} was written by a newer version of kv ({error}; this program supports \
             cluster versions {VERSION_MIN} to {VERSION_MAX}): start that version on this node. The \
             node stops here and skips nothing, and no data is lost"
        )
    } else {
        format!(
            "entry {index} is no command of any version of kv ({error}): it was damaged, or \
             proposed past the server. The node stops here, because to skip it might make its state \
             differ from that of its peers. If the peers run, empty this node's data directory and \
             let it join again; if all stop here, restore a backup"
        )
    })
}

fn no_restore() -> MachineError {
    MachineError("a piece of a snapshot came without a restore under way".into())
}
