//! Damaged directories: every acknowledged batch is there, or the directory is refused with its
//! name and what to do. Only a tail that was never acknowledged is cut.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod snapshots;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::{CLUSTER, NODE, copy, copy_at_one_moment, hooked, open, open_with};
use raft_core::storage::{Storage, StorageError, StorageResult};
use raft_core::types::{
    Batch, Configuration, Entry, HardState, Loaded, Payload, Position, SnapshotMeta,
};
use raft_storage::rocksdb::{RocksOptions, RocksStorage};
use raft_storage::{DataDir, Step, StepHook};
use tempfile::TempDir;

const BATCH_COUNT: u64 = 40;

/// Entry `number` alone, with a hard state of its own.
fn batch(number: u64) -> Batch {
    let command = Bytes::from(vec![number as u8; 3_000]);
    let entry = Entry { index: number, term: 1, payload: Payload::Command(command) };
    let hard_state = HardState {
        term: number,
        voted_for: Some(1),
        commit_index: number - 1,
        ..HardState::INITIAL
    };
    Batch { entries: vec![entry], hard_state: Some(hard_state), ..Batch::default() }
}

/// The state after `count` batches.
fn after(count: u64) -> Loaded {
    if count == 0 {
        return Loaded::default();
    }
    let entries = (1..=count).flat_map(|number| batch(number).entries).collect();
    let hard_state = batch(count).hard_state.unwrap();
    Loaded { entries, hard_state, ..Loaded::default() }
}

async fn load(path: &Path) -> StorageResult<Loaded> {
    open(path)?.load().await
}

/// A directory with [`BATCH_COUNT`] batches, closed in good order.
async fn closed(path: &Path) {
    let storage = open(path).unwrap();
    storage.load().await.unwrap();
    for number in 1..=BATCH_COUNT {
        storage.persist(batch(number)).await.unwrap();
    }
}

/// The same directory, as a killed process leaves it.
async fn crashed(path: &Path) {
    crashed_after(path, BATCH_COUNT).await;
}

async fn crashed_after(path: &Path, count: u64) {
    let directory = TempDir::new().unwrap();
    let storage = open(directory.path()).unwrap();
    storage.load().await.unwrap();
    for number in 1..=count {
        storage.persist(batch(number)).await.unwrap();
    }
    copy_at_one_moment(directory.path(), path);
}

/// A copy to be damaged, which may be started.
fn copy_of(path: &Path) -> TempDir {
    let directory = TempDir::new().unwrap();
    copy(path, directory.path()).unwrap();
    let _ = fs::remove_file(directory.path().join("place"));
    directory
}

