//! Fuzzing entry points of the machine's decoders: commands, the stream of a snapshot, and the
//! values of the durable engine. See `crate::fuzzing`.

use bytes::{Bytes, BytesMut};
use raft_core::state_machine::{MachineResult, StateMachine};
use raft_core::types::{Configuration, Entry, INDEX_MAX, Payload, Position, SnapshotMeta};

use super::codec::ByteReader;
use super::command::{Action, Command, Opening, WriteLimits};
use super::engine::format;
use super::session::Session;
use super::{KvMachine, MachineQuery, QueryOutput};
use crate::protocol::operation::{Answer, Nonce, Operation, Query, SessionId};
use crate::protocol::version::VERSION_MAX;

/// A command, as it is in the log.
pub fn command(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(command) = Command::decode(&bytes) {
        assert_eq!(command.size_bytes(), bytes.len());
        assert_eq!(command.encode(), bytes);
    }
}

/// A value of the durable engine, and the key of a session.
pub fn stored_state(bytes: &[u8]) {
    let owned = Bytes::copy_from_slice(bytes);
    let change = format::decode_change(&owned);
    assert_eq!(format::decode_versions(bytes).is_ok(), change.is_ok());
    if let Ok(change) = change {
        let mut out = BytesMut::new();
        format::encode_change(change.as_ref(), &mut out);
        assert_eq!(out, bytes);
        assert!(change.is_none_or(|record| record.version.checked_add(1).is_some()));
    }
    if let Ok(applied_meta) = format::decode_applied_meta(&owned) {
        assert_eq!(format::encode_applied_meta(applied_meta), bytes);
    }
    let mut reader = ByteReader::new(&owned);
    if let Ok(session) = Session::decode(&mut reader)
        && reader.finish().is_ok()
    {
        let mut out = BytesMut::new();
        session.encode(&mut out);
        assert_eq!(out, bytes);
    }
    if let Ok(id) = format::decode_session_key(bytes) {
        assert_eq!(format::session_key(id), bytes);
    }
}

/// The stream of a snapshot. A stream that is accepted must hold a valid state: it can be written
/// as a stream again, and clients can continue with it.
pub fn snapshot_stream(bytes: &[u8]) {
    // Behind the start and the section's header. The numbers are bounded, because the announced
    // position of a real snapshot was checked when it was received.
    let sections = Bytes::copy_from_slice(bytes.get(13..).unwrap_or_default());
    let mut reader = ByteReader::new(&sections);
    let mut number = || reader.varint().unwrap_or(0).min(INDEX_MAX - 100);
    let position = Position::new(number(), number());
    let restored = restore(position, bytes, bytes.len().max(1));
    let in_pieces = restore(position, bytes, 7);
    assert_eq!(restored.is_ok(), in_pieces.is_ok(), "how it is cut does not matter");
    let (Ok(mut machine), Ok(mut twin)) = (restored, in_pieces) else { return };
    let stream = stream(&mut machine);
    assert!(stream.len() <= bytes.len(), "no section is shorter than it must be");
    assert_eq!(stream, self::stream(&mut twin));
    let mut again = restore(position, &stream, 1000).expect("the machine itself wrote it");
    assert_eq!(self::stream(&mut again), stream);
    go_on(&mut machine);
}

fn restore(position: Position, bytes: &[u8], piece_bytes: usize) -> MachineResult<KvMachine> {
    let mut machine = KvMachine::memory();
    let configuration = Configuration::default();
    machine.begin_restore(&SnapshotMeta::new(position, configuration))?;
    for piece in bytes.chunks(piece_bytes) {
        machine.restore_chunk(Bytes::copy_from_slice(piece))?;
    }
    machine.finish_restore().map(|()| machine)
}

fn stream(machine: &mut KvMachine) -> Vec<u8> {
    let mut source = machine.snapshot().expect("memory can be read");
    let mut bytes = Vec::new();
    while let Some(chunk) = source.next_chunk(1 << 16).expect("memory can be read") {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

/// Opens a session, appends to the first records in it, and then ends all sessions.
fn go_on(machine: &mut KvMachine) {
    let query = Query::Scan { start: Bytes::new(), end: Bytes::new(), limit: 3 };
    let Ok(QueryOutput::Read(Answer::Scan(page))) = machine.query(MachineQuery::Read(query)) else {
        panic!("a scan is answered by a page");
    };
    let first_index = machine.last_applied().index + 1;
    let session = SessionId { index: first_index, nonce: Nonce(7) };
    let open = |time_ms, ttl_ms, session_count_max| {
        let opening = Opening {
            nonce: session.nonce,
            ttl_ms,
            window: 1024,
            session_count_max,
            principal_session_count_max: session_count_max,
            principal: Bytes::new(),
        };
        Command { rules: VERSION_MAX, time_ms, action: Action::OpenSession(opening) }
    };
    let mut commands = vec![open(0, u64::MAX, u64::MAX)];
    for (sequence, (key, _)) in (1..).zip(page.records) {
        let value = Bytes::from_static(b"more");
        let limits = WriteLimits {
            key_bytes_max: u64::MAX,
            value_bytes_max: u64::MAX,
            answer_bytes_max: u64::MAX,
        };
        let operation = Operation::Append { key, value };
        let lowest_unanswered = sequence;
        let write = Action::Write { session, sequence, lowest_unanswered, limits, operation };
        commands.push(Command { rules: VERSION_MAX, time_ms: 0, action: write });
    }
    commands.push(open(u64::MAX, 0, 1));
    commands.push(open(u64::MAX, 0, 1));
    let entry = |(index, command): (u64, Command)| Entry {
        index,
        term: machine.last_applied().term,
        payload: Payload::Command(command.encode()),
    };
    let entries: Vec<Entry> = (first_index..).zip(commands).map(entry).collect();
    let mut outputs = Vec::new();
    machine.apply(&entries, &mut outputs).expect("memory can be written");
    assert_eq!(outputs.len(), entries.len());
    assert!(stream(machine).len() > 8);
}
