//! Tests the format against its fixtures, against itself, and against bytes that no node sends.

mod random;

use std::path::Path;

use bytes::{BufMut, Bytes};
use proptest::prelude::*;

use super::*;
use crate::types::{
    Configuration, Entry, INDEX_MAX, Member, MessageBody, Payload, Position, ReadOutcome, TERM_MAX,
};

/// One frame with its length prefix.
fn encode(message: &Message) -> Vec<u8> {
    let mut encoder = Encoder::new(Version::V2);
    encoder.push(message).unwrap();
    encoder.take().concat()
}

fn decode_frame(bytes: &[u8]) -> Result<Message, CodecError> {
    let length = u32::from_be_bytes(bytes[..LENGTH_BYTES].try_into().unwrap());
    assert_eq!(length as usize, bytes.len() - LENGTH_BYTES);
    decode(Bytes::copy_from_slice(&bytes[LENGTH_BYTES..]))
}

fn decode(frame: Bytes) -> Result<Message, CodecError> {
    super::decode(Version::V2, frame)
}

fn entry(term: u64, index: u64, payload: Payload) -> Entry {
    Entry { index, term, payload }
}

fn command(term: u64, index: u64, bytes: &'static [u8]) -> Entry {
    entry(term, index, Payload::Command(Bytes::from_static(bytes)))
}

fn append(term: u64, previous: Position, entries: Vec<Entry>) -> Message {
    Message::new(term, MessageBody::AppendEntries { previous, entries, commit_index: 6 })
}

fn joint() -> Configuration {
    let member = |incarnation, wants_vote, context: &'static [u8]| Member {
        incarnation,
        wants_vote,
        context: Bytes::from_static(context),
    };
    Configuration {
        voters: [1, 2, 300].into(),
        outgoing: [1, 4].into(),
        learners: [70_000].into(),
        members: [(1, member(77, false, b"")), (70_000, member(u64::MAX, true, b"zone b"))].into(),
        next_id: 70_001,
        founded: true,
        generation: 2,
        cluster_version: 300,
        context: Bytes::new(),
    }
}

/// One message per kind, and one entry per kind.
fn fixtures() -> Vec<(&'static str, Message)> {
    let last = Position::new(3, 300);
    let entries = vec![
        entry(3, 301, Payload::Noop),
        command(3, 302, b"put a 1"),
        command(3, 303, b""),
        entry(4, 304, Payload::Configuration(Box::new(joint()))),
        command(4, 305, b"put b 2"),
    ];
    let context = Bytes::from_static(b"settings");
    let in_context = Configuration { context, ..joint() };
    let in_context = Payload::Configuration(Box::new(in_context));
    let message = |body| Message::new(4, body);
    let read = |outcome| message(MessageBody::ReadIndexResponse { id: 5, outcome });
    let founding = |heard| MessageBody::Founding {
        number: 70_000,
        heard,
        met: heard.is_some(),
        version_max: 2,
    };
    vec![
        ("pre_vote", message(MessageBody::RequestPreVote { last })),
        ("pre_vote_answer", message(MessageBody::PreVoteResponse { granted: true })),
        ("vote", message(MessageBody::RequestVote { last, transfer: true })),
        ("vote_answer", message(MessageBody::VoteResponse { granted: false })),
        ("append", append(4, last, entries)),
        ("append_in_context", append(4, last, vec![entry(3, 301, in_context)])),
        ("append_empty", append(4, Position::ZERO, vec![])),
        ("append_accepted", message(MessageBody::AppendAccepted { match_index: INDEX_MAX })),
        ("append_rejected", message(MessageBody::AppendRejected { previous_index: 9, hint: last })),
        ("heartbeat", message(MessageBody::Heartbeat { round: 70_000, commit_index: 6 })),
        (
            "heartbeat_answer",
            message(MessageBody::HeartbeatResponse { round: 70_000, version_max: 3 }),
        ),
        ("read_index", message(MessageBody::ReadIndex { id: 5 })),
        ("read_index_answer", read(ReadOutcome::Confirmed(6))),
        ("read_index_answer_not_leader", read(ReadOutcome::NotLeader)),
        ("read_index_answer_busy", read(ReadOutcome::Busy)),
        ("timeout_now", message(MessageBody::TimeoutNow { last })),
        ("recovered", message(MessageBody::Recovered { number: 70_000 })),
        ("founding", Message::new(0, founding(None))),
        ("founding_met", Message::new(0, founding(Some(9)))),
        (
            "from_recovering",
            Message {
                recovering: Some(70_000),
                ..message(MessageBody::AppendAccepted { match_index: 9 })
            },
        ),
    ]
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chunks(32).map(|line| line.join(" ") + "\n").collect()
}

