//! Whole data directories of every format that was ever written, opened from a copy.
//!
//! `tests/fixtures/directory-1` was written by the function at the bottom and is never altered. A
//! new format gets a new directory beside it (`RAFT_STORAGE_WRITE_FIXTURE=<new directory> cargo test
//! -p raft-storage --test format`), and this test opens both.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::{CLUSTER, NODE, copy, open};
use raft_core::storage::{Storage, StorageError};
use raft_core::types::{
    Batch, Configuration, Entry, HardState, Loaded, Memory, Payload, Position, PublishSnapshot,
    SnapshotContent, SnapshotMeta,
};
use raft_storage::DataDir;
use tempfile::TempDir;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/directory-1")
}

fn meta(term: u64, index: u64) -> SnapshotMeta {
    let configuration =
        Configuration { voters: [1, 2, 3].into(), outgoing: [3, 4].into(), learners: [7].into() };
    SnapshotMeta { position: Position::new(term, index), configuration }
}

/// Every kind of entry.
fn entries() -> Vec<Entry> {
    let payload = |index: u64| match index % 4 {
        0 => Payload::Noop,
        1 => Payload::Configuration(meta(0, 0).configuration),
        2 => Payload::Command(Bytes::new()),
        _ => Payload::Command(Bytes::from(format!("command {index}").repeat(40))),
    };
    let entry = |index| Entry { index, term: 2 + index / 10, payload: payload(index) };
    (1..=30).map(entry).collect()
}

fn snapshot_bytes() -> Bytes {
    Bytes::from("state through 12. ".repeat(4_000))
}

const HARD_STATE: HardState =
    HardState { term: 6, voted_for: Some(3), commit_index: 25, memory: Memory::Intact };

async fn check(path: &Path) {
    let storage = open(path).unwrap();
    let loaded = storage.load().await.unwrap();
    let expected = Loaded {
        hard_state: HARD_STATE,
        log_start: meta(3, 10),
        snapshot: Some(meta(3, 12)),
        entries: entries().split_off(10),
    };
    assert_eq!(loaded, expected);
    let mut reader = storage.snapshot_reader().await.unwrap().unwrap();
    let content = SnapshotContent { size_bytes: 72_000, checksum: 0x3949_3cf2 };
    assert_eq!(reader.content(), content);
    assert!(reader.read(0, 100_000).await.unwrap() == snapshot_bytes());
    let next = Entry { index: 31, term: 6, payload: Payload::Noop };
    storage.persist(Batch { entries: vec![next], ..Batch::default() }).await.unwrap();
}

#[tokio::test]
async fn a_directory_of_format_1_is_read_and_written_on() {
    let copied = TempDir::new().unwrap();
    copy(&fixture(), copied.path()).unwrap();
    let Err(StorageError::Refused(text)) = DataDir::open(copied.path(), CLUSTER, NODE) else {
        panic!("a copy is refused");
    };
    assert!(text.contains("remove the file"), "{text}");
    std::fs::remove_file(copied.path().join("place")).unwrap();
    let data_dir = DataDir::open(copied.path(), CLUSTER, NODE).unwrap();
    assert_eq!(data_dir.incarnation(), INCARNATION);
    drop(data_dir);
    check(copied.path()).await;
    let loaded = open(copied.path()).unwrap().load().await.unwrap();
    assert_eq!(loaded.entries.len(), 21, "what was written on is there");
}

/// As the fixture says.
const INCARNATION: u64 = 7_444_600_288_885_717_626;

/// Writes a fixture if it is asked to.
#[tokio::test]
async fn writes_a_fixture_where_it_is_asked_to() {
    let Ok(path) = std::env::var("RAFT_STORAGE_WRITE_FIXTURE") else { return };
    let path = Path::new(&path);
    let storage = open(path).unwrap();
    storage.load().await.unwrap();
    let hard_state = HardState { commit_index: 1, ..HARD_STATE };
    let mut first = entries();
    let last = first.split_off(25);
    let batch = Batch { entries: first, hard_state: Some(hard_state), ..Batch::default() };
    storage.persist(batch).await.unwrap();
    let mut writer = storage.snapshot_writer(meta(3, 12), None).await.unwrap();
    writer.write(snapshot_bytes()).await.unwrap();
    let content = writer.finish().await.unwrap();
    let publish = Some(PublishSnapshot { meta: meta(3, 12), replaces_log: false });
    storage.persist(Batch { publish, ..Batch::default() }).await.unwrap();
    storage.compact(meta(3, 10)).await.unwrap();
    drop(storage);
    // In a second life, so that there is a table and a write-ahead file.
    let storage = open(path).unwrap();
    storage.load().await.unwrap();
    let batch = Batch { entries: last, hard_state: Some(HARD_STATE), ..Batch::default() };
    storage.persist(batch).await.unwrap();
    drop(storage);
    let incarnation = DataDir::open(path, CLUSTER, NODE).unwrap().incarnation();
    println!("content {content:?}, incarnation {incarnation}");
}
