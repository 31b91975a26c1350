//! The log's thread: batches in, one synced write each.
//!
//! It owns the RocksDB instance and a small mirror of what is in it: where the log starts and ends,
//! the size of each entry (so that [`log_bytes`](raft_core::storage::Storage::log_bytes) is exact
//! without reading), the hard state (to see whether a batch needs a sync), the number of the batch.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, HardState, Index, SnapshotMeta};
use rocksdb::{DB, FlushOptions, WriteBatch, WriteOptions};

use super::codec::{
    self, BatchMark, KEY_BATCH, KEY_ENTRY_END, KEY_HARD_STATE, KEY_LOG_START, KEY_SNAPSHOT,
    entry_key,
};
use super::load::{self, Everything};
use super::options::{RocksOptions, engine_error};
use super::poison::Poison;
use super::sizes::Sizes;
use super::snapshot::Shelf;
use super::warm::Warmer;
use super::worker::Work;
use crate::files::write_whole;
use crate::step::Step;

/// Holds the number of the last batch of a log that was closed in good order.
pub(crate) const FLOOR_FILE: &str = "floor";

/// What is in the instance, as far as writing has to know.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    pub(crate) hard_state: HardState,
    pub(crate) log_start: SnapshotMeta,
    /// Of the entries behind `log_start`.
    pub(crate) sizes: Sizes,
    /// Number of the last batch written, synced or not.
    pub(crate) batch: u64,
    /// Number of the last batch that is durable.
    pub(crate) durable_batch: u64,
}

impl Mirror {
    fn last_index(&self) -> Index {
        self.log_start.index() + self.sizes.len()
    }
}

pub(crate) struct Log {
    pub(crate) db: DB,
    pub(crate) path: PathBuf,
    pub(crate) options: RocksOptions,
    pub(crate) poison: Poison,
    pub(crate) shelf: Shelf,
    pub(crate) log_bytes: Arc<AtomicU64>,
    pub(crate) mirror: Mirror,
    pub(crate) warmer: Warmer,
    /// The mirror is right; nothing is written before that.
    pub(crate) is_loaded: bool,
    /// Bytes written since RocksDB last began a write-ahead file of its own accord or ours.
    pub(crate) unflushed_bytes: usize,
    /// An entry's encoding; kept for its memory.
    pub(crate) scratch: Vec<u8>,
}

impl Log {
    /// See [`raft_core::storage::Storage::load`].
    pub(crate) fn load(&mut self) -> StorageResult<Everything> {
        let mut everything = load::load(&self.db, &self.path)?;
        self.mirror = std::mem::take(&mut everything.mirror);
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
        // Every part named, so that a new one cannot be forgotten.
        let Batch { publish, truncate_from, entries, hard_state } = batch;
        if publish.is_none()
            && truncate_from.is_none()
            && entries.is_empty()
            && hard_state.is_none()
        {
            return Ok(());
        }
        self.check_loaded()?;
        let votes = |state: &HardState| (state.term, state.voted_for);
        let only_commit_index = publish.is_none()
            && truncate_from.is_none()
            && entries.is_empty()
            && hard_state.is_none_or(|new| votes(&new) == votes(&self.mirror.hard_state));

        let mut write = self.begin_write();
        let mut end = self.mirror.last_index();
        let mut log_start = None;
        let published = match publish {
            Some(publish) => {
                let published = self.shelf.finished(&publish.meta).ok_or_else(|| {
                    misuse(format!("no finished snapshot at {}", publish.meta.position))
                })?;
                write.put(KEY_SNAPSHOT, codec::encode_published(&published));
                if publish.replaces_log {
                    write.delete_range(&entry_key(0)[..], KEY_ENTRY_END);
                    write.put(KEY_LOG_START, codec::encode_log_start(&publish.meta));
                    end = publish.meta.index();
                    log_start = Some(publish.meta);
                }
                Some(published)
            }
            None => None,
        };
        let start = log_start.as_ref().unwrap_or(&self.mirror.log_start).index();
        if let Some(from) = truncate_from {
            if from <= start {
                return Err(misuse(format!(
                    "truncation from {from}, the log starts behind {start}"
                )));
            }
            if from <= end {
                write.delete_range(&entry_key(from)[..], KEY_ENTRY_END);
                end = from - 1;
            }
        }
        let kept_through = end;
        for entry in &entries {
            if entry.index != end + 1 {
                return Err(misuse(format!("entry {} behind entry {end}", entry.index)));
            }
            end = entry.index;
            codec::encode_entry(&mut self.scratch, entry);
            write.put(entry_key(entry.index), &self.scratch);
        }
        if let Some(hard_state) = &hard_state {
            write.put(KEY_HARD_STATE, codec::encode_hard_state(hard_state));
        }

        let publishes = published.is_some();
        self.options.step_hook.pass(Step::PersistBefore);
        if publishes {
            self.options.step_hook.pass(Step::PublishBefore);
        }
        self.write(write, !only_commit_index, "write a batch to")?;
        self.options.step_hook.pass(Step::PersistAfter);
        if publishes {
            self.options.step_hook.pass(Step::PublishAfter);
        }

        if let Some(log_start) = log_start {
            self.mirror.sizes.clear();
            self.mirror.log_start = log_start;
        }
        self.mirror.sizes.truncate(kept_through - self.mirror.log_start.index());
        entries.iter().for_each(|entry| self.mirror.sizes.push(entry.size_bytes()));
        self.mirror.hard_state = hard_state.unwrap_or(self.mirror.hard_state);
        if let Some(published) = published {
            self.shelf.publish(published);
        }
        self.count_bytes();
        // A scratch that one large entry blew up is not kept.
        if self.scratch.capacity() > SCRATCH_BYTES_MAX {
            self.scratch = Vec::new();
        }
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
        if through.index() <= start {
            return Ok(());
        }
        let mut write = self.begin_write();
        write.delete_range(entry_key(start), entry_key(through.index().saturating_add(1)));
        write.put(KEY_LOG_START, codec::encode_log_start(&through));
        self.options.step_hook.pass(Step::CompactBefore);
        // Without a sync: a crash that undoes it brings back entries that are still right.
        self.write(write, false, "compact")?;
        self.options.step_hook.pass(Step::CompactAfter);
        self.mirror.sizes.forget(through.index() - start);
        self.mirror.log_start = through;
        self.count_bytes();
        // What was just forgotten never reaches a table, if the table is written now. Too often, and
        // the write-ahead files that are reused are never full.
        if self.unflushed_bytes >= self.options.write_buffer_bytes / 2 {
            self.flush()?;
        }
        Ok(())
    }

