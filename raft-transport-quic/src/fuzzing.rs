//! The decoders of this crate as a fuzzer sees them; not part of its interface.
//!
//! Each function takes any bytes. If they decode, what came out must keep what the decoder promises,
//! and must be read again from what is written for it. `integration-tests/fuzz` runs them, and
//! `integration-tests/tests/decoders` on what was found.

use raft_core::codec::{FRAME_BYTES_MAX, LENGTH_BYTES};

use crate::tls::Identity;
use crate::wire::frame::FrameBuffer;
use crate::wire::hello::{HELLO_BYTES_MAX, Hello};

/// The body of a hello's frame.
pub fn hello(frame: &[u8]) {
    let frame = &frame[..frame.len().min(HELLO_BYTES_MAX)];
    if let Ok(hello) = Hello::decode(frame) {
        assert!(frame.starts_with(&hello.encode()[LENGTH_BYTES..]));
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
    // The handshake has decided about trust; here it must be read, or refused in words.
    if let Err(refusal) = Identity::of_certificate(&der.into(), "test") {
        assert!(!refusal.is_empty());
    }
}
