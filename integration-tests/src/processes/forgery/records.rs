//! The records that a forged batch puts: keys and values of the log's format (`raft-storage/docs/format.md`),
//! made without the crate that defines it.

use std::ops::Range;

const KEY_BATCH: &[u8] = b"b";
const KEY_HARD_STATE: &[u8] = b"h";
const KEY_ENTRY: u8 = b'e';
const TAG_BATCH: u8 = b'B';
const TAG_HARD_STATE: u8 = b'H';
const TAG_ENTRY: u8 = b'E';
const KIND_NOOP: u8 = 0;

type Puts = Vec<(Vec<u8>, Vec<u8>)>;

/// Tag, numbers, and the checksum over both.
fn sealed(tag: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    bytes.extend(rest);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

pub(super) fn batch_mark(durable_through: u64) -> Puts {
    let mark = sealed(TAG_BATCH, &[durable_through, durable_through], &[]);
    vec![(KEY_BATCH.to_vec(), mark)]
}

/// A vote for node 1, and nothing committed: a node that believes it has only its term wrong.
pub(super) fn hard_state(term: u64) -> Puts {
    vec![(KEY_HARD_STATE.to_vec(), sealed(TAG_HARD_STATE, &[term, 1, 0], &[]))]
}

pub(super) fn noops(entries: Range<u64>, term: u64) -> Puts {
    let noop = |index: u64| {
        let mut key = vec![KEY_ENTRY];
        key.extend(index.to_be_bytes());
        (key, sealed(TAG_ENTRY, &[index, term], &[KIND_NOOP]))
    };
    entries.map(noop).collect()
}
