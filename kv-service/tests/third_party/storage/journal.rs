//! The log file: records in frames, and the state that results from them.
//!
//! ```text
//! frame   body length u64 | CRC32C of the body u32 | CRC32C of these 12 bytes u32 | body
//! body    one record in MessagePack; numbers of the header are little endian
//! ```
//!
//! Records are only appended, so a crash leaves at most one of them incomplete, at the end of the
//! file. The incomplete record was never acknowledged, and opening cuts it. A length has a checksum
//! of its own: a damaged length must not look like a record that the end of the file cuts short.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use raft_core::checksum::crc32c;
use raft_core::storage::StorageResult;
use raft_core::types::{Entry, HardState, Index, SnapshotContent, SnapshotMeta};
use serde::{Deserialize, Serialize};

use super::{corrupt, io};

const HEADER_BYTES: usize = 16;

/// The file is rewritten once it has this many bytes more than twice those of the log.
const SLACK_BYTES: u64 = 1 << 20;

/// A finished snapshot; `number` names its file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) number: u64,
    pub(super) meta: SnapshotMeta,
    pub(super) content: SnapshotContent,
}

/// A batch, a compaction, or a whole state. Its parts take effect in the order of the fields.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) withdraws_snapshot: bool,
    pub(super) publish: Option<Finished>,
    pub(super) truncate_from: Option<Index>,
    pub(super) log_start: Option<SnapshotMeta>,
    pub(super) entries: Vec<Entry>,
    pub(super) hard_state: Option<HardState>,
}

/// The state that results from all records.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) published: Option<Finished>,
    pub(super) log_start: SnapshotMeta,
    pub(super) entries: Vec<Entry>,
    /// Sum of the sizes of the entries.
    pub(super) log_bytes: u64,
    pub(super) hard_state: HardState,
}

impl State {
    pub(super) fn last_index(&self) -> Index {
        self.log_start.index() + self.entries.len() as u64
    }

    fn apply(&mut self, record: Record) {
        if record.withdraws_snapshot || record.publish.is_some() {
            self.published = record.publish;
        }
        if let Some(from) = record.truncate_from {
            self.retain(|index| index < from);
        }
        if let Some(log_start) = record.log_start {
            self.retain(|index| index > log_start.index());
            self.log_start = log_start;
        }
        for entry in record.entries {
            assert_eq!(entry.index, self.last_index() + 1, "the log has no gaps");
            self.log_bytes += entry.size_bytes();
            self.entries.push(entry);
        }
        self.hard_state = record.hard_state.unwrap_or(self.hard_state);
    }

    fn retain(&mut self, keeps: impl Fn(Index) -> bool) {
        self.entries.retain(|entry| keeps(entry.index));
        self.log_bytes = self.entries.iter().map(Entry::size_bytes).sum();
    }
}

pub(super) struct Journal {
    dir: PathBuf,
    pub(super) file: File,
    pub(super) size_bytes: u64,
    pub(super) synced_bytes: u64,
    pub(super) state: State,
}

impl Journal {
    pub(super) fn open(dir: &Path) -> StorageResult<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(dir.join("log"));
        let (mut file, mut bytes) = (file.map_err(io("open log"))?, Vec::new());
        file.read_to_end(&mut bytes).map_err(io("read log"))?;
        let (mut rest, mut state) = (&bytes[..], State::default());
        while let Some(body) = next_body(&mut rest)? {
            let undecodable = |error| corrupt(format!("undecodable record: {error}"));
            state.apply(rmp_serde::from_slice(body).map_err(undecodable)?);
        }
        let size_bytes = (bytes.len() - rest.len()) as u64;
        file.set_len(size_bytes).and_then(|()| file.sync_all()).map_err(io("cut log"))?;
        sync_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), file, size_bytes, synced_bytes: size_bytes, state })
    }

    /// Appends the record. Without `sync`, a loss of power may undo it until a later record is
    /// synced.
    pub(super) fn append(&mut self, record: Record, sync: bool) -> StorageResult<()> {
        let frame = frame_of(&record);
        self.state.apply(record);
        self.file.write_all(&frame).map_err(io("write log"))?;
        self.size_bytes += frame.len() as u64;
        if sync {
            self.file.sync_data().map_err(io("sync log"))?;
            self.synced_bytes = self.size_bytes;
        }
        Ok(())
    }

    /// Rewrites the file if most of it is obsolete: one record holds the whole state. The new file
    /// takes the place of the old one once it is on disk.
    pub(super) fn tidy(&mut self) -> StorageResult<()> {
        if self.size_bytes <= SLACK_BYTES + 2 * self.state.log_bytes {
            return Ok(());
        }
        let State { published, log_start, entries, hard_state, .. } = self.state.clone();
        let (publish, log_start, hard_state) = (published, Some(log_start), Some(hard_state));
        let frame =
            frame_of(&Record { publish, log_start, entries, hard_state, ..Record::default() });
        let new = self.dir.join("log.new");
        self.file = write_whole(&new, &frame)?;
        fs::rename(&new, self.dir.join("log")).map_err(io("rename log"))?;
        sync_dir(&self.dir)?;
        self.size_bytes = frame.len() as u64;
        self.synced_bytes = self.size_bytes;
        Ok(())
    }
}

fn frame_of(record: &Record) -> Vec<u8> {
    frame(&rmp_serde::to_vec(record).expect("memory takes every record"))
}

pub(super) fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.extend((body.len() as u64).to_le_bytes());
    frame.extend(crc32c(body).to_le_bytes());
    frame.extend(crc32c(&frame).to_le_bytes());
    frame.extend(body);
    frame
}

/// Takes the body of the next frame off `rest`; `None` if the bytes end before the frame does.
pub(super) fn next_body<'a>(rest: &mut &'a [u8]) -> StorageResult<Option<&'a [u8]>> {
    let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|place| header[at + place]));
    if crc32c(&header[..12]) != number(12) {
        return Err(corrupt("the header of a frame is damaged: restore the node from its peers"));
    }
    let length = u64::from(number(4)) << 32 | u64::from(number(0));
    let Some((body, behind)) = behind.split_at_checked(length as usize) else { return Ok(None) };
    if crc32c(body) != number(8) {
        return Err(corrupt("the body of a frame is damaged: restore the node from its peers"));
    }
    *rest = behind;
    Ok(Some(body))
}

/// Writes a new file, which is on disk when this returns; its name is yet to be synced.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> StorageResult<File> {
    let mut file = File::create(path).map_err(io("create file"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write file"))?;
    Ok(file)
}

/// Makes the names in the directory durable.
pub(super) fn sync_dir(dir: &Path) -> StorageResult<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync directory"))
}