fn files_in(path: &Path, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

/// The one write-ahead file.
fn wal(path: &Path) -> PathBuf {
    let mut files = files_in(&path.join("log"), "log");
    files.retain(|file| fs::metadata(file).unwrap().len() > 0);
    assert_eq!(files.len(), 1, "one write-ahead file is in use");
    files.remove(0)
}

#[track_caller]
fn expect_refusal(error: &StorageError, directory: &Path, at: &str) {
    let text = error.to_string();
    let named = directory.display().to_string();
    assert!(text.contains(&named), "{at}: {text:?} does not name the directory");
    if matches!(error, StorageError::Corrupt(_)) {
        assert!(text.contains("re-admitted"), "{at}: {text:?} does not say what to do");
    }
}

/// Batches that must be there after damage that was not refused.
#[derive(Clone, Copy)]
struct Least {
    after_flip: u64,
    after_cut: u64,
}

const ALL: Least = Least { after_flip: BATCH_COUNT, after_cut: BATCH_COUNT };

/// Damages the file at many places, by flips and by cuts; returns how often the directory was
/// refused. Where it is not refused, at least the batches of `least` must be there, and all that is
/// there must be right.
async fn damage(path: &Path, file: &Path, least: Least) -> u64 {
    let relative = file.strip_prefix(path).unwrap();
    let whole = fs::read(file).unwrap();
    let mut refused_count = 0;
    let step = (whole.len() / 12).max(1);
    // Odd offsets in different parts of records and blocks.
    for (number, at) in (0..whole.len()).step_by(step).enumerate() {
        for is_cut in [false, true] {
            let at = (at + number * 5).min(whole.len() - 1);
            let directory = copy_of(path);
            let mut damaged = whole.clone();
            if is_cut {
                damaged.truncate(at)
            } else {
                damaged[at] ^= 0x10
            }
            fs::write(directory.path().join(relative), &damaged).unwrap();
            let what = if is_cut { "cut to" } else { "flipped at" };
            let at = format!("{} {what} {at} of {}", relative.display(), whole.len());
            match load(directory.path()).await {
                Err(error) => {
                    expect_refusal(&error, directory.path(), &at);
                    if relative.extension().is_some_and(|extension| extension == "log") {
                        let left = fs::read(directory.path().join(relative)).unwrap();
                        assert!(left == damaged, "{at}: what is refused is left as it was");
                    }
                    refused_count += 1;
                }
                Ok(loaded) => {
                    let found = loaded.entries.len() as u64;
                    let least = if is_cut { least.after_cut } else { least.after_flip };
                    assert!(found >= least, "{at}: {found} of {BATCH_COUNT} batches are left");
                    assert_eq!(loaded, after(found), "{at}");
                }
            }
        }
    }
    refused_count
}

#[tokio::test]
async fn no_damage_to_the_log_of_a_killed_process_loses_what_later_batches_vouch_for() {
    let directory = TempDir::new().unwrap();
    crashed(directory.path()).await;
    // No mark mentions the last batch, or the batches after a cut: neither loss can be told from a
    // tail that was being written. What is left is then still the state at some earlier time.
    let least = Least { after_flip: BATCH_COUNT - 1, after_cut: 0 };
    let refused_count = damage(directory.path(), &wal(directory.path()), least).await;
    assert!(refused_count >= 10, "damage in the middle is refused, here {refused_count} times");
}

#[tokio::test]
async fn no_damage_to_a_closed_log_loses_anything() {
    let directory = TempDir::new().unwrap();
    closed(directory.path()).await;
    for file in fs::read_dir(directory.path().join("log")).unwrap() {
        let file = file.unwrap().path();
        if fs::metadata(&file).unwrap().len() == 0 {
            continue;
        }
        let refused_count = damage(directory.path(), &file, ALL).await;
        let matters =
            file == wal(directory.path()) || file.ends_with("floor") || file.ends_with("CURRENT");
        assert!(refused_count > 0 || !matters, "{} matters", file.display());
    }
}

#[tokio::test]
async fn no_damage_to_a_table_loses_anything() {
    let directory = TempDir::new().unwrap();
    closed(directory.path()).await;
    // Opening again moves the log into a table.
    assert_eq!(load(directory.path()).await.unwrap(), after(BATCH_COUNT));
    let tables = files_in(&directory.path().join("log"), "sst");
    assert!(!tables.is_empty());
    for table in tables {
        let refused_count = damage(directory.path(), &table, ALL).await;
        assert!(refused_count >= 20, "a damaged table is refused, here {refused_count} times");
        let directory = copy_of(directory.path());
        fs::remove_file(directory.path().join("log").join(table.file_name().unwrap())).unwrap();
        let error = load(directory.path()).await.unwrap_err();
        expect_refusal(&error, directory.path(), "a missing table");
    }
}

#[tokio::test]
async fn missing_files_are_refused_or_not_missed() {
    let directory = TempDir::new().unwrap();
    closed(directory.path()).await;
    for file in fs::read_dir(directory.path().join("log")).unwrap() {
        let name = file.unwrap().file_name();
        let directory = copy_of(directory.path());
        fs::remove_file(directory.path().join("log").join(&name)).unwrap();
        match load(directory.path()).await {
            Ok(loaded) => assert_eq!(loaded, after(BATCH_COUNT), "without {name:?}"),
            Err(error) => expect_refusal(&error, directory.path(), &format!("without {name:?}")),
        }
    }
    let directory = copy_of(directory.path());
    fs::remove_dir_all(directory.path().join("log")).unwrap();
    // The node's promises are gone, and the identity under which it gave them is still there.
    let error = load(directory.path()).await.unwrap_err();
    expect_refusal(&error, directory.path(), "without a log");
}

/// Opening after a crash cuts the records that cannot be replayed, and with them the marks that
/// claim more. Their claim is stored in the floor before, so that a second start does not take the
/// rest for the whole.
#[tokio::test]
async fn what_a_crashed_log_claimed_is_claimed_at_every_later_start() {
    let directory = TempDir::new().unwrap();
    crashed(directory.path()).await;
    let floor = directory.path().join("log").join("floor");
    assert!(!floor.exists(), "it was not closed in good order");
    let storage = open(directory.path()).unwrap();
    let claim = fs::read(&floor).expect("written before anything could be cut");
    assert_eq!(storage.load().await.unwrap(), after(BATCH_COUNT));
    drop(storage);

    // The same log, cut as if RocksDB had stopped in its middle.
    let short = TempDir::new().unwrap();
    crashed_after(short.path(), BATCH_COUNT / 2).await;
    let short = copy_of(short.path());
    fs::write(short.path().join("log").join("floor"), claim).unwrap();
    for start in ["second", "third"] {
        let Err(error) = load(short.path()).await else {
            panic!("the {start} start has accepted a log that lost acknowledged batches");
        };
        assert!(matches!(error, StorageError::Corrupt(_)), "{start}: {error:?}");
        expect_refusal(&error, short.path(), start);
    }
}

/// S23. The oldest write-ahead file holds a vote that is in no table yet. Without that file, replay
/// begins with the next one, which fits, because the log was compacted there.
#[tokio::test]
async fn a_missing_oldest_write_ahead_file_is_noticed() {
    let (directory, aside, killed) =
        (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let options = RocksOptions { direct_tables: false, ..RocksOptions::small() };
    let storage = open_with(directory.path(), options).unwrap();
    storage.load().await.unwrap();
    // The write of the first file's table blocks on a FIFO that has no reader.
    let fifo = aside.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let log = directory.path().join("log");
    let tables = (1..60).map(|number| log.join(format!("{number:06}.sst")));
    let tables: Vec<_> = tables.filter(|table| !table.exists()).collect();
    for table in &tables {
        std::os::unix::fs::symlink(&fifo, table).unwrap();
    }
    let large = |number| {
        let payload = Payload::Command(Bytes::from(vec![number as u8; 100_000]));
        Entry { index: number, term: 1, payload }
    };
    for number in 1..=11 {
        let batch = Batch { entries: vec![large(number)], ..batch(number) };
        storage.persist(batch).await.unwrap();
    }
    let start = SnapshotMeta { position: Position::new(1, 11), ..SnapshotMeta::default() };
    storage.compact(start.clone()).await.unwrap();
    storage.persist(Batch { entries: vec![large(12)], ..Batch::default() }).await.unwrap();
    for table in &tables {
        fs::remove_file(table).unwrap();
    }
    copy_at_one_moment(directory.path(), &killed.path().join("node"));
    drop(fs::File::open(&fifo).unwrap());
    drop(storage);

    let node = killed.path().join("node");
    let mut files = files_in(&node.join("log"), "log");
    files.retain(|file| fs::metadata(file).unwrap().len() > 0);
    assert_eq!(files.len(), 2, "two write-ahead files are needed");
    let whole = copy_of(&node);
    let loaded = load(whole.path()).await.unwrap();
    assert_eq!(loaded.hard_state, batch(11).hard_state.unwrap());
    assert_eq!((loaded.log_start, loaded.entries), (start, vec![large(12)]));
    fs::remove_file(&files[0]).unwrap();
    let error = load(&node).await.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt(_)), "{error:?}");
    expect_refusal(&error, &node, "without its oldest file");
}

