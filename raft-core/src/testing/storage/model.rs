//! The contract as plain state: what a storage must hold, and which part of it a crash may undo.

use bytes::Bytes;

use crate::storage::{SnapshotReader, Storage, StorageResult};
use crate::types::{
    Batch, Entry, HardState, Index, Loaded, PublishSnapshot, SnapshotContent, SnapshotMeta,
};

/// An operation on a storage: one call, or several calls for a snapshot.
#[derive(Clone, Debug)]
pub enum Operation {
    /// [`Storage::persist`] with this batch.
    Persist(Batch),
    /// [`Storage::compact`] through this position.
    Compact(SnapshotMeta),
    /// Writes and finishes a snapshot of this node's own.
    WriteSnapshot {
        /// The snapshot's position and configuration.
        meta: SnapshotMeta,
        /// The snapshot's content.
        bytes: Bytes,
    },
}

/// Bytes of a snapshot that are handed over at once.
const CHUNK_BYTES: usize = 50_000;

impl Operation {
    /// Does the operation on a storage.
    pub async fn run(&self, storage: &dyn Storage) -> StorageResult<()> {
        match self {
            Operation::Persist(batch) => storage.persist(batch.clone()).await,
            Operation::Compact(through) => storage.compact(through.clone()).await,
            Operation::WriteSnapshot { meta, bytes } => {
                let mut writer = storage.snapshot_writer(meta.clone(), None).await?;
                assert_eq!(writer.offset(), 0, "this node's own snapshot starts at 0");
                for chunk in bytes.chunks(CHUNK_BYTES) {
                    writer.write(Bytes::copy_from_slice(chunk)).await?;
                }
                let content = writer.finish().await?;
                assert_eq!(content, content_of(bytes), "finish tells size and CRC32C");
                Ok(())
            }
        }
    }
}

/// The state that a storage must hold after the operations that were applied to the model.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The hard state, with the newest commit index.
    pub hard_state: HardState,
    /// Commit indexes that a crash may bring back: each one since the last batch that was synced.
    commit_indexes: Vec<Index>,
    /// Starts of the log: the current one last, behind those that a crash may bring back.
    starts: Vec<SnapshotMeta>,
    /// Entries behind the first of `starts`.
    entries: Vec<Entry>,
    published: Option<(SnapshotMeta, Bytes)>,
    /// Snapshots that this process has finished and not published; the newest last.
    finished: Vec<(SnapshotMeta, Bytes)>,
}

impl Model {
    /// The model of an empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the log's start: the position behind which its entries begin, and the configuration
    /// there.
    pub fn log_start(&self) -> SnapshotMeta {
        self.starts.last().cloned().unwrap_or_default()
    }

    /// Returns the index of the last entry, or of the log's start if there are no entries.
    pub fn last_index(&self) -> Index {
        self.oldest_start() + self.entries.len() as u64
    }

    /// Returns the entries behind the log's start.
    pub fn entries(&self) -> &[Entry] {
        self.entries_behind(self.log_start().index())
    }

    /// Returns the meta of the published snapshot.
    pub fn published(&self) -> Option<&SnapshotMeta> {
        self.published.as_ref().map(|(meta, _)| meta)
    }

    /// Returns the meta of the newest snapshot that was finished and not published.
    pub fn finished(&self) -> Option<&SnapshotMeta> {
        self.finished.last().map(|(meta, _)| meta)
    }

    fn oldest_start(&self) -> Index {
        self.starts.first().map_or(0, SnapshotMeta::index)
    }

    fn entries_behind(&self, start: Index) -> &[Entry] {
        &self.entries[(start - self.oldest_start()) as usize..]
    }

