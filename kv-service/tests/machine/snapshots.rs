//! The stream of a snapshot: whole or refused, and undisturbed by what comes later.

use kv_service::machine::KvMachine;
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
    let mut newer = bytes.clone();
    newer[6] = 2;
    assert!(restored(position, &newer).is_err());
    let mut machine = restored(position, &bytes).unwrap();
    assert!(machine.restore_chunk(bytes.into()).is_err(), "no restore is under way");
    assert!(machine.finish_restore().is_err());
}

proptest! {
    /// Checksums are the storage's; here damage must be refused or be a state, and never a panic.
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