/// The last batch is large. A loss of power cuts it at any place, with any bytes after the cut.
#[tokio::test]
async fn a_tail_that_was_never_acknowledged_is_cut() {
    let (directory, images) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (before, whole) = (images.path().join("before"), images.path().join("whole"));
    let hook = {
        let (from, before, whole) = (directory.path().to_owned(), before.clone(), whole.clone());
        let passed = std::sync::Mutex::new(0);
        StepHook::new(move |step| {
            let mut passed = passed.lock().unwrap();
            *passed += u64::from(step == Step::PersistBefore);
            match step {
                Step::PersistBefore if *passed == 11 => copy_at_one_moment(&from, &before),
                Step::PersistAfter if *passed == 11 => copy_at_one_moment(&from, &whole),
                _ => {}
            }
        })
    };
    let storage = open_with(directory.path(), hooked(hook)).unwrap();
    storage.load().await.unwrap();
    for number in 1..=10 {
        storage.persist(batch(number)).await.unwrap();
    }
    let mut last = batch(11);
    last.entries.extend((12..=30).flat_map(|number| batch(number).entries));
    storage.persist(last).await.unwrap();

    let wal_of_whole = wal(&whole);
    let relative = wal_of_whole.strip_prefix(&whole).unwrap();
    let (start, bytes) =
        (fs::metadata(wal(&before)).unwrap().len(), fs::read(&wal_of_whole).unwrap());
    let start = usize::try_from(start).unwrap();
    assert!(bytes.len() > start + 50_000, "the last batch spans several blocks");
    for at in (start..bytes.len()).step_by(3_571) {
        let garbage: Vec<u8> = (at..bytes.len()).map(|at| (at * 31) as u8).collect();
        let zeros = vec![0; bytes.len() - at];
        let torn = [
            bytes[..at].to_vec(),
            [&bytes[..at], &zeros].concat(),
            [&bytes[..at], &garbage].concat(),
            // The end has reached the disk and the beginning has not.
            [&bytes[..start], &vec![0; at + 1 - start], &bytes[at + 1..]].concat(),
        ];
        for (how, torn) in torn.into_iter().enumerate() {
            let directory = copy_of(&whole);
            fs::write(directory.path().join(relative), torn).unwrap();
            let loaded = load(directory.path()).await;
            let loaded = loaded.unwrap_or_else(|error| panic!("torn at {at}, {how}: {error}"));
            assert_eq!(loaded, after(10), "torn at {at}, {how}");
        }
    }
}

