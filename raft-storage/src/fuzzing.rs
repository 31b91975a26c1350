//! Fuzz targets for the decoders of this crate; not part of its public interface.
//!
//! Each function takes any bytes. If they decode, the value must encode to the same bytes again. A
//! fuzzer does not find checksums by itself, so the bytes are tried as they are and with a seal
//! around them. `integration-tests/fuzz` runs these functions, and
//! `integration-tests/tests/decoders` repeats them on inputs that were found.

use std::fmt::Debug;
use std::io::Cursor;
use std::path::Path;

use crate::data_dir::{DirectoryIdentity, Place, decode_reset_key, encode_reset_key};
use crate::format::draft::{Draft, Sealed};
use crate::format::keys::{KEY_HARD_STATE, entry_key, entry_key_index};
use crate::format::log_key::LogKey;
use crate::format::records;
use crate::format::snapshot_file::{
    CHUNK_HEADER_BYTES, encode_header, file_name, read_chunk, read_header, seal_chunk, serial_of,
};
use crate::format::wal::writer::{Wal, key_of};
use crate::format::wal::{Before, Scan, scan_file};
use crate::record::seal;

/// Asserts that a decoded value encodes to the bytes that were read.
fn check<T, E: Debug>(
    bytes: &[u8],
    decoded: impl FnOnce(&[u8]) -> Result<T, E>,
    encode: impl FnOnce(T) -> Vec<u8>,
) {
    if let Ok(value) = decoded(bytes) {
        assert_eq!(encode(value), bytes);
    }
}

/// Runs `check` on the bytes, and on the bytes sealed with their first one as the tag.
fn plain_and_sealed(bytes: &[u8], check: impl Fn(&[u8])) {
    check(bytes);
    if let Some((tag, body)) = bytes.split_first() {
        check(&seal(*tag, |out| out.extend_from_slice(body)));
    }
}

/// The record that `put` adds, as it is stored.
fn masked(put: impl FnOnce(&mut Draft)) -> Vec<u8> {
    let mut draft = Draft::default();
    put(&mut draft);
    draft.seal(&key_of(1), NONCE);
    let Some(Sealed::Put { record, .. }) = draft.sealed().last() else { panic!("none was put") };
    record.to_vec()
}

const NONCE: u64 = 0x0123_4567_89ab_cdef;

/// Decodes a record of the log's instance, or a floor. For masked records, the first byte is the
/// tag and the others are masked here, because a fuzzer finds no keystream by itself.
pub fn record(bytes: &[u8]) {
    let key = &key_of(1);
    if let Some((tag, body)) = bytes.split_first() {
        let put = |draft: &mut Draft| {
            draft.put(KEY_HARD_STATE, *tag, |out| out.extend_from_slice(body));
        };
        masked_record(&masked(put), key);
    }
    plain_and_sealed(bytes, |bytes| {
        let mark = |bytes: &[u8]| records::decode_batch_mark(bytes, key);
        check(bytes, mark, |mark| records::encode_batch_mark(mark, key));
        check(bytes, records::decode_snapshot_header, |one| records::encode_snapshot_header(&one));
        check(bytes, records::decode_floor, records::encode_floor);
        // The version of any format is read, so that an error can name it.
        if let Ok(format) = records::decode_format(bytes)
            && format.fingerprint == Some(key.fingerprint())
        {
            assert_eq!(records::encode_format(key), bytes);
        }
        // Mostly nonsense after unmasking; decoding must not panic.
        let _ = records::decode_run(bytes, key);
        let _ = records::decode_log_start(bytes, key);
    });
    if let Some(index) = entry_key_index(bytes) {
        assert_eq!(entry_key(index).as_ref(), bytes);
    }
}

fn masked_record(bytes: &[u8], key: &LogKey) {
    if bytes.first() == Some(&records::TAG_ENTRY) {
        // It is no longer written.
        let _ = records::decode_run(bytes, key);
    } else {
        let run = |bytes: &[u8]| records::decode_run(bytes, key);
        check(bytes, run, |run| masked(|draft| records::put_run(draft, run.first, &run.entries)));
    }
    let state = |bytes: &[u8]| records::decode_hard_state(bytes, key);
    check(bytes, state, |state| masked(|draft| records::put_hard_state(draft, &state)));
    let start = |bytes: &[u8]| records::decode_log_start(bytes, key);
    check(bytes, start, |meta| masked(|draft| records::put_log_start(draft, &meta)));
    let published = |bytes: &[u8]| records::decode_published(bytes, key);
    check(bytes, published, |one| masked(|draft| records::put_published(draft, &one)));
}

