//! The decoders of this crate as a fuzzer sees them; not part of its interface.
//!
//! Each function takes any bytes. If they decode, what came out must be written as the same bytes
//! again. A fuzzer does not find checksums by itself, so bytes are tried as they are and with a seal
//! put around them. `integration-tests/fuzz` runs these, and `integration-tests/tests/decoders` on
//! what was found.

use std::fmt::Debug;
use std::io::Cursor;
use std::path::Path;

use crate::data_dir::{Identity, decode_place, decode_reset_key, encode_place, encode_reset_key};
use crate::format::records::{self, entry_key, entry_key_index};
use crate::format::snapshot_file::{
    CHUNK_HEADER_BYTES, encode_header, file_name, read_chunk, read_header, seal_chunk, serial_of,
};
use crate::format::wal::writer::Wal;
use crate::format::wal::{Scan, scan_file};
use crate::record::seal;

/// Is what was decoded written as it was read?
fn check<T, E: Debug>(
    bytes: &[u8],
    decoded: impl FnOnce(&[u8]) -> Result<T, E>,
    encode: impl FnOnce(T) -> Vec<u8>,
) {
    if let Ok(value) = decoded(bytes) {
        assert_eq!(encode(value), bytes);
    }
}

/// The bytes themselves, and sealed with their first one as the tag.
fn plain_and_sealed(bytes: &[u8], check: impl Fn(&[u8])) {
    check(bytes);
    if let Some((tag, body)) = bytes.split_first() {
        check(&seal(*tag, |out| out.extend_from_slice(body)));
    }
}

/// A record of the log's instance, or a floor.
pub fn record(bytes: &[u8]) {
    plain_and_sealed(bytes, |bytes| {
        let entry = |entry| {
            let mut out = Vec::new();
            records::encode_entry(&mut out, &entry);
            out
        };
        check(bytes, records::decode_entry, entry);
        check(bytes, records::decode_batch_mark, records::encode_batch_mark);
        check(bytes, records::decode_hard_state, |state| records::encode_hard_state(&state));
        check(bytes, records::decode_log_start, |meta| records::encode_log_start(&meta));
        check(bytes, records::decode_published, |one| records::encode_published(&one));
        check(bytes, records::decode_snapshot_header, |one| records::encode_snapshot_header(&one));
        check(bytes, records::decode_floor, records::encode_floor);
        // Any version is read, so that it can be named.
        if records::decode_format(bytes) == Ok(records::FORMAT_VERSION) {
            assert_eq!(records::encode_format(), bytes);
        }
    });
    if let Some(index) = entry_key_index(bytes) {
        assert_eq!(entry_key(index), bytes);
    }
}

/// A small file of the data directory: identity, place, reset key.
pub fn small_file(bytes: &[u8]) {
    plain_and_sealed(bytes, |bytes| {
        let identity = |bytes: &[u8]| Identity::decode(bytes, Path::new("identity"));
        check(bytes, identity, |identity| identity.encode());
        check(bytes, decode_place, encode_place);
        check(bytes, decode_reset_key, |(version, key)| encode_reset_key(version, &key));
    });
}

/// A snapshot's file: as it is, and made of a header's body (of the length that the first byte says) and
/// chunks of what follows.
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

/// Returns how many bytes are in its sound chunks.
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

/// The name of a snapshot's file.
pub fn snapshot_name(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else { return };
    if let Some(serial) = serial_of(Path::new(name), "snap") {
        assert!(serial < u64::MAX, "there is a next one");
        assert_ne!(name, file_name(raft_core::types::Position::ZERO, serial + 1, "snap"));
    }
}

/// Write-ahead files: the bytes as one, and two that are written as the bytes say, three to a batch.
/// Batches that follow each other are all reached; what damages them may hide some and adds none.
pub fn write_ahead_files(bytes: &[u8]) {
    let scan_of = |files: &[&Wal]| {
        let (mut scan, mut gap) = (Scan::default(), false);
        for file in files {
            scan_file(&file.bytes, u64::from(file.number), &mut scan, &mut gap);
        }
        scan
    };
    scan_of(&[&Wal { number: 7, bytes: bytes.to_vec() }]);

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
