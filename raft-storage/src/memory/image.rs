//! The content of the disk in memory, and the part of it that a loss of power would leave.

use std::sync::Arc;

use bytes::Bytes;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, HardState, Loaded, SnapshotContent, SnapshotMeta};

use super::log::MemoryLog;
use super::pieces::Pieces;

/// A finished snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) meta: SnapshotMeta,
    pub(super) content: SnapshotContent,
    pub(super) pieces: Pieces,
}

/// An unfinished snapshot.
#[derive(Debug)]
struct Part {
    id: u64,
    meta: SnapshotMeta,
    expected: Option<SnapshotContent>,
    pieces: Pieces,
}

#[derive(Debug, Default)]
pub(super) struct Image {
    hard_state: HardState,
    /// The hard state before the writes that are not synced; a loss of power restores it.
    old_hard_state: Option<HardState>,
    log: MemoryLog,
    published: Option<Arc<Snapshot>>,
    /// Oldest first; at most [`FINISHED_COUNT_MAX`].
    finished: Vec<Arc<Snapshot>>,
    part: Option<Part>,
    next_id: u64,
}

/// Most finished snapshots that wait to be published: the node's own and one from a peer.
const FINISHED_COUNT_MAX: usize = 2;

impl Image {
    pub(super) fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    pub(super) fn load(&self) -> Loaded {
        Loaded {
            hard_state: self.hard_state,
            log_start: self.log.start().clone(),
            snapshot: self.published.as_ref().map(|snapshot| snapshot.meta.clone()),
            entries: self.log.iter().cloned().collect(),
        }
    }

    /// Applies all of the batch or, if it is refused, nothing.
    pub(super) fn persist(&mut self, batch: Batch) -> StorageResult<()> {
        let Batch { publish, withdraw_snapshot, truncate_from, entries, hard_state } = batch;
        // Decide first, then change.
        let published = match &publish {
            Some(_) if withdraw_snapshot => {
                return Err(misuse("a snapshot is published and withdrawn at once".to_owned()));
            }
            Some(publish) => Some(self.finished(&publish.meta)?),
            None => None,
        };
        let replaced_by = publish.filter(|publish| publish.replaces_log).map(|p| p.meta);
        let (start, mut end) = match &replaced_by {
            Some(meta) => (meta.index(), meta.index()),
            None => (self.log.start().index(), self.log.last_index()),
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
            || withdraw_snapshot
            || truncate_from.is_some()
            || !entries.is_empty()
            || hard_state.is_some_and(|new| new.promises_other_than(&self.hard_state));
        if withdraw_snapshot {
            self.published = None;
        }
        if let Some(published) = published {
            self.finished.retain(|one| one.meta.index() > published.meta.index());
            self.published = Some(published);
        }
        if let Some(meta) = replaced_by {
            self.log.replace(meta);
        }
        self.log.truncate_after(end);
        let come_count = entries.len();
        self.log.append(entries);
        assert_eq!(self.log.last_index(), end + come_count as u64, "the log ends with the batch");
        if let Some(new) = hard_state {
            let old = std::mem::replace(&mut self.hard_state, new);
            self.old_hard_state.get_or_insert(old);
        }
        if synced {
            self.old_hard_state = None;
            self.log.sync();
        }
        self.log.drop_some(come_count);
        Ok(())
    }

    fn finished(&self, meta: &SnapshotMeta) -> StorageResult<Arc<Snapshot>> {
        let found = self.finished.iter().rev().find(|one| one.meta == *meta);
        found.cloned().ok_or_else(|| misuse(format!("no finished snapshot at {}", meta.position)))
    }

    pub(super) fn compact(&mut self, through: SnapshotMeta) {
        self.log.compact(through);
    }

    /// Drops everything that was not synced.
    pub(super) fn lose_power(&mut self) {
        if let Some(old) = self.old_hard_state.take() {
            self.hard_state = old;
        }
        self.log.lose_power();
        self.finished.clear();
        // As with a file, the written part of a transfer may be resumed.
        self.part = self.part.take().filter(|part| part.expected.is_some());
    }

    /// Begins or resumes a snapshot. Returns the id that names it from now on, and its size in
    /// bytes.
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
        let pieces = resumed.map(|part| part.pieces).unwrap_or_default();
        let offset = pieces.content().size_bytes;
        self.part = Some(Part { id: self.next_id, meta, expected, pieces });
        (self.next_id, offset)
    }

    /// Returns the size in bytes after the write.
    pub(super) fn write_snapshot(&mut self, id: u64, piece: Bytes) -> StorageResult<u64> {
        let part = self.part.as_mut().filter(|part| part.id == id).ok_or_else(dropped)?;
        let end = part.pieces.content().size_bytes + piece.len() as u64;
        part.pieces.push(piece);
        assert_eq!(part.pieces.content().size_bytes, end, "the offset moves by the bytes written");
        Ok(end)
    }

    pub(super) fn finish_snapshot(&mut self, id: u64) -> StorageResult<SnapshotContent> {
        let Part { meta, expected, pieces, .. } =
            self.part.take_if(|part| part.id == id).ok_or_else(dropped)?;
        let content = pieces.content();
        if expected.is_some_and(|expected| expected != content) {
            return Err(StorageError::Corrupt(format!(
                "the snapshot received for {} is not the one that was announced; it was dropped",
                meta.position
            )));
        }
        self.finished.retain(|one| one.meta != meta);
        self.finished.push(Arc::new(Snapshot { meta, content, pieces }));
        if self.finished.len() > FINISHED_COUNT_MAX {
            self.finished.remove(0);
        }
        assert!(self.finished.len() <= FINISHED_COUNT_MAX);
        Ok(content)
    }

    pub(super) fn published_snapshot(&self) -> Option<Arc<Snapshot>> {
        self.published.clone()
    }
}

/// The error for a caller that broke the contract.
fn misuse(message: String) -> StorageError {
    StorageError::Engine { operation: "persist".to_owned(), message }
}

fn dropped() -> StorageError {
    StorageError::Refused(
        "this snapshot was dropped, because another one was begun after it".to_owned(),
    )
}
