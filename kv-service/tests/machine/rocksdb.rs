//! The engine on disk: the state that a crash leaves at each moment.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use kv_service::protocol::operation::{Refusal, SessionId};
use kv_service::state::{Action, Command, Output, SCAN_KEYS_MAX};
use kv_service::{Expect, KvMachine, Operation, RocksStateOptions};
use proptest::prelude::*;
use raft_core::state_machine::{Flusher, StateMachine};
use raft_core::types::{Entry, Payload, Position};
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
use tempfile::TempDir;

use crate::agreement::{InMemory, Subject, agree, steps};
use crate::{
    append, apply_command, command, get, meta, next_entry, open, open_command, put, restore, scan,
    scan_all, session_at, snapshot_bytes, text, value, write, write_command,
};

fn open_at(path: &Path) -> KvMachine {
    let options = RocksStateOptions {
        block_cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
        // Room for a few keys, so that some are evicted.
        recent_keys_bytes: 1 << 10,
        ..RocksStateOptions::default()
    };
    KvMachine::rocksdb(path, options).unwrap()
}

fn flusher(machine: &KvMachine) -> Box<dyn Flusher> {
    machine.flusher().unwrap()
}

/// The files that a crash at this moment would leave, without anything that is written on closing.
fn crash_image(path: &Path) -> TempDir {
    loop {
        let image = TempDir::new().unwrap();
        match copy(path, image.path()) {
            Ok(()) => return image,
            // RocksDB removes obsolete files in the background: this was not one moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Copies the manifest first: files may be added while it is copied, but none that it names may be
/// removed.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(from)?.collect::<Result<_, _>>()?;
    let is_manifest = |name: std::ffi::OsString| name.to_string_lossy().starts_with("MANIFEST");
    entries.sort_by_key(|entry| !is_manifest(entry.file_name()));
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn generations(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_dir()).collect()
}

struct OnDisk {
    directory: TempDir,
    machine: Option<KvMachine>,
}

impl OnDisk {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let machine = Some(open_at(directory.path()));
        Self { directory, machine }
    }
}

impl Subject for OnDisk {
    fn machine(&mut self) -> &mut KvMachine {
        self.machine.as_mut().unwrap()
    }

    fn restart(&mut self, crash: bool, log: &[Entry]) {
        let before = self.machine().last_applied();
        if crash {
            let image = crash_image(self.directory.path());
            self.machine = None;
            self.directory = image;
        } else {
            flusher(self.machine()).flush().unwrap();
            self.machine = None;
        }
        self.machine = Some(open_at(self.directory.path()));
        let survived = self.machine().last_applied();
        assert!(if crash { survived <= before } else { survived == before });
        self.machine().apply(&log[survived.index as usize..], &mut Vec::new()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn both_engines_agree_with_the_model(steps in steps()) {
        agree(&mut [Box::new(OnDisk::new()), Box::new(InMemory(KvMachine::memory()))], &steps);
    }
}

#[test]
fn a_crash_goes_back_to_what_was_flushed_and_replay_leads_on() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let mut log = Vec::new();
    let mut entry = |machine: &KvMachine, command: &Command| {
        log.push(next_entry(machine, Payload::Command(command.encode())));
        log.last().unwrap().clone()
    };
    let open = open_command(5, 1000, 10);
    let opened = entry(&machine, &open);
    machine.apply(&[opened], &mut Vec::new()).unwrap();
    for sequence in 1..=10 {
        let write = entry(&machine, &write_command(session_at(1), sequence, append("k", "x")));
        machine.apply(&[write], &mut Vec::new()).unwrap();
        if sequence == 4 {
            assert_eq!(flusher(&machine).flush().unwrap(), 5);
        }
    }
    let image = crash_image(directory.path());
    // Only now: a view may cause its entries to be written sooner.
    let expected = snapshot_bytes(&mut machine, 1000);
    let mut survivor = open_at(image.path());
    assert_eq!(survivor.last_applied(), Position::new(1, 5));
    assert_eq!(value(&mut survivor, "k").unwrap(), "xxxx");
    survivor.apply(&log[5..], &mut Vec::new()).unwrap();
    assert_eq!(snapshot_bytes(&mut survivor, 1000), expected);

    // A clean stop writes the rest.
    drop(machine);
    let mut machine = open_at(directory.path());
    assert_eq!(snapshot_bytes(&mut machine, 1000), expected);
}

/// RocksDB flushes a memtable when it is full, in the middle of anything. A crash then finds the
/// state right after some batch, never the records of one and the position or sessions of another.
#[test]
fn a_crash_finds_the_state_after_a_whole_batch() {
    /// Enough for a few memtables of the smallest size, and too few to be compacted.
    const BATCH_COUNT: u64 = 40;
    const BATCH_ENTRIES: u64 = 8;
    let directory = TempDir::new().unwrap();
    let options =
        RocksStateOptions { write_buffer_bytes: 64 << 10, ..RocksStateOptions::default() };
    let mut machine = KvMachine::rocksdb(directory.path(), options).unwrap();
    let mut reference = KvMachine::memory();
    let session = open(&mut machine, 0, 1000, 10);
    open(&mut reference, 0, 1000, 10);
    let mut states = std::collections::BTreeMap::new();
    states.insert(0, snapshot_bytes(&mut KvMachine::memory(), 1 << 16));
    states.insert(1, snapshot_bytes(&mut reference, 1 << 16));
    let mut log = Vec::new();
    let mut found = std::collections::BTreeSet::new();
    for batch in 0..BATCH_COUNT {
        let entry = |number| {
            let sequence = batch * BATCH_ENTRIES + number + 1;
            // Some keys in every batch, so that a mix of two batches shows.
            let operation = append(&format!("k{}", number % 3), &"x".repeat(20));
            let command = match number {
                7 => {
                    write_command(session, sequence, put(&sequence.to_string(), &"v".repeat(3000)))
                }
                _ => write_command(session, sequence, operation),
            };
            let index = machine.last_applied().index + 1 + number;
            Entry { index, term: 1, payload: Payload::Command(command.encode()) }
        };
        let entries: Vec<Entry> = (0..BATCH_ENTRIES).map(entry).collect();
        machine.apply(&entries, &mut Vec::new()).unwrap();
        reference.apply(&entries, &mut Vec::new()).unwrap();
        log.extend(entries);
        states.insert(reference.last_applied().index, snapshot_bytes(&mut reference, 1 << 16));

        let image = crash_image(directory.path());
        let mut survivor = open_at(image.path());
        let index = survivor.last_applied().index;
        let state = states.get(&index).expect("the end of a batch");
        assert_eq!(snapshot_bytes(&mut survivor, 1 << 16), *state);
        found.insert(index);
        if index > 0 {
            survivor.apply(&log[index as usize - 1..], &mut Vec::new()).unwrap();
            assert_eq!(
                snapshot_bytes(&mut survivor, 1 << 16),
                states[&reference.last_applied().index]
            );
        }
    }
    // The last flush may still be under way.
    for _ in 0..1000 {
        if found.len() >= 2 {
            return;
        }
        let image = crash_image(directory.path());
        found.insert(open_at(image.path()).last_applied().index);
    }
    panic!("no memtable was flushed on its own");
}

/// The log is compacted through the index that a flush promises. Writes go on meanwhile: none of
/// them may be taken for flushed, and none may be flushed in part.
#[test]
fn a_flush_promises_nothing_that_comes_during_it() {
    /// Fewer than RocksDB would compact, which removes files while they are copied.
    const FLUSH_COUNT: u64 = 3;
    let directory = TempDir::new().unwrap();
    // Large, so that nothing is flushed without a request.
    let options =
        RocksStateOptions { write_buffer_bytes: 64 << 20, ..RocksStateOptions::default() };
    let mut machine = KvMachine::rocksdb(directory.path(), options).unwrap();
    let session = open(&mut machine, 0, 1000, 10);
    let mut flusher = flusher(&machine);
    let (written, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for sequence in 1.. {
                write(&mut machine, session, sequence, put("k", "v"));
                written.store(sequence, Ordering::Relaxed);
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for _ in 0..FLUSH_COUNT {
            let before = written.load(Ordering::Relaxed);
            while written.load(Ordering::Relaxed) <= before + 100 {
                std::thread::yield_now();
            }
            // Not asserted here, because the other thread would not end.
            let promised = flusher.flush().map_err(|error| error.to_string());
            let image = crash_image(directory.path());
            let survivor = KvMachine::rocksdb(image.path(), RocksStateOptions::default());
            found.push((promised, survivor));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    for (promised, survivor) in found {
        let (promised, mut survivor) = (promised.unwrap(), survivor.unwrap());
        let survived = survivor.last_applied().index;
        assert!(promised > 1 && survived >= promised, "{promised} promised, {survived} there");
        // Data and position are of one moment: the session was opened first, and each entry is a
        // write.
        assert_eq!(get(&mut survivor, "k").unwrap().version, survived - 1);
    }
}

#[test]
fn nothing_flushed_is_an_empty_machine() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    assert_eq!(flusher(&machine).flush().unwrap(), 0);
    open(&mut machine, 0, 1000, 10);
    let image = crash_image(directory.path());
    assert_eq!(open_at(image.path()).last_applied(), Position::ZERO);
}

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

/// Work that may wait for the disk, or that grows with the amount of data, is not done on the event
/// loop.
#[test]
fn what_is_in_memory_is_written_at_once() {
    let at_once = |machine: &KvMachine, command: Command| {
        let entry = next_entry(machine, Payload::Command(command.encode()));
        machine.can_apply_inline(&[entry])
    };
    let can_write_inline = |machine: &KvMachine, operation: Operation| {
        at_once(machine, write_command(session_at(1), 1, operation))
    };
    let by_version = |key: &'static str| Operation::CompareAndSwap {
        key: key.into(),
        expect: Expect::Version(1),
        value: "x".into(),
    };
    let by_revision = |key: &'static str| Operation::CompareAndSwap {
        key: key.into(),
        expect: Expect::Revision(1),
        value: "x".into(),
    };
    let by_value = |key: &'static str| Operation::CompareAndSwap {
        key: key.into(),
        expect: Expect::Value("x".into()),
        value: "x".into(),
    };

    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let session = open(&mut machine, 0, 1000, 10);
    assert!(can_write_inline(&machine, put("a", "x")), "there is no file to look into");
    write(&mut machine, session, 1, put("a", "x"));
    let changes = [put("a", "y"), Operation::Delete { key: "a".into() }];
    for operation in changes.into_iter().chain([by_version("a"), by_revision("a")]) {
        assert!(can_write_inline(&machine, operation.clone()), "{operation:?}");
    }
    for operation in [append("a", "y"), by_value("a")] {
        assert!(!can_write_inline(&machine, operation.clone()), "{operation:?}");
    }
    assert!(!at_once(&machine, open_command(0, 1, 1)));
    let noop = next_entry(&machine, Payload::Noop);
    assert!(!machine.can_apply_inline(&[noop]));
    // More than one block of the table: the last block is read when the table is opened.
    for sequence in 2..=20 {
        write(&mut machine, session, sequence, put(&format!("b{sequence}"), &"x".repeat(1000)));
    }
    drop(machine);

    let mut machine = open_at(directory.path());
    assert!(!can_write_inline(&machine, put("a", "y")), "it is in a file that nobody has read yet");
    assert_eq!(value(&mut machine, "a").as_deref(), Some("x"));
    assert!(can_write_inline(&machine, put("a", "y")), "it was read");
    let Output::Written(answer) = write(&mut machine, session, 21, put("a", "y")) else {
        panic!("not written");
    };
    assert_eq!(answer.version, 2);
}

/// The error for a directory that cannot be opened; the directory is left as it is.
fn refusal(path: &Path) -> String {
    match KvMachine::rocksdb(path, RocksStateOptions::default()) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_ours_is_refused() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("something"), "else").unwrap();
    assert!(refusal(directory.path()).contains("not empty"));

    for (mark, why) in [
        ("kv-state 3\ngeneration 1\n", "format version"),
        ("kv-state 1\ngeneration 1\n", "which no release has written"),
        ("kv-state 2\ngeneration x\n", "damaged"),
        ("kv-state 2\ngeneration 18446744073709551615\n", "damaged"),
        ("garbage", "not the mark"),
        ("", "not the mark"),
    ] {
        let directory = TempDir::new().unwrap();
        drop(open_at(directory.path()));
        std::fs::write(directory.path().join("current"), mark).unwrap();
        assert!(refusal(directory.path()).contains(why), "{mark:?}");
        assert_eq!(generations(directory.path()).len(), 1, "nothing was removed");
    }

    // A state that is named and missing is not taken for an empty one.
    let directory = TempDir::new().unwrap();
    drop(open_at(directory.path()));
    std::fs::write(directory.path().join("current"), "kv-state 2\ngeneration 5\n").unwrap();
    assert!(refusal(directory.path()).contains("is not there"));
    assert_eq!(generations(directory.path()).len(), 1, "nothing was removed");
}

