//! What a batch will write, decided before anything is changed.

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, HardState, Index, SnapshotMeta};
use rocksdb::WriteBatch;

use super::sizes::Sizes;
use super::snapshot::Shelf;
use crate::format::records::{
    self, KEY_ENTRY_END, KEY_HARD_STATE, KEY_LOG_START, KEY_SNAPSHOT, Published, entry_key,
};

/// What is in the instance, as far as writing has to know.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    /// To see whether a batch needs a sync.
    pub(crate) hard_state: HardState,
    pub(crate) log_start: SnapshotMeta,
    /// Of the entries behind `log_start`, so that they are counted without being read.
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

/// What will be different once the batch is written.
pub(crate) struct Plan {
    pub(crate) needs_sync: bool,
    pub(crate) published: Option<Published>,
    /// The log is empty and starts here.
    replaced_by: Option<SnapshotMeta>,
    /// The last entry that is neither replaced nor truncated.
    kept_through: Index,
    appended_sizes: Vec<u64>,
    hard_state: HardState,
}

/// Adds the batch to `write`. An error means that the caller broke the contract. `scratch` is kept
/// for its memory.
pub(crate) fn plan(
    batch: Batch,
    mirror: &Mirror,
    shelf: &Shelf,
    mut write: WriteBatch,
    scratch: &mut Vec<u8>,
) -> StorageResult<(WriteBatch, Plan)> {
    // Every part named, so that a new one cannot be forgotten.
    let Batch { publish, withdraw_snapshot: _, truncate_from, entries, hard_state } = batch;
    let needs_sync = publish.is_some()
        || truncate_from.is_some()
        || !entries.is_empty()
        || hard_state.is_some_and(|new| new.promises_other_than(&mirror.hard_state));

    let (mut published, mut replaced_by) = (None, None);
    let (mut start, mut end) = (mirror.log_start.index(), mirror.last_index());
    if let Some(publish) = publish {
        let finished = shelf
            .finished(&publish.meta)
            .ok_or_else(|| misuse(format!("no finished snapshot at {}", publish.meta.position)))?;
        write.put(KEY_SNAPSHOT, records::encode_published(&finished));
        published = Some(finished);
        if publish.replaces_log {
            write.delete_range(&entry_key(0)[..], KEY_ENTRY_END);
            write.put(KEY_LOG_START, records::encode_log_start(&publish.meta));
            (start, end) = (publish.meta.index(), publish.meta.index());
            replaced_by = Some(publish.meta);
        }
    }
    if let Some(from) = truncate_from {
        if from <= start {
            return Err(misuse(format!("truncation from {from}, the log starts behind {start}")));
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
        records::encode_entry(scratch, entry);
        write.put(entry_key(entry.index), &scratch);
    }
    if let Some(hard_state) = &hard_state {
        write.put(KEY_HARD_STATE, records::encode_hard_state(hard_state));
    }
    let appended_sizes = entries.iter().map(|entry| entry.size_bytes()).collect();
    let hard_state = hard_state.unwrap_or(mirror.hard_state);
    let plan =
        Plan { needs_sync, published, replaced_by, kept_through, appended_sizes, hard_state };
    Ok((write, plan))
}

impl Plan {
    /// It was written. Returns the snapshot that was published with it.
    pub(crate) fn apply_to(self, mirror: &mut Mirror) -> Option<Published> {
        if let Some(log_start) = self.replaced_by {
            mirror.sizes.clear();
            mirror.log_start = log_start;
        }
        mirror.sizes.truncate(self.kept_through - mirror.log_start.index());
        self.appended_sizes.into_iter().for_each(|size| mirror.sizes.push(size));
        mirror.hard_state = self.hard_state;
        self.published
    }
}

/// The caller broke the contract. Nothing was written, and nothing will be: it is a defect of ours.
pub(crate) fn misuse(message: String) -> StorageError {
    StorageError::Engine { operation: "persist".to_owned(), message }
}