/// Decodes a small file of the data directory: identity, place, keys.
pub fn small_file(bytes: &[u8]) {
    plain_and_sealed(bytes, |bytes| {
        let identity = |bytes: &[u8]| DirectoryIdentity::decode(bytes, Path::new("identity"));
        check(bytes, identity, |identity| identity.encode());
        check(bytes, Place::decode, Place::encode);
        check(bytes, decode_reset_key, |(version, key)| encode_reset_key(version, &key));
        check(bytes, LogKey::decode, |(version, secret)| LogKey::encode(version, &secret));
    });
}

/// Reads a snapshot file: the bytes as they are, and a file made of a header's body (its length is
/// the first byte) and chunks of the bytes after it.
pub fn snapshot_file(bytes: &[u8]) {
    read_file(bytes);
    let Some((length, rest)) = bytes.split_first() else { return };
    let (body, data) = rest.split_at(usize::from(*length).min(rest.len()));
    let header = seal(b'N', |out| out.extend_from_slice(body));
    let mut file = (header.len() as u32).to_be_bytes().to_vec();
    file.extend_from_slice(&header);
    if let Ok((header, _)) = read_header(&mut Cursor::new(&file)) {
        for (number, data) in (0..).zip(data.chunks(header.chunk_bytes as usize)) {
            let mut chunk = [&[0; CHUNK_HEADER_BYTES], data].concat();
            seal_chunk(number, &mut chunk);
            file.extend_from_slice(&chunk);
        }
        assert_eq!(read_file(&file), data.len());
    }
}

/// Returns the number of bytes in the valid chunks.
fn read_file(bytes: &[u8]) -> usize {
    let mut file = Cursor::new(bytes);
    let Ok((header, chunks_at)) = read_header(&mut file) else { return 0 };
    let (head, mut rest) = bytes.split_at(chunks_at as usize);
    assert_eq!(encode_header(&header), head);
    let mut size_bytes = 0;
    for number in 0.. {
        let Some(left) = rest.len().checked_sub(CHUNK_HEADER_BYTES) else { break };
        let mut chunk = vec![0; CHUNK_HEADER_BYTES + left.min(header.chunk_bytes as usize)];
        if chunk.len() == CHUNK_HEADER_BYTES
            || read_chunk(&mut file, number, &mut chunk[CHUNK_HEADER_BYTES..]).is_err()
        {
            break;
        }
        seal_chunk(number, &mut chunk);
        let read;
        (read, rest) = rest.split_at(chunk.len());
        assert_eq!(chunk, read);
        size_bytes += chunk.len() - CHUNK_HEADER_BYTES;
    }
    size_bytes
}

/// Reads the name of a snapshot file.
pub fn snapshot_name(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else { return };
    if let Some(serial) = serial_of(Path::new(name), "snap") {
        assert!(serial < u64::MAX, "there is a next one");
        assert_ne!(name, file_name(raft_core::types::Position::ZERO, serial + 1, "snap"));
    }
}

/// Scans write-ahead files: the bytes as one file, and two files of batches that the bytes
/// describe, three bytes for each batch. Batches that follow each other must all be reached; damage
/// may hide some and must add none.
pub fn write_ahead_files(bytes: &[u8]) {
    let scan_of = |files: &[&Wal]| {
        let (mut scan, mut before) = (Scan::default(), Before::default());
        for file in files {
            scan_file(&file.bytes, u64::from(file.number), &key_of(1), &mut scan, &mut before);
        }
        scan
    };
    // Arbitrary bytes carry no MAC of this log.
    let scan = scan_of(&[&Wal::with_bytes(7, bytes.to_vec())]);
    assert_eq!(scan, Scan::default());

    let batches = bytes.as_chunks::<3>().0;
    let (front, back) = batches.split_at(batches.len().min(64) / 2);
    let mut number = 0;
    let mut written = |file: u32, batches: &[[u8; 3]]| {
        batches.iter().take(64).fold(Wal::new(file), |wal, [behind, filler, times]| {
            number += 1;
            let durable_through = (number - 1u64).saturating_sub(u64::from(*behind));
            wal.batch(number, durable_through, usize::from(*filler) * usize::from(*times % 32))
        })
    };
    let (first, second) = (written(7, front), written(9, back));
    let whole = scan_of(&[&first, &second]);
    assert_eq!(whole.reached, number);
    assert!(whole.claimed < number.max(1));
    let mut damaged = first;
    if let (Some([place, high, to]), false) = (batches.last(), damaged.bytes.is_empty()) {
        let place = usize::from(u16::from_be_bytes([*high, *place])) % damaged.bytes.len();
        damaged.bytes[place] ^= to;
    }
    let scan = scan_of(&[&damaged, &second]);
    assert!(scan.reached <= whole.reached && scan.claimed <= whole.claimed);
}
