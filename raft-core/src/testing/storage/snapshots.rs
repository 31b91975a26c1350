//! Claims about snapshots.

use std::sync::Arc;

use bytes::Bytes;

use super::model::{content_of, read_whole};
use super::{Disk, content_bytes, crash, entries, entry, meta, must, restart, start};
use crate::storage::{SnapshotWriter, Storage, StorageError};
use crate::types::{Batch, PublishSnapshot, SnapshotContent, SnapshotMeta};

async fn begin(
    storage: &Arc<dyn Storage>,
    meta: &SnapshotMeta,
    expected: Option<SnapshotContent>,
) -> Box<dyn SnapshotWriter> {
    must("snapshot_writer", storage.snapshot_writer(meta.clone(), expected).await)
}

/// Writes and finishes a snapshot of this node's own.
async fn write(storage: &Arc<dyn Storage>, meta: &SnapshotMeta, bytes: &Bytes) {
    let mut writer = begin(storage, meta, None).await;
    for chunk in bytes.chunks(40_000) {
        must("write", writer.write(Bytes::copy_from_slice(chunk)).await);
    }
    let content = must("finish", writer.finish().await);
    assert_eq!(content, content_of(bytes), "finish tells size and CRC32C of the bytes");
}

async fn publish(storage: &Arc<dyn Storage>, meta: &SnapshotMeta, replaces_log: bool) {
    let publish = PublishSnapshot { meta: meta.clone(), replaces_log };
    let batch = Batch { publish: Some(publish), ..Batch::default() };
    must("publish", storage.persist(batch).await);
}

async fn expect_published(
    storage: &Arc<dyn Storage>,
    meta: &SnapshotMeta,
    bytes: &Bytes,
    when: &str,
) {
    let reader = must("snapshot_reader", storage.snapshot_reader().await);
    let mut reader = reader.unwrap_or_else(|| panic!("{when} there is a snapshot to read"));
    assert_eq!(reader.meta(), meta, "{when} the published snapshot is read");
    assert_eq!(reader.content(), content_of(bytes), "{when} its content is known");
    let read = must("read", read_whole(reader.as_mut()).await);
    assert!(read == *bytes, "{when} its bytes are those that were written");
}

