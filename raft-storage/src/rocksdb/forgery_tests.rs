//! S1. Write-ahead files into which clients have put forged records, opened with RocksDB itself.
//!
//! The forger has the encoders of this crate, and knows the number of the file and the sequence
//! number that RocksDB has reached. It does not have the key of the log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raft_core::storage::{Storage, StorageResult};
use raft_core::types::{
    Batch, Configuration, Entry, HardState, Index, Loaded, Member, Payload, Position,
    PublishSnapshot, SnapshotMeta,
};
use rocksdb::DB;
use tempfile::TempDir;

use crate::DataDir;
use crate::format::draft::Draft;
use crate::format::keys::KEY_HARD_STATE;
use crate::format::log_key::LogKey;
use crate::format::records::{decode_hard_state, put_hard_state, put_run};
use crate::format::wal::writer::{Header, Wal, key_of};
use crate::rocksdb::{RocksOptions, RocksStorage};

const BATCH_COUNT: u64 = 20;
const FORGED_TERM: u64 = 1 << 40;
/// Above every sequence number of the log.
const SEQUENCE: u64 = 1 << 30;

fn open(path: &Path) -> StorageResult<RocksStorage> {
    let data_dir = DataDir::open(path, "tests", 1)?;
    RocksStorage::open(Arc::new(data_dir), RocksOptions::small())
}

fn hard_state(number: u64) -> HardState {
    HardState { term: 1, voted_for: Some(2), commit_index: number - 1, ..HardState::INITIAL }
}

fn entry(index: Index, command: Vec<u8>) -> Entry {
    Entry { index, term: 1, payload: Payload::Command(Bytes::from(command)) }
}

fn batch(number: u64, bytes: usize) -> Batch {
    Batch {
        entries: vec![entry(number, vec![number as u8; bytes])],
        hard_state: Some(hard_state(number)),
        ..Batch::default()
    }
}

fn expected(bytes: usize) -> Loaded {
    Loaded {
        hard_state: hard_state(BATCH_COUNT),
        entries: (1..=BATCH_COUNT).flat_map(|number| batch(number, bytes).entries).collect(),
        ..Loaded::default()
    }
}

/// Copies files and directories under `from`, as a killed process leaves them.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "place" {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A killed node's directory, its one write-ahead file, and the number of that file.
async fn killed(bytes: usize) -> (TempDir, PathBuf, u32) {
    let (directory, killed) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let storage = open(directory.path()).unwrap();
    storage.load().await.unwrap();
    for number in 1..=BATCH_COUNT {
        storage.persist(batch(number, bytes)).await.unwrap();
    }
    copy(directory.path(), killed.path());
    let files = std::fs::read_dir(killed.path().join("log")).unwrap();
    let mut files: Vec<PathBuf> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter(|path| std::fs::metadata(path).unwrap().len() > 0)
        .collect();
    assert_eq!(files.len(), 1, "one write-ahead file is in use");
    let file = files.remove(0);
    let number = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    (killed, file, number)
}

/// A hard state with a huge term, and no-ops in place of committed entries.
fn forged_draft() -> Draft {
    let mut draft = Draft::default();
    put_hard_state(&mut draft, &HardState { term: FORGED_TERM, ..HardState::INITIAL });
    for index in 1..=3 {
        put_run(&mut draft, index, &[Entry { index, term: 1, payload: Payload::Noop }]);
    }
    draft
}

/// The file with a forged batch at `padding` bytes after its end, and then one that claims batches
/// far ahead durable.
fn with_forgery(file: &Path, number: u32, header: Header, padding: usize) -> Vec<u8> {
    let mut wal = Wal::of(key_of(9), number);
    wal.bytes = std::fs::read(file).unwrap();
    let filled = wal.bytes.len() + padding;
    wal.bytes.resize(filled, 0x41);
    wal.header = header;
    wal.draft((BATCH_COUNT + 1, BATCH_COUNT), SEQUENCE, &mut forged_draft(), 5)
        .draft((900_000, 899_999), SEQUENCE + 100, &mut Draft::default(), 6)
        .bytes
}

