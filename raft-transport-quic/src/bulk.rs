//! Bulk streams: one bidirectional QUIC stream each, with a lower priority than all messages.
//!
//! Each stream has a flow-control window of its own, so a slow reader holds up no other stream. A
//! stream that is dropped before its end is reset: the other side gets an error and not an end.

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use raft_core::codec::LENGTH_BYTES;
use raft_core::transport::{BULK_FRAME_BYTES_MAX, BulkStream, TransportError};

use crate::error::{close, printable};
use crate::wire::frame::{FrameReader, ReadFailure};

/// One bulk stream, on either side.
#[derive(Debug)]
pub(crate) struct QuicBulk {
    send: SendStream,
    receive: FrameReader,
    sending: Sending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    BetweenFrames,
    /// A frame is partly written. If the future of that `send` was dropped, the stream stays
    /// unusable.
    WithinFrame,
    /// The end is queued; the other side has not yet acknowledged it and all bytes before it.
    Finishing,
    /// The other side has acknowledged all bytes and the end.
    Finished,
}

/// Sets the priority below those of control (1) and log (0).
pub(crate) fn bulk_priority(stream: &SendStream) {
    // Fails only for a closed stream, and the next call on the stream reports that.
    let _ = stream.set_priority(-1);
}

impl QuicBulk {
    pub(crate) fn new(send: SendStream, receive: RecvStream) -> Self {
        Self {
            send,
            receive: FrameReader::new(receive, BULK_FRAME_BYTES_MAX),
            sending: Sending::BetweenFrames,
        }
    }

    fn check_between_frames(&self) -> Result<(), TransportError> {
        match self.sending {
            Sending::BetweenFrames => Ok(()),
            Sending::WithinFrame => {
                Err(TransportError::new("the stream broke within a frame; open another"))
            }
            Sending::Finishing | Sending::Finished => {
                Err(TransportError::new("the stream was already finished"))
            }
        }
    }
}

fn broken(error: &dyn std::fmt::Display) -> TransportError {
    TransportError::new(format!("the stream broke: {}", printable(&error.to_string())))
}

#[async_trait]
impl BulkStream for QuicBulk {
    async fn send(&mut self, frame: Bytes) -> Result<(), TransportError> {
        if !(1..=BULK_FRAME_BYTES_MAX).contains(&frame.len()) {
            return Err(TransportError::new(format!(
                "a bulk frame has 1 to {BULK_FRAME_BYTES_MAX} bytes, not {}",
                frame.len()
            )));
        }
        self.check_between_frames()?;
        let mut length = BytesMut::with_capacity(LENGTH_BYTES);
        length.put_u32(frame.len() as u32);
        self.sending = Sending::WithinFrame;
        self.send
            .write_all_chunks(&mut [length.freeze(), frame])
            .await
            .map_err(|error| broken(&error))?;
        self.sending = Sending::BetweenFrames;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        match self.receive.next().await {
            Ok(frame) => Ok(Some(frame)),
            Err(ReadFailure::Ended) => Ok(None),
            Err(ReadFailure::Broken(reason)) => {
                Err(TransportError::new(format!("the stream broke: {reason}")))
            }
            Err(ReadFailure::Wire(error)) => Err(TransportError::new(error.to_string())),
        }
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        // An earlier call that was cancelled may have queued the end already.
        if !matches!(self.sending, Sending::Finishing | Sending::Finished) {
            self.check_between_frames()?;
            self.send.finish().map_err(|error| TransportError::new(error.to_string()))?;
            self.sending = Sending::Finishing;
        }
        match self.send.stopped().await {
            Ok(None) => {
                self.sending = Sending::Finished;
                Ok(())
            }
            Ok(Some(_)) => {
                Err(TransportError::new("the other side stopped reading before the end"))
            }
            Err(error) => Err(broken(&error)),
        }
    }
}

impl Drop for QuicBulk {
    fn drop(&mut self) {
        // Without the reset, quinn would finish the stream as if all bytes had been sent. The reset
        // fails if the stream has ended already.
        if self.sending != Sending::Finished {
            let _ = self.send.reset(close::ABORTED);
        }
        let _ = self.receive.stream.stop(close::ABORTED);
    }
}