/// Claim: a finished snapshot takes the place of the published one with the batch that publishes it
/// and not before, with a crash in between too; the log stays as it is.
pub async fn a_snapshot_is_published_by_a_batch(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let (old, old_bytes) = (meta(1, 4), content_bytes(1, 150_000));
    let (new, new_bytes) = (meta(1, 8), content_bytes(2, 90_000));
    let batch = Batch { entries: entries(1, 10, 1), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    write(&storage, &old, &old_bytes).await;
    let reader = must("snapshot_reader", storage.snapshot_reader().await);
    assert!(reader.is_none(), "a finished snapshot is not published before a batch does it");
    publish(&storage, &old, false).await;
    expect_published(&storage, &old, &old_bytes, "after the publication").await;

    write(&storage, &new, &new_bytes).await;
    expect_published(&storage, &old, &old_bytes, "while another one is finished").await;
    let (storage, loaded) = crash(disk, storage).await;
    assert_eq!(loaded.snapshot.as_ref(), Some(&old), "a crash keeps the published snapshot");
    assert_eq!(loaded.entries, entries(1, 10, 1), "a published snapshot leaves the log as it is");
    expect_published(&storage, &old, &old_bytes, "after a crash").await;

    // The same position again, with another content: the published one must not be touched.
    for bytes in [&new_bytes, &old_bytes] {
        write(&storage, &new, bytes).await;
        publish(&storage, &new, false).await;
        expect_published(&storage, &new, bytes, "after a second publication").await;
    }
    let (storage, loaded) = crash(disk, storage).await;
    assert_eq!(loaded.snapshot.as_ref(), Some(&new), "a publication survives a crash");
    expect_published(&storage, &new, &old_bytes, "after a second crash").await;

    let empty = meta(1, 9);
    write(&storage, &empty, &Bytes::new()).await;
    publish(&storage, &empty, false).await;
    expect_published(&storage, &empty, &Bytes::new(), "without bytes").await;
}

/// Claim: a publication that replaces the log leaves an empty one behind the snapshot, in the same
/// atomic step, and entries of the same batch follow it.
pub async fn a_snapshot_may_replace_the_log(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let (received, bytes) = (meta(4, 100), content_bytes(3, 10_000));
    let batch = Batch { entries: entries(1, 120, 1), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    write(&storage, &received, &bytes).await;
    let batch = Batch {
        publish: Some(PublishSnapshot { meta: received.clone(), replaces_log: true }),
        entries: vec![entry(101, 4, 10)],
        ..Batch::default()
    };
    must("replace the log", storage.persist(batch).await);
    let expected = entry(101, 4, 10).size_bytes();
    assert_eq!(storage.log_bytes(), expected, "what was replaced is not counted any more");
    must("compact behind the snapshot", storage.compact(meta(1, 50)).await);
    let (storage, loaded) = crash(disk, storage).await;
    assert_eq!(loaded.log_start, received, "a replaced log starts behind the snapshot");
    assert_eq!(loaded.snapshot.as_ref(), Some(&received), "the snapshot is published");
    assert_eq!(loaded.entries, [entry(101, 4, 10)], "only entries of the batch follow it");
    expect_published(&storage, &received, &bytes, "after the log was replaced").await;

    // The log ends before the snapshot, so no entry could be kept.
    let (further, bytes) = (meta(5, 500), content_bytes(4, 10));
    write(&storage, &further, &bytes).await;
    publish(&storage, &further, true).await;
    let (_storage, loaded) = restart(disk, storage).await;
    assert_eq!(
        (loaded.log_start, loaded.entries),
        (further, vec![]),
        "the log may be skipped over"
    );
}

/// Claim: a transfer that broke off goes on where it was if meta and content agree, with a crash in
/// between too; its bytes are then verified as a whole. Otherwise it begins at 0.
pub async fn a_transfer_is_resumed_where_meta_and_content_agree(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let (meta, bytes) = (meta(2, 7), content_bytes(5, 1 << 20));
    let expected = Some(content_of(&bytes));
    let mut writer = begin(&storage, &meta, expected).await;
    assert_eq!(writer.offset(), 0, "a transfer begins at 0");
    must("write", writer.write(bytes.slice(..700_001)).await);
    assert_eq!(writer.offset(), 700_001, "the offset follows the bytes");
    drop(writer);

    let writer = begin(&storage, &meta, expected).await;
    let resumed = writer.offset();
    assert!(
        0 < resumed && resumed <= 700_001,
        "an equal transfer is resumed within what was written, not at {resumed}"
    );
    drop(writer);
    let (storage, _) = crash(disk, storage).await;
    let mut writer = begin(&storage, &meta, expected).await;
    let resumed = writer.offset();
    assert!(resumed <= 700_001, "after a crash it is resumed within what was written");
    for chunk in bytes.slice(resumed as usize..).chunks(100_000) {
        must("write", writer.write(Bytes::copy_from_slice(chunk)).await);
    }
    let content = must("finish a resumed transfer", writer.finish().await);
    assert_eq!(
        content,
        content_of(&bytes),
        "a resumed transfer has the content of an unbroken one"
    );
    publish(&storage, &meta, true).await;
    expect_published(&storage, &meta, &bytes, "after a resumed transfer").await;

    let other = SnapshotContent { checksum: content.checksum ^ 1, ..content };
    for (expected, what) in [(Some(other), "another content"), (None, "this node's own")] {
        let mut writer = begin(&storage, &meta, Some(content)).await;
        must("write", writer.write(bytes.slice(..500_000)).await);
        drop(writer);
        let writer = begin(&storage, &meta, expected).await;
        assert_eq!(writer.offset(), 0, "a transfer is not resumed by {what}");
    }
}

/// Claim: beginning another snapshot drops the unfinished one, whose writer then fails without
/// poisoning the storage; the published one stays.
pub async fn another_snapshot_drops_the_unfinished_one(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let (kept, kept_bytes) = (meta(1, 3), content_bytes(6, 70_000));
    write(&storage, &kept, &kept_bytes).await;
    publish(&storage, &kept, true).await;
    let bytes = content_bytes(7, 300_000);
    let mut dropped = begin(&storage, &meta(1, 5), Some(content_of(&bytes))).await;
    must("write", dropped.write(bytes.slice(..200_000)).await);
    let other = begin(&storage, &meta(1, 6), None).await;
    assert_eq!(other.offset(), 0, "another snapshot begins at 0");
    let late = dropped.write(bytes.slice(200_000..)).await;
    assert!(late.is_err(), "the writer of a dropped snapshot fails");
    assert!(dropped.finish().await.is_err(), "a dropped snapshot cannot be finished");
    must("finish", other.finish().await);
    let again = begin(&storage, &meta(1, 5), Some(content_of(&bytes))).await;
    assert_eq!(again.offset(), 0, "a dropped snapshot is not resumed");
    expect_published(&storage, &kept, &kept_bytes, "whatever is begun,").await;
    let batch = Batch { entries: entries(4, 4, 1), ..Batch::default() };
    must("persist after a writer was dropped", storage.persist(batch).await);
}

/// Claim: `finish` detects bytes other than the announced ones, fails with `Corrupt` and drops
/// them. The fault is a peer's, so the storage goes on.
pub async fn a_received_snapshot_is_verified(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let (meta, bytes) = (meta(3, 9), content_bytes(8, 250_000));
    let expected = Some(content_of(&bytes));
    let mut flipped = bytes.to_vec();
    flipped[123_456] ^= 0x10;
    let longer = [&bytes[..], b"x"].concat();
    for wrong in [Bytes::from(flipped), bytes.slice(..249_999), Bytes::from(longer)] {
        let mut writer = begin(&storage, &meta, expected).await;
        assert_eq!(writer.offset(), 0, "what was found wrong is not resumed");
        let written = writer.write(wrong).await;
        // Bytes beyond the announced size may be refused at once.
        let result = match written {
            Ok(()) => writer.finish().await.map(drop),
            Err(error) => Err(error),
        };
        let is_corrupt = matches!(result, Err(StorageError::Corrupt(_)));
        assert!(is_corrupt, "bytes that were not announced are Corrupt, not {result:?}");
    }
    let mut writer = begin(&storage, &meta, expected).await;
    must("write", writer.write(bytes.clone()).await);
    must("finish after another attempt was wrong", writer.finish().await);
    publish(&storage, &meta, true).await;
    expect_published(&storage, &meta, &bytes, "after a wrong attempt").await;
}

/// Claim: a reader reads any piece at any offset, and the snapshot that it was opened for stays
/// readable through it when another is published.
pub async fn a_reader_outlives_a_later_publication(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let bytes = content_bytes(9, 400_000);
    write(&storage, &meta(1, 3), &bytes).await;
    publish(&storage, &meta(1, 3), true).await;
    let reader = must("snapshot_reader", storage.snapshot_reader().await);
    let mut reader = reader.unwrap_or_else(|| panic!("a published snapshot can be read"));
    for index in 4..8 {
        write(&storage, &meta(1, index), &content_bytes(index, 1_000)).await;
        publish(&storage, &meta(1, index), true).await;
    }
    assert_eq!(reader.meta(), &meta(1, 3), "a reader keeps to the snapshot it was opened for");
    for (offset, len) in
        [(399_999, 10), (0, 1), (65_535, 2), (65_536, 65_536), (1, 399_999), (200_000, 0)]
    {
        let read = must("read an older snapshot", reader.read(offset as u64, len).await);
        let expected = &bytes[offset..(offset + len).min(bytes.len())];
        assert!(
            expected.starts_with(&read) && (!read.is_empty() || len == 0),
            "a read of {len} bytes at {offset} returns the bytes that are there"
        );
    }
    for offset in [400_000, 400_001, u64::MAX] {
        let read = must("read behind the end", reader.read(offset, 10).await);
        assert!(read.is_empty(), "a read at {offset}, behind the end, is empty");
    }
    let read = must("read an older snapshot", read_whole(reader.as_mut()).await);
    assert!(read == bytes, "the whole of an older snapshot is still there");
}

/// Claim: a withdrawn snapshot is gone, also after a crash at once. An open reader reads it to its
/// end, the log stays as it is, and the same snapshot can be published again.
pub async fn a_withdrawn_snapshot_is_gone(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let (published, bytes) = (meta(1, 4), content_bytes(5, 150_000));
    let batch = Batch { entries: entries(1, 10, 1), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    let withdraw = || Batch { withdraw_snapshot: true, ..Batch::default() };
    must("withdraw what is not there", storage.persist(withdraw()).await);
    write(&storage, &published, &bytes).await;
    publish(&storage, &published, false).await;
    let reader = must("snapshot_reader", storage.snapshot_reader().await);
    let mut reader = reader.expect("it is published");
    must("withdraw", storage.persist(withdraw()).await);
    let none = must("snapshot_reader", storage.snapshot_reader().await);
    assert!(none.is_none(), "a withdrawn snapshot cannot be opened");
    let read = must("read", read_whole(reader.as_mut()).await);
    assert!(read == bytes, "a reader that was open before reads the snapshot to its end");
    drop(reader);
    let (storage, loaded) = crash(disk, storage).await;
    assert_eq!(loaded.snapshot, None, "a withdrawal survives a crash");
    assert_eq!(loaded.entries, entries(1, 10, 1), "a withdrawal leaves the log as it is");

    write(&storage, &published, &bytes).await;
    publish(&storage, &published, false).await;
    expect_published(&storage, &published, &bytes, "after a second publication").await;
}