#[tokio::test]
async fn a_log_that_is_not_ours_or_newer_is_refused() {
    let put = |key: &'static [u8], value: Vec<u8>| async move {
        let directory = TempDir::new().unwrap();
        drop(DataDir::open(directory.path(), CLUSTER, NODE).unwrap());
        let db = rocksdb::DB::open_default(directory.path().join("log")).unwrap();
        db.put(key, value).unwrap();
        drop(db);
        let error = load(directory.path()).await.unwrap_err();
        expect_refusal(&error, directory.path(), &error.to_string());
        error
    };
    let error = put(b"user/1", b"of a state machine".to_vec()).await;
    assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
    // Tag, magic, version, checksum: `docs/format.md` says that all versions keep them.
    for (version, says) in [(3u16, "or a newer one"), (1, "no release")] {
        let mut other = [&b"Fraft-log"[..], &version.to_be_bytes()].concat();
        other.extend(crc32c::crc32c(&other).to_be_bytes());
        let error = put(b"f", other).await;
        assert!(matches!(error, StorageError::Refused(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("version {version}")) && text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn a_log_in_use_is_refused() {
    let directory = TempDir::new().unwrap();
    let data_dir = Arc::new(DataDir::open(directory.path(), CLUSTER, NODE).unwrap());
    let first = RocksStorage::open(Arc::clone(&data_dir), RocksOptions::small()).unwrap();
    let Err(error) = RocksStorage::open(data_dir, RocksOptions::small()) else {
        panic!("two storages in one directory");
    };
    assert!(matches!(error, StorageError::Refused(_)), "{error:?}");
    expect_refusal(&error, directory.path(), "in use");
    drop(first);
    load(directory.path()).await.unwrap();
}

/// The configuration of a new cluster is stored before the node gives any promise, and is durable
/// at once. A log with an entry takes no other one.
#[tokio::test]
async fn an_empty_log_takes_its_configuration() {
    let directory = TempDir::new().unwrap();
    let data_dir = DataDir::initialise(directory.path(), CLUSTER, NODE).unwrap();
    drop(data_dir);
    let storage = open(directory.path()).unwrap();
    let loaded = storage.load().await.unwrap();
    assert_eq!(loaded, Loaded { hard_state: HardState::FOUNDING, ..Loaded::default() });
    let founding = SnapshotMeta {
        configuration: Box::new(Configuration::of_voters([1, 2, 3])),
        ..SnapshotMeta::default()
    };
    storage.compact(founding.clone()).await.unwrap();
    let killed = TempDir::new().unwrap();
    copy_at_one_moment(directory.path(), &killed.path().join("node"));
    let loaded = load(&killed.path().join("node")).await.unwrap();
    assert_eq!((loaded.log_start, loaded.hard_state), (founding.clone(), HardState::FOUNDING));

    storage.persist(batch(1)).await.unwrap();
    storage.compact(SnapshotMeta::default()).await.unwrap();
    drop(storage);
    let expected = Loaded { log_start: founding, ..after(1) };
    assert_eq!(load(directory.path()).await.unwrap(), expected);
}
