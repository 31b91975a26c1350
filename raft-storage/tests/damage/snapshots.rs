//! Damaged, withdrawn and foreign files beside the log.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use raft_core::storage::{Storage, StorageError, StorageResult};
use raft_core::types::{Batch, Configuration, Position, PublishSnapshot, SnapshotMeta};
use tempfile::TempDir;

use super::common::open;
use super::{after, batch, closed, copy_of, expect_refusal, files_in, load};

fn snapshot_meta() -> SnapshotMeta {
    let configuration = Configuration::of_voters([1, 2, 3]);
    SnapshotMeta::new(Position::new(4, 20), configuration)
}

/// Reads the published snapshot to its end.
async fn read_snapshot(path: &Path) -> StorageResult<Vec<u8>> {
    let storage = open(path)?;
    storage.load().await?;
    let mut reader = storage.snapshot_reader().await?.expect("a snapshot was published");
    let mut bytes = Vec::new();
    loop {
        let piece = reader.read(bytes.len() as u64, 50_000).await?;
        if piece.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&piece);
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_never_read_as_another() {
    let directory = TempDir::new().unwrap();
    let bytes: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let storage = open(directory.path()).unwrap();
    storage.load().await.unwrap();
    let mut writer = storage.snapshot_writer(snapshot_meta(), None).await.unwrap();
    writer.write(Bytes::from(bytes.clone())).await.unwrap();
    writer.finish().await.unwrap();
    let publish = Some(PublishSnapshot { meta: snapshot_meta(), replaces_log: true });
    storage.persist(Batch { publish, ..Batch::default() }).await.unwrap();
    drop(storage);
    assert!(read_snapshot(directory.path()).await.unwrap() == bytes);
    let whole_log = load(directory.path()).await.unwrap();
    assert_eq!(whole_log.snapshot, Some(snapshot_meta()));

    let file = files_in(&directory.path().join("snapshots"), "snap").remove(0);
    let whole = fs::read(&file).unwrap();
    let name = file.file_name().unwrap();
    let places = (0..150).chain((150..whole.len()).step_by(whole.len() / 40));
    for at in places {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x04;
        let mut swapped = whole.clone();
        // One chunk in the place of another, both whole.
        swapped.copy_within(whole.len() - 400_000..whole.len() - 300_000, at.min(400_000));
        for (what, damaged) in
            [("flipped", &flipped), ("cut", &whole[..at].to_vec()), ("moved", &swapped)]
        {
            let directory = copy_of(directory.path());
            fs::write(directory.path().join("snapshots").join(name), damaged).unwrap();
            // S6. A state machine that is durable itself starts without the snapshot.
            let loaded = load(directory.path()).await;
            assert_eq!(loaded.unwrap(), whole_log, "{what} at {at}");
            let Err(error) = read_snapshot(directory.path()).await else {
                panic!("a snapshot {what} at {at} was read");
            };
            assert!(matches!(error, StorageError::Corrupt(_)), "{what} at {at}: {error:?}");
            expect_refusal(&error, directory.path(), &format!("{what} at {at}"));
        }
    }
    let directory = copy_of(directory.path());
    fs::remove_file(directory.path().join("snapshots").join(name)).unwrap();
    let error = read_snapshot(directory.path()).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");

    // S6. Another snapshot replaces it.
    let storage = open(directory.path()).unwrap();
    storage.load().await.unwrap();
    let position = Position::new(4, 21);
    let meta = SnapshotMeta { position, ..snapshot_meta() };
    let mut writer = storage.snapshot_writer(meta.clone(), None).await.unwrap();
    writer.write(Bytes::from_static(b"newer")).await.unwrap();
    writer.finish().await.unwrap();
    let publish = Some(PublishSnapshot { meta, replaces_log: true });
    storage.persist(Batch { publish, ..Batch::default() }).await.unwrap();
    drop(storage);
    assert!(read_snapshot(directory.path()).await.unwrap() == b"newer");
}

/// S14. A withdrawn snapshot is not there after a restart, its file is gone, and an open reader
/// reads it to the end.
#[tokio::test]
async fn a_withdrawn_snapshot_goes_for_good() {
    let directory = TempDir::new().unwrap();
    let storage = open(directory.path()).unwrap();
    storage.load().await.unwrap();
    storage.persist(batch(1)).await.unwrap();
    let meta = SnapshotMeta { position: Position::new(1, 1), ..snapshot_meta() };
    let mut writer = storage.snapshot_writer(meta.clone(), None).await.unwrap();
    let bytes = Bytes::from(vec![7; 300_000]);
    writer.write(bytes.clone()).await.unwrap();
    writer.finish().await.unwrap();
    let publish = Some(PublishSnapshot { meta, replaces_log: false });
    storage.persist(Batch { publish: publish.clone(), ..Batch::default() }).await.unwrap();
    let mut reader = storage.snapshot_reader().await.unwrap().unwrap();
    let withdraw = Batch { withdraw_snapshot: true, ..Batch::default() };
    storage.persist(withdraw.clone()).await.unwrap();
    assert!(storage.snapshot_reader().await.unwrap().is_none(), "none is published");
    assert!(reader.read(0, 1 << 20).await.unwrap() == bytes, "the open reader reads on");
    let both = Batch { publish, ..withdraw };
    assert!(storage.persist(both).await.is_err(), "published and withdrawn at once");
    drop((reader, storage));
    assert!(files_in(&directory.path().join("snapshots"), "snap").is_empty());
    assert_eq!(load(directory.path()).await.unwrap(), after(1));
}

/// Files of unknown names are left alone.
#[tokio::test]
async fn foreign_files_beside_snapshots_are_left_alone() {
    let directory = TempDir::new().unwrap();
    closed(directory.path()).await;
    let snapshots = directory.path().join("snapshots");
    let foreign =
        ["notes.txt", "snapshot-1-2.snap", "snapshot-1-2-x.part", "snapshot-1-2-3-4.snap"];
    for name in foreign.iter().chain(&["snapshot-1-2-3.snap", "snapshot-1-2-4.part"]) {
        fs::write(snapshots.join(name), "text").unwrap();
    }
    load(directory.path()).await.unwrap();
    let mut left: Vec<_> =
        fs::read_dir(&snapshots).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    let mut expected = foreign.to_vec();
    expected.sort();
    assert_eq!(left, expected, "unpublished snapshots of ours go, all else stays");
}
