//! The decoders of this crate as a fuzzer sees them; not part of its interface.
//!
//! Each function takes any bytes. If they decode, what came out must keep what the decoder promises,
//! and must be read again from what is written for it. `integration-tests/fuzz` runs them, and
//! `integration-tests/tests/decoders` on what was found.

use bytes::Bytes;
use raft_core::types::{Body, Payload, TERM_MAX};

use crate::tls::Identity;
use crate::wire::frame::{FRAME_BYTES_MAX, FrameBuffer, LENGTH_BYTES};
use crate::wire::hello::{HELLO_BYTES_MAX, Hello};
use crate::wire::message::{Encoder, decode};

/// The body of a message's frame.
pub fn message(frame: &[u8]) {
    let Ok(message) = decode(Bytes::copy_from_slice(frame)) else { return };
    assert!(message.term <= TERM_MAX);
    if let Body::Append { previous, entries, .. } = &message.body {
        let mut last = *previous;
        for entry in entries {
            assert_eq!(entry.index, last.index + 1);
            assert!(entry.term >= last.term && (1..=message.term).contains(&entry.term));
            if let Payload::Configuration(configuration) = &entry.payload {
                assert!(!configuration.is_member(0));
            }
            last = entry.position();
        }
    }
    let mut encoder = Encoder::default();
    encoder.push(&message).expect("what came in a frame fits into one");
    let written = Bytes::from(encoder.take().concat());
    // MessagePack has several forms of a number; ours is the shortest.
    assert!(written.len() <= LENGTH_BYTES + frame.len());
    assert_eq!(decode(written.slice(LENGTH_BYTES..)).as_ref(), Ok(&message));
}

/// The body of a hello's frame.
pub fn hello(frame: &[u8]) {
    let frame = &frame[..frame.len().min(HELLO_BYTES_MAX)];
    if let Ok(hello) = Hello::decode(frame) {
        assert_eq!(hello.encode()[LENGTH_BYTES..], *frame);
    }
}

/// A stream that comes in pieces: how the network cuts it must not matter. The first byte says how
/// long the pieces are.
pub fn frames(bytes: &[u8]) {
    let Some((piece_bytes, stream)) = bytes.split_first() else { return };
    let read = |piece_bytes: usize| {
        let mut buffer = FrameBuffer::new(FRAME_BYTES_MAX);
        let mut frames = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            let Ok(room) = buffer.room() else { return (frames, false) };
            room.extend_from_slice(piece);
            loop {
                match buffer.pop() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(_) => return (frames, false),
                }
            }
        }
        (frames, true)
    };
    let (frames, is_sound) = read(usize::from(*piece_bytes).max(1));
    assert_eq!((&frames, is_sound), (&read(stream.len().max(1)).0, read(1).1));
    let written = frames.iter().flat_map(|frame| {
        assert!(!frame.is_empty());
        [&(frame.len() as u32).to_be_bytes(), &frame[..]].concat()
    });
    assert!(stream.starts_with(&written.collect::<Vec<u8>>()));
}

/// A certificate, which tells who is on the other side.
pub fn certificate(der: &[u8]) {
    // Whether it may be believed was decided before; here it must be read, or refused in words.
    if let Err(refusal) = Identity::of_certificate(&der.into(), "test") {
        assert!(!refusal.is_empty());
    }
}
