//! The records of format 2 as they are on disk. The fixture is a promise to every directory that
//! was ever written: a test that fails here is a change of format, and needs a new version.

use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use raft_core::types::{Configuration, INDEX_MAX, Member, TERM_MAX};

use super::*;
use crate::format::draft::Sealed;
use crate::format::log_key::LOG_KEY_BYTES;

const RECORDS: &str = include_str!("../../tests/fixtures/records-2.txt");

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

/// The key of the fixtures: the bytes 0, 1, 2 ...
fn key() -> LogKey {
    LogKey::new(&std::array::from_fn::<u8, LOG_KEY_BYTES, _>(|at| at as u8))
}

const NONCE: u64 = 0x1122_3344_5566_7788;

/// The masked record that `put` adds.
fn masked(put: impl FnOnce(&mut Draft)) -> Vec<u8> {
    let mut draft = Draft::default();
    // An earlier record, because most records are not at the front of the keystream.
    draft.put(KEY_HARD_STATE, 0, |out| out.extend_from_slice(b"another record"));
    put(&mut draft);
    draft.seal(&key(), NONCE);
    let Some(Sealed::Put { record, .. }) = draft.sealed().last() else { panic!("no record") };
    record.to_vec()
}

fn run(bytes: &[u8]) -> Result<Run, Damage> {
    decode_run(bytes, &key())
}

fn configuration() -> Configuration {
    let member = |incarnation, wants_vote, context: &'static [u8]| Member {
        incarnation,
        wants_vote,
        context: Bytes::from_static(context),
    };
    Configuration {
        voters: [1, 2, 3].into(),
        outgoing: [3, 4].into(),
        learners: [u64::MAX].into(),
        members: [
            (1, member(0x0123_4567_89ab_cdef, false, b"node-1.example:7000")),
            (u64::MAX, member(0, true, b"")),
        ]
        .into(),
        next_id: 9,
        founded: true,
        generation: 2,
        cluster_version: 3,
        context: Bytes::new(),
    }
}

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        position: Position::new(7, 0x0102_0304_0506_0708),
        configuration: Box::new(configuration()),
    }
}

fn content() -> SnapshotContent {
    SnapshotContent { size_bytes: 123_456, checksum: 0xdead_beef }
}

/// Asserts that the value encodes to the fixture, that the fixture decodes to the value, and that
/// the fixture with a cut or a flipped bit does not decode.
#[track_caller]
fn check<T: Debug + PartialEq>(
    name: &str,
    value: T,
    encoded: Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, Damage>,
) {
    let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
    if std::env::var_os("RAFT_STORAGE_PRINT_RECORDS").is_some() {
        println!("{name} {hex}");
        return;
    }
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
        ("entry-configuration", Payload::Configuration(Box::new(configuration()))),
        (
            "entry-plain-configuration",
            Payload::Configuration(Box::new(Configuration::of_voters([1, 2, 3]))),
        ),
    ];
    let context = Bytes::from_static(b"replace_dead_after = 10m");
    let payload = Payload::Configuration(Box::new(Configuration { context, ..configuration() }));
    let in_context = Entry { index: 300, term: 5, payload };
    for (name, payload) in payloads.clone() {
        let entry = Entry { index: 258, term: 5, payload };
        // A single entry is no longer written, but it is read.
        let encoded = fixtures().remove(name).unwrap();
        check(name, Run { first: 258, entries: vec![entry] }, encoded, run);
    }
    let entries = (258..)
        .zip(payloads)
        .map(|(index, (_, payload))| Entry { index, term: index / 100 + 3, payload })
        .collect();
    for (name, run) in [
        ("run", Run { first: 258, entries }),
        ("run-empty", Run { first: 300, entries: Vec::new() }),
        ("run-configuration-in-context", Run { first: 300, entries: vec![in_context] }),
    ] {
        let encoded = masked(|draft| put_run(draft, run.first, &run.entries));
        check(name, run, encoded, super::tests::run);
    }
}

