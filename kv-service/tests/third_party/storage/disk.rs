//! The files of a directory, and the operations on them under the lock.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, SnapshotContent, SnapshotMeta};

use super::journal::{self, Finished, Journal, Record};
use super::{corrupt, io};

/// Finished snapshots that wait to be published: one of this node and one of a peer.
const FINISHED_COUNT_MAX: usize = 2;

const SNAPSHOT_PREFIX: &str = "snapshot-";

pub(super) struct Disk {
    dir: PathBuf,
    pub(super) journal: Journal,
    draft: Option<Draft>,
    finished: Vec<Finished>,
    /// Writers and snapshot files are numbered from one counter.
    last_number: u64,
}

/// An unfinished snapshot.
pub(super) struct Draft {
    /// The newest writer; earlier ones are refused.
    writer: u64,
    meta: SnapshotMeta,
    expected: Option<SnapshotContent>,
    pub(super) bytes: Vec<u8>,
}

impl Disk {
    pub(super) fn open(dir: &Path) -> StorageResult<Self> {
        let (dir, journal) = (dir.to_owned(), Journal::open(dir)?);
        let last_number = snapshot_numbers(&dir)?.into_iter().max().unwrap_or(0);
        let disk = Self { dir, journal, draft: None, finished: Vec::new(), last_number };
        disk.sweep()?;
        Ok(disk)
    }

    pub(super) fn persist(&mut self, batch: Batch) -> StorageResult<()> {
        let Batch { publish, withdraw_snapshot, mut truncate_from, entries, hard_state } = batch;
        let mut log_start = None;
        if let Some(publish) = publish.as_ref().filter(|publish| publish.replaces_log) {
            (truncate_from, log_start) = (Some(0), Some(publish.meta.clone()));
        }
        let publish = publish.map(|publish| self.take_finished(&publish.meta)).transpose()?;
        let touches_snapshot = publish.is_some() || withdraw_snapshot;
        let known = &self.journal.state.hard_state;
        let sync = touches_snapshot
            || truncate_from.is_some()
            || !entries.is_empty()
            || hard_state.is_some_and(|hard_state| hard_state.promises_other_than(known));
        let withdraws_snapshot = withdraw_snapshot;
        let record =
            Record { withdraws_snapshot, publish, truncate_from, log_start, entries, hard_state };
        self.journal.append(record, sync)?;
        if touches_snapshot { self.sweep() } else { Ok(()) }
    }

    /// Takes the finished snapshot of this meta, and forgets those that do not lead further.
    fn take_finished(&mut self, meta: &SnapshotMeta) -> StorageResult<Finished> {
        let place = self.finished.iter().position(|finished| finished.meta == *meta);
        let place = place.ok_or_else(|| StorageError::Engine {
            operation: "publish".to_owned(),
            message: format!("no snapshot at {} is finished", meta.position),
        })?;
        let taken = self.finished.swap_remove(place);
        self.finished.retain(|finished| finished.meta.index() > meta.index());
        Ok(taken)
    }

    pub(super) fn compact(&mut self, through: SnapshotMeta) -> StorageResult<()> {
        let state = &self.journal.state;
        let is_new = state.log_start == SnapshotMeta::default() && state.last_index() == 0;
        let founds = is_new && through.index() == 0;
        if through.index() <= state.log_start.index() && !founds {
            return Ok(());
        }
        self.journal.append(Record { log_start: Some(through), ..Record::default() }, false)?;
        self.journal.tidy()
    }

    /// Begins a snapshot, or goes on with the unfinished one. Returns the writer and its offset.
    pub(super) fn begin_draft(
        &mut self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> (u64, u64) {
        let writer = self.next_number();
        let unfinished = self.draft.take().filter(|draft| {
            expected.is_some() && (&draft.meta, draft.expected) == (&meta, expected)
        });
        let bytes = unfinished.map(|draft| draft.bytes).unwrap_or_default();
        let offset = bytes.len() as u64;
        self.draft = Some(Draft { writer, meta, expected, bytes });
        (writer, offset)
    }

    pub(super) fn draft(&mut self, writer: u64) -> StorageResult<&mut Draft> {
        let draft = self.draft.as_mut().filter(|draft| draft.writer == writer);
        draft.ok_or_else(|| StorageError::Refused("another snapshot was begun".to_owned()))
    }

    pub(super) fn finish_draft(&mut self, writer: u64) -> StorageResult<SnapshotContent> {
        self.draft(writer)?;
        let Draft { meta, expected, bytes, .. } = self.draft.take().expect("just seen");
        let mut content = SnapshotContent::default();
        content.append(&bytes);
        if expected.is_some_and(|expected| expected != content) {
            return Err(corrupt("the snapshot is not the announced one: send it again"));
        }
        let number = self.next_number();
        journal::write_whole(&self.snapshot_path(number), &journal::frame(&bytes))?;
        journal::sync_dir(&self.dir)?;
        self.finished.retain(|finished| finished.meta != meta);
        self.finished.push(Finished { number, meta, content });
        let surplus = self.finished.len().saturating_sub(FINISHED_COUNT_MAX);
        self.finished.drain(..surplus);
        self.sweep()?;
        Ok(content)
    }

    /// The published snapshot and its bytes.
    pub(super) fn published(&self) -> StorageResult<Option<(Finished, Bytes)>> {
        let Some(published) = self.journal.state.published.clone() else { return Ok(None) };
        let damaged = |why: String| corrupt(format!("the published snapshot is damaged: {why}"));
        let read = fs::read(self.snapshot_path(published.number));
        let file = Bytes::from(read.map_err(|error| damaged(error.to_string()))?);
        match journal::next_body(&mut &file[..])? {
            Some(body) if body.len() as u64 == published.content.size_bytes => {
                Ok(Some((published, file.slice_ref(body))))
            }
            _ => Err(damaged("its file has another size".to_owned())),
        }
    }

    /// Removes the snapshot files that are no longer needed.
    fn sweep(&self) -> StorageResult<()> {
        let kept = self.finished.iter().chain(&self.journal.state.published);
        let kept: Vec<u64> = kept.map(|finished| finished.number).collect();
        for number in snapshot_numbers(&self.dir)? {
            if !kept.contains(&number) {
                fs::remove_file(self.snapshot_path(number)).map_err(io("remove snapshot"))?;
            }
        }
        Ok(())
    }

    pub(super) fn snapshot_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{SNAPSHOT_PREFIX}{number}"))
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

fn snapshot_numbers(dir: &Path) -> StorageResult<Vec<u64>> {
    let names = fs::read_dir(dir).map_err(io("list directory"))?;
    let number = |name: &str| name.strip_prefix(SNAPSHOT_PREFIX)?.parse().ok();
    Ok(names.flatten().filter_map(|entry| number(entry.file_name().to_str()?)).collect())
}