/// S1. Forged batches exactly at the end of the newest record and later, with either header, in a
/// small log and in a log of several blocks. The log must load as it was.
#[tokio::test]
async fn forged_records_are_neither_replayed_nor_taken_for_damage() {
    for bytes in [300, 9_000] {
        let (killed, file, number) = killed(bytes).await;
        for header in [Header::Numbered, Header::Legacy] {
            for padding in [0, 1, 7, 11, 1_000] {
                let directory = TempDir::new().unwrap();
                copy(killed.path(), directory.path());
                let forged = with_forgery(&file, number, header, padding);
                let target = directory.path().join("log").join(file.file_name().unwrap());
                std::fs::write(&target, forged).unwrap();
                let at = format!("{bytes} {header:?} {padding}");
                if padding == 0 {
                    assert_replayed_by_rocksdb_alone(directory.path(), &at);
                }
                for start in ["first", "second"] {
                    let loaded = open(directory.path()).unwrap().load().await;
                    let loaded = loaded.unwrap_or_else(|error| panic!("{at}, {start}: {error}"));
                    assert!(loaded == expected(bytes), "{at}, {start}: {:?}", loaded.hard_state);
                }
            }
        }
    }
}

/// Asserts that the forgery is a good one: without the scan, RocksDB takes it for the log's next
/// batch.
fn assert_replayed_by_rocksdb_alone(directory: &Path, at: &str) {
    let alone = TempDir::new().unwrap();
    copy(&directory.join("log"), alone.path());
    let engine = RocksOptions::small().engine(alone.path()).unwrap();
    let db = DB::open(&engine, alone.path()).unwrap();
    let record = db.get(KEY_HARD_STATE).unwrap().unwrap();
    let replayed = decode_hard_state(&record, &key_of(9)).expect("the forged one");
    assert_eq!(replayed.term, FORGED_TERM, "{at}");
}

/// S1. Forged marks at any place claim nothing: the node starts.
#[tokio::test]
async fn forged_marks_claim_nothing() {
    let (killed, file, number) = killed(300).await;
    let own = std::fs::read(&file).unwrap();
    let claims = (1..200).fold(Wal::of(key_of(9), number), |wal, ahead| {
        wal.batch(BATCH_COUNT + 1_000 * ahead, BATCH_COUNT + 1_000 * ahead, 3)
    });
    for between in [&b""[..], b"!", b"0123456789"] {
        let directory = TempDir::new().unwrap();
        copy(killed.path(), directory.path());
        let content = [&own[..], between, &claims.bytes].concat();
        std::fs::write(directory.path().join("log").join(file.file_name().unwrap()), content)
            .unwrap();
        let loaded = open(directory.path()).unwrap().load().await.unwrap();
        assert!(loaded == expected(300), "{between:?}");
    }
}

/// S1. No run of the bytes that clients and peers put into entries, configurations and their
/// contexts is in any file of the log, neither in write-ahead files nor in tables.
#[tokio::test]
async fn no_run_of_chosen_bytes_reaches_the_files_of_the_log() {
    let directory = TempDir::new().unwrap();
    let chosen = b"chosen by a client, ";
    let storage = open(directory.path()).unwrap();
    storage.load().await.unwrap();
    let context = Bytes::from(chosen.repeat(10));
    let member = Member { context, ..Member::default() };
    let configuration =
        Configuration { members: [(1, member)].into(), ..Configuration::of_voters([1, 2, 3]) };
    let founding = SnapshotMeta::new(Position::ZERO, configuration.clone());
    storage.compact(founding).await.unwrap();
    // Four times the memory of a table.
    for index in 1..=80 {
        let payload = match index % 2 {
            0 => Payload::Configuration(Box::new(configuration.clone())),
            _ => Payload::Command(Bytes::from(chosen.repeat(5_000))),
        };
        let entries = vec![Entry { index, term: 1, payload }];
        storage.persist(Batch { entries, ..Batch::default() }).await.unwrap();
    }
    let meta = SnapshotMeta::new(Position::new(1, 40), configuration);
    storage.snapshot_writer(meta.clone(), None).await.unwrap().finish().await.unwrap();
    let publish = Some(PublishSnapshot { meta: meta.clone(), replaces_log: false });
    storage.persist(Batch { publish, ..Batch::default() }).await.unwrap();
    storage.compact(meta).await.unwrap();
    let while_running = assert_nothing_chosen(directory.path(), chosen);
    assert!(while_running > 2 << 20, "the log has {while_running} bytes");
    drop(storage);
    // Once more after the log was replayed into a table.
    assert_eq!(open(directory.path()).unwrap().load().await.unwrap().entries.len(), 40);
    assert_nothing_chosen(directory.path(), chosen);
}

