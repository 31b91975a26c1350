//! The records of format 1 as they are on disk. The fixture is a promise to every directory that was
//! ever written: a test that fails here is a change of format, and needs a new version.

use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use raft_core::types::{INDEX_MAX, TERM_MAX};

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
    Configuration {
        voters: [1, 2, 3].into(),
        outgoing: [3, 4].into(),
        learners: [u64::MAX].into(),
        ..Configuration::default()
    }
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
    for (name, voted_for, memory) in [
        ("hard-state", Some(3), Memory::Intact),
        ("hard-state-no-vote", None, Memory::Intact),
        ("hard-state-recovering", Some(3), Memory::Lost),
    ] {
        let hard_state = HardState { term: 9, voted_for, commit_index: 300, memory };
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

#[test]
fn what_nothing_gets_to_is_refused() {
    let far = Position::new(TERM_MAX, INDEX_MAX);
    let entry = |position: Position| {
        let mut out = Vec::new();
        let Position { term, index } = position;
        encode_entry(&mut out, &Entry { index, term, payload: Payload::Noop });
        decode_entry(&out)
    };
    let log_start = |position| {
        decode_log_start(&encode_log_start(&SnapshotMeta { position, ..SnapshotMeta::default() }))
    };
    let hard_state = |Position { term, index }| {
        let hard_state = HardState { term, commit_index: index, ..HardState::INITIAL };
        decode_hard_state(&encode_hard_state(&hard_state))
    };
    assert!(entry(far).is_ok() && log_start(far).is_ok() && hard_state(far).is_ok());
    for beyond in [Position::new(TERM_MAX + 1, 1), Position::new(1, u64::MAX)] {
        assert!(entry(beyond).is_err() && log_start(beyond).is_err());
        assert!(hard_state(beyond).is_err());
    }
    let mark = |number, durable_through| {
        decode_batch_mark(&encode_batch_mark(BatchMark { number, durable_through }))
    };
    assert!(mark(NUMBER_MAX, NUMBER_MAX).is_ok());
    assert!(mark(u64::MAX, 1).is_err() && mark(4, 5).is_err());
    assert!(decode_floor(&encode_floor(u64::MAX)).is_err());
    let published = Published { meta: meta(), content: content(), serial: u64::MAX };
    assert!(decode_published(&encode_published(&published)).is_err());
}

#[test]
fn a_record_has_one_form() {
    let configuration = |voters: &[u64]| {
        seal(TAG_LOG_START, |out| {
            out.extend_from_slice(&[0; 16]);
            out.extend_from_slice(&(voters.len() as u32).to_be_bytes());
            voters.iter().for_each(|voter| out.extend_from_slice(&voter.to_be_bytes()));
            out.extend_from_slice(&[0; 8]);
        })
    };
    assert!(decode_log_start(&configuration(&[1, 2, 3])).is_ok());
    for voters in [&[2, 1][..], &[1, 1], &[0, 1]] {
        assert!(decode_log_start(&configuration(voters)).is_err(), "{voters:?}");
    }
    let header = |has_content: u8, size_bytes: u64| {
        seal(TAG_SNAPSHOT_FILE, |out| {
            out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
            out.extend_from_slice(&65_536u32.to_be_bytes());
            out.push(has_content);
            put_content(out, &SnapshotContent { size_bytes, checksum: 0 });
            put_meta(out, &meta());
        })
    };
    assert!(decode_snapshot_header(&header(0, 0)).is_ok());
    assert!(decode_snapshot_header(&header(1, 5)).is_ok());
    assert!(decode_snapshot_header(&header(0, 5)).is_err(), "without a content, and with one");
    assert!(decode_snapshot_header(&header(2, 5)).is_err());
}

fn any_configuration() -> impl Strategy<Value = Configuration> {
    let members = || proptest::collection::btree_set(1u64.., 0..4);
    (members(), members(), members()).prop_map(|(voters, outgoing, learners)| Configuration {
        voters,
        outgoing,
        learners,
    })
}

fn any_meta() -> impl Strategy<Value = SnapshotMeta> {
    (0..=TERM_MAX, 0..=INDEX_MAX, any_configuration()).prop_map(|(term, index, configuration)| {
        SnapshotMeta { position: Position::new(term, index), configuration }
    })
}

fn any_content() -> impl Strategy<Value = SnapshotContent> {
    any::<(u64, u32)>().prop_map(|(size_bytes, checksum)| SnapshotContent { size_bytes, checksum })
}

/// What is written is read, and nothing less or more, however well it is sealed.
fn check_any<T: Debug + PartialEq>(
    value: &T,
    encoded: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, Damage>,
) {
    assert_eq!(decode(encoded).as_ref(), Ok(value));
    let (tag, body) = (encoded[0], &encoded[1..encoded.len() - 4]);
    for end in 0..body.len() {
        if let Ok(shorter) = decode(&seal(tag, |out| out.extend_from_slice(&body[..end]))) {
            assert_ne!(shorter, *value, "a command may be cut, and is another one then");
        }
    }
    if let Ok(longer) = decode(&seal(tag, |out| {
        out.extend_from_slice(body);
        out.push(0);
    })) {
        assert_ne!(longer, *value);
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        meta in any_meta(),
        content in any_content(),
        expected in proptest::option::of(any_content()),
        chunk_bytes in 1u32..,
        numbers in any::<[u64; 3]>(),
        voted_for in proptest::option::of(1u64..),
        lost in any::<bool>(),
        command in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let [one, other, serial] = numbers.map(|number| number & NUMBER_MAX);
        let Position { term, index } = meta.position;
        let payloads = [
            Payload::Noop,
            Payload::Command(command.into()),
            Payload::Configuration(meta.configuration.clone()),
        ];
        for payload in payloads {
            let entry = Entry { index, term, payload };
            let mut encoded = Vec::new();
            encode_entry(&mut encoded, &entry);
            check_any(&entry, &encoded, decode_entry);
        }
        let mark = BatchMark { number: one.max(other), durable_through: one.min(other) };
        check_any(&mark, &encode_batch_mark(mark), decode_batch_mark);
        let memory = if lost { Memory::Lost } else { Memory::Intact };
        let hard_state = HardState { term, voted_for, commit_index: index, memory };
        check_any(&hard_state, &encode_hard_state(&hard_state), decode_hard_state);
        check_any(&serial, &encode_floor(serial), decode_floor);
        check_any(&meta, &encode_log_start(&meta), decode_log_start);
        let published = Published { meta: meta.clone(), content, serial };
        check_any(&published, &encode_published(&published), decode_published);
        let header = SnapshotHeader { chunk_bytes, meta, expected };
        check_any(&header, &encode_snapshot_header(&header), decode_snapshot_header);
    }
}
