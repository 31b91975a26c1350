//! Restores: the state that a crash, an interruption or a view finds.

use std::path::Path;

use bytes::Bytes;
use kv_service::state::KvMachine;
use raft_core::state_machine::StateMachine;
use tempfile::TempDir;

use super::{crash_image, flusher, generations, open_at};
use crate::{meta, open, put, restore, scan_all, snapshot_bytes, write};

/// A machine on disk with an old state, and the snapshot of a newer one.
fn before_a_restore(directory: &Path) -> (KvMachine, KvMachine, Vec<u8>) {
    let mut machine = open_at(directory);
    let session = open(&mut machine, 0, 1000, 10);
    write(&mut machine, session, 1, put("old", "1"));
    flusher(&machine).flush().unwrap();
    let mut newer = KvMachine::memory();
    let session = open(&mut newer, 0, 1000, 10);
    for number in 0..2000 {
        let operation = put(&format!("new-{number}"), &"v".repeat(1000));
        write(&mut newer, session, number + 1, operation);
    }
    let bytes = snapshot_bytes(&mut newer, 1 << 16);
    (machine, newer, bytes)
}

#[test]
fn a_crash_in_a_restore_leaves_the_old_state_or_the_new_one() {
    let directory = TempDir::new().unwrap();
    let (mut machine, mut newer, bytes) = before_a_restore(directory.path());
    let old = snapshot_bytes(&mut machine, 1 << 16);
    let position = newer.last_applied();
    let is_old = |image: TempDir| {
        let mut survivor = open_at(image.path());
        assert_eq!(snapshot_bytes(&mut survivor, 1 << 16), old);
        assert_eq!(generations(image.path()).len(), 1, "the unfinished one is removed");
    };

    let mut view = machine.snapshot().unwrap();
    let mut flusher = flusher(&machine);
    machine.begin_restore(&meta(position)).unwrap();
    is_old(crash_image(directory.path()));
    for (number, chunk) in bytes.chunks(100_000).enumerate() {
        machine.restore_chunk(Bytes::copy_from_slice(chunk)).unwrap();
        if number % 5 == 0 {
            is_old(crash_image(directory.path()));
        }
    }
    assert_eq!(snapshot_bytes(&mut machine, 1 << 16), old, "the old state is served until the end");
    is_old(crash_image(directory.path()));
    machine.finish_restore().unwrap();
    let image = crash_image(directory.path());
    assert_eq!(snapshot_bytes(&mut open_at(image.path()), 1 << 16), bytes);
    assert_eq!(snapshot_bytes(&mut machine, 1 << 16), bytes);
    assert_eq!(flusher.flush().unwrap(), position.index, "the handle follows");

    // The view still shows the old state; once the view is gone, so is the old state.
    let mut seen = Vec::new();
    while let Some(chunk) = view.next_chunk(1000).unwrap() {
        seen.extend_from_slice(&chunk);
    }
    assert_eq!(seen, old);
    drop(view);
    assert_eq!(generations(directory.path()).len(), 1);
    assert_eq!(scan_all(&mut machine), scan_all(&mut newer));
}

#[test]
fn an_interrupted_restore_can_start_again() {
    let directory = TempDir::new().unwrap();
    let (mut machine, newer, bytes) = before_a_restore(directory.path());
    let position = newer.last_applied();
    machine.begin_restore(&meta(position)).unwrap();
    machine.restore_chunk(Bytes::copy_from_slice(&bytes[..1_500_000])).unwrap();
    restore(&mut machine, position, &bytes, 1 << 18).unwrap();
    assert_eq!(snapshot_bytes(&mut machine, 1 << 16), bytes);
    assert_eq!(generations(directory.path()).len(), 1);
    drop(machine);
    assert_eq!(snapshot_bytes(&mut open_at(directory.path()), 1 << 16), bytes);
}

/// Versions are cached by key; after a restore the cache holds those of the new state.
#[test]
fn a_version_after_a_restore_follows_the_restored_one() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let session = open(&mut machine, 0, 1000, 10);
    for sequence in 1..=3 {
        write(&mut machine, session, sequence, put("a", "old"));
    }
    write(&mut machine, session, 4, put("b", "old"));
    let mut other = KvMachine::memory();
    let session = open(&mut other, 0, 1000, 10);
    for sequence in 1..=9 {
        write(&mut other, session, sequence, put("a", "new"));
    }
    let (position, bytes) = (other.last_applied(), snapshot_bytes(&mut other, 1000));
    restore(&mut machine, position, &bytes, 1000).unwrap();
    for (sequence, key) in [(10, "a"), (11, "b")] {
        let answer = write(&mut machine, session, sequence, put(key, "x"));
        assert_eq!(answer, write(&mut other, session, sequence, put(key, "x")), "{key}");
    }
    assert_eq!(scan_all(&mut machine), scan_all(&mut other));
}