/// A view shows the moment at which it was taken, whatever is flushed and compacted under it.
#[test]
fn a_view_does_not_change() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let session = open(&mut machine, 0, 1000, 10);
    write(&mut machine, session, 1, put("flushed", "old"));
    flusher(&machine).flush().unwrap();
    write(&mut machine, session, 2, put("in memory", "old"));
    let (at, mut view) = (machine.last_applied(), machine.snapshot().unwrap());
    for (sequence, key) in (3..).zip(["flushed", "in memory", "new"]) {
        write(&mut machine, session, sequence, put(key, "new"));
    }
    flusher(&machine).flush().unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = view.next_chunk(1000).unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    let mut copy = KvMachine::memory();
    restore(&mut copy, at, &bytes, 1000).unwrap();
    let values = ["flushed", "in memory", "new"].map(|key| value(&mut copy, key));
    assert_eq!(values, [Some("old".to_owned()), Some("old".to_owned()), None]);
}

/// Newer changes win: a key that was deleted is not found in an older table, nor is a session that
/// ended.
#[test]
fn what_is_gone_stays_gone() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let session = open(&mut machine, 0, 1000, 10);
    let other = open(&mut machine, 0, 1000, 10);
    write(&mut machine, session, 1, put("a", "1"));
    write(&mut machine, session, 2, put("b", "2"));
    flusher(&machine).flush().unwrap();
    write(&mut machine, session, 3, Operation::Delete { key: "a".into() });
    apply_command(&mut machine, &command(0, Action::CloseSession { session: other }));
    let keys = |machine: &mut KvMachine| -> Vec<Bytes> {
        scan_all(machine).into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!((value(&mut machine, "a"), keys(&mut machine)), (None, vec!["b".into()]));
    flusher(&machine).flush().unwrap();
    assert_eq!((value(&mut machine, "a"), keys(&mut machine)), (None, vec!["b".into()]));
    drop(machine);
    let mut machine = open_at(directory.path());
    assert_eq!((value(&mut machine, "a"), keys(&mut machine)), (None, vec!["b".into()]));
    let refused = write(&mut machine, other, 1, put("a", "3"));
    assert_eq!(refused, Output::Refused(Refusal::UnknownSession));
}

