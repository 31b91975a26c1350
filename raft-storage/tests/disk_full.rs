//! A full disk: the error says so, nothing more is written, and everything acknowledged is there
//! when there is room again. And a file system without direct writes.
//!
//! The tests mount file systems of their own. Where that is not permitted, they say on standard
//! error that they were not run.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use common::{CLUSTER, NODE, open};
use raft_core::storage::{Storage, StorageError};
use raft_core::types::{Batch, Entry, HardState, Payload, Position, SnapshotMeta};
use raft_storage::DataDir;
use raft_storage::rocksdb::RocksStorage;
use tempfile::TempDir;

/// A file system in memory, gone when dropped.
struct MemoryDisk(TempDir);

impl MemoryDisk {
    /// Mounts one of this size; `None` where that is not permitted.
    fn small(size: &str) -> Option<Self> {
        Self::mount("a full disk", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    fn mount(what: &str, arguments: &[&str]) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        if !run("mount", arguments, &directory) {
            // Written past the capture of the test harness, so that the note is visible.
            let note = format!("NOT RUN: {what} (mounting a file system is not permitted here)\n");
            std::io::stderr().write_all(note.as_bytes()).unwrap();
            return None;
        }
        Some(Self(directory))
    }

    fn grow(&self, size: &str) {
        assert!(run("mount", &["-o", &format!("remount,size={size}")], &self.0));
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        run("umount", &[], &self.0);
    }
}

fn run(program: &str, arguments: &[&str], directory: &TempDir) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).arg(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Opens the node again. A `mount` process that another test has just forked inherits the lock, and
/// holds it until it executes the program.
async fn reopen(node: &Path) -> RocksStorage {
    for _ in 0..2_000 {
        match open(node) {
            Err(StorageError::Refused(_)) => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays in use", node.display());
}

fn batch(number: u64) -> Batch {
    let payload = Payload::Command(Bytes::from(vec![number as u8; 100_000]));
    let entry = Entry { index: number, term: 1, payload };
    let hard_state = HardState { term: number, voted_for: Some(2), ..HardState::INITIAL };
    Batch { entries: vec![entry], hard_state: Some(hard_state), ..Batch::default() }
}

#[track_caller]
fn expect_full(error: &StorageError) {
    let StorageError::Io { source, .. } = error else { panic!("not an I/O error: {error:?}") };
    assert_eq!(source.kind(), ErrorKind::StorageFull, "{error}");
    assert!(error.to_string().contains("space"), "{error}");
}

#[tokio::test]
async fn a_log_on_a_full_disk_keeps_what_it_acknowledged() {
    let Some(disk) = MemoryDisk::small("12m") else { return };
    let node = disk.path().join("node");
    let storage = open(&node).unwrap();
    storage.load().await.unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match storage.persist(batch(acknowledged + 1)).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1_000, "12 MiB do not hold 100 MB");
    };
    // Either the batch found no room, or a table that RocksDB was writing in the background.
    match &error {
        StorageError::Poisoned(reason) => assert!(reason.contains("No space left"), "{error}"),
        _ => expect_full(&error),
    }
    assert!(acknowledged > 20, "it went well for a while");
    let later = storage.persist(batch(acknowledged + 1)).await;
    assert!(matches!(later, Err(StorageError::Poisoned(_))), "{later:?}");
    drop(storage);

    disk.grow("64m");
    let storage = reopen(&node).await;
    let loaded = storage.load().await.unwrap();
    // The batch that failed was not acknowledged; it may be there, but only whole.
    let found = loaded.entries.len() as u64;
    assert!(found == acknowledged || found == acknowledged + 1, "{found} of {acknowledged}");
    let expected: Vec<Entry> = (1..=found).flat_map(|number| batch(number).entries).collect();
    assert!(loaded.entries == expected, "every acknowledged entry is as it was");
    assert_eq!(loaded.hard_state, batch(found).hard_state.unwrap());
    storage.persist(batch(found + 1)).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_on_a_full_disk_leaves_the_log_whole() {
    let Some(disk) = MemoryDisk::small("12m") else { return };
    let node = disk.path().join("node");
    let storage = open(&node).unwrap();
    storage.load().await.unwrap();
    storage.persist(batch(1)).await.unwrap();
    let meta = SnapshotMeta { position: Position::new(1, 1), ..SnapshotMeta::default() };
    let mut writer = storage.snapshot_writer(meta, None).await.unwrap();
    let chunk = Bytes::from(vec![7; 1 << 20]);
    let mut written = 0;
    let error = loop {
        match writer.write(chunk.clone()).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "12 MiB do not hold 100");
    };
    expect_full(&error);
    let later = storage.persist(batch(2)).await;
    assert!(matches!(later, Err(StorageError::Poisoned(_))), "{later:?}");
    drop((writer, storage));

    // The unfinished file is removed at the start, which makes room by itself.
    let storage = reopen(&node).await;
    assert_eq!(storage.load().await.unwrap().entries, batch(1).entries);
    storage.persist(batch(2)).await.unwrap();
}

#[tokio::test]
async fn a_directory_on_a_full_disk_is_not_half_made() {
    let Some(disk) = MemoryDisk::small("64k") else { return };
    let node = disk.path().join("node");
    let filler = disk.path().join("filler");
    let _ = std::fs::write(&filler, vec![1; 1 << 20]);
    let Err(error) = open(&node) else { panic!("there is no room") };
    expect_full(&error);
    std::fs::remove_file(&filler).unwrap();
    disk.grow("16m");
    let storage = open(&node).unwrap();
    storage.load().await.unwrap();
    storage.persist(batch(1)).await.unwrap();
}

/// S21. Other files fill the disk, and the node restarts after it was closed in good order: replay
/// writes a table, for which there is only the room of the ballast. The test of real processes has
/// the killed node.
#[tokio::test]
async fn a_node_starts_again_on_a_full_disk_with_its_ballast() {
    for has_ballast in [true, false] {
        let Some(disk) = MemoryDisk::small("256m") else { return };
        let node = disk.path().join("node");
        let data_dir = DataDir::open(&node, CLUSTER, NODE).unwrap();
        if has_ballast {
            assert!(data_dir.keep_ballast().unwrap(), "there is room, and tmpfs reserves");
        }
        drop(data_dir);
        let storage = open(&node).unwrap();
        storage.load().await.unwrap();
        for number in 1..=8 {
            storage.persist(batch(number)).await.unwrap();
        }
        // Closing frees the space that RocksDB has reserved for its files.
        drop(storage);
        let filler = disk.path().join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}

        let opened = open(&node);
        let ballast = node.join("ballast");
        if has_ballast {
            assert!(!ballast.exists(), "the disk is full, and the ballast was kept");
            let storage = opened.unwrap();
            let expected: Vec<Entry> = (1..=8).flat_map(|number| batch(number).entries).collect();
            assert!(storage.load().await.unwrap().entries == expected);
            storage.persist(batch(9)).await.unwrap();
        } else {
            let error = opened.err().expect("there is no room, so the ballast is what helps");
            expect_full(&error);
        }
        drop((file, std::fs::remove_file(&filler).unwrap()));
        let storage = reopen(&node).await;
        let expected = if has_ballast { 9 } else { 8 };
        assert_eq!(storage.load().await.unwrap().entries.len(), expected);
        drop(storage);
        let data_dir = DataDir::open(&node, CLUSTER, NODE).unwrap();
        assert!(!data_dir.is_low().unwrap() && data_dir.keep_ballast().unwrap());
        assert!(ballast.exists(), "there is room again");
    }
}

#[tokio::test]
async fn a_disk_without_direct_writes_will_do() {
    let Some(disk) = MemoryDisk::mount("direct writes", &["-t", "ramfs", "ramfs"]) else { return };
    let node = disk.path().join("node");
    let storage = open(&node).unwrap();
    storage.load().await.unwrap();
    // The buffer is full after every eleventh batch.
    for number in 1..=50 {
        storage.persist(batch(number)).await.unwrap();
    }
    drop(storage);
    let is_table = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".sst");
    let mut files = std::fs::read_dir(node.join("log")).unwrap();
    assert!(files.any(|file| is_table(&file.unwrap().file_name())), "a table was written");

    let loaded = reopen(&node).await.load().await.unwrap();
    let expected: Vec<Entry> = (1..=50).flat_map(|number| batch(number).entries).collect();
    assert!(loaded.entries == expected);
}
