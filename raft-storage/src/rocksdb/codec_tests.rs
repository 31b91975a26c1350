//! The records of format 1 as they are on disk. The fixture is a promise to every directory that was
//! ever written: a test that fails here is a change of format, and needs a new version.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::*;

const RECORDS: &str = include_str!("../../tests/fixtures/records-1.txt");

/// `name hex`, a line each; `#` begins a comment.
fn fixtures() -> BTreeMap<&'static str, Vec<u8>> {
    let lines = RECORDS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            (name, digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect())
        })
        .collect()
}

fn configuration() -> Configuration {
    Configuration { voters: [1, 2, 3].into(), outgoing: [3, 4].into(), learners: [u64::MAX].into() }
}

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        position: Position::new(7, 0x0102_0304_0506_0708),
        configuration: configuration(),
    }
}

fn content() -> SnapshotContent {
    SnapshotContent { size_bytes: 123_456, checksum: 0xdead_beef }
}

/// Is the value encoded as the fixture says, and the fixture decoded to the value?
#[track_caller]
fn check<T: Debug + PartialEq>(
    name: &str,
    value: T,
    encoded: Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, Damage>,
) {
    let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
    let fixture = fixtures().remove(name);
    assert_eq!(fixture, Some(encoded), "{name} {hex}");
    let fixture = fixture.unwrap();
    assert_eq!(decode(&fixture).unwrap(), value, "{name}");
    for len in 0..fixture.len() {
        assert!(decode(&fixture[..len]).is_err(), "{name} cut to {len}");
    }
    for bit in 0..fixture.len() * 8 {
        let mut damaged = fixture.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&damaged).is_err(), "{name} with bit {bit} flipped");
    }
}

#[test]
fn entries_keep_their_format() {
    let payloads = [
        ("entry-noop", Payload::Noop),
        ("entry-command", Payload::Command(Bytes::from_static(b"set x = 1"))),
        ("entry-empty-command", Payload::Command(Bytes::new())),
        ("entry-configuration", Payload::Configuration(configuration())),
    ];
    for (name, payload) in payloads {
        let entry = Entry { index: 258, term: 5, payload };
        let mut encoded = b"from an earlier use".to_vec();
        encode_entry(&mut encoded, &entry);
        check(name, entry, encoded, decode_entry);
    }
}

#[test]
fn hard_states_keep_their_format() {
    for (name, voted_for) in [("hard-state", Some(3)), ("hard-state-no-vote", None)] {
        let hard_state = HardState { term: 9, voted_for, commit_index: 300 };
        check(name, hard_state, encode_hard_state(&hard_state), decode_hard_state);
    }
}

#[test]
fn metadata_keeps_its_format() {
    check("format", FORMAT_VERSION, encode_format(), decode_format);
    let mark = BatchMark { number: 77, durable_through: 76 };
    let encoded = encode_batch_mark(mark);
    assert_eq!(encoded.len(), BATCH_MARK_BYTES);
    check("batch-mark", mark, encoded, decode_batch_mark);
    check("log-start", meta(), encode_log_start(&meta()), decode_log_start);
    check("floor", 99, encode_floor(99), decode_floor);
    let published = Published { meta: meta(), content: content(), serial: 4 };
    check("published", published.clone(), encode_published(&published), decode_published);
}

#[test]
fn snapshot_headers_keep_their_format() {
    for (name, expected) in
        [("snapshot-header", None), ("snapshot-header-of-peer", Some(content()))]
    {
        let header = SnapshotHeader { chunk_bytes: 65_536, meta: meta(), expected };
        check(name, header.clone(), encode_snapshot_header(&header), decode_snapshot_header);
    }
}

#[test]
fn keys_sort_as_indexes_do() {
    let indexes = [0, 1, 255, 256, 65_535, 65_536, u64::MAX];
    let keys = indexes.map(entry_key);
    assert!(keys.is_sorted());
    assert!(keys.iter().all(|key| &key[..] < KEY_ENTRY_END));
    assert_eq!(keys.map(|key| entry_key_index(&key)), indexes.map(Some));
    for other in [KEY_BATCH, KEY_FORMAT, KEY_HARD_STATE, KEY_LOG_START, KEY_SNAPSHOT] {
        assert_eq!(entry_key_index(other), None);
        assert!(other < &entry_key(0)[..] || other >= KEY_ENTRY_END);
    }
}

/// A checksum does not keep out what was sealed by mistake, or by malice.
#[test]
fn well_sealed_nonsense_is_refused() {
    let entry = |kind: u8, rest: &[u8]| {
        seal(TAG_ENTRY, |out| {
            out.extend_from_slice(&[0; 16]);
            out.push(kind);
            out.extend_from_slice(rest);
        })
    };
    assert!(decode_entry(&entry(3, b"")).is_err(), "an unknown kind");
    assert!(decode_entry(&entry(KIND_NOOP, b"x")).is_err(), "leftovers");
    assert!(decode_entry(&entry(KIND_CONFIGURATION, &[0xff; 4])).is_err(), "2^32 voters");
    let no_chunks = SnapshotHeader { chunk_bytes: 0, meta: meta(), expected: None };
    assert!(decode_snapshot_header(&encode_snapshot_header(&no_chunks)).is_err());
    let other_magic = seal(TAG_FORMAT, |out| out.extend_from_slice(b"raft-lag\0\x01"));
    assert!(decode_format(&other_magic).is_err());
}
