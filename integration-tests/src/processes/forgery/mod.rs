//! Values that imitate the write-ahead log of a node (S1): an ordinary client stores the bytes, and
//! they stand behind the newest record of a reused file when the node is killed.
//!
//! The attacker knows every format of the program, the numbers of the files, the positions in the
//! log and the term. It does not know the secrets of a data directory.
//!
//! ```text
//!   marks       fragments that name one of many file numbers and hold a batch mark: "a batch far
//!               ahead was durable". A scan that believes one takes the log for damaged.
//!   sled        records without a file number that a replay skips, which lead from one offset in
//!               seven to a record that it applies
//!   tail        the place at which the newest record of a file ends
//! ```
//!
//! Framing and write batches are those of RocksDB (`db/log_format.h`, `db/write_batch.cc`); their
//! content is in [`records`].

pub mod records;

use std::ops::Range;
use std::path::{Path, PathBuf};

const BLOCK_BYTES: usize = 32 << 10;
const REUSABLE_HEADER_BYTES: usize = 11;
/// Kinds of a whole record: without, and with the number of the file.
const FULL: u8 = 1;
const REUSABLE_FULL: u8 = 5;
/// Unknown to every version of RocksDB, and skipped without a complaint, like all kinds from 128
/// on.
const SKIPPED: u8 = 0xc0;
/// Forged batches claim to come after every real one.
const SEQUENCE: u64 = 1 << 40;
/// Length of the sled before each record: short enough that a block of the file holds both.
const SLED_BYTES: usize = 4 << 10;

/// One fragment. With the number of a file it has the header of a reused file.
fn fragment(kind: u8, file: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut checked = vec![kind];
    checked.extend(file.iter().flat_map(|number| number.to_le_bytes()));
    checked.extend(payload);
    // RocksDB stores checksums masked.
    let checksum = crc32c::crc32c(&checked).rotate_right(15).wrapping_add(0xa282_ead8);
    let length = u16::try_from(payload.len()).expect("a fragment fits into a block");
    let mut bytes = checksum.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(checked);
    bytes
}

/// A write batch that puts these keys.
fn write_batch(puts: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut batch = SEQUENCE.to_le_bytes().to_vec();
    batch.extend(u32::try_from(puts.len()).expect("few operations").to_le_bytes());
    for (key, value) in puts {
        batch.push(1);
        for bytes in [key, value] {
            put_varint(&mut batch, bytes.len());
            batch.extend(bytes);
        }
    }
    batch
}

fn put_varint(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// For each of these files, one fragment whose batch claims that batch `durable_through` is
/// durable.
pub fn marks(files: Range<u32>, durable_through: u64) -> Vec<u8> {
    let batch = write_batch(&records::batch_mark(durable_through));
    files.flat_map(|file| fragment(REUSABLE_FULL, Some(file), &batch)).collect()
}

/// Sleds that lead to records which replace the node's hard state by one of this term.
pub fn hard_state(term: u64, size_bytes: usize) -> Vec<u8> {
    sleds(&write_batch(&records::hard_state(term)), size_bytes)
}

/// Sleds that lead to records which replace these entries by no-ops of this term.
pub fn noops(entries: Range<u64>, term: u64, size_bytes: usize) -> Vec<u8> {
    sleds(&write_batch(&records::noops(entries, term)), size_bytes)
}

/// Alternates sled and record, up to this size.
fn sleds(batch: &[u8], size_bytes: usize) -> Vec<u8> {
    let record = fragment(FULL, None, batch);
    assert!(SLED_BYTES + record.len() < BLOCK_BYTES / 2, "a block has to hold both");
    let step = sled_step();
    let mut bytes = Vec::with_capacity(size_bytes);
    while bytes.len() + SLED_BYTES + record.len() <= size_bytes {
        bytes.extend(step.iter().cycle().take(SLED_BYTES / step.len() * step.len()));
        bytes.extend(&record);
    }
    bytes
}

fn sled_step() -> Vec<u8> {
    fragment(SKIPPED, None, &[])
}

/// The newest write-ahead file in `directory`, its bytes, and where its newest record ends.
pub struct Tail {
    bytes: Vec<u8>,
    pub end: usize,
}

impl Tail {
    /// Reads the newest file; `None` if there is none, or none that can be read just now.
    pub fn of(directory: &Path) -> Option<Self> {
        let (number, path) = log_files(directory).pop()?;
        let bytes = std::fs::read(path).ok()?;
        let end = end_of_records(&bytes, number as u32);
        Some(Self { bytes, end })
    }

    /// Returns true if a replay that has read the newest record finds a step of a sled next.
    pub fn stands_before_sled(&self) -> bool {
        self.bytes.get(self.end..).is_some_and(|behind| behind.starts_with(&sled_step()))
    }
}

/// The write-ahead files in `directory` with their numbers, the newest last.
pub fn log_files(directory: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let numbered = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()?;
        Some((number, path))
    };
    let mut files: Vec<_> = entries.filter_map(|entry| numbered(entry.path())).collect();
    files.sort();
    files
}

/// Offset at which the records of the file's present use end. Checksums are not verified: the
/// writer is idle during the call.
fn end_of_records(bytes: &[u8], number: u32) -> usize {
    let mut at = 0;
    loop {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < REUSABLE_HEADER_BYTES {
            at += left;
        }
        let Some(header) = bytes.get(at..at + REUSABLE_HEADER_BYTES) else { return at };
        let is_reusable = (5..=8).contains(&header[6]) || matches!(header[6], 11 | 131);
        if !is_reusable || header[7..] != number.to_le_bytes() {
            return at;
        }
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        at += REUSABLE_HEADER_BYTES + length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_newest_record_is_found_behind_padding_and_before_an_earlier_life() {
        let mut bytes = fragment(REUSABLE_FULL, Some(7), &[1; 100]);
        // Up to five bytes before the end of the block, which is padding then.
        let rest = BLOCK_BYTES - bytes.len() - REUSABLE_HEADER_BYTES - 5;
        bytes.extend(fragment(REUSABLE_FULL, Some(7), &vec![2; rest]));
        bytes.resize(BLOCK_BYTES, 0);
        bytes.extend(fragment(REUSABLE_FULL, Some(7), &[3; 10]));
        let end = bytes.len();
        bytes.extend(fragment(REUSABLE_FULL, Some(3), &[4; 10]));
        assert_eq!(end_of_records(&bytes, 7), end);
        bytes.truncate(end);
        assert_eq!(end_of_records(&bytes, 7), end);
    }

    #[test]
    fn a_sled_is_entered_at_each_of_its_steps() {
        let sled = sleds(b"a batch", 3 * SLED_BYTES);
        let step = sled_step();
        assert_eq!(step.len(), 7, "a header without the number of a file");
        for end in [0, 7, SLED_BYTES / 7 * 7 - 7] {
            let tail = Tail { bytes: sled.clone(), end };
            assert!(tail.stands_before_sled(), "{end}");
        }
        assert!(!Tail { bytes: sled.clone(), end: 1 }.stands_before_sled());
        // The record stands behind the last step.
        let record = fragment(FULL, None, b"a batch");
        assert_eq!(&sled[SLED_BYTES / 7 * 7..][..record.len()], record);
    }
}
