//! The records that a forged batch puts: keys and values of the log's format 2
//! (`raft-storage/docs/format.md`), made without the crate that defines it.
//!
//! The attacker knows everything but the directory's key. So the MAC of its marks and the keystream
//! of its masked records are guesses.

use std::ops::Range;

const KEY_BATCH: &[u8] = b"b";
/// Key prefix of the only group of the instance.
const KEY_GROUP: &[u8] = &[b'g', 0, 0, 0, 0];
const KEY_HARD_STATE: u8 = b'h';
const KEY_ENTRY: u8 = b'e';
const TAG_BATCH: u8 = b'B';
const TAG_HARD_STATE: u8 = b'H';
const TAG_RUN: u8 = b'R';
/// Kind, and a payload of no bytes.
const NOOP: &[u8] = &[0, 0, 0, 0, 0];
/// Every promise of the node is on its disk.
const MEMORY_INTACT: &[u8] = &[0];
const GUESSED_NONCE: u64 = 0x0123_4567_89ab_cdef;
const GUESSED_MAC: u64 = 0;

type Puts = Vec<(Vec<u8>, Vec<u8>)>;

/// Tag, body, and the checksum over both.
fn sealed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(body);
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

/// A record that the node would unmask: nonce, place in the keystream, and a body masked with a
/// keystream that is guessed to be zeros.
fn masked(tag: u8, numbers: &[u64], rest: &[u8]) -> Vec<u8> {
    let mut body = GUESSED_NONCE.to_be_bytes().to_vec();
    body.extend(0_u32.to_be_bytes());
    body.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    body.extend(rest);
    sealed(tag, &body)
}

fn group_key(kind: u8) -> Vec<u8> {
    let mut key = KEY_GROUP.to_vec();
    key.push(kind);
    key
}

pub(super) fn batch_mark(durable_through: u64) -> Puts {
    let mut body = Vec::new();
    // The number of the batch, and of the last batch that was durable before it.
    body.extend(durable_through.to_be_bytes());
    body.extend(durable_through.to_be_bytes());
    let no_operations = crc32c::crc32c(&[]);
    body.extend(no_operations.to_be_bytes());
    body.extend(GUESSED_MAC.to_be_bytes());
    vec![(KEY_BATCH.to_vec(), sealed(TAG_BATCH, &body))]
}

/// A vote for node 1, and nothing committed: in a node that believes it, only the term is wrong.
pub(super) fn hard_state(term: u64) -> Puts {
    let hard_state = masked(TAG_HARD_STATE, &[term, 1, 0], MEMORY_INTACT);
    vec![(group_key(KEY_HARD_STATE), hard_state)]
}

pub(super) fn noops(entries: Range<u64>, term: u64) -> Puts {
    let noop = |index: u64| {
        let mut key = group_key(KEY_ENTRY);
        key.extend(index.to_be_bytes());
        (key, masked(TAG_RUN, &[index, term], NOOP))
    };
    entries.map(noop).collect()
}