#[test]
fn a_second_process_is_refused() {
    let directory = TempDir::new().unwrap();
    let machine = open_at(directory.path());
    assert!(refusal(directory.path()).contains("opening the state"));
    drop(machine);
    open_at(directory.path());
}

#[test]
fn a_damaged_table_is_refused_with_what_to_do() {
    let directory = TempDir::new().unwrap();
    let mut machine = open_at(directory.path());
    let session = open(&mut machine, 1, 1_000, 10);
    write(&mut machine, session, 1, put("key", "value"));
    flusher(&machine).flush().unwrap();
    drop(machine);
    for file in std::fs::read_dir(&generations(directory.path())[0]).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "sst") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[10] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let refusal = refusal(directory.path());
    assert!(refusal.contains("Corruption") && refusal.contains("restore the whole"), "{refusal}");
}

/// Keys whose names are their numbers.
fn numbered(number: u64) -> String {
    format!("n{number:08}")
}

/// A machine whose keys were all deleted, except for the last one.
struct Deleted {
    machine: KvMachine,
    session: SessionId,
    sequence: u64,
}

impl Deleted {
    /// Number of keys: a page covers at most a few percent of them.
    const KEY_COUNT: u64 = 250_000;

    fn apply_to_all(&mut self, operation: impl Fn(u64) -> Operation) {
        const BATCH: u64 = 1000;
        for batch in 0..Self::KEY_COUNT / BATCH {
            let index = self.machine.last_applied().index + 1;
            let entry = |place| {
                let operation = operation(BATCH * batch + place);
                let command = write_command(self.session, self.sequence + 1 + place, operation);
                Entry { index: index + place, term: 1, payload: Payload::Command(command.encode()) }
            };
            let entries: Vec<Entry> = (0..BATCH).map(entry).collect();
            self.machine.apply(&entries, &mut Vec::new()).unwrap();
            self.sequence += BATCH;
        }
    }

