//! Reads RocksDB's write-ahead files before RocksDB does: to tell a torn tail from damage, and to
//! keep RocksDB from replaying records that this log did not write.
//!
//! **Torn tail or damage.** RocksDB replays its write-ahead files up to the first invalid record,
//! takes that for the end, and goes on without the rest. For a batch that was being written when
//! the power failed this is right. For a batch that had been acknowledged it would silently lose
//! entries and votes, and with them the elections that those votes decided. So every batch carries
//! a [`BatchMark`]: its number, and the number of the last batch that was durable before it was
//! written. The scan here reads all write-ahead files, also *after* the first invalid record, and
//! finds the highest batch that any mark claims durable. A log that would be recovered short of
//! that is damaged, and is refused untouched.
//!
//! Two kinds of damage cannot be told from a torn tail: damage to the very last acknowledged batch,
//! which no later mark mentions, and the loss of the whole end of the newest file. The floor, which
//! is written when the storage is closed in good order, detects both for a log that was closed so.
//!
//! **Intruders.** Write-ahead files are reused, so bytes of an earlier use follow the newest
//! record. RocksDB continues its replay there with any record whose unkeyed checksum is right; a
//! record with the older, shorter header does not even name the file. The mask of `log_key.rs`
//! keeps clients from choosing such bytes. The scan does not rely on that: a mark is accepted only
//! with a right MAC, which covers the checksum of the rest of its batch, and an [`Intruder`] is a
//! place where RocksDB would replay anything else. `load.rs` spoils the checksums of these records
//! before it opens the log.
//!
//! **RocksDB's own batch.** After a replay that ended at damage, RocksDB begins the next file with
//! an empty batch (`DBImpl::Open`), from which later replays know that the damage was left behind.
//! It carries no mark. It is accepted at the start of a file only, and only with the sequence
//! number that follows the last batch before it: with another one, RocksDB would number later
//! batches wrongly.
//!
//! The format is RocksDB's, frozen since 2012 (`db/log_format.h`): blocks of 32 KiB, which hold
//! fragments that do not cross them; a record is one full fragment, or first, middle.., last.
//!
//! ```text
//! | masked CRC32C u32 | length u16 | type u8 | file number u32 (reusable files only) | bytes |
//! ```
//! A record is a write batch: sequence u64, count u32, then the operations. In this log the first
//! operation puts the mark. Numbers are little-endian here.

mod fragment;

use std::path::{Path, PathBuf};

use raft_core::storage::StorageResult;

use self::fragment::{BLOCK_BYTES, Fragment, NUMBERED_HEADER_BYTES, Place, skips_block};
use super::draft::OPERATION_PUT;
use super::keys::KEY_BATCH;
use super::log_key::LogKey;
use super::records::{BATCH_MARK_BYTES, BatchMark, decode_batch_mark};
use crate::files::io_error;

/// Sequence and count, before the operations.
const WRITE_BATCH_HEADER_BYTES: usize = 12;
/// End of the mark in a record: the header, then operation, key length, key, value length, value.
const MARK_END: usize = WRITE_BATCH_HEADER_BYTES + 4 + BATCH_MARK_BYTES;

/// Result of scanning the write-ahead files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The last batch that replay surely reaches: all batches up to it can be read from the front,
    /// without a gap. If it is below `claimed`, a durable batch may be lost.
    pub(crate) reached: u64,
    /// The highest batch that any mark, at any place, claims durable.
    pub(crate) claimed: u64,
}

/// A record that RocksDB would replay and must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Intruder {
    pub(crate) path: PathBuf,
    /// Offset of the checksum of its fragment.
    pub(crate) at: usize,
    /// RocksDB would skip a hole to get there. The record may be one of this log, and batches
    /// before it are missing.
    pub(crate) is_behind_hole: bool,
}

/// Result of scanning one file, besides its part of the [`Scan`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileScan {
    /// Offset at which RocksDB would replay a record that is not the next one of this log, and true
    /// if RocksDB skips a hole to get there.
    pub(crate) intruder: Option<(usize, bool)>,
    /// True if the file holds batches of this log, in order.
    pub(crate) has_batches: bool,
}

/// Result of scanning a directory of write-ahead files.
#[derive(Clone, Debug, Default)]
pub(crate) struct DirectoryScan {
    pub(crate) scan: Scan,
    pub(crate) intruders: Vec<Intruder>,
    /// True if any file holds batches of this log.
    pub(crate) has_batches: bool,
}

