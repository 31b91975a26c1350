//! Frames: a length, and one value in MessagePack.

use bytes::{Buf, BufMut, BytesMut};
use rmp_serde::Deserializer;
use rmp_serde::decode::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest frame in bytes, without its length: it has room for the largest write or a page of a
/// scan, and for the fields around it.
pub const FRAME_BYTES_MAX: usize = 40 << 20;

/// Why bytes are not a frame of this protocol; the connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than the reader accepts; both numbers are in bytes.
    #[error("a frame of {length} bytes, the limit is {limit}")]
    TooLong { length: usize, limit: usize },
    /// The frame is not a value of the expected type.
    #[error("not a message of this protocol: {0}")]
    Malformed(String),
}

const LENGTH_BYTES: usize = 4;

/// Appends one frame.
pub fn push_frame(out: &mut BytesMut, message: &impl Serialize) {
    let start = out.len();
    out.put_u32(0);
    rmp_serde::encode::write(&mut out.writer(), message)
        .expect("messages have a form in MessagePack");
    let length = u32::try_from(out.len() - start - LENGTH_BYTES)
        .expect("a message is limited before it is framed");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Splits received bytes into frames.
#[derive(Debug)]
pub struct FrameBuffer {
    received: BytesMut,
    limit: usize,
}

impl FrameBuffer {
    /// Creates an empty buffer. A longer frame is refused when its length is known, before any
    /// memory is reserved for it.
    pub fn with_limit(frame_bytes_max: usize) -> Self {
        Self { received: BytesMut::new(), limit: frame_bytes_max.min(FRAME_BYTES_MAX) }
    }

    /// Changes the limit for the frames that follow.
    pub fn set_limit(&mut self, frame_bytes_max: usize) {
        self.limit = frame_bytes_max.min(FRAME_BYTES_MAX);
    }

    /// Buffer for received bytes; call [`FrameBuffer::reserve`] before each read into it.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.received
    }

    /// Reserves room for one read. The amount is fixed: a frame that announces its length reserves
    /// nothing.
    pub fn reserve(&mut self) {
        const PIECE_BYTES: usize = 64 << 10;
        self.received.reserve(PIECE_BYTES);
    }

    /// The next complete message, if there is one.
    ///
    /// # Errors
    /// The bytes are not of this protocol.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(length) = self.received.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        if self.received.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.received.advance(LENGTH_BYTES);
        decode(&self.received.split_to(length)).map(Some)
    }
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    // From a slice: a reader would be called for keys and values piece by piece.
    let mut rest = Deserializer::from_read_ref(frame);
    let message = T::deserialize(&mut rest).map_err(|e| FrameError::Malformed(e.to_string()))?;
    // At the end of the frame, decoding a value of any type fails at its first byte.
    match <()>::deserialize(&mut rest) {
        Err(Error::InvalidMarkerRead(_)) => Ok(message),
        Ok(()) | Err(_) => Err(FrameError::Malformed("bytes are left over".to_owned())),
    }
}