    fn check_loaded(&self) -> StorageResult<()> {
        if self.is_loaded { Ok(()) } else { Err(misuse("load comes first".to_owned())) }
    }

    /// A write that begins with the mark, which `wal.rs` looks for.
    fn begin_write(&self) -> WriteBatch {
        let mut write = WriteBatch::default();
        let mark =
            BatchMark { number: self.mirror.batch + 1, durable_through: self.mirror.durable_batch };
        write.put(KEY_BATCH, codec::encode_batch_mark(mark));
        write
    }

    fn write(&mut self, write: WriteBatch, sync: bool, operation: &str) -> StorageResult<()> {
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
        if self.unflushed_bytes > self.options.write_buffer_bytes {
            // RocksDB has begun another file by now, or is about to.
            self.unflushed_bytes = 0;
        }
        Ok(())
    }

    /// Writes the memory table out and begins another write-ahead file. Does not wait for the table.
    pub(crate) fn flush(&mut self) -> StorageResult<()> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        self.unflushed_bytes = 0;
        self.db.flush_opt(&options).map_err(|error| engine_error("flush", &self.path, error))
    }

    /// Adds bytes to the write-ahead file alone, and makes them durable. Writes no batch: the mark
    /// repeats the last number.
    pub(crate) fn write_filler(&mut self, filler: &[u8]) -> StorageResult<()> {
        let mark =
            BatchMark { number: self.mirror.batch, durable_through: self.mirror.durable_batch };
        let mut write = WriteBatch::default();
        write.put(KEY_BATCH, codec::encode_batch_mark(mark));
        write.put_log_data(filler);
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db
            .write_opt(write, &options)
            .map_err(|error| engine_error("prepare files of", &self.path, error))?;
        self.mirror.durable_batch = self.mirror.batch;
        Ok(())
    }

    pub(crate) fn count_bytes(&self) {
        self.log_bytes.store(self.mirror.sizes.total(), Ordering::Release);
    }
}

/// Encodings larger than this are not kept for reuse.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

/// The caller broke the contract. Nothing was written, and nothing will be: it is a defect of ours.
fn misuse(message: String) -> StorageError {
    StorageError::Engine { operation: "persist".to_owned(), message }
}

impl Work for Log {
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
        // Durable first, then said to be.
        let closed = self
            .db
            .flush_wal(true)
            .map_err(|error| engine_error("sync", &self.path, error))
            .and_then(|()| {
                if !self.is_loaded {
                    return Ok(());
                }
                let floor = codec::encode_floor(self.mirror.batch);
                write_whole(&self.path, FLOOR_FILE, &floor, false)
            });
        if let Err(error) = closed {
            tracing::warn!(%error, "the log could not be closed in good order");
        }
    }
}
