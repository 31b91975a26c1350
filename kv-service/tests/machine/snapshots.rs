//! The stream of a snapshot: whole or refused, and undisturbed by later writes.

use kv_service::{KvMachine, VERSION_MAX};
use proptest::prelude::*;
use raft_core::state_machine::StateMachine;
use raft_core::types::Position;

use crate::{open, put, restore, scan_all, snapshot_bytes, value, write};

fn sample() -> KvMachine {
    let mut machine = KvMachine::memory();
    for _ in 0..3 {
        let session = open(&mut machine, 7, 1000, 10);
        for sequence in 1..4 {
            let key = format!("key-{}", machine.last_applied().index);
            write(&mut machine, session, sequence, put(&key, "some value"));
        }
    }
    machine
}

fn restored(position: Position, bytes: &[u8]) -> Result<KvMachine, String> {
    let mut machine = KvMachine::memory();
    restore(&mut machine, position, bytes, 64).map(|()| machine)
}

#[test]
fn every_cut_is_refused_and_leaves_the_old_state() {
    let mut machine = sample();
    let position = machine.last_applied();
    let bytes = snapshot_bytes(&mut machine, 50);
    let mut other = KvMachine::memory();
    let session = open(&mut other, 0, 1000, 10);
    write(&mut other, session, 1, put("old", "state"));
    let before = snapshot_bytes(&mut other, 50);
    for end in 0..bytes.len() {
        assert!(restore(&mut other, position, &bytes[..end], 33).is_err(), "cut at {end}");
        assert_eq!(snapshot_bytes(&mut other, 50), before);
    }
    for chunk_bytes in [1, 7, bytes.len()] {
        restore(&mut other, position, &bytes, chunk_bytes).unwrap();
        assert_eq!(snapshot_bytes(&mut other, 50), bytes);
    }
}

#[test]
fn what_was_announced_must_come() {
    let mut machine = sample();
    let position = machine.last_applied();
    let bytes = snapshot_bytes(&mut machine, 50);
    assert!(restored(Position::new(position.term, position.index + 1), &bytes).is_err());
    let twice = [bytes.clone(), bytes.clone()].concat();
    assert!(restored(position, &twice).is_err());
    assert!(restored(position, &[&bytes[..], b"\0"].concat()).is_err());
    let mut machine = restored(position, &bytes).unwrap();
    assert!(machine.restore_chunk(bytes.into()).is_err(), "no restore is under way");
    assert!(machine.finish_restore().is_err());
}

/// S3. The start of a stream of another format, and a head under rules that this program does not
/// support: each is refused with a text that says which program to start.
#[test]
fn a_stream_of_another_version_is_refused_by_name() {
    let position = Position::new(1, 9);
    let end = (4, numbers(&[0, 0]));
    let refusal = |bytes: &[u8]| restored(position, bytes).map(|_| ()).unwrap_err();
    let start = |format: u8| {
        let mut bytes = crafted(std::slice::from_ref(&end));
        bytes[6] = format;
        bytes
    };
    assert!(restored(position, &start(2)).is_ok());
    assert!(refusal(&start(1)).contains("format 1 of snapshots, which no release has written"));
    assert!(refusal(&start(3)).contains("written by a newer version of kv"));
    let newer = u64::from(VERSION_MAX) + 1;
    let rules = crafted_under(newer, std::slice::from_ref(&end));
    assert!(refusal(&rules).contains(&format!("(cluster version {newer}; this program")));
    let unknown = refusal(&crafted(&[(5, vec![1]), end]));
    assert!(unknown.contains("written by a newer version of kv"), "{unknown}");
    assert!(refusal(b"something else").contains("no snapshot of this state machine"));
}

/// The format is a promise: such streams are stored and sent.
#[test]
fn bytes_stay_what_they_were() {
    let mut machine = KvMachine::memory();
    let session = open(&mut machine, 7, 1000, 10);
    write(&mut machine, session, 1, put("k", "value"));
    let mut expected = b"KVSNAP\x02\0".to_vec();
    let version = VERSION_MAX as u8;
    for (kind, payload) in [
        (1u8, &[1, 2, 7, 2, 0, version][..]),
        (
            2,
            b"\x01\xef\xcd\xab\x89\x67\x45\x23\x01\0\0\0\0\0\0\0\0\0\
              \xe8\x07\x80\x08\x07\x01\0\x01\0\x01\x20\xc1\xdc\xb0\x02\x01",
        ),
        (3, b"\0\x01\x05\x01\x02\x02kvalue"),
        (4, b"\x01\x01"),
    ] {
        expected.push(kind);
        expected.extend((payload.len() as u32).to_le_bytes());
        expected.extend(payload);
    }
    let bytes = snapshot_bytes(&mut machine, 1 << 16);
    assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
    assert!(restored(machine.last_applied(), &expected).is_ok());
}

/// A stream of position (1, 9) with these sections.
fn crafted(sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    crafted_under(1, sections)
}