#[test]
fn hard_states_keep_their_format() {
    for (name, voted_for, memory) in [
        ("hard-state", Some(3), Memory::Intact),
        ("hard-state-no-vote", None, Memory::Intact),
        ("hard-state-new", None, Memory::New),
        ("hard-state-met", None, Memory::Met),
        ("hard-state-lost", Some(3), Memory::Lost),
    ] {
        let hard_state = HardState { term: 9, voted_for, commit_index: 300, memory };
        let encoded = masked(|draft| put_hard_state(draft, &hard_state));
        check(name, hard_state, encoded, |bytes| decode_hard_state(bytes, &key()));
    }
}

#[test]
fn metadata_keeps_its_format() {
    let format = Format { version: FORMAT_VERSION, fingerprint: Some(key().fingerprint()) };
    check("format", format, encode_format(&key()), decode_format);
    let mark = BatchMark { number: 77, durable_through: 76, content: 0xcafe_f00d };
    let encoded = encode_batch_mark(mark, &key());
    assert_eq!(encoded.len(), BATCH_MARK_BYTES);
    check("batch-mark", mark, encoded, |bytes| decode_batch_mark(bytes, &key()));
    let encoded = masked(|draft| put_log_start(draft, &meta()));
    check("log-start", meta(), encoded, |bytes| decode_log_start(bytes, &key()));
    check("floor", 99, encode_floor(99), decode_floor);
    let published = Published { meta: meta(), content: content(), serial: 4 };
    let encoded = masked(|draft| put_published(draft, &published));
    check("published", published, encoded, |bytes| decode_published(bytes, &key()));
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

/// A right checksum does not exclude a record that was sealed by mistake, or by malice.
#[test]
fn well_sealed_nonsense_is_refused() {
    let of_kind = |kind: u8, rest: &[u8]| {
        let length = (rest.len() as u32).to_be_bytes();
        [(TAG_ENTRY, &[][..]), (TAG_RUN, &length)].map(|(tag, length)| {
            run(&masked(|draft| {
                draft.put(entry_key(0), tag, |out| {
                    out.extend_from_slice(&[0; 16]);
                    out.push(kind);
                    out.extend_from_slice(length);
                    out.extend_from_slice(rest);
                });
            }))
        })
    };
    assert!(of_kind(KIND_NOOP, b"").iter().all(Result::is_ok), "nothing else is wrong");
    assert!(of_kind(3, b"").iter().all(Result::is_err), "an unknown kind");
    assert!(of_kind(KIND_NOOP, b"x").iter().all(Result::is_err), "leftovers");
    assert!(of_kind(KIND_CONFIGURATION, &[0xff; 4]).iter().all(Result::is_err), "2^32 voters");
    let hard_state = |memory: u8| {
        let record = masked(|draft| {
            draft.put(KEY_HARD_STATE, TAG_HARD_STATE, |out| {
                out.extend_from_slice(&[0; 24]);
                out.push(memory);
            });
        });
        decode_hard_state(&record, &key())
    };
    assert!(hard_state(3).is_ok() && hard_state(4).is_err(), "an unknown memory");
    let no_chunks = SnapshotHeader { chunk_bytes: 0, meta: meta(), expected: None };
    assert!(decode_snapshot_header(&encode_snapshot_header(&no_chunks)).is_err());
    let other_magic = seal(TAG_FORMAT, |out| out.extend_from_slice(b"raft-lag\0\x01"));
    assert!(decode_format(&other_magic).is_err());
    // Only the version of another version's record is read, so that an error can name it.
    let version_1 = seal(TAG_FORMAT, |out| out.extend_from_slice(b"raft-log\0\x01"));
    assert_eq!(decode_format(&version_1), Ok(Format { version: 1, fingerprint: None }));
}

/// S1. A masked record shows nothing of the bytes that a client or a peer chose, and the same value
/// written twice gives different bytes.
#[test]
fn a_masked_record_shows_nothing_of_what_was_chosen() {
    let chosen = b"0123456789abcdef".repeat(8);
    let command = |nonce| {
        let payload = Payload::Command(Bytes::from(chosen.clone()));
        let mut draft = Draft::default();
        put_run(&mut draft, 1, &[Entry { index: 1, term: 1, payload }]);
        let mut configuration = configuration();
        configuration.members.get_mut(&1).unwrap().context = Bytes::from(chosen.clone());
        let meta = SnapshotMeta { configuration: Box::new(configuration.clone()), ..meta() };
        let payload = Payload::Configuration(Box::new(configuration));
        put_run(&mut draft, 2, &[Entry { index: 2, term: 1, payload }]);
        put_log_start(&mut draft, &meta);
        put_published(&mut draft, &Published { meta, content: content(), serial: 1 });
        draft.seal(&key(), nonce);
        let records: Vec<Vec<u8>> = draft
            .sealed()
            .map(|operation| match operation {
                Sealed::Put { record, .. } => record.to_vec(),
                _ => panic!("nothing is deleted"),
            })
            .collect();
        records
    };
    let (first, second) = (command(1), command(2));
    assert_eq!(first.len(), 4);
    for (record, again) in first.iter().zip(&second) {
        for run in chosen.windows(4).take(16) {
            assert!(!record.windows(4).any(|found| found == run), "{run:?} is in {record:02x?}");
        }
        let equal = record.iter().zip(again).filter(|(one, other)| one == other).count();
        assert!(equal < 16 + record.len() / 16, "{equal} of {} bytes are equal", record.len());
    }
}

#[test]
fn a_mark_is_believed_with_the_mac_of_this_log_only() {
    let other = LogKey::new(&[7; LOG_KEY_BYTES]);
    let mark = BatchMark { number: 77, durable_through: 76, content: 5 };
    assert!(decode_batch_mark(&encode_batch_mark(mark, &other), &key()).is_err());
    let mut bytes = encode_batch_mark(mark, &key());
    // Another number with the same MAC, and a right checksum.
    bytes[8] += 1;
    let sealed = bytes.len() - 4;
    let changed = seal(bytes[0], |out| out.extend_from_slice(&bytes[1..sealed]));
    assert!(decode_batch_mark(&changed, &key()).is_err());
}

#[test]
fn what_nothing_gets_to_is_refused() {
    let far = Position::new(TERM_MAX, INDEX_MAX);
    let entry = |position: Position| {
        let Position { term, index } = position;
        let entry = Entry { index, term, payload: Payload::Noop };
        run(&masked(|draft| put_run(draft, index, &[entry])))
    };
    let log_start = |position| {
        let meta = SnapshotMeta { position, ..SnapshotMeta::default() };
        decode_log_start(&masked(|draft| put_log_start(draft, &meta)), &key())
    };
    let hard_state = |Position { term, index }| {
        let hard_state = HardState { term, commit_index: index, ..HardState::INITIAL };
        decode_hard_state(&masked(|draft| put_hard_state(draft, &hard_state)), &key())
    };
    assert!(entry(far).is_ok() && log_start(far).is_ok() && hard_state(far).is_ok());
    for beyond in [Position::new(TERM_MAX + 1, 1), Position::new(1, INDEX_MAX + 1)] {
        assert!(entry(beyond).is_err() && log_start(beyond).is_err());
        assert!(hard_state(beyond).is_err());
    }
    let mark = |number, durable_through| {
        let mark = BatchMark { number, durable_through, content: 0 };
        decode_batch_mark(&encode_batch_mark(mark, &key()), &key())
    };
    assert!(mark(NUMBER_MAX, NUMBER_MAX).is_ok());
    assert!(mark(NUMBER_MAX + 1, 1).is_err() && mark(4, 5).is_err());
    assert!(decode_floor(&encode_floor(u64::MAX)).is_err());
    let published = Published { meta: meta(), content: content(), serial: u64::MAX };
    let published = masked(|draft| put_published(draft, &published));
    assert!(decode_published(&published, &key()).is_err());
}

#[test]
fn a_record_has_one_form() {
    let log_start = |voters: &[u64], founded: u8, members: &[u64]| {
        let put_nodes = |out: &mut Vec<u8>, nodes: &[u64], behind: &[u8]| {
            out.extend_from_slice(&(nodes.len() as u32).to_be_bytes());
            for node in nodes {
                out.extend_from_slice(&node.to_be_bytes());
                out.extend_from_slice(behind);
            }
        };
        let record = masked(|draft| {
            draft.put(KEY_LOG_START, TAG_LOG_START, |out| {
                out.extend_from_slice(&[0; 16]);
                put_nodes(out, voters, &[]);
                out.extend_from_slice(&[0; 8 + 8]);
                out.push(founded);
                out.extend_from_slice(&[0; 8]);
                // No incarnation, no vote wanted, no context.
                put_nodes(out, members, &[0; 8 + 1 + 4]);
            });
        });
        decode_log_start(&record, &key())
    };
    assert!(log_start(&[1, 2, 3], 1, &[1, 3]).is_ok());
    for voters in [&[2, 1][..], &[1, 1], &[0, 1]] {
        assert!(log_start(voters, 0, &[]).is_err(), "{voters:?}");
    }
    for members in [&[4][..], &[2, 1], &[1, 1], &[0]] {
        assert!(log_start(&[1, 2, 3], 0, members).is_err(), "records of {members:?}");
    }
    assert!(log_start(&[1, 2, 3], 2, &[]).is_err(), "neither founded nor not");
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
    let nodes = || proptest::collection::btree_set(1u64.., 0..4);
    let context = proptest::collection::vec(any::<u8>(), 0..20);
    let numbers = any::<(u64, bool, u32, u32)>();
    let contexts = (context.clone(), context);
    (nodes(), nodes(), nodes(), any::<(u64, bool)>(), contexts, numbers).prop_map(
        |(voters, outgoing, learners, (incarnation, wants_vote), contexts, numbers)| {
            let (of_member, context) = contexts;
            let member = Member { incarnation, wants_vote, context: of_member.into() };
            let (next_id, founded, generation, cluster_version) = numbers;
            let members = outgoing.iter().map(|node| (*node, member.clone())).collect();
            Configuration {
                voters,
                outgoing,
                learners,
                members,
                next_id,
                founded,
                generation,
                cluster_version,
                context: context.into(),
            }
        },
    )
}

fn any_meta() -> impl Strategy<Value = SnapshotMeta> {
    (0..=TERM_MAX, 0..=INDEX_MAX, any_configuration()).prop_map(|(term, index, configuration)| {
        SnapshotMeta::new(Position::new(term, index), configuration)
    })
}

fn any_content() -> impl Strategy<Value = SnapshotContent> {
    any::<(u64, u32)>().prop_map(|(size_bytes, checksum)| SnapshotContent { size_bytes, checksum })
}

/// Asserts that a record is read as it was written, and that a shorter or longer one with a right
/// checksum is not read as the same value.
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
        memory in prop::sample::select(vec![Memory::Intact, Memory::New, Memory::Met, Memory::Lost]),
        command in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let [one, other, serial] = numbers.map(|number| number & NUMBER_MAX);
        let serial = serial.min(NUMBER_MAX - 1);
        let Position { term, index } = meta.position;
        let payloads = [
            Payload::Noop,
            Payload::Command(command.into()),
            Payload::Configuration(meta.configuration.clone()),
        ];
        // The indexes of all three are in range.
        let first = index.min(INDEX_MAX - 2);
        let entries = (first..).zip(payloads);
        let entries = entries.map(|(index, payload)| Entry { index, term, payload }).collect();
        let written = Run { first, entries };
        check_any(&written, &masked(|draft| put_run(draft, first, &written.entries)), run);
        let mark = BatchMark {
            number: one.max(other),
            durable_through: one.min(other),
            content: content.checksum,
        };
        let read = |bytes: &[u8]| decode_batch_mark(bytes, &key());
        check_any(&mark, &encode_batch_mark(mark, &key()), read);
        let hard_state = HardState { term, voted_for, commit_index: index, memory };
        let encoded = masked(|draft| put_hard_state(draft, &hard_state));
        check_any(&hard_state, &encoded, |bytes| decode_hard_state(bytes, &key()));
        check_any(&serial, &encode_floor(serial), decode_floor);
        let encoded = masked(|draft| put_log_start(draft, &meta));
        check_any(&meta, &encoded, |bytes| decode_log_start(bytes, &key()));
        let published = Published { meta: meta.clone(), content, serial };
        let encoded = masked(|draft| put_published(draft, &published));
        check_any(&published, &encoded, |bytes| decode_published(bytes, &key()));
        let header = SnapshotHeader { chunk_bytes, meta, expected };
        check_any(&header, &encode_snapshot_header(&header), decode_snapshot_header);
    }
}
