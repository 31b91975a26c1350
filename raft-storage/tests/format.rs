//! Whole data directories of every format that was ever written, opened from a copy.
//!
//! The directories were written by the function at the bottom and are never altered. A new format
//! gets a new directory beside them
//! (`RAFT_STORAGE_WRITE_FIXTURE=<new directory> cargo test -p raft-storage --test format`), and
//! this test opens all. `directory-1` is from before the first release and is refused;
//! `directory-2` has a record for each entry, `directory-2-runs` has runs of entries.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::{CLUSTER, NODE, copy, open};
use raft_core::storage::{Storage, StorageError};
use raft_core::types::{
    Batch, Configuration, Entry, HardState, Loaded, Member, Memory, Payload, Position,
    PublishSnapshot, SnapshotContent, SnapshotMeta,
};
use raft_storage::DataDir;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn meta(term: u64, index: u64) -> SnapshotMeta {
    let member = Member {
        incarnation: 17,
        wants_vote: true,
        context: Bytes::from_static(b"node-7.example:7000"),
    };
    let configuration = Configuration {
        voters: [1, 2, 3].into(),
        outgoing: [3, 4].into(),
        learners: [7].into(),
        members: [(7, member)].into(),
        next_id: 8,
        founded: true,
        generation: 1,
        cluster_version: 1,
        context: Bytes::new(),
    };
    SnapshotMeta::new(Position::new(term, index), configuration)
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
async fn a_directory_of_format_2_is_read_and_written_on() {
    for (name, incarnation) in FORMAT_2 {
        let copied = TempDir::new().unwrap();
        copy(&fixture(name), copied.path()).unwrap();
        let Err(StorageError::Refused(text)) = DataDir::open(copied.path(), CLUSTER, NODE) else {
            panic!("a copy is refused");
        };
        assert!(text.contains("remove the file"), "{text}");
        std::fs::remove_file(copied.path().join("place")).unwrap();
        let data_dir = DataDir::open(copied.path(), CLUSTER, NODE).unwrap();
        assert_eq!(data_dir.incarnation(), incarnation);
        assert!(data_dir.was_initialised());
        drop(data_dir);
        check(copied.path()).await;
        let loaded = open(copied.path()).unwrap().load().await.unwrap();
        assert_eq!(loaded.entries.len(), 21, "what was written on is there");
    }
}

/// No release wrote format 1.
#[test]
fn a_directory_of_format_1_is_refused() {
    let copied = TempDir::new().unwrap();
    copy(&fixture("directory-1"), copied.path()).unwrap();
    let Err(StorageError::Refused(text)) = DataDir::open(copied.path(), CLUSTER, NODE) else {
        panic!("a directory of another format is refused");
    };
    assert!(text.contains("version 1") && text.contains("move the data directory away"), "{text}");
}

/// Directories, and the incarnations in them.
const FORMAT_2: [(&str, u64); 2] =
    [("directory-2", 13_554_291_779_733_232_337), ("directory-2-runs", 267_330_709_857_563_813)];

/// Writes a fixture if the environment variable is set.
#[tokio::test]
async fn writes_a_fixture_where_it_is_asked_to() {
    let Ok(path) = std::env::var("RAFT_STORAGE_WRITE_FIXTURE") else { return };
    let path = Path::new(&path);
    drop(DataDir::initialise(path, CLUSTER, NODE).unwrap());
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
    // A run is cut in its middle, and the log ends there for now.
    let entry = |index| Entry { index, term: 4, payload: Payload::Noop };
    let entries = [26, 27, 28].map(entry).into();
    storage.persist(Batch { entries, ..Batch::default() }).await.unwrap();
    for from in [27, 26] {
        let batch = Batch { truncate_from: Some(from), ..Batch::default() };
        storage.persist(batch).await.unwrap();
    }
    drop(storage);
    // The storage is opened a second time, so that there is a table and a write-ahead file.
    let storage = open(path).unwrap();
    storage.load().await.unwrap();
    let batch = Batch { entries: last, hard_state: Some(HARD_STATE), ..Batch::default() };
    storage.persist(batch).await.unwrap();
    drop(storage);
    let incarnation = DataDir::open(path, CLUSTER, NODE).unwrap().incarnation();
    println!("content {content:?}, incarnation {incarnation}");
}