fn fixture_folder(version: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version)
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// Returns the bytes of a fixture. With `WRITE_FIXTURES` set, a missing one is written: the format
/// is new. An existing one is never overwritten: a changed format needs another version.
fn fixture(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = fixture_folder("raft-2").join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("WRITE_FIXTURES").is_some() {
        std::fs::write(&path, hex(encoded)).unwrap();
    }
    unhex(&std::fs::read_to_string(&path).unwrap())
}

#[test]
fn the_format_is_that_of_the_fixtures() {
    let mut names = Vec::new();
    for (name, message) in fixtures() {
        let encoded = encode(&message);
        let stored = fixture(name, &encoded);
        assert_eq!(hex(&encoded), hex(&stored), "{name} is written in another way");
        assert_eq!(decode_frame(&stored), Ok(message), "{name} is read in another way");
        names.push(format!("{name}.hex"));
    }
    let files = std::fs::read_dir(fixture_folder("raft-2")).unwrap();
    for file in files {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name} is not read");
    }
}

/// Version 1 was never released. A frame of it must not pass for another message.
#[test]
fn frames_of_version_1_are_refused() {
    let files = std::fs::read_dir(fixture_folder("raft-1")).unwrap();
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        let frame = unhex(&std::fs::read_to_string(&path).unwrap());
        assert!(decode_frame(&frame).is_err(), "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 16);
}

#[test]
fn many_messages_share_a_write_and_large_commands_are_not_copied() {
    let large = Bytes::from(vec![7; 10_000]);
    let entries = vec![
        command(1, 1, b"small"),
        entry(1, 2, Payload::Command(large.clone())),
        command(1, 3, b"small too"),
    ];
    let messages = [
        append(1, Position::ZERO, entries),
        Message::new(1, MessageBody::ReadIndex { id: 1 }),
        append(1, Position::ZERO, vec![]),
    ];
    let mut encoder = Encoder::new(Version::NEWEST);
    for message in &messages {
        encoder.push(message).unwrap();
    }
    let chunks = encoder.take();
    assert_eq!(chunks.len(), 3);
    assert_eq!(chunks[1].as_ptr(), large.as_ptr());
    assert_eq!(chunks.concat(), messages.iter().flat_map(encode).collect::<Vec<_>>());
    assert!(encoder.take().is_empty());
}

#[test]
fn commands_are_slices_of_the_frame() {
    let frame = Bytes::from(encode(&append(1, Position::ZERO, vec![command(1, 1, b"abc")])));
    let message = decode(frame.slice(LENGTH_BYTES..)).unwrap();
    let MessageBody::AppendEntries { entries, .. } = message.body else {
        panic!("an append was encoded")
    };
    let Payload::Command(command) = &entries[0].payload else { panic!("a command was encoded") };
    assert_eq!(command.as_ptr(), frame[frame.len() - 3..].as_ptr());
}

/// S5. The two limits agree: the largest entry fits into a frame, one more byte does not.
#[test]
fn the_largest_entry_fits_into_a_frame() {
    let of_size = |size_bytes: u64| {
        let overhead = entry(1, 1, Payload::Noop).size_bytes();
        let bytes = Bytes::from(vec![0; (size_bytes - overhead) as usize]);
        append(
            TERM_MAX,
            Position::new(TERM_MAX, INDEX_MAX - 1),
            vec![entry(TERM_MAX, INDEX_MAX, Payload::Command(bytes))],
        )
    };
    let largest = of_size(ENTRY_BYTES_MAX);
    let frame = encode(&largest);
    assert!(frame.len() <= LENGTH_BYTES + FRAME_BYTES_MAX);
    assert_eq!(decode_frame(&frame), Ok(largest));
    let mut encoder = Encoder::new(Version::NEWEST);
    let refused = encoder.push(&of_size(ENTRY_BYTES_MAX + ROOM_BYTES));
    assert!(matches!(refused, Err(CodecError::TooLarge { .. })), "{refused:?}");
    assert!(encoder.take().is_empty(), "nothing of it is written");
}

/// A frame (without its length) from the values of a header and a payload.
fn frame(header: &[u8], payload: &[u8]) -> Bytes {
    let length = (header.len() as u32).to_be_bytes();
    [&length, header, payload].concat().into()
}

/// Kind 4, group 0, term 5, `[[previous_term, 9], commit 0, run count]`, then runs.
fn append_header(previous_term: u8, run_count: u8, runs: &[u8]) -> Vec<u8> {
    let mut header = vec![4, 0, 5, 0x93, 0x92, previous_term, 9, 0, run_count];
    header.extend_from_slice(runs);
    header
}

/// A run of one command: `[kind 1, term]`, then the array of its length.
fn run(term: u8, length: u8) -> [u8; 5] {
    [0x92, 1, term, 0x91, length]
}

#[test]
fn entries_keep_the_rules_of_a_log() {
    let header = append_header;
    let two = [run(3, 1), run(5, 1)].concat();
    let good = decode(frame(&header(3, 2, &two), b"xy")).unwrap();
    let expected = vec![command(3, 10, b"x"), command(5, 11, b"y")];
    assert!(matches!(good.body, MessageBody::AppendEntries { entries, .. } if entries == expected));

    // `[2, term 3]`, then the configuration: voters, outgoing, learners, records and four numbers.
    let configuration = |sets: &[u8]| {
        let mut run = vec![0x92, 2, 3, 0x98];
        run.extend_from_slice(sets);
        run.extend_from_slice(&[9, 0xc3, 0, 1]);
        header(3, 1, &run)
    };
    assert!(decode(frame(&configuration(&[0x92, 1, 2, 0x90, 0x90, 0x90]), b"")).is_ok());
    let record = |id: u8| [0x91, 0x94, id, 7, 0xc2, 0xc4, 0];
    let with_record = |id| configuration(&[&[0x92, 1, 2, 0x90, 0x90], &record(id)[..]].concat());
    assert!(decode(frame(&with_record(2), b"")).is_ok());

    for (what, header, payload) in [
        ("falls below the previous", header(3, 1, &run(2, 1)), &b"x"[..]),
        ("passes the message's", header(3, 1, &run(6, 1)), b"x"),
        ("falls", header(3, 2, &[run(5, 1), run(4, 1)].concat()), b"xy"),
        ("previous is later", header(6, 0, &[]), b""),
        ("term 0", header(0, 1, &run(0, 1)), b"x"),
        ("too long", header(3, 1, &run(3, 2)), b"x"),
        ("left over", header(3, 1, &run(3, 1)), b"xy"),
        ("left over without entries", header(3, 0, &[]), b"x"),
        ("unknown kind of run", header(3, 1, &[0x92, 3, 3]), b""),
        ("half a run", header(3, 1, &run(3, 1)[..3]), b""),
        ("fewer runs than said", header(3, 2, &run(3, 1)), b"x"),
        ("more runs than said", header(3, 1, &two), b"xy"),
        ("a run of nothing", header(3, 1, &[0x92, 1, 3, 0x90]), b""),
        ("members twice", configuration(&[0x92, 1, 1, 0x90, 0x90, 0x90]), b""),
        ("members out of order", configuration(&[0x92, 2, 1, 0x90, 0x90, 0x90]), b""),
        ("member 0", configuration(&[0x91, 0, 0x90, 0x90, 0x90]), b""),
        ("a record of a stranger", with_record(3), b""),
        ("a value too few", vec![5, 0, 5], b""),
        ("an unknown kind", vec![14, 0, 5], b""),
        ("an unknown kind that recovers", vec![63, 0, 5], b""),
        ("another group", vec![9, 1, 5, 1], b""),
        ("an unknown outcome", vec![10, 0, 5, 0x93, 1, 3, 0], b""),
        ("an index of no read", vec![10, 0, 5, 0x93, 1, 2, 9], b""),
        ("founding after term 0", vec![13, 0, 1, 0x94, 7, 0xc0, 0xc2, 1], b""),
        ("nothing", vec![], b""),
        ("a negative number", vec![0xff, 0, 5], b""),
        ("a text", vec![9, 0, 0xa1, b'5', 1], b""),
    ] {
        assert!(decode(frame(&header, payload)).is_err(), "{what}");
    }
    assert!(decode(Bytes::from_static(&[0, 0, 0])).is_err(), "no header length");
    assert!(decode(Bytes::from_static(&[0, 0, 0, 9, 9, 0, 5, 1])).is_err(), "header too long");
}

/// A later minor version adds fields; this version skips the fields it does not know.
#[test]
fn unknown_extensions_are_passed_over_within_bounds() {
    let with = |extensions: &[u8]| {
        let mut header = vec![9, 0, 5, 1];
        header.extend_from_slice(extensions);
        decode(frame(&header, b""))
    };
    let known = Message::new(5, MessageBody::ReadIndex { id: 1 });
    assert_eq!(with(b""), Ok(known.clone()));
    assert_eq!(with(b"\x92\x01\x00"), Ok(known.clone()), "one of no bytes");
    assert_eq!(with(b"\x92\x01\x03abc\x92\x07\x01\xff"), Ok(known.clone()));
    for (what, extensions) in [
        ("a key twice", &b"\x92\x01\x00\x92\x01\x00"[..]),
        ("keys that fall", b"\x92\x02\x00\x92\x01\x00"),
        ("longer than the header", b"\x92\x01\x04abc"),
        ("a length beyond all", b"\x92\x01\xce\xff\xff\xff\xff"),
        ("no extension", b"\x01"),
        ("half of one", b"\x92\x01"),
    ] {
        assert!(with(extensions).is_err(), "{what}");
    }
    let mut long = vec![0x92, 1, 0xcd];
    long.put_u16((EXTENSIONS_BYTES_MAX - 5) as u16);
    long.resize(EXTENSIONS_BYTES_MAX, 0);
    assert_eq!(with(&long), Ok(known));
    long[4] += 1;
    long.push(0);
    assert!(with(&long).is_err(), "one byte too many");
    // After the entries as well.
    let mut header = append_header(3, 1, &run(3, 1));
    header.extend_from_slice(b"\x92\x01\x01z");
    assert!(decode(frame(&header, b"x")).is_ok());
}

#[test]
fn claims_of_millions_cost_nothing() {
    // A run whose array of lengths claims four billion.
    let claim = append_header(3, 1, &[0x92, 1, 3, 0xdd, 0xff, 0xff, 0xff, 0xff]);
    assert!(decode(frame(&claim, b"")).is_err());
    // Empty commands that are all there, and are charged more than a message may be.
    let count = 2_000_000u32;
    let mut many = append_header(3, 1, &[0x92, 1, 3, 0xdd]);
    many.extend_from_slice(&count.to_be_bytes());
    many.resize(many.len() + count as usize, 0);
    assert!(decode(frame(&many, b"")).is_err());
    // A claim of four billion members, and more members than a configuration may have.
    for claim in [&[0xdd, 0xff, 0xff, 0xff, 0xff, 1][..], &[0xdc, 0x20, 0]] {
        let mut header = append_header(3, 1, &[0x92, 2, 3, 0x98]);
        header.extend_from_slice(claim);
        (1..=0x2000u16).for_each(|id| {
            header.push(0xcd);
            header.put_u16(id);
        });
        header.extend_from_slice(&[0x90, 0x90, 0x90, 9, 0xc3, 0, 1]);
        assert!(decode(frame(&header, b"")).is_err());
    }
    // More runs than there are bytes.
    let mut runs = append_header(3, 0, &[]);
    runs.pop();
    runs.extend_from_slice(&[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(decode(frame(&runs, b"")).is_err());
}

#[test]
fn every_cut_and_every_flip_of_the_fixtures_is_survived() {
    for (name, message) in fixtures() {
        let frame = Bytes::from(encode(&message)).slice(LENGTH_BYTES..);
        for cut in 0..frame.len() {
            assert!(decode(frame.slice(..cut)).is_err(), "{name} cut at {cut}");
        }
        for place in 0..frame.len() {
            for bit in 0..8 {
                let mut flipped = frame.to_vec();
                flipped[place] ^= 1 << bit;
                check_decoded(flipped.into());
            }
        }
    }
}

#[test]
fn numbers_from_which_no_node_can_count_on_are_refused() {
    let term = Position::new(TERM_MAX + 1, 1);
    let index = Position::new(1, INDEX_MAX + 1);
    let beyond = INDEX_MAX + 1;
    let read = ReadOutcome::Confirmed(beyond);
    let last = |last| MessageBody::RequestVote { last, transfer: false };
    let append = |previous, commit_index| MessageBody::AppendEntries {
        previous,
        entries: vec![],
        commit_index,
    };
    for message in [
        Message::new(TERM_MAX + 1, last(Position::ZERO)),
        Message::new(u64::MAX, MessageBody::Heartbeat { round: 1, commit_index: 1 }),
        Message::new(1, MessageBody::RequestPreVote { last: term }),
        Message::new(1, MessageBody::RequestPreVote { last: index }),
        Message::new(1, last(term)),
        Message::new(1, last(index)),
        Message::new(1, MessageBody::TimeoutNow { last: term }),
        Message::new(1, MessageBody::TimeoutNow { last: index }),
        Message::new(1, MessageBody::AppendRejected { previous_index: 1, hint: term }),
        Message::new(1, MessageBody::AppendRejected { previous_index: 1, hint: index }),
        Message::new(
            1,
            MessageBody::AppendRejected { previous_index: beyond, hint: Position::ZERO },
        ),
        Message::new(1, MessageBody::AppendAccepted { match_index: beyond }),
        Message::new(1, MessageBody::Heartbeat { round: 1, commit_index: beyond }),
        Message::new(1, append(index, 1)),
        Message::new(1, append(Position::ZERO, beyond)),
        Message::new(1, MessageBody::ReadIndexResponse { id: 1, outcome: read }),
    ] {
        assert!(check(&message).is_err(), "{message:?}");
        assert!(decode_frame(&encode(&message)).is_err(), "{message:?}");
    }
    let previous = Position::new(1, INDEX_MAX);
    let after = Entry { index: beyond, term: 1, payload: Payload::Noop };
    let body = MessageBody::AppendEntries { previous, entries: vec![after], commit_index: 0 };
    assert!(decode_frame(&encode(&Message::new(1, body))).is_err());
    let last = Message::new(TERM_MAX, last(Position::new(TERM_MAX, INDEX_MAX)));
    assert_eq!(decode_frame(&encode(&last)), Ok(last));
}

/// [`check`] alone refuses these messages, for a transport that does not use this codec.
#[test]
fn entries_that_are_not_in_a_row_are_refused() {
    let append = |entries| append(5, Position::new(3, 9), entries);
    assert_eq!(check(&append(vec![command(3, 10, b""), command(4, 11, b"")])), Ok(()));
    for entries in [
        vec![command(3, 11, b"")],
        vec![command(3, 9, b"")],
        vec![command(3, 10, b""), command(3, 10, b"")],
        vec![command(3, 10, b""), command(3, 12, b"")],
        vec![command(2, 10, b"")],
        vec![command(6, 10, b"")],
    ] {
        let message = append(entries);
        assert!(matches!(check(&message), Err(CodecError::Rule(_))), "{message:?}");
    }
}

/// A message that decodes keeps the rules, and encodes to bytes that decode to the same message.
fn check_decoded(frame: Bytes) {
    let Ok(message) = decode(frame) else { return };
    assert_eq!(check(&message), Ok(()));
    assert_eq!(decode_frame(&encode(&message)), Ok(message));
}