    /// Applies an operation that the storage has acknowledged.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Persist(batch) => self.persist(batch),
            Operation::Compact(through) => {
                if through.index() > self.log_start().index() {
                    // The old starts stay, because a compaction need not be durable yet.
                    if self.starts.is_empty() {
                        self.starts.push(SnapshotMeta::default());
                    }
                    self.starts.push(through.clone());
                }
            }
            Operation::WriteSnapshot { meta, bytes } => {
                self.finished.retain(|(finished, _)| finished != meta);
                self.finished.push((meta.clone(), bytes.clone()));
            }
        }
    }

    fn persist(&mut self, batch: &Batch) {
        let Batch { publish, withdraw_snapshot, truncate_from, entries, hard_state } = batch;
        if *withdraw_snapshot {
            self.published = None;
        }
        if let Some(PublishSnapshot { meta, replaces_log }) = publish {
            let of_meta = self.finished.iter().rposition(|(finished, _)| finished == meta);
            let (meta, bytes) = self.finished.remove(of_meta.expect("published after finishing"));
            self.finished.clear();
            if *replaces_log {
                self.starts = vec![meta.clone()];
                self.entries.clear();
            }
            self.published = Some((meta, bytes));
        }
        if let Some(from) = truncate_from {
            self.entries.retain(|entry| entry.index < *from);
        }
        self.entries.extend_from_slice(entries);
        if let Some(hard_state) = hard_state {
            let votes = |state: &HardState| (state.term, state.voted_for, state.memory);
            let is_synced = votes(hard_state) != votes(&self.hard_state)
                || publish.is_some()
                || *withdraw_snapshot
                || truncate_from.is_some()
                || !entries.is_empty();
            if is_synced {
                self.commit_indexes.clear();
            } else if self.commit_indexes.is_empty() {
                self.commit_indexes.push(self.hard_state.commit_index);
            }
            self.commit_indexes.push(hard_state.commit_index);
            self.hard_state = *hard_state;
        }
    }

    /// Checks that a storage holds this state, with its published snapshot and its `log_bytes`.
    /// With `after_crash`, data that was not synced may be missing.
    ///
    /// # Errors
    /// The text says what differs.
    pub async fn check(
        &self,
        storage: &dyn Storage,
        loaded: &Loaded,
        after_crash: bool,
    ) -> Result<(), String> {
        let Loaded { hard_state, log_start, snapshot, entries } = loaded;
        let commit_index = hard_state.commit_index;
        let commit_index_is_right = commit_index == self.hard_state.commit_index
            || after_crash && self.commit_indexes.contains(&commit_index);
        expect(commit_index_is_right, "commit_index", &self.commit_indexes, &commit_index)?;
        let hard_state = HardState { commit_index: self.hard_state.commit_index, ..*hard_state };
        expect(hard_state == self.hard_state, "hard state", &self.hard_state, &hard_state)?;
        let start_is_right =
            *log_start == self.log_start() || after_crash && self.starts.contains(log_start);
        expect(start_is_right, "start of the log", &self.starts, log_start)?;
        let expected = self.entries_behind(log_start.index());
        expect(entries == expected, "entries", &positions(expected), &positions(entries))?;
        expect(snapshot.as_ref() == self.published(), "snapshot", &self.published(), snapshot)?;
        let (counted, bytes) = (storage.log_bytes(), log_bytes(expected));
        expect(counted == bytes, "log_bytes", &bytes, &counted)?;
        self.check_snapshot(storage).await
    }

    /// Checks that the published snapshot is the right one, readable and whole.
    async fn check_snapshot(&self, storage: &dyn Storage) -> Result<(), String> {
        let reader = storage.snapshot_reader().await.map_err(|error| error.to_string())?;
        let (Some(mut reader), Some((meta, bytes))) = (reader, &self.published) else {
            let expected = self.published();
            return expect(expected.is_none(), "snapshot reader", &expected, &"none");
        };
        expect(reader.meta() == meta, "meta of the snapshot", meta, reader.meta())?;
        let (content, found) = (content_of(bytes), reader.content());
        expect(found == content, "content of the snapshot", &content, &found)?;
        let read = read_whole(reader.as_mut()).await.map_err(|error| error.to_string())?;
        expect(read == *bytes, "bytes of the snapshot", &bytes.len(), &read.len())
    }

    /// The process ended in good order. Closing need not sync, so a later crash may still undo what
    /// a crash could undo before.
    pub fn restart(&mut self) {
        self.finished.clear();
    }

    /// A recovery from a crash has decided what survived: the loaded state is now the state that
    /// must be there.
    pub fn settle(&mut self, loaded: &Loaded) {
        self.entries = loaded.entries.clone();
        self.starts = vec![loaded.log_start.clone()];
        self.hard_state = loaded.hard_state;
        self.commit_indexes.clear();
        self.finished.clear();
    }
}

fn expect<E, F>(holds: bool, what: &str, expected: &E, found: &F) -> Result<(), String>
where
    E: std::fmt::Debug,
    F: std::fmt::Debug,
{
    if holds { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

/// Returns positions and sizes only: payloads would drown the message.
fn positions(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| format!("{} ({} B)", entry.position(), entry.size_bytes())).collect()
}

fn log_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(Entry::size_bytes).sum()
}

/// Bytes of one read: not a multiple of any block size that a backend might use.
const READ_BYTES: usize = 70_001;

pub(super) async fn read_whole(reader: &mut dyn SnapshotReader) -> StorageResult<Bytes> {
    let mut whole = Vec::new();
    loop {
        let piece = reader.read(whole.len() as u64, READ_BYTES).await?;
        assert!(piece.len() <= READ_BYTES, "a read returns no more than was asked for");
        if piece.is_empty() {
            return Ok(Bytes::from(whole));
        }
        whole.extend_from_slice(&piece);
    }
}

pub(super) fn content_of(bytes: &[u8]) -> SnapshotContent {
    SnapshotContent { size_bytes: bytes.len() as u64, checksum: crc32c(bytes) }
}

/// Computed bit by bit, and so beyond doubt: the suite must not agree with a backend by sharing its
/// code.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |checksum, byte| {
        (0..8).fold(checksum ^ u32::from(*byte), |checksum, _| {
            (checksum >> 1) ^ (0x82f6_3b78 & (checksum & 1).wrapping_neg())
        })
    })
}
