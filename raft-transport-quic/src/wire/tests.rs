//! Frames and the hello against fixtures, against themselves, and against bytes that no node sends.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use proptest::prelude::*;
use raft_core::codec::{FRAME_BYTES_MAX, LENGTH_BYTES};
use raft_core::types::Class;

use super::frame::FrameBuffer;
use super::hello::{HELLO_BYTES_MAX, Hello, MEMBERS_LISTED_MAX, Members};
use super::*;

fn members(ids: impl IntoIterator<Item = u64>) -> Members {
    Members::new(&ids.into_iter().collect::<BTreeSet<_>>())
}

fn hello() -> Hello {
    Hello {
        cluster_id: "test".into(),
        cluster_uid: 0x1234_5678_9abc_def0_0fed_cba9_8765_4321,
        node_id: 3,
        incarnation: 300,
        class: Class::Log,
        versions: (1, 2),
        members: members([1, 2, 3]),
        generation: 4,
        founded: true,
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chunks(32).map(|line| line.join(" ") + "\n").collect()
}

fn fixture_path(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version).join("hello.hex")
}

fn read_fixture(path: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// With `WRITE_FIXTURES` set, a fixture that is missing is written. An existing one is never
/// overwritten: a format that changed needs another version.
#[test]
fn the_hello_is_that_of_the_fixture() {
    let encoded = hello().encode();
    let path = fixture_path("raft-2");
    if !path.exists() && std::env::var_os("WRITE_FIXTURES").is_some() {
        std::fs::write(&path, hex(&encoded)).unwrap();
    }
    assert_eq!(hex(&encoded), hex(&read_fixture(&path)));
    assert_eq!(Hello::decode(&encoded[LENGTH_BYTES..]), Ok(hello()));
}

#[test]
fn the_hello_of_version_1_is_refused() {
    let refused = Hello::decode(&read_fixture(&fixture_path("raft-1"))[LENGTH_BYTES..]);
    assert!(matches!(refused, Err(WireError::Undecodable { .. })), "{refused:?}");
}

/// S2. Equal lists of members have the same digest, different lists have different ones, and the
/// text shows the ids.
#[test]
fn s02_a_digest_tells_lists_of_members_apart() {
    let three = members([1, 2, 3]);
    assert!(three.are_those_of(&members([3, 1, 2])));
    for other in [vec![1, 2], vec![1, 2, 4], vec![1, 2, 3, 4], vec![0x1_0000_0002, 3]] {
        assert!(!three.are_those_of(&members(other.clone())), "{other:?}");
    }
    let of_the_log = Members::of_the_log();
    assert!(three.are_those_of(&of_the_log) && of_the_log.are_those_of(&three));
    assert_eq!(three.to_string(), "1, 2, 3");
    let many = members(1..=1000);
    assert!(!many.are_those_of(&members(1..=1001)), "the digest is of those not listed as well");
    assert!(many.to_string().contains("64, ... (digest "), "{many}");
}

#[test]
fn a_hello_has_room_for_the_longest_of_everything() {
    let longest = Hello {
        cluster_id: "x".repeat(63),
        cluster_uid: u128::MAX,
        node_id: u64::MAX,
        incarnation: u64::MAX,
        class: Class::Log,
        versions: (u32::MAX, u32::MAX),
        members: members(u64::MAX - MEMBERS_LISTED_MAX as u64..=u64::MAX),
        generation: u32::MAX,
        founded: true,
    };
    let frame = longest.encode().slice(LENGTH_BYTES..);
    assert!(frame.len() <= HELLO_BYTES_MAX / 2, "{} bytes, and room for later fields", frame.len());
    assert_eq!(Hello::decode(&frame), Ok(longest));
}

#[test]
fn a_hello_that_contradicts_itself_is_refused() {
    let good = hello().encode().slice(LENGTH_BYTES..);
    let list = good.windows(4).position(|bytes| bytes == [0x93, 1, 2, 3]).unwrap();
    for (what, ids) in
        [("another list", [1, 2, 4]), ("out of order", [2, 1, 3]), ("twice", [1, 1, 3])]
    {
        let mut frame = good.to_vec();
        frame[list + 1..list + 4].copy_from_slice(&ids);
        assert!(Hello::decode(&frame).is_err(), "{what}");
    }
    let mut later = good.to_vec();
    later.extend_from_slice(b"\x92\x01\x03abc");
    assert_eq!(Hello::decode(&later), Ok(hello()), "fields of a later version are passed over");
    later.pop();
    assert!(Hello::decode(&later).is_err(), "half a field");
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

proptest! {
    #[test]
    fn a_hello_that_is_written_is_read(
        cluster_id in ".{0,63}", node_id in any::<u64>(), incarnation in any::<u64>(),
        class in prop::sample::select(&Class::ALL[..]),
        ids in proptest::collection::btree_set(any::<u64>(), 0..100),
        numbers in any::<(u64, u64, u32, u32, u32, bool)>(),
    ) {
        let (high, low, version_min, version_max, generation, founded) = numbers;
        let hello = Hello {
            cluster_id,
            cluster_uid: u128::from(high) << 64 | u128::from(low),
            node_id,
            incarnation,
            class,
            versions: (version_min, version_max),
            members: Members::new(&ids),
            generation,
            founded,
        };
        let frame = hello.encode().slice(LENGTH_BYTES..);
        prop_assert_eq!(Hello::decode(&frame), Ok(hello));
        for end in 0..frame.len() {
            prop_assert!(Hello::decode(&frame[..end]).is_err());
        }
    }

    #[test]
    fn how_a_stream_is_cut_does_not_matter(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9_000), 0..4),
        cuts in proptest::collection::vec(1usize..3_000, 1..10),
    ) {
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [&(frame.len() as u32).to_be_bytes(), &frame[..]].concat())
            .collect();
        let mut buffer = FrameBuffer::new(FRAME_BYTES_MAX);
        let (mut rest, mut read) = (&stream[..], Vec::<Bytes>::new());
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece;
            (piece, rest) = rest.split_at(cut.min(rest.len()));
            buffer.room().unwrap().extend_from_slice(piece);
            while let Some(frame) = buffer.pop().unwrap() {
                read.push(frame);
            }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn noise_is_no_hello(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(hello) = Hello::decode(&noise) {
            prop_assert!(noise.starts_with(&hello.encode()[LENGTH_BYTES..]));
        }
    }
}