/// Returns the number of bytes that were searched.
fn assert_nothing_chosen(directory: &Path, chosen: &[u8]) -> usize {
    let runs: Vec<&[u8]> = chosen.windows(8).collect();
    let mut looked_at = 0;
    for file in std::fs::read_dir(directory.join("log")).unwrap() {
        let path = file.unwrap().path();
        // RocksDB may remove the file meanwhile.
        let Ok(content) = std::fs::read(&path) else { continue };
        looked_at += content.len();
        for (at, window) in content.windows(8).enumerate() {
            let is_chosen = window[0] == b'c' && runs.contains(&window);
            assert!(!is_chosen, "{} at {at} has {window:?}", path.display());
        }
    }
    looked_at
}

/// S1. Records of another node's log, with right MACs of that log, are not accepted in this one.
#[tokio::test]
async fn write_ahead_files_of_another_log_say_nothing() {
    let (one, file, number) = killed(300).await;
    let (_other, other_file, other_number) = killed(300).await;
    assert_eq!(number, other_number, "as lives of equal length have");
    let content = [std::fs::read(&file).unwrap(), std::fs::read(other_file).unwrap()].concat();
    std::fs::write(&file, content).unwrap();
    assert!(open(one.path()).unwrap().load().await.unwrap() == expected(300));
}

/// A key that is not this log's makes its batches look forged, so it is refused before any file of
/// the log is altered.
#[tokio::test]
async fn a_log_with_another_key_is_refused_untouched() {
    let (killed, file, _) = killed(300).await;
    let before = std::fs::read(&file).unwrap();
    let key = killed.path().join("log").join("key");
    std::fs::write(key, LogKey::encode(2, &[3; 64])).unwrap();
    assert!(open(killed.path()).is_err());
    assert!(std::fs::read(file).unwrap() == before);
}

/// RocksDB begins the file after a replay that ended at damage with an empty batch of its own. That
/// batch is no intruder: what this log wrote behind it survives the next crash.
#[tokio::test]
async fn a_crash_after_a_torn_tail_loses_nothing_that_came_between() {
    let (killed, file, number) = killed(300).await;
    // A header whose record does not fit into its block, in the middle of a reused file.
    let mut torn = std::fs::read(&file).unwrap();
    torn.extend([0x41, 0x41, 0x41, 0x41, 0xff, 0xff, 5]);
    torn.extend(number.to_le_bytes());
    torn.resize(torn.len() + (80 << 10), 0x41);
    std::fs::write(&file, torn).unwrap();

    let mut directory = killed;
    let mut last = BATCH_COUNT;
    for crash in 1..=3 {
        let storage = open(directory.path()).unwrap();
        let loaded = storage.load().await.unwrap_or_else(|error| panic!("crash {crash}: {error}"));
        assert_eq!(loaded.hard_state, hard_state(last), "crash {crash}");
        assert_eq!(loaded.entries.len() as u64, last);
        for number in last + 1..=last + 5 {
            storage.persist(batch(number, 300)).await.unwrap();
        }
        last += 5;
        let next = TempDir::new().unwrap();
        copy(directory.path(), next.path());
        directory = next;
    }
}
