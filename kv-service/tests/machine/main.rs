//! The state machine of the store, seen from outside: the calls that Raft makes, and their results.

#![allow(clippy::unwrap_used, reason = "tests")]

mod agreement;
mod commands;
mod exactly_once;
mod expiry;
mod model;
mod operations;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod snapshots;
#[cfg(feature = "rocksdb")]
mod views;

use bytes::Bytes;
use kv_service::protocol::operation::{Nonce, SessionId};
use kv_service::state::{
    Action, Command, MachineQuery, Opening, Output, QueryOutput, SESSION_WINDOW, WriteLimits,
};
use kv_service::{Answer, KvMachine, Operation, Query, Record, ScanPage, VERSION_MAX};
use raft_core::state_machine::StateMachine;
use raft_core::types::{Configuration, Entry, Payload, Position, SnapshotMeta};

/// The entry that follows what the machine has applied.
fn next_entry(machine: &KvMachine, payload: Payload) -> Entry {
    Entry { index: machine.last_applied().index + 1, term: 1, payload }
}

fn apply_command(machine: &mut KvMachine, command: &Command) -> Output {
    let entry = next_entry(machine, Payload::Command(command.encode()));
    let mut outputs = Vec::new();
    machine.apply(&[entry], &mut outputs).unwrap();
    assert_eq!(outputs.len(), 1);
    outputs.remove(0)
}

/// The nonce of every session here; a guessed nonce is another one.
const NONCE: Nonce = Nonce(0x0123_4567_89ab_cdef);

/// A command of a cluster of the newest version.
fn command(time_ms: u64, action: Action) -> Command {
    Command { rules: VERSION_MAX, time_ms, action }
}

fn open_command(time_ms: u64, ttl_ms: u64, session_count_max: u64) -> Command {
    let opening = Opening {
        nonce: NONCE,
        ttl_ms,
        window: SESSION_WINDOW,
        session_count_max,
        principal_session_count_max: u64::MAX,
        principal: Bytes::new(),
    };
    command(time_ms, Action::OpenSession(opening))
}

fn opened(machine: &mut KvMachine, command: &Command) -> SessionId {
    match apply_command(machine, command) {
        Output::SessionOpened { session, .. } => session,
        other => panic!("not opened: {other:?}"),
    }
}

fn open(machine: &mut KvMachine, time_ms: u64, ttl_ms: u64, session_count_max: u64) -> SessionId {
    opened(machine, &open_command(time_ms, ttl_ms, session_count_max))
}

/// A session with that index, opened or not.
fn session_at(index: u64) -> SessionId {
    SessionId { index, nonce: NONCE }
}

const LIMITS: WriteLimits =
    WriteLimits { key_bytes_max: 1 << 16, value_bytes_max: 1 << 20, answer_bytes_max: u64::MAX };

fn write_command(session: SessionId, sequence: u64, operation: Operation) -> Command {
    let write =
        Action::Write { session, sequence, lowest_unanswered: sequence, limits: LIMITS, operation };
    command(0, write)
}

fn write(
    machine: &mut KvMachine,
    session: SessionId,
    sequence: u64,
    operation: Operation,
) -> Output {
    apply_command(machine, &write_command(session, sequence, operation))
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Operation {
    Operation::Put { key: text(key), value: text(value) }
}

fn append(key: &str, value: &str) -> Operation {
    Operation::Append { key: text(key), value: text(value) }
}

fn get(machine: &mut KvMachine, key: &str) -> Option<Record> {
    match machine.query(MachineQuery::Read(Query::Get { key: text(key) })).unwrap() {
        QueryOutput::Read(Answer::Get(record)) => record,
        other => panic!("no answer to a get: {other:?}"),
    }
}

fn value(machine: &mut KvMachine, key: &str) -> Option<String> {
    get(machine, key).map(|record| String::from_utf8(record.value.to_vec()).unwrap())
}

fn scan(machine: &mut KvMachine, start: Bytes, end: Bytes, limit: u32) -> ScanPage {
    match machine.query(MachineQuery::Read(Query::Scan { start, end, limit })).unwrap() {
        QueryOutput::Read(Answer::Scan(page)) => page,
        other => panic!("no answer to a scan: {other:?}"),
    }
}

fn scan_all(machine: &mut KvMachine) -> Vec<(Bytes, Record)> {
    let mut records = Vec::new();
    let mut start = Some(Bytes::new());
    while let Some(from) = start {
        let page = scan(machine, from, Bytes::new(), 3);
        assert!(page.records.len() <= 3);
        records.extend(page.records);
        start = page.continue_at;
    }
    records
}

/// The machine's state as a stream: equal states have equal bytes.
fn snapshot_bytes(machine: &mut KvMachine, chunk_bytes: usize) -> Vec<u8> {
    let mut source = machine.snapshot().unwrap();
    assert_eq!(source.position(), machine.last_applied());
    let mut bytes = Vec::new();
    while let Some(chunk) = source.next_chunk(chunk_bytes).unwrap() {
        assert!(!chunk.is_empty() && chunk.len() <= chunk_bytes);
        bytes.extend_from_slice(&chunk);
    }
    assert!(source.next_chunk(chunk_bytes).unwrap().is_none(), "the end stays the end");
    bytes
}

fn meta(position: Position) -> SnapshotMeta {
    SnapshotMeta::new(position, Configuration::default())
}

fn restore(
    machine: &mut KvMachine,
    position: Position,
    bytes: &[u8],
    chunk_bytes: usize,
) -> Result<(), String> {
    let text = |error: raft_core::state_machine::MachineError| error.to_string();
    machine.begin_restore(&meta(position)).map_err(text)?;
    for chunk in bytes.chunks(chunk_bytes) {
        machine.restore_chunk(Bytes::copy_from_slice(chunk)).map_err(text)?;
    }
    machine.finish_restore().map_err(text)
}
