//! The format against its fixtures, against itself, and against bytes that nobody should send.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use raft_core::types::{
    Body, Class, Configuration, Entry, Message, Payload, Position, ReadOutcome, TERM_MAX,
};

use super::frame::{FRAME_BYTES_MAX, FrameBuffer};
use super::hello::Hello;
use super::message::{Encoder, decode};
use super::*;

/// One frame with its length.
fn encode(message: &Message) -> Vec<u8> {
    let mut encoder = Encoder::default();
    encoder.push(message).unwrap();
    encoder.take().concat()
}

fn decode_frame(bytes: &[u8]) -> Result<Message, WireError> {
    let mut buffer = FrameBuffer::new(FRAME_BYTES_MAX);
    buffer.room().unwrap().extend_from_slice(bytes);
    let frame = buffer.pop()?.ok_or(WireError::Rule { what: "test", rule: "incomplete" })?;
    assert!(buffer.is_empty());
    decode(frame)
}

fn entry(term: u64, index: u64, payload: Payload) -> Entry {
    Entry { index, term, payload }
}

fn command(term: u64, index: u64, bytes: &'static [u8]) -> Entry {
    entry(term, index, Payload::Command(Bytes::from_static(bytes)))
}

fn append(term: u64, previous: Position, entries: Vec<Entry>) -> Message {
    Message::new(term, Body::Append { previous, entries, commit_index: 6 })
}

/// One per kind, and one per kind of entry.
fn fixtures() -> Vec<(&'static str, Message)> {
    let last = Position::new(3, 300);
    let joint = Configuration {
        voters: [1, 2, 300].into(),
        outgoing: [1, 4].into(),
        learners: [70_000].into(),
        ..Configuration::default()
    };
    let entries = vec![
        entry(3, 301, Payload::Noop),
        command(3, 302, b"put a 1"),
        command(3, 303, b""),
        entry(4, 304, Payload::Configuration(joint)),
        command(4, 305, b"put b 2"),
    ];
    let message = |body| Message::new(4, body);
    vec![
        ("pre_vote", message(Body::PreVote { last })),
        ("pre_vote_answer", message(Body::PreVoteAnswer { granted: true })),
        ("vote", message(Body::Vote { last, transfer: true })),
        ("vote_answer", message(Body::VoteAnswer { granted: false })),
        ("append", append(4, last, entries)),
        ("append_empty", append(4, Position::ZERO, vec![])),
        ("append_accepted", message(Body::AppendAccepted { match_index: u64::MAX })),
        ("append_rejected", message(Body::AppendRejected { previous_index: 9, hint: last })),
        ("heartbeat", message(Body::Heartbeat { round: 70_000, commit_index: 6 })),
        ("heartbeat_answer", message(Body::HeartbeatAnswer { round: 70_000, version_max: 2 })),
        ("read_index", message(Body::ReadIndex { id: 5 })),
        (
            "read_index_answer",
            message(Body::ReadIndexAnswer { id: 5, outcome: ReadOutcome::Confirmed(6) }),
        ),
        (
            "read_index_answer_none",
            message(Body::ReadIndexAnswer { id: 5, outcome: ReadOutcome::NotLeader }),
        ),
        ("timeout_now", message(Body::TimeoutNow { last: Position::new(3, 4) })),
        ("recovered", message(Body::Recovered { number: 70_000 })),
        (
            "from_recovering",
            Message {
                recovering: Some(70_000),
                ..message(Body::AppendAccepted { match_index: 9 })
            },
        ),
    ]
}

fn hello() -> Hello {
    Hello { cluster_id: "test".into(), node_id: 3, incarnation: 300, class: Class::Log }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chunks(32).map(|line| line.join(" ") + "\n").collect()
}

