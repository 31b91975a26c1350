//! The machine's decoders as a fuzzer sees them: commands, the stream of a snapshot, and what the durable
//! engine keeps. See `crate::fuzzing`.

use bytes::{Bytes, BytesMut};
use raft_core::state_machine::{MachineResult, StateMachine};
use raft_core::types::{Configuration, Entry, INDEX_MAX, Payload, Position, SnapshotMeta};

use super::codec::Reader;
use super::command::Command;
use super::engine::format;
use super::sessions::Session;
use super::{KvMachine, Question, Reply};
use crate::operation::{Answer, Operation, Query};

/// A command, as it is in the log.
pub fn command(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(command) = Command::decode(bytes.clone()) {
        assert_eq!(command.size_bytes(), bytes.len());
        assert_eq!(command.encode(), bytes);
    }
}

/// A value of the durable engine, and the key of a session.
pub fn stored_state(bytes: &[u8]) {
    let owned = Bytes::copy_from_slice(bytes);
    let record = format::decode_record(owned.clone());
    assert_eq!(format::decode_versions(bytes).is_ok(), record.is_ok());
    if let Ok(record) = record {
        let mut out = BytesMut::new();
        format::encode_record(&record, &mut out);
        assert_eq!(out, bytes);
        assert!(record.version.checked_add(1).is_some());
    }
    if let Ok(head) = format::decode_head(owned.clone()) {
        assert_eq!(format::encode_head(head), bytes);
    }
    let mut reader = Reader::new(owned);
    if let Ok(session) = Session::decode(&mut reader)
        && reader.finish().is_ok()
    {
        let mut out = BytesMut::new();
        session.encode(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(session.size_bytes(), bytes.len());
    }
    if let Ok(id) = format::decode_session_key(bytes) {
        assert_eq!(format::session_key(id), bytes);
    }
}

/// A snapshot's stream. What is taken over must be a state: it comes out as a stream again, and clients
/// can go on with it.
pub fn snapshot_stream(bytes: &[u8]) {
    // Behind magic and section head. The announcement was checked when it came.
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default()).min(INDEX_MAX - 100)
    };
    let position = Position::new(number(13), number(21));
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
    machine.begin_restore(&SnapshotMeta { position, configuration })?;
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

/// A new session changes every kind of thing that is there, and all sessions end.
fn go_on(machine: &mut KvMachine) {
    let query = Query::Scan { start: Bytes::new(), end: Bytes::new(), limit: 3 };
    let Ok(Reply::Read(Answer::Scan(page))) = machine.query(Question::Read(query)) else {
        panic!("a scan is answered by a page");
    };
    let session = machine.last_applied().index + 1;
    let mut commands =
        vec![Command::OpenSession { time_ms: 0, ttl_ms: u64::MAX, session_count_max: u64::MAX }];
    for (sequence, (key, _)) in (1..).zip(page.records) {
        let value = Bytes::from_static(b"more");
        commands.push(Command::Write {
            time_ms: 0,
            session,
            sequence,
            lowest_unanswered: sequence,
            value_bytes_max: u64::MAX,
            operation: Operation::Append { key, value },
        });
    }
    let time_ms = u64::MAX;
    commands.push(Command::OpenSession { time_ms, ttl_ms: 0, session_count_max: 1 });
    commands.push(Command::OpenSession { time_ms, ttl_ms: 0, session_count_max: 1 });
    let entry = |(index, command): (u64, Command)| Entry {
        index,
        term: machine.last_applied().term,
        payload: Payload::Command(command.encode()),
    };
    let entries: Vec<Entry> = (session..).zip(commands).map(entry).collect();
    let mut outputs = Vec::new();
    machine.apply(&entries, &mut outputs).expect("memory can be written");
    assert_eq!(outputs.len(), entries.len());
    assert!(stream(machine).len() > 8);
}
