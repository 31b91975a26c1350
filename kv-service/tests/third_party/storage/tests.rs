//! The storage keeps the contract, and tells a torn tail from damage.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raft_core::storage::{Storage, StorageError, StorageResult};
use raft_core::testing::storage::{self as contract, Disk};
use raft_core::types::{Batch, Entry, Loaded, Payload, Position, PublishSnapshot, SnapshotMeta};
use tempfile::TempDir;

use super::FileStorage;
use super::journal::Journal;

struct Directory {
    dir: TempDir,
    newest: Mutex<Option<Arc<FileStorage>>>,
}

impl Directory {
    fn empty() -> Self {
        Self { dir: TempDir::new().unwrap(), newest: Mutex::default() }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

#[async_trait]
impl Disk for Directory {
    async fn open(&self) -> StorageResult<Arc<dyn Storage>> {
        let storage = Arc::new(FileStorage::open(self.dir.path())?);
        *self.newest.lock().unwrap() = Some(Arc::clone(&storage));
        Ok(storage)
    }

    /// Keeps half of the bytes that were not synced.
    async fn crash(&self) {
        let Some(storage) = self.newest.lock().unwrap().take() else { return };
        let disk = storage.0.disk.lock().unwrap();
        storage.0.failure.get_or_init(|| "the power was lost".to_owned());
        let Journal { file, size_bytes, synced_bytes, .. } = &disk.journal;
        file.set_len(synced_bytes + (size_bytes - synced_bytes) / 2).unwrap();
    }
}

#[tokio::test]
async fn the_storage_keeps_the_contract() {
    contract::all(Directory::empty).await;
}

fn append(index: u64) -> Batch {
    let entries = vec![Entry { index, term: 1, payload: Payload::Command("command".into()) }];
    Batch { entries, ..Batch::default() }
}

async fn load(disk: &Directory) -> StorageResult<Loaded> {
    disk.open().await?.load().await
}

/// A log that ends anywhere within its last record is cut before that record. A changed byte is
/// damage wherever it is, and the file is left as it is.
#[tokio::test]
async fn a_torn_tail_is_cut_and_damage_is_an_error() {
    let disk = Directory::empty();
    let storage = disk.open().await.unwrap();
    let mut ends = Vec::new();
    for index in 1..=3 {
        storage.persist(append(index)).await.unwrap();
        ends.push(std::fs::metadata(disk.log()).unwrap().len() as usize);
    }
    let whole = std::fs::read(disk.log()).unwrap();
    for end in ends[1]..ends[2] {
        std::fs::write(disk.log(), &whole[..end]).unwrap();
        assert_eq!(load(&disk).await.unwrap().entries.len(), 2, "cut at {end}");
        assert_eq!(std::fs::read(disk.log()).unwrap(), whole[..ends[1]], "cut at {end}");
    }
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x20;
        std::fs::write(disk.log(), &damaged).unwrap();
        let refused = load(&disk).await;
        assert!(matches!(refused, Err(StorageError::Corrupt(_))), "byte {place}: {refused:?}");
        assert_eq!(std::fs::read(disk.log()).unwrap(), damaged, "byte {place}");
    }
}

/// Damage to a snapshot is found when the snapshot is opened, and does not end the storage.
#[tokio::test]
async fn a_damaged_snapshot_cannot_be_opened() {
    let disk = Directory::empty();
    let storage = disk.open().await.unwrap();
    let meta = SnapshotMeta::default();
    let mut writer = storage.snapshot_writer(meta.clone(), None).await.unwrap();
    writer.write("some bytes".into()).await.unwrap();
    writer.finish().await.unwrap();
    let publish = Some(PublishSnapshot { meta, replaces_log: false });
    storage.persist(Batch { publish, ..Batch::default() }).await.unwrap();
    let path = disk.dir.path().join("snapshot-2");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    for damaged in [&flipped[..], &whole[..20], &[]] {
        std::fs::write(&path, damaged).unwrap();
        let opened = storage.snapshot_reader().await.map(drop);
        assert!(matches!(opened, Err(StorageError::Corrupt(_))), "{opened:?}");
    }
    storage.persist(append(1)).await.unwrap();
    std::fs::write(&path, &whole).unwrap();
    let mut reader = storage.snapshot_reader().await.unwrap().unwrap();
    assert_eq!(reader.read(5, 100).await.unwrap(), "bytes");
}

/// Compactions keep the file small, and the rewritten file holds the same state.
#[tokio::test]
async fn a_compacted_log_is_written_anew() {
    let disk = Directory::empty();
    let storage = disk.open().await.unwrap();
    let command = Payload::Command(vec![1; 100_000].into());
    for index in 1..=50 {
        let entries = vec![Entry { index, term: 1, payload: command.clone() }];
        storage.persist(Batch { entries, ..Batch::default() }).await.unwrap();
        let position = Position::new(1, index - 1);
        storage.compact(SnapshotMeta { position, ..SnapshotMeta::default() }).await.unwrap();
    }
    assert!(std::fs::metadata(disk.log()).unwrap().len() < 2 << 20);
    let before = storage.load().await.unwrap();
    assert_eq!((before.log_start.index(), before.entries.len()), (49, 1));
    assert_eq!(load(&disk).await.unwrap(), before);
}
