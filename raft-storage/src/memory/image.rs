//! What is on the disk in memory, and what of it would survive a loss of power.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, Entry, HardState, Loaded, SnapshotContent, SnapshotMeta};

/// A finished snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) meta: SnapshotMeta,
    pub(super) content: SnapshotContent,
    pub(super) bytes: Bytes,
}

/// An unfinished snapshot.
#[derive(Debug)]
struct Part {
    id: u64,
    meta: SnapshotMeta,
    expected: Option<SnapshotContent>,
    bytes: BytesMut,
}

/// What the writes since the last sync have replaced. A loss of power brings it back.
#[derive(Debug, Default)]
struct Unsynced {
    hard_state: Option<HardState>,
    log_start: Option<SnapshotMeta>,
    /// In order; they belong before those in the log.
    forgotten: Vec<Entry>,
}

#[derive(Debug, Default)]
pub(super) struct Image {
    hard_state: HardState,
    log_start: SnapshotMeta,
    entries: VecDeque<Entry>,
    log_bytes: u64,
    unsynced: Unsynced,
    published: Option<Arc<Snapshot>>,
    /// Oldest first; at most [`FINISHED_COUNT_MAX`].
    finished: Vec<Arc<Snapshot>>,
    part: Option<Part>,
    next_id: u64,
}

/// Finished snapshots that wait to be published: the node's own and one from a peer.
const FINISHED_COUNT_MAX: usize = 2;

impl Image {
    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    pub(super) fn load(&self) -> Loaded {
        Loaded {
            hard_state: self.hard_state,
            log_start: self.log_start.clone(),
            snapshot: self.published.as_ref().map(|snapshot| snapshot.meta.clone()),
            entries: self.entries.iter().cloned().collect(),
        }
    }

    /// All of the batch or, if it is refused, nothing.
    pub(super) fn persist(&mut self, batch: Batch) -> StorageResult<()> {
        let Batch { publish, truncate_from, entries, hard_state } = batch;
        // Decide first, then change.
        let published = match &publish {
            Some(publish) => Some(self.finished(&publish.meta)?),
            None => None,
        };
        let replaced_by = publish.filter(|publish| publish.replaces_log).map(|p| p.meta);
        let (start, mut end) = match &replaced_by {
            Some(meta) => (meta.index(), meta.index()),
            None => (self.log_start.index(), self.last_index()),
        };
        if let Some(from) = truncate_from {
            if from <= start {
                return Err(misuse(format!(
                    "truncation from {from}, the log starts behind {start}"
                )));
            }
            end = end.min(from - 1);
        }
        let gap = (end + 1..).zip(&entries).find(|(index, entry)| entry.index != *index);
        if let Some((index, entry)) = gap {
            return Err(misuse(format!("entry {} where {index} belongs", entry.index)));
        }

        let synced = published.is_some()
            || truncate_from.is_some()
            || !entries.is_empty()
            || hard_state.is_some_and(|new| new.promises_other_than(&self.hard_state));
        if let Some(published) = published {
            self.finished.retain(|one| one.meta.index() > published.meta.index());
            self.published = Some(published);
        }
        if let Some(meta) = replaced_by {
            self.entries.clear();
            self.log_bytes = 0;
            self.log_start = meta;
        }
        while self.last_index() > end {
            let dropped = self.entries.pop_back().expect("the log reaches past its start");
            self.log_bytes -= dropped.size_bytes();
        }
        self.log_bytes += entries.iter().map(Entry::size_bytes).sum::<u64>();
        self.entries.extend(entries);
        if let Some(new) = hard_state {
            let old = std::mem::replace(&mut self.hard_state, new);
            self.unsynced.hard_state.get_or_insert(old);
        }
        if synced {
            self.unsynced = Unsynced::default();
        }
        Ok(())
    }

    fn last_index(&self) -> u64 {
        self.log_start.index() + self.entries.len() as u64
    }

    fn finished(&self, meta: &SnapshotMeta) -> StorageResult<Arc<Snapshot>> {
        let found = self.finished.iter().rev().find(|one| one.meta == *meta);
        found.cloned().ok_or_else(|| misuse(format!("no finished snapshot at {}", meta.position)))
    }

    pub(super) fn compact(&mut self, through: SnapshotMeta) {
        if through.index() <= self.log_start.index() {
            return;
        }
        while self.entries.front().is_some_and(|entry| entry.index <= through.index()) {
            let entry = self.entries.pop_front().expect("there is a first one");
            self.log_bytes -= entry.size_bytes();
            self.unsynced.forgotten.push(entry);
        }
        let old = std::mem::replace(&mut self.log_start, through);
        self.unsynced.log_start.get_or_insert(old);
    }

    /// What was not synced is gone.
    pub(super) fn lose_power(&mut self) {
        let Unsynced { hard_state, log_start, forgotten } = std::mem::take(&mut self.unsynced);
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        if let Some(log_start) = log_start {
            self.log_start = log_start;
            for entry in forgotten.into_iter().rev() {
                self.log_bytes += entry.size_bytes();
                self.entries.push_front(entry);
            }
        }
        self.finished.clear();
        // Like a file: what has been written of a transfer may be resumed.
        self.part = self.part.take().filter(|part| part.expected.is_some());
    }

    /// Names the unfinished snapshot; and its size.
    pub(super) fn begin_snapshot(
        &mut self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> (u64, u64) {
        self.next_id += 1;
        let resumed = self
            .part
            .take()
            .filter(|part| expected.is_some() && part.meta == meta && part.expected == expected);
        let bytes = resumed.map(|part| part.bytes).unwrap_or_default();
        let offset = bytes.len() as u64;
        self.part = Some(Part { id: self.next_id, meta, expected, bytes });
        (self.next_id, offset)
    }

    pub(super) fn write_snapshot(&mut self, id: u64, chunk: &[u8]) -> StorageResult<u64> {
        let part = self.part.as_mut().filter(|part| part.id == id).ok_or_else(dropped)?;
        part.bytes.extend_from_slice(chunk);
        Ok(part.bytes.len() as u64)
    }

    pub(super) fn finish_snapshot(&mut self, id: u64) -> StorageResult<SnapshotContent> {
        let Part { meta, expected, bytes, .. } =
            self.part.take_if(|part| part.id == id).ok_or_else(dropped)?;
        let content =
            SnapshotContent { size_bytes: bytes.len() as u64, checksum: crc32c::crc32c(&bytes) };
        if expected.is_some_and(|expected| expected != content) {
            return Err(StorageError::Corrupt(format!(
                "the snapshot received for {} is not the one that was announced; it was dropped",
                meta.position
            )));
        }
        self.finished.retain(|one| one.meta != meta);
        self.finished.push(Arc::new(Snapshot { meta, content, bytes: bytes.freeze() }));
        if self.finished.len() > FINISHED_COUNT_MAX {
            self.finished.remove(0);
        }
        Ok(content)
    }

    pub(super) fn published_snapshot(&self) -> Option<Arc<Snapshot>> {
        self.published.clone()
    }
}

/// The caller broke the contract.
fn misuse(message: String) -> StorageError {
    StorageError::Engine { operation: "persist".to_owned(), message }
}

fn dropped() -> StorageError {
    StorageError::Refused(
        "this snapshot was dropped, because another one was begun after it".to_owned(),
    )
}
