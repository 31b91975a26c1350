//! Tells a torn tail from damage, before RocksDB cuts either.
//!
//! RocksDB replays its write-ahead files up to the first record that does not check, takes that for
//! the end, and goes on without what follows. For a batch that was being written when the power
//! failed this is right. For a batch that had been acknowledged it would silently lose entries, and
//! with them elections that were won by them. So every batch carries a [`BatchMark`]: its number, and
//! the number of the last batch that was durable before it was written. The scan here reads all
//! write-ahead files, also *behind* the first bad record, and finds the highest batch that any record
//! claims durable. A log that would be recovered short of that is damaged, and is refused untouched.
//!
//! What cannot be told from a torn tail is damage to the very last acknowledged batch, of which no
//! later record speaks, and a newest file whose end is gone altogether. A floor that is written when
//! the storage closes in good order catches both for a log that was closed so.
//!
//! The format is RocksDB's, frozen since 2012 (`db/log_format.h`): blocks of 32 KiB, filled with
//! fragments that do not cross them; a record is one full fragment, or first, middle.., last.
//!
//! ```text
//! | masked CRC32C u32 | length u16 | type u8 | file number u32 (reusable files only) | bytes |
//! ```
//! A record is a write batch: sequence u64, count u32, then the operations; ours begins with putting
//! the mark. Numbers are little-endian here.

use std::path::Path;

use raft_core::storage::StorageResult;

use super::records::{BATCH_MARK_BYTES, BatchMark, KEY_BATCH, decode_batch_mark};
use crate::files::io_error;

const BLOCK_BYTES: usize = 32 * 1024;
const LEGACY_HEADER_BYTES: usize = 7;
const REUSABLE_HEADER_BYTES: usize = 11;
/// Sequence and count, before the operations.
const WRITE_BATCH_HEADER_BYTES: usize = 12;
const OPERATION_PUT: u8 = 1;
/// The head of a record that holds the mark: tag, key length, key, value length, value.
const MARK_END: usize = WRITE_BATCH_HEADER_BYTES + 4 + BATCH_MARK_BYTES;

/// What the write-ahead files say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The last batch that replay surely reaches: readable from the front, without a gap. Short of
    /// `claimed`, something that was durable may be lost.
    pub(crate) reached: u64,
    /// The highest batch that any record, wherever it is, says was durable.
    pub(crate) claimed: u64,
}

/// Reads all write-ahead files in `directory`. One file at a time is in memory.
pub(crate) fn scan(directory: &Path) -> StorageResult<Scan> {
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Scan::default()),
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
    let mut scan = Scan::default();
    let mut gap = false;
    for (number, path) in files {
        let content = std::fs::read(&path).map_err(|e| io_error("read", &path, e))?;
        scan_file(&content, number, &mut scan, &mut gap);
    }
    Ok(scan)
}

/// Adds what one file says. `gap`: replay has ended in an earlier file.
pub(crate) fn scan_file(content: &[u8], number: u64, scan: &mut Scan, gap: &mut bool) {
    // The type field has room for the low half only.
    let number = number as u32;
    let mut in_order = true;
    let mut reached_any = false;
    let mut at = 0;
    let mut head = Vec::new();
    let mut in_record = false;
    while at < content.len() {
        let block_end = (at / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES).min(content.len());
        let fragment = Fragment::parse(&content[at..block_end], number, in_order);
        let Some(fragment) = fragment else {
            // The rest of a block too small for a header is padding; all else ends what replay reads.
            let padding =
                block_end.is_multiple_of(BLOCK_BYTES) && block_end - at < REUSABLE_HEADER_BYTES;
            if padding {
                at = block_end;
            } else {
                in_order = false;
                in_record = false;
                at += 1;
            }
            continue;
        };
        at += fragment.len;
        match fragment.place {
            Place::Full | Place::First => {
                head.clear();
                in_record = true;
            }
            // Without its beginning it says nothing.
            Place::Middle | Place::Last if !in_record => continue,
            Place::Middle | Place::Last => {}
            Place::Other => continue,
        }
        let wanted = MARK_END.saturating_sub(head.len()).min(fragment.payload.len());
        head.extend_from_slice(&fragment.payload[..wanted]);
        let complete = matches!(fragment.place, Place::Full | Place::Last);
        if complete {
            in_record = false;
        }
        if let Some(mark) = mark_of(&head) {
            scan.claimed = scan.claimed.max(mark.durable_through);
            if in_order && complete && !*gap {
                reached_any = true;
                // A number may repeat (warming writes no batch) but none may be missing.
                if scan.reached == 0 || mark.number <= scan.reached + 1 {
                    scan.reached = scan.reached.max(mark.number);
                } else {
                    *gap = true;
                }
            }
        }
    }
    // Damaged at its front: which batches it held is not known, so what follows proves nothing.
    *gap |= !in_order && !reached_any;
}

fn mark_of(head: &[u8]) -> Option<BatchMark> {
    let operation = head.get(WRITE_BATCH_HEADER_BYTES..MARK_END)?;
    let (prefix, mark) = operation.split_at(4);
    let expected = [OPERATION_PUT, 1, KEY_BATCH[0], BATCH_MARK_BYTES as u8];
    (prefix == expected).then(|| decode_batch_mark(mark).ok()).flatten()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Full,
    First,
    Middle,
    Last,
    /// RocksDB's own notes.
    Other,
}

struct Fragment<'a> {
    place: Place,
    payload: &'a [u8],
    /// With the header.
    len: usize,
}

impl<'a> Fragment<'a> {
    /// The fragment at the front of `bytes`, which end with the block; `None` unless it is whole, its
    /// checksum is right, and it is of this life of the file. Where any offset is tried (not
    /// `in_order`), only those count that name the file: it makes a false hit, and a checksum over
    /// arbitrary lengths at every offset, improbable.
    fn parse(bytes: &'a [u8], number: u32, in_order: bool) -> Option<Self> {
        if !in_order && bytes.get(7..11)? != number.to_le_bytes() {
            return None;
        }
        let (header, _) = bytes.split_first_chunk::<LEGACY_HEADER_BYTES>()?;
        let (place, reusable) = match header[6] {
            1 => (Place::Full, false),
            2 => (Place::First, false),
            3 => (Place::Middle, false),
            4 => (Place::Last, false),
            5 => (Place::Full, true),
            6 => (Place::First, true),
            7 => (Place::Middle, true),
            8 => (Place::Last, true),
            9 | 10 | 130 => (Place::Other, false),
            11 | 131 => (Place::Other, true),
            _ => return None,
        };
        if !reusable && !in_order {
            return None;
        }
        let header_bytes = if reusable { REUSABLE_HEADER_BYTES } else { LEGACY_HEADER_BYTES };
        if reusable && bytes.get(7..11)? != number.to_le_bytes() {
            return None;
        }
        let len = header_bytes + usize::from(u16::from_le_bytes([header[4], header[5]]));
        // From the type on, which in a reusable file includes the file's number.
        let checked = bytes.get(6..len)?;
        let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        (mask(crc32c::crc32c(checked)) == stored).then(|| Self {
            place,
            payload: &bytes[header_bytes..len],
            len,
        })
    }
}

/// RocksDB stores checksums masked, because a checksum over bytes with checksums in them is weak.
fn mask(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod writer;

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