/// Reads all write-ahead files in `directory`. One file at a time is in memory.
pub(crate) fn scan(directory: &Path, key: &LogKey) -> StorageResult<DirectoryScan> {
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(e) => return Err(io_error("list", directory, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| io_error("list", directory, e))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".log"))
            .and_then(|number| number.parse::<u64>().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    let mut found = DirectoryScan::default();
    let mut before = Before::default();
    for (number, path) in files {
        let content = std::fs::read(&path).map_err(|e| io_error("read", &path, e))?;
        let file = scan_file(&content, number, key, &mut found.scan, &mut before);
        found.has_batches |= file.has_batches;
        let intruder =
            file.intruder.map(|(at, is_behind_hole)| Intruder { path, at, is_behind_hole });
        found.intruders.extend(intruder);
    }
    Ok(found)
}

/// The files before the one that is read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// True if replay has ended in one of them.
    gap: bool,
    /// The sequence number that follows their last batch, if they hold one.
    next_sequence: Option<u64>,
}

/// Adds one file to the scan.
pub(crate) fn scan_file(
    content: &[u8],
    number: u64,
    key: &LogKey,
    scan: &mut Scan,
    before: &mut Before,
) -> FileScan {
    // A header has room for the low half of the number only.
    let number = number as u32;
    let Before { gap, next_sequence } = before;
    let replay = replay(content, number, key, next_sequence, |mark| {
        scan.claimed = scan.claimed.max(mark.durable_through);
        if *gap {
            return;
        }
        // A number may repeat (warming writes no batch) but none may be missing.
        if scan.reached == 0 || mark.number <= scan.reached + 1 {
            scan.reached = scan.reached.max(mark.number);
        } else {
            *gap = true;
        }
    });
    let behind = &content[replay.ours_end..];
    scan.claimed = scan.claimed.max(claimed_out_of_order(behind, replay.ours_end, number, key));
    // If the file is damaged at its front, the batches that it held are not known, so later files
    // prove nothing.
    *gap |= !replay.is_whole && replay.ours_end == 0;
    FileScan { intruder: replay.intruder, has_batches: replay.has_batches }
}

/// How RocksDB would read a file.
struct Replay {
    /// End of the last batch of this log that is in order, or of RocksDB's own at the front.
    ours_end: usize,
    /// True if there are batches of this log.
    has_batches: bool,
    /// True if the file holds nothing but batches of this log, and padding.
    is_whole: bool,
    intruder: Option<(usize, bool)>,
}

/// Reads a file as RocksDB's replay does (`db/log_reader.cc`), and reports each batch of this log.
/// `next_sequence` is the sequence number that follows the last batch, if there was one.
fn replay(
    content: &[u8],
    number: u32,
    key: &LogKey,
    next_sequence: &mut Option<u64>,
    mut on_batch: impl FnMut(BatchMark),
) -> Replay {
    let mut replay = Replay { ours_end: 0, has_batches: false, is_whole: false, intruder: None };
    let mut record: Option<Record> = None;
    let mut is_behind_hole = false;
    let mut at = 0;
    while at < content.len() {
        let block_end = block_end(at, content.len());
        let bytes = &content[at..block_end];
        let Some(fragment) = Fragment::parse(bytes, number) else {
            if is_padding(at, block_end) {
                at = block_end;
                continue;
            }
            // If a block goes on with zeros, RocksDB takes the rest of it for space that was never
            // written, and continues with the next block.
            if skips_block(bytes) && record.is_none() {
                (is_behind_hole, at) = (true, block_end);
                continue;
            }
            return replay;
        };
        assert!((1..=bytes.len()).contains(&fragment.len), "no fragment crosses its block");
        if is_behind_hole || !fragment.is_numbered || fragment.place == Place::Other {
            replay.intruder = Some((at, is_behind_hole));
            return replay;
        }
        let begins = matches!(fragment.place, Place::Full | Place::First);
        if begins != record.is_none() {
            // A record without its end, or one without its beginning: RocksDB stops here.
            return replay;
        }
        record.get_or_insert_default().add(fragment.payload);
        if matches!(fragment.place, Place::Full | Place::Last) {
            let whole = record.take().expect("it was added to");
            if let Some(mark) = whole.mark(key).filter(|mark| mark.content == whole.content) {
                on_batch(mark);
                replay.has_batches = true;
                *next_sequence = whole.next_sequence();
            } else if at > 0 || !whole.is_empty_batch_at(*next_sequence) {
                replay.intruder = Some((at, false));
                return replay;
            }
            assert!(replay.ours_end <= at, "batches follow each other");
            replay.ours_end = at + fragment.len;
        }
        at += fragment.len;
    }
    assert!(replay.ours_end <= content.len(), "no batch reaches beyond the file");
    replay.is_whole = record.is_none() && !is_behind_hole;
    replay
}