/// The bytes of a fixture. With `WRITE_FIXTURES` set, one that is missing is written: a format that is
/// new. An existing one is never overwritten: a format that changed needs another ALPN.
fn fixture(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("WRITE_FIXTURES").is_some() {
        std::fs::write(&path, hex(encoded)).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn the_format_is_that_of_the_fixtures() {
    for (name, message) in fixtures() {
        let encoded = encode(&message);
        let stored = fixture(name, &encoded);
        assert_eq!(hex(&encoded), hex(&stored), "{name} is written in another way");
        assert_eq!(decode_frame(&stored), Ok(message), "{name} is read in another way");
    }
    let encoded = hello().encode();
    assert_eq!(hex(&encoded), hex(&fixture("hello", &encoded)));
    assert_eq!(Hello::decode(&encoded[4..]), Ok(hello()));
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
        Message::new(1, Body::TimeoutNow { last: Position::ZERO }),
        append(1, Position::ZERO, vec![]),
    ];
    let mut encoder = Encoder::default();
    messages.iter().for_each(|message| encoder.push(message).unwrap());
    let chunks = encoder.take();
    assert_eq!(chunks.len(), 3);
    assert_eq!(chunks[1].as_ptr(), large.as_ptr());
    assert!(encoder.take().is_empty());

    let mut buffer = FrameBuffer::new(FRAME_BYTES_MAX);
    let mut decoded = Vec::new();
    // However the network cuts it.
    for piece in chunks.concat().chunks(7) {
        buffer.room().unwrap().extend_from_slice(piece);
        while let Some(frame) = buffer.pop().unwrap() {
            decoded.push(decode(frame).unwrap());
        }
    }
    assert_eq!(decoded, messages);
}

#[test]
fn a_length_is_checked_before_there_is_room_for_it() {
    for (claimed, allowed) in [(0u32, false), (101, false), (u32::MAX, false), (100, true)] {
        let mut buffer = FrameBuffer::new(100);
        buffer.room().unwrap().extend_from_slice(&claimed.to_be_bytes());
        assert_eq!(buffer.pop().is_ok(), allowed);
        assert_eq!(buffer.room().is_ok(), allowed);
    }
}

#[test]
fn a_length_is_believed_as_far_as_bytes_come() {
    let body: Vec<u8> = (0..FRAME_BYTES_MAX).map(|place| place as u8).collect();
    let mut buffer = FrameBuffer::new(FRAME_BYTES_MAX);
    let prefix = (FRAME_BYTES_MAX as u32).to_be_bytes();
    buffer.room().unwrap().extend_from_slice(&prefix);
    let mut received = prefix.len();
    for piece in body.chunks(1 << 20) {
        let room = buffer.room().unwrap();
        assert!(room.capacity() <= 4 * received.max(1 << 20), "{} at {received}", room.capacity());
        room.extend_from_slice(piece);
        received += piece.len();
    }
    assert!(buffer.pop().unwrap().unwrap() == body);
}

#[test]
fn what_fits_no_frame_is_not_written() {
    let bytes = Bytes::from(vec![0; FRAME_BYTES_MAX - 40]);
    let too_large = append(1, Position::ZERO, vec![entry(1, 1, Payload::Command(bytes))]);
    let mut encoder = Encoder::default();
    assert!(matches!(encoder.push(&too_large), Err(WireError::FrameLength { .. })));
    assert!(encoder.take().is_empty());
}

/// A frame (without its length) from the values of a header and a payload.
fn frame(header: &[u8], payload: &[u8]) -> Bytes {
    let length = (header.len() as u32).to_be_bytes();
    [&length, header, payload].concat().into()
}

#[test]
fn entries_keep_the_rules_of_a_log() {
    // Kind 4, term 5, ([term 3, index 9], commit 0), then runs: (1, term) and lengths.
    let header = |previous_term: u8, runs: &[u8]| {
        let mut header = vec![4, 5, 0x92, 0x92, previous_term, 9, 0];
        header.extend_from_slice(runs);
        header
    };
    let run = |term: u8, length: u8| [0x92, 1, term, 0x91, length];
    let good = decode(frame(&header(3, &[run(3, 1), run(5, 1)].concat()), b"xy")).unwrap();
    let expected = vec![command(3, 10, b"x"), command(5, 11, b"y")];
    assert!(matches!(good.body, Body::Append { entries, .. } if entries == expected));

    for (what, header, payload) in [
        ("falls below the previous", header(3, &run(2, 1)), &b"x"[..]),
        ("passes the message's", header(3, &run(6, 1)), b"x"),
        ("falls", header(3, &[run(5, 1), run(4, 1)].concat()), b"xy"),
        ("previous is later", header(6, &[]), b""),
        ("term 0", header(0, &run(0, 1)), b"x"),
        ("too long", header(3, &run(3, 2)), b"x"),
        ("left over", header(3, &run(3, 1)), b"xy"),
        ("left over without entries", header(3, &[]), b"x"),
        ("unknown kind of run", header(3, &[0x92, 3, 3]), b""),
        ("half a run", header(3, &run(3, 1)[..3]), b""),
        ("a run of nothing", header(3, &[0x92, 1, 9, 0x90]), b""),
        ("members twice", header(3, &[0x92, 2, 3, 0x93, 0x92, 1, 1, 0x90, 0x90]), b""),
        ("members out of order", header(3, &[0x92, 2, 3, 0x93, 0x92, 2, 1, 0x90, 0x90]), b""),
        ("member 0", header(3, &[0x92, 2, 3, 0x93, 0x91, 0, 0x90, 0x90]), b""),
        ("a value too many", vec![11, 5, 0], b""),
        ("a value too few", vec![5, 5], b""),
        ("an unknown kind", vec![12, 5], b""),
        ("nothing", vec![], b""),
        ("a negative number", vec![0xff, 5], b""),
        ("a text", vec![11, 0xa1, b'5'], b""),
    ] {
        assert!(decode(frame(&header, payload)).is_err(), "{what}");
    }
    assert!(decode(Bytes::from_static(&[0, 0, 0])).is_err(), "no header length");
    assert!(decode(Bytes::from_static(&[0, 0, 0, 9, 11, 5])).is_err(), "header too long");
}

#[test]
fn an_index_does_not_overflow() {
    let max = Position::new(1, u64::MAX);
    let mut bytes = BytesMut::new();
    let mut values = vec![];
    for value in [
        rmp_serde::to_vec(&4u8).unwrap(),
        rmp_serde::to_vec(&1u64).unwrap(),
        rmp_serde::to_vec(&(max, 0u64)).unwrap(),
        rmp_serde::to_vec(&(0u8, 1u64)).unwrap(),
    ] {
        values.extend(value);
    }
    bytes.extend_from_slice(&frame(&values, b""));
    assert!(decode(bytes.freeze()).is_err());
}

#[test]
fn claims_of_millions_cost_nothing() {
    // A run whose array of lengths claims four billion, and one of empty commands that are all there
    // but weigh more than a message may.
    let claim = [4, 5, 0x92, 0x92, 3, 9, 0, 0x92, 1, 3, 0xdd, 0xff, 0xff, 0xff, 0xff];
    assert!(decode(frame(&claim, b"")).is_err());
    let count = 2_000_000u32;
    let mut many = claim[..10].to_vec();
    many.push(0xdd);
    many.extend_from_slice(&count.to_be_bytes());
    many.resize(many.len() + count as usize, 0);
    assert!(decode(frame(&many, b"")).is_err());
}

#[test]
fn every_cut_and_every_flip_of_the_fixtures_is_survived() {
    for (name, message) in fixtures() {
        let frame = Bytes::from(encode(&message)).slice(4..);
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
fn a_term_from_which_no_node_can_count_on_is_refused() {
    let last = Position::new(TERM_MAX + 1, 1);
    for message in [
        Message::new(TERM_MAX + 1, Body::Vote { last: Position::ZERO, transfer: false }),
        Message::new(u64::MAX, Body::Heartbeat { round: 1, commit_index: 1 }),
        Message::new(1, Body::PreVote { last }),
        Message::new(1, Body::Vote { last, transfer: false }),
        Message::new(1, Body::AppendRejected { previous_index: 1, hint: last }),
    ] {
        assert!(decode_frame(&encode(&message)).is_err(), "{message:?}");
    }
    let last = Message::new(TERM_MAX, Body::TimeoutNow { last: Position::ZERO });
    assert_eq!(decode_frame(&encode(&last)), Ok(last));
}

/// Whatever decodes keeps the rules, and is written again as something that decodes to the same.
fn check_decoded(frame: Bytes) {
    let Ok(message) = decode(frame) else { return };
    if let Body::Append { previous, entries, .. } = &message.body {
        let mut last = *previous;
        for entry in entries {
            assert_eq!(entry.index, last.index + 1);
            assert!(entry.term >= last.term && entry.term <= message.term);
            last = entry.position();
        }
    }
    assert_eq!(decode_frame(&encode(&message)), Ok(message));
}

fn position() -> impl Strategy<Value = Position> {
    (0..=TERM_MAX, any::<u64>()).prop_map(|(term, index)| Position::new(term, index))
}

fn payload() -> impl Strategy<Value = Payload> {
    let members = || proptest::collection::btree_set(1u64.., 0..4);
    let size = prop_oneof![8 => 0usize..100, 1 => 4_000usize..9_000];
    prop_oneof![
        1 => Just(Payload::Noop),
        6 => (any::<u8>(), size)
            .prop_map(|(byte, size)| Payload::Command(vec![byte; size].into())),
        1 => (members(), members(), members()).prop_map(|(voters, outgoing, learners)| {
            Payload::Configuration(Configuration {
                voters,
                outgoing,
                learners,
                ..Configuration::default()
            })
        }),
    ]
}

fn any_append() -> impl Strategy<Value = Message> {
    let entries = proptest::collection::vec((0u64..3, payload()), 0..20);
    (1u64..1 << 40, 0u64..1 << 40, entries, any::<u64>(), 0u64..3).prop_map(
        |(first_term, previous_index, steps, commit_index, ahead)| {
            let previous = Position::new(first_term, previous_index);
            let mut last = previous;
            let mut entries = Vec::new();
            for (step, payload) in steps {
                last = Position::new(last.term + step, last.index + 1);
                entries.push(entry(last.term, last.index, payload));
            }
            Message::new(last.term + ahead, Body::Append { previous, entries, commit_index })
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let n = any::<u64>;
    let body = prop_oneof![
        position().prop_map(|last| Body::PreVote { last }),
        any::<bool>().prop_map(|granted| Body::PreVoteAnswer { granted }),
        (position(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
        any::<bool>().prop_map(|granted| Body::VoteAnswer { granted }),
        n().prop_map(|match_index| Body::AppendAccepted { match_index }),
        (n(), position())
            .prop_map(|(previous_index, hint)| Body::AppendRejected { previous_index, hint }),
        (n(), n()).prop_map(|(round, commit_index)| Body::Heartbeat { round, commit_index }),
        (n(), any::<u32>())
            .prop_map(|(round, version_max)| Body::HeartbeatAnswer { round, version_max }),
        n().prop_map(|id| Body::ReadIndex { id }),
        (n(), any::<Option<u64>>()).prop_map(|(id, index)| Body::ReadIndexAnswer {
            id,
            outcome: index.map_or(ReadOutcome::NotLeader, ReadOutcome::Confirmed)
        }),
        position().prop_map(|last| Body::TimeoutNow { last }),
        n().prop_map(|number| Body::Recovered { number }),
    ];
    let message = prop_oneof![
        (0..=TERM_MAX, body).prop_map(|(term, body)| Message::new(term, body)),
        any_append(),
    ];
    (message, any::<Option<u64>>())
        .prop_map(|(message, recovering)| Message { recovering, ..message })
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in message()) {
        prop_assert_eq!(decode_frame(&encode(&message)), Ok(message));
    }

    #[test]
    fn a_hello_that_is_written_is_read(
        cluster_id in ".{0,63}", node_id in any::<u64>(), incarnation in any::<u64>(),
        class in prop::sample::select(&Class::ALL[..]), more in any::<u8>(),
    ) {
        let hello = Hello { cluster_id, node_id, incarnation, class };
        let frame = hello.encode().slice(4..);
        prop_assert_eq!(Hello::decode(&frame), Ok(hello));
        prop_assert!(Hello::decode(&[&frame[..], &[more]].concat()).is_err());
        for end in 0..frame.len() {
            prop_assert!(Hello::decode(&frame[..end]).is_err());
        }
    }

    #[test]
    fn how_a_stream_is_cut_does_not_matter(
        messages in proptest::collection::vec(message(), 0..4),
        cuts in proptest::collection::vec(1usize..3_000, 1..10),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(encode).collect();
        let mut buffer = FrameBuffer::new(FRAME_BYTES_MAX);
        let (mut rest, mut read) = (&stream[..], Vec::new());
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece;
            (piece, rest) = rest.split_at(cut.min(rest.len()));
            buffer.room().unwrap().extend_from_slice(piece);
            while let Some(frame) = buffer.pop().unwrap() {
                read.push(decode(frame).unwrap());
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(read, messages);
    }

    #[test]
    fn damage_is_survived(message in message(), cut in any::<prop::sample::Index>(),
                          place in any::<prop::sample::Index>(), value in any::<u8>()) {
        let frame = Bytes::from(encode(&message)).slice(4..);
        prop_assert!(decode(frame.slice(..cut.index(frame.len()))).is_err());
        let mut damaged = frame.to_vec();
        let place = place.index(frame.len());
        damaged[place] = value;
        check_decoded(damaged.into());
    }

    #[test]
    fn noise_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Hello::decode(&noise);
        check_decoded(frame(&noise, b"payload"));
        check_decoded(noise.into());
    }
}
