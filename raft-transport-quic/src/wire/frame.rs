//! Frames: a length, and as many bytes.
//!
//! The length is checked before anything is allocated for it. Up to [`ANNOUNCED_BYTES_MAX`] the
//! room for the whole frame is allocated at once; for a longer frame the buffer grows as its bytes
//! arrive. Frames are returned as slices of the receive buffer, so nothing is copied. A slice keeps
//! its buffer (some hundred kilobytes, with the frames that arrived at the same time) alive.

use bytes::{Buf, Bytes, BytesMut};
use quinn::RecvStream;
use raft_core::codec::LENGTH_BYTES;
use tokio::io::AsyncReadExt;

use super::WireError;
use crate::error::printable;

/// Bytes received at one time, if as many have arrived.
const READ_BYTES: usize = 128 << 10;

/// Most bytes that are allocated because of a frame's length alone. Beyond, the buffer doubles as
/// bytes arrive.
const ANNOUNCED_BYTES_MAX: usize = 2 << 20;

/// If the buffer has less room than this, a new one is begun.
const ROOM_BYTES_MIN: usize = 8 << 10;

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: BytesMut,
    frame_bytes_max: usize,
}

impl FrameBuffer {
    pub(crate) fn new(frame_bytes_max: usize) -> Self {
        Self { bytes: BytesMut::new(), frame_bytes_max }
    }

    /// The next frame, without its length, if all of it has arrived.
    pub(crate) fn pop(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(length) = self.next_length()? else { return Ok(None) };
        if self.bytes.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.bytes.advance(LENGTH_BYTES);
        Ok(Some(self.bytes.split_to(length).freeze()))
    }

    /// The buffer to receive into, with room for the rest of the frame that has begun, or for a
    /// large part of it.
    pub(crate) fn room(&mut self) -> Result<&mut BytesMut, WireError> {
        let length = self.bytes.len();
        let wanted = match self.next_length()? {
            Some(claimed) => (LENGTH_BYTES + claimed).min(ANNOUNCED_BYTES_MAX.max(2 * length)),
            None => 0,
        };
        let missing = wanted.saturating_sub(length);
        let room = self.bytes.capacity() - length;
        if room < missing.max(ROOM_BYTES_MIN) {
            self.bytes.reserve(missing.max(READ_BYTES));
        }
        Ok(&mut self.bytes)
    }

    /// Returns true if no byte of a further frame has arrived.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn next_length(&self) -> Result<Option<usize>, WireError> {
        let Some(prefix) = self.bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let claimed = u32::from_be_bytes(*prefix) as usize;
        if claimed == 0 || claimed > self.frame_bytes_max {
            return Err(WireError::FrameLength { claimed, max: self.frame_bytes_max });
        }
        Ok(Some(claimed))
    }
}

/// The reason why a stream yields no more frames.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    /// The other side ended the stream between two frames.
    Ended,
    /// The stream or its connection broke.
    Broken(String),
    /// The bytes are not a frame.
    Wire(WireError),
}

impl From<WireError> for ReadFailure {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// Reads frames from a stream. `fill` and `next` may be cancelled without losing anything. A stream
/// that broke stays broken here, because quinn reports a reset only once, and an end of the stream
/// from then on.
#[derive(Debug)]
pub(crate) struct FrameReader {
    pub(crate) stream: RecvStream,
    buffer: FrameBuffer,
    /// Why the stream broke.
    broken: Option<String>,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream, frame_bytes_max: usize) -> Self {
        Self { stream, buffer: FrameBuffer::new(frame_bytes_max), broken: None }
    }

    /// The same reader with another limit from here on.
    pub(crate) fn with_limit(mut self, frame_bytes_max: usize) -> Self {
        self.buffer.frame_bytes_max = frame_bytes_max;
        self
    }

    /// The next frame, if all of it has arrived.
    pub(crate) fn pop(&mut self) -> Result<Option<Bytes>, WireError> {
        self.buffer.pop()
    }

    /// Waits until more bytes arrive.
    pub(crate) async fn fill(&mut self) -> Result<(), ReadFailure> {
        if let Some(reason) = &self.broken {
            return Err(ReadFailure::Broken(reason.clone()));
        }
        let room = self.buffer.room()?;
        let reason = match self.stream.read_buf(room).await {
            Ok(0) if self.buffer.is_empty() => return Err(ReadFailure::Ended),
            Ok(0) => "the stream ended in the middle of a frame".to_owned(),
            Ok(_) => return Ok(()),
            Err(error) => printable(&error.to_string()),
        };
        self.broken = Some(reason.clone());
        Err(ReadFailure::Broken(reason))
    }

    /// Waits for the next frame.
    pub(crate) async fn next(&mut self) -> Result<Bytes, ReadFailure> {
        loop {
            if let Some(frame) = self.pop()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }
}