    fn write(&mut self, operation: Operation) {
        self.sequence += 1;
        let output = write(&mut self.machine, self.session, self.sequence, operation);
        assert!(matches!(output, Output::Written(_)), "{output:?}");
    }

    /// Scans to the one key that is alive, with a write beside each page. Reports to `page_passed`
    /// how many numbers each page went over.
    fn scan(&mut self, mut page_passed: impl FnMut(u64)) -> u64 {
        let (mut at, mut passed, mut page_count) = (text("n"), 0, 0);
        loop {
            let page = scan(&mut self.machine, at.clone(), Bytes::new(), 10);
            page_count += 1;
            let Some(next) = page.continue_at else {
                page_passed(Self::KEY_COUNT - passed);
                let keys: Vec<Bytes> = page.records.into_iter().map(|(key, _)| key).collect();
                assert_eq!(keys, [numbered(Self::KEY_COUNT)]);
                return page_count;
            };
            assert!(next >= at && page.records.is_empty(), "only the last key is there");
            let number = std::str::from_utf8(&next[1..9]).unwrap().parse::<u64>().unwrap();
            page_passed(number - passed);
            // A page that ends where it began waits for compactions.
            assert!(page_count < 10_000, "still at {next:?}");
            (at, passed) = (next, number);
            self.write(put("a", "beside"));
        }
    }
}

