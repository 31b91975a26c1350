//! The log's thread: writes each batch with one synced write.
//!
//! It owns the RocksDB instance and a small [`Mirror`] of its content. A batch is planned against
//! the mirror (`batch_plan.rs`), written, and only then applied to the mirror.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_core::storage::StorageResult;
use raft_core::types::{Batch, HardState, Position, SnapshotMeta};
use rocksdb::{DB, ErrorKind, FlushOptions, WriteBatch, WriteOptions};

use super::batch_plan::{Mirror, misuse, plan};
use super::load::{self, Everything};
use super::options::{RocksOptions, engine_error};
use super::poison::Poison;
use super::snapshot::Shelf;
use super::warm::Warmer;
use super::worker::Work;
use crate::files::write_whole;
use crate::format::draft::{Draft, Sealed, content_of_filler};
use crate::format::keys::{KEY_BATCH, entry_key};
use crate::format::log_key::{LogKey, draw_nonce};
use crate::format::records::{self, BATCH_MARK_BYTES, BatchMark, NUMBER_MAX, encode_batch_mark};
use crate::step::Step;

/// Holds the number of a batch that the log must contain: the last one when the log was closed in
/// good order, or the highest one claimed durable when the log was opened after a crash.
pub(crate) const FLOOR_FILE: &str = "floor";

pub(crate) struct StoredLog {
    pub(crate) db: DB,
    pub(crate) path: PathBuf,
    pub(crate) options: RocksOptions,
    pub(crate) poison: Poison,
    pub(crate) shelf: Shelf,
    pub(crate) log_bytes: Arc<AtomicU64>,
    pub(crate) mirror: Mirror,
    pub(crate) warmer: Warmer,
    /// Set once the mirror is loaded; nothing is written before that.
    pub(crate) is_loaded: bool,
    /// Bytes in the write-ahead file that is in use.
    pub(crate) unflushed_bytes: usize,
    /// The batch that is being made; reused for its memory.
    pub(crate) draft: Draft,
    /// Masks and authenticates every batch.
    pub(crate) key: LogKey,
    /// The hard state of a log in which none was written yet.
    pub(crate) initial: HardState,
}

impl StoredLog {
    /// See [`raft_core::storage::Storage::load`].
    pub(crate) fn load(&mut self) -> StorageResult<Everything> {
        let mut everything = load::load(&self.db, &self.path, &self.key, self.initial)?;
        self.mirror = std::mem::take(&mut everything.mirror);
        assert_eq!(
            everything.loaded.entries.last().map_or(self.mirror.log_start.index(), |e| e.index),
            self.mirror.last_index(),
            "the mirror is of what was read"
        );
        self.is_loaded = true;
        self.count_bytes();
        Ok(everything)
    }

    /// See [`raft_core::storage::Storage::persist`].
    pub(crate) fn persist(&mut self, batch: Batch) -> StorageResult<()> {
        self.poison.check()?;
        let poison = self.poison.clone();
        poison.note(self.persist_unpoisoned(batch))
    }

    fn persist_unpoisoned(&mut self, batch: Batch) -> StorageResult<()> {
        self.check_loaded()?;
        if batch == Batch::default() {
            return Ok(());
        }
        self.draft.clear();
        let plan = plan(batch, &self.mirror, &self.shelf, &mut self.draft)?;
        let publishes = plan.published.is_some();
        let withdraws = plan.withdraws;
        self.options.step_hook.pass(Step::PersistBefore);
        if publishes {
            self.options.step_hook.pass(Step::PublishBefore);
        }
        let last_batch = self.mirror.batch;
        self.write(plan.needs_sync, "write a batch to")?;
        assert_eq!(self.mirror.batch, last_batch + 1, "a batch is written once");
        self.options.step_hook.pass(Step::PersistAfter);
        if publishes {
            self.options.step_hook.pass(Step::PublishAfter);
        }
        if let Some(published) = plan.apply_to(&mut self.mirror) {
            self.shelf.publish(published);
        } else if withdraws {
            self.shelf.withdraw();
        }
        self.count_bytes();
        self.draft.shrink(DRAFT_BYTES_MAX);
        Ok(())
    }

    /// See [`raft_core::storage::Storage::compact`].
    pub(crate) fn compact(&mut self, through: SnapshotMeta) -> StorageResult<()> {
        self.poison.check()?;
        let poison = self.poison.clone();
        poison.note(self.compact_unpoisoned(through))
    }

    fn compact_unpoisoned(&mut self, through: SnapshotMeta) -> StorageResult<()> {
        self.check_loaded()?;
        let start = self.mirror.log_start.index();
        // An empty log takes its configuration at the position before the first entry.
        let is_founding = through.position == Position::ZERO && self.mirror.last_index() == 0;
        if through.index() <= start && !is_founding {
            return Ok(());
        }
        self.draft.clear();
        assert!(through.index() >= start, "the start of the log never falls");
        let last_index = self.mirror.last_index().max(through.index());
        let compactable = self.mirror.run_starts.compactable(through.index(), last_index);
        if let Some((first, end)) = compactable {
            self.draft.delete_range(entry_key(first), entry_key(end));
        }
        records::put_log_start(&mut self.draft, &through);
        self.options.step_hook.pass(Step::CompactBefore);
        // Compaction needs no sync: a crash that undoes it brings back entries that are still
        // right. The configuration of an empty log is synced, because nothing would bring it back.
        self.write(is_founding, "compact")?;
        self.options.step_hook.pass(Step::CompactAfter);
        self.mirror.sizes.forget(through.index() - start);
        if let Some((_, end)) = compactable {
            self.mirror.run_starts.forget_before(end);
        }
        self.mirror.log_start = through;
        assert_eq!(self.mirror.last_index(), last_index, "compaction drops no entry of the tail");
        self.count_bytes();
        Ok(())
    }