fn crafted_under(rules: u64, sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"KVSNAP\x02\x00".to_vec();
    let head = numbers(&[1, 9, 500, 9, 0, rules]);
    for (kind, payload) in [(1, head)].iter().chain(sections) {
        bytes.push(*kind);
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// Encodes the numbers as varints.
fn numbers(numbers: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        let mut rest = *number;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    bytes
}

/// A session as it is in a stream, with remembered outputs at these places after
/// `lowest_unanswered`.
fn session(id: u64, lowest_unanswered: u64, places: &[u64]) -> Vec<u8> {
    let mut bytes = numbers(&[id]);
    bytes.extend_from_slice(&[7; 16]);
    let count = places.len() as u64;
    bytes.extend(numbers(&[0, 1000, 1024, 400, lowest_unanswered, 0, count]));
    for place in places {
        bytes.extend(numbers(&[*place]));
        bytes.extend_from_slice(&[1, 0, 0, 0, 0, 5, 1]);
    }
    bytes
}

fn record(key: u8, versions: [u64; 3]) -> Vec<u8> {
    let mut bytes = numbers(&[0, 1, 0]);
    bytes.extend(numbers(&versions));
    bytes.push(key);
    bytes
}

/// Sessions and records that no machine at that index can hold: they would be taken for ones that
/// are opened and written later, or leave no room for a next version.
#[test]
fn what_the_state_cannot_hold_is_refused() {
    let position = Position::new(1, 9);
    let end = |sessions: u64, records: u64| (4, numbers(&[sessions, records]));
    let with_session = |bytes: Vec<u8>| restored(position, &crafted(&[(2, bytes), end(1, 0)]));
    let with_record = |bytes: Vec<u8>| restored(position, &crafted(&[(3, bytes), end(0, 1)]));
    assert!(restored(position, &crafted(&[end(0, 0)])).is_ok());
    assert!(with_session(session(9, 3, &[0, 2])).is_ok());
    assert!(with_session(session(9, u64::MAX, &[0])).is_ok());
    for (what, bytes) in [
        ("not opened yet", session(10, 3, &[])),
        ("0", session(0, 3, &[])),
        ("an answer twice", session(9, 3, &[0, 0])),
        ("the last answer twice", session(9, u64::MAX, &[0, 0])),
        ("an answer beyond the numbers", session(9, u64::MAX, &[1])),
        ("an answer beyond the window", session(9, 3, &[1024])),
    ] {
        assert!(with_session(bytes).is_err(), "{what}");
    }
    assert!(with_record(record(b'k', [3, 7, 9])).is_ok());
    for versions in [[0, 7, 9], [4, 7, 9], [1, 0, 9], [1, 9, 7], [1, 7, 10], [u64::MAX, 7, 9]] {
        assert!(with_record(record(b'k', versions)).is_err(), "{versions:?}");
    }
    let twice = [record(b'k', [1, 7, 7]), record(b'k', [1, 7, 7])].concat();
    assert!(restored(position, &crafted(&[(3, twice), end(0, 2)])).is_err());
    assert!(restored(position, &crafted(&[(2, vec![]), end(0, 0)])).is_err(), "empty");
    assert!(restored(position, &crafted(&[(3, vec![]), end(0, 0)])).is_err(), "empty");
    let huge = [&crafted(&[])[..], &[3, 0xff, 0xff, 0xff, 0xff]].concat();
    assert!(restored(position, &huge).is_err(), "a section of four gigabytes");
}

proptest! {
    /// Checksums are the storage's task. Here a damaged stream is refused or is a valid state, and
    /// never causes a panic.
    #[test]
    fn damage_never_panics(at in any::<usize>(), to in any::<u8>()) {
        let mut machine = sample();
        let mut bytes = snapshot_bytes(&mut machine, 50);
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(mut machine) = restored(machine.last_applied(), &bytes) {
            prop_assert_eq!(snapshot_bytes(&mut machine, 1000), bytes);
        }
    }

    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(restored(Position::new(1, 1), &bytes).is_err());
    }
}

#[test]
fn a_view_is_not_disturbed() {
    let mut machine = sample();
    let expected = snapshot_bytes(&mut machine, 50);
    let mut source = machine.snapshot().unwrap();
    let mut bytes = source.next_chunk(50).unwrap().unwrap().to_vec();
    let session = open(&mut machine, 9, 1000, 1);
    write(&mut machine, session, 1, put("key-2", "changed"));
    let later = snapshot_bytes(&mut machine, 50);
    restore(&mut machine, Position::new(1, 12), &expected, 50).unwrap();
    while let Some(chunk) = source.next_chunk(50).unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes, expected);
    assert_ne!(later, expected);
}

/// More than one section of sessions and of records, and records larger than a section.
#[test]
fn large_states_come_back() {
    let mut machine = KvMachine::memory();
    for number in 0..3000 {
        let session = open(&mut machine, 0, 1000, 10_000);
        let large = if number % 1000 == 0 { 100_000 } else { 10 };
        write(&mut machine, session, 1, put(&format!("{number:06}"), &"v".repeat(large)));
    }
    let bytes = snapshot_bytes(&mut machine, 10_000);
    let mut other = restored(machine.last_applied(), &bytes).unwrap();
    assert_eq!(scan_all(&mut other), scan_all(&mut machine));
    assert_eq!(snapshot_bytes(&mut other, 1 << 20), bytes);
    assert_eq!(value(&mut other, "001000").unwrap().len(), 100_000);
}
