//! Fuzz targets for the decoders of this crate; not part of its public interface.
//!
//! Each function takes any bytes. If they decode, the value must keep the promises of the decoder,
//! and the encoded value must decode again. `integration-tests/fuzz` runs these functions, and
//! `integration-tests/tests/decoders` repeats them on inputs that were found.

use raft_core::codec::{FRAME_BYTES_MAX, LENGTH_BYTES};

use crate::tls::TlsIdentity;
use crate::wire::frame::FrameBuffer;
use crate::wire::hello::{HELLO_BYTES_MAX, Hello};

/// Decodes the body of a hello's frame.
pub fn hello(frame: &[u8]) {
    let frame = &frame[..frame.len().min(HELLO_BYTES_MAX)];
    if let Ok(hello) = Hello::decode(frame) {
        assert!(frame.starts_with(&hello.encode()[LENGTH_BYTES..]));
    }
}

/// Reads a stream of frames that arrives in pieces: where the network cuts it must not matter. The
/// first byte gives the length of the pieces.
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

/// Reads the identity of the other side from a certificate.
pub fn certificate(der: &[u8]) {
    // The handshake decides about trust. This code must return an identity, or a reason in words.
    if let Err(refusal) = TlsIdentity::of_certificate(&der.into(), "test") {
        assert!(!refusal.is_empty());
    }
}