    fn check_loaded(&self) -> StorageResult<()> {
        if self.is_loaded { Ok(()) } else { Err(misuse("load comes first".to_owned())) }
    }

    /// Writes the draft as one batch.
    fn write(&mut self, sync: bool, operation: &str) -> StorageResult<()> {
        assert!(self.mirror.durable_batch <= self.mirror.batch, "a durable batch was written");
        assert!(self.mirror.batch < NUMBER_MAX, "counting never reaches it");
        let content = self.draft.seal(&self.key, draw_nonce()?);
        let mark = BatchMark {
            number: self.mirror.batch + 1,
            durable_through: self.mirror.durable_batch,
            content,
        };
        let write = write_batch(mark, &self.draft, &self.key);
        let bytes = write.size_in_bytes();
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db
            .write_opt(write, &options)
            .map_err(|error| engine_error(operation, &self.path, error))?;
        self.mirror.batch += 1;
        if sync {
            // One file, written in order: a sync covers everything before it.
            self.mirror.durable_batch = self.mirror.batch;
        }
        self.unflushed_bytes += bytes;
        // The flush depends on this count alone, so that every file is used for equally many bytes:
        // RocksDB cuts a file to the bytes of its last use, and a file that was cut short has to
        // grow again in the next use.
        if self.unflushed_bytes >= self.options.write_buffer_bytes {
            self.flush()?;
        }
        Ok(())
    }

    /// Begins to write the memtable as a table, and begins another write-ahead file. Does not wait
    /// for the table.
    pub(crate) fn flush(&mut self) -> StorageResult<()> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        match self.db.flush_opt(&options) {
            Ok(()) => self.unflushed_bytes = 0,
            // Earlier tables are still being written. Waiting loses and undoes nothing: the count
            // stays, so the next write tries again.
            Err(error) if error.kind() == ErrorKind::TryAgain => {}
            Err(error) => return Err(engine_error("flush", &self.path, error)),
        }
        Ok(())
    }

    /// Adds bytes to the write-ahead file alone, and makes them durable. Writes no batch: the mark
    /// repeats the last number.
    pub(crate) fn write_filler(&mut self, filler: &[u8]) -> StorageResult<()> {
        let mark = BatchMark {
            number: self.mirror.batch,
            durable_through: self.mirror.durable_batch,
            content: content_of_filler(filler),
        };
        let mut write = WriteBatch::default();
        write.put(KEY_BATCH, encode_batch_mark(mark, &self.key));
        write.put_log_data(filler);
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db
            .write_opt(write, &options)
            .map_err(|error| engine_error("prepare files of", &self.path, error))?;
        self.mirror.durable_batch = self.mirror.batch;
        Ok(())
    }

    fn count_bytes(&self) {
        self.log_bytes.store(self.mirror.sizes.total(), Ordering::Release);
    }
}

/// Most memory of a draft that is kept for reuse, in bytes: one large batch must not occupy more.
const DRAFT_BYTES_MAX: usize = 1 << 20;

/// Bytes of an operation in a write batch besides its record: key and lengths. Header and mark take
/// twice as many.
const OPERATION_BYTES: usize = 32;

/// A write that begins with the mark, as `format/wal` expects.
pub(crate) fn write_batch(mark: BatchMark, draft: &Draft, key: &LogKey) -> WriteBatch {
    let bytes = draft.record_bytes() + (draft.operation_count() + 2) * OPERATION_BYTES;
    let mut write = WriteBatch::with_capacity_bytes(bytes);
    let mark = encode_batch_mark(mark, key);
    assert_eq!(mark.len(), BATCH_MARK_BYTES, "the scan looks for its end there");
    write.put(KEY_BATCH, mark);
    for operation in draft.sealed() {
        match operation {
            Sealed::Put { key, record } => write.put(key, record),
            Sealed::Delete { key } => write.delete(key),
            Sealed::DeleteRange { from, to } => write.delete_range(from, to),
        }
    }
    assert_eq!(write.len(), 1 + draft.operation_count(), "the mark, and each operation once");
    assert!(write.size_in_bytes() <= bytes, "encoded within the bytes that were reserved");
    write
}

impl Work for StoredLog {
    fn idle(&mut self) -> bool {
        if !self.is_loaded || self.poison.check().is_err() {
            return false;
        }
        let mut warmer = std::mem::take(&mut self.warmer);
        let poison = self.poison.clone();
        let more = poison.note(warmer.step(self)).unwrap_or(false);
        self.warmer = warmer;
        more
    }

    fn close(self) {
        if self.poison.check().is_err() {
            return;
        }
        // The batches are made durable before the floor says that they are.
        let closed = self
            .db
            .flush_wal(true)
            .map_err(|error| engine_error("sync", &self.path, error))
            .and_then(|()| {
                if !self.is_loaded {
                    return Ok(());
                }
                let floor = records::encode_floor(self.mirror.batch);
                write_whole(&self.path, FLOOR_FILE, &floor, false)
            });
        if let Err(error) = closed {
            tracing::warn!(%error, "the log could not be closed in good order");
        }
    }
}
