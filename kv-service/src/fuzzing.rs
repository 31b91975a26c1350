//! Fuzzing entry points of this crate's decoders; not part of the public API.
//!
//! Each function takes any bytes. If they decode, the result is encoded and decoded again. The
//! bytes must be equal where a format has one encoding of a value (the machine's formats); the
//! values must be equal where other encoders may choose another encoding (MessagePack, TOML).
//! `integration-tests/fuzz` runs the functions, and `integration-tests/tests/decoders` runs them on
//! the inputs that fuzzing has found.

use std::fmt::Debug;

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::batch::fuzzing::batch_lines;
use crate::config::file::parse;
use crate::config::units::ByteSize;
use crate::config::{ClientConfig, ServerConfig};
use crate::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, Greeting, Request, Response, Welcome, push_frame,
};
pub use crate::state::fuzzing::{command, snapshot_stream, stored_state};

/// Body of a frame of the client protocol, in either direction.
pub fn protocol(frame: &[u8]) {
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
        let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
        frames.input().extend_from_slice(&(body.len() as u32).to_be_bytes());
        frames.input().extend_from_slice(body);
        let Ok(Some(message)) = frames.next_message::<T>() else { return };
        assert!(frames.input().is_empty(), "a frame is taken whole");
        let mut written = BytesMut::new();
        push_frame(&mut written, &message);
        frames.input().extend_from_slice(&written);
        assert_eq!(frames.next_message().as_ref(), Ok(&Some(message)));
    }
    check::<Greeting>(frame);
    check::<Welcome>(frame);
    check::<Request>(frame);
    check::<Response>(frame);
}

/// Stream of the client protocol that arrives in pieces; the first byte is the length of a piece.
pub fn protocol_frames(bytes: &[u8]) {
    let Some((piece_bytes, stream)) = bytes.split_first() else { return };
    let read = |piece_bytes: usize| {
        let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
        let mut requests: Vec<Request> = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            frames.reserve();
            frames.input().extend_from_slice(piece);
            loop {
                match frames.next_message() {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
        }
        (requests, None)
    };
    assert_eq!(read(usize::from(*piece_bytes).max(1)), read(stream.len().max(1)));
}

/// The configuration file of a node or of a client, and a size as people write it.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = parse::<ServerConfig>(text)
        && config.check().is_ok()
    {
        let again: ServerConfig = parse(&config.to_toml()).expect("it was written by us");
        assert_eq!(again, config);
    }
    if let Ok(config) = parse::<ClientConfig>(text)
        && config.check().is_ok()
    {
        let again: ClientConfig = parse(&config.to_toml()).expect("it was written by us");
        assert_eq!(again, config);
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
}