/// S13. A page of a scan over deleted keys examines a bounded number of them, in a memtable as in a
/// table, and in a table whose deletions compactions have turned into RocksDB's own tombstones. It
/// may be empty, and writes go on between the pages.
#[test]
fn a_scan_over_deleted_keys_is_bounded_work() {
    const WORDS_MAX: u64 = SCAN_KEYS_MAX as u64;
    /// RocksDB's own tombstones, which a page may pass over in addition.
    const SKIPPED_MAX: u64 = 100_000;
    let directory = TempDir::new().unwrap();
    // Everything is one memtable, so that nothing is compacted before it is scanned.
    let options =
        RocksStateOptions { write_buffer_bytes: 256 << 20, ..RocksStateOptions::default() };
    let mut machine = KvMachine::rocksdb(directory.path(), options).unwrap();
    let session = open(&mut machine, 0, 1000, 10);
    let mut flusher = flusher(&machine);
    let mut deleted = Deleted { machine, session, sequence: 0 };
    deleted.write(put(&numbered(Deleted::KEY_COUNT), "alive"));
    let delete = |number| Operation::Delete { key: numbered(number).into() };
    let create = |number| put(&numbered(number), "");
    deleted.apply_to_all(create);
    deleted.apply_to_all(delete);
    for place in ["in a layer", "in a table"] {
        let page_count = deleted.scan(|passed| {
            assert!(passed <= WORDS_MAX, "{passed} deleted keys in one page, {place}");
        });
        assert!(page_count >= Deleted::KEY_COUNT / WORDS_MAX, "{page_count} pages, {place}");
        flusher.flush().unwrap();
    }

    // Now there are values below the deletions, and tables to merge.
    for round in 0..3 {
        deleted.apply_to_all(create);
        flusher.flush().unwrap();
        deleted.apply_to_all(delete);
        flusher.flush().unwrap();
        set_perf_stats(PerfStatsLevel::EnableCount);
        let skipped = |perf: &PerfContext| {
            perf.metric(PerfMetric::InternalDeleteSkippedCount)
                + perf.metric(PerfMetric::InternalKeySkippedCount)
        };
        let mut perf = PerfContext::default();
        perf.reset();
        let mut before = 0;
        deleted.scan(|_| {
            let now = skipped(&perf);
            let work = now - before;
            // A page also examines the records of each table that it passes over.
            assert!(work <= SKIPPED_MAX + 3 * WORDS_MAX, "{work} skipped in round {round}");
            before = now;
        });
        set_perf_stats(PerfStatsLevel::Disable);
    }
}