/// Returns the highest batch that a mark in `content` claims durable; `content` begins at `start`
/// in its file. Each offset is tried, because nothing is known of how these bytes came to be.
/// Fragments are accepted only if they name the file: this makes a false hit improbable, and rarely
/// needs a checksum over the arbitrary length at an offset.
fn claimed_out_of_order(content: &[u8], start: usize, number: u32, key: &LogKey) -> u64 {
    let mut claimed = 0;
    let mut record: Option<Record> = None;
    let mut at = 0;
    while at < content.len() {
        let block_end = block_end(start + at, start + content.len()) - start;
        let bytes = &content[at..block_end];
        let fragment =
            Fragment::parse_numbered(bytes, number).filter(|found| found.place != Place::Other);
        let Some(fragment) = fragment else {
            if is_padding(start + at, start + block_end) {
                at = block_end;
            } else {
                record = None;
                at += 1;
            }
            continue;
        };
        assert!((1..=bytes.len()).contains(&fragment.len), "no fragment crosses its block");
        at += fragment.len;
        if matches!(fragment.place, Place::Full | Place::First) {
            record = Some(Record::default());
        }
        // A fragment without the beginning of its record proves nothing.
        let Some(begun) = &mut record else { continue };
        begun.add(fragment.payload);
        if let Some(mark) = begun.mark(key) {
            claimed = claimed.max(mark.durable_through);
        }
        if matches!(fragment.place, Place::Full | Place::Last) {
            record = None;
        }
    }
    claimed
}

fn block_end(at: usize, file_end: usize) -> usize {
    assert!(at < file_end, "an offset within the file");
    (at / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES).min(file_end)
}

/// Returns true if the rest of the block is too small for a header.
fn is_padding(at: usize, block_end: usize) -> bool {
    block_end.is_multiple_of(BLOCK_BYTES) && block_end - at < NUMBERED_HEADER_BYTES
}

/// A record, as far as its fragments were read.
#[derive(Default)]
struct Record {
    /// Bytes up to the end of the mark.
    head: Vec<u8>,
    /// Checksum of all bytes after the head.
    content: u32,
}

impl Record {
    fn add(&mut self, payload: &[u8]) {
        let wanted = (MARK_END - self.head.len()).min(payload.len());
        let (head, content) = payload.split_at(wanted);
        self.head.extend_from_slice(head);
        assert!(self.head.len() <= MARK_END, "the head ends with the mark");
        self.content = crc32c::crc32c_append(self.content, content);
    }

    /// The sequence number and the count of operations, if the record has room for them.
    fn sequence_and_count(&self) -> Option<(u64, u32)> {
        let (sequence, rest) = self.head.split_first_chunk()?;
        let count = rest.first_chunk()?;
        Some((u64::from_le_bytes(*sequence), u32::from_le_bytes(*count)))
    }

    /// The sequence number that follows the record's operations.
    fn next_sequence(&self) -> Option<u64> {
        let (sequence, count) = self.sequence_and_count()?;
        sequence.checked_add(u64::from(count))
    }

    /// Returns true for a batch without operations at this sequence number, or at any if none is
    /// known.
    fn is_empty_batch_at(&self, expected: Option<u64>) -> bool {
        let is_expected = |sequence| expected.is_none_or(|expected| sequence == expected);
        self.head.len() == WRITE_BATCH_HEADER_BYTES
            && matches!(self.sequence_and_count(), Some((found, 0)) if is_expected(found))
    }

    /// The mark, if its MAC is right.
    fn mark(&self, key: &LogKey) -> Option<BatchMark> {
        let operation = self.head.get(WRITE_BATCH_HEADER_BYTES..MARK_END)?;
        let (prefix, mark) = operation.split_at(4);
        let expected = [OPERATION_PUT, 1, KEY_BATCH[0], BATCH_MARK_BYTES as u8];
        (prefix == expected).then(|| decode_batch_mark(mark, key).ok()).flatten()
    }
}

#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the fuzzer writes batches, tests forge them"))]
pub(crate) mod writer;

#[cfg(test)]
mod tests;
