//! Frames on a TCP connection, and the handshake at its beginning.
//!
//! A frame is its length, u32 in big endian, and that many bytes; it is the frame of
//! [`raft_core::codec`]. The node that connects sends a [`Hello`], and the one that accepts
//! responds with [`WELCOME`]. From then on, a connection for messages carries them in one
//! direction, and a bulk stream carries frames in both.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use raft_core::transport::{BULK_FRAME_BYTES_MAX, BulkStream, TransportError};
use raft_core::types::{Class, NodeId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) const HELLO_BYTES_MAX: usize = 64;
pub(super) const WELCOME: &[u8] = b"welcome";
const LENGTH_BYTES: usize = raft_core::codec::LENGTH_BYTES;
const READ_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    Messages(Class),
    Bulk,
}

/// The first frame of each connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Version of the formats of hello and messages.
    pub(super) version: u8,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    /// Numbers the starts of the sender, in ascending order.
    pub(super) process: u64,
    pub(super) purpose: Purpose,
}

pub(super) struct Wire {
    pub(super) stream: TcpStream,
    received: BytesMut,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Result<Self, TransportError> {
        stream.set_nodelay(true).map_err(broken)?;
        Ok(Self { stream, received: BytesMut::new() })
    }

    pub(super) async fn send(&mut self, frame: &[u8]) -> Result<(), TransportError> {
        let length = u32::try_from(frame.len()).map_err(|_| TransportError::new("too large"))?;
        self.stream.write_all(&length.to_be_bytes()).await.map_err(broken)?;
        self.stream.write_all(frame).await.map_err(broken)
    }

    /// Receives the next frame, in memory of its own: a command that stays in the log keeps no more
    /// than its frame. Nothing is lost if the caller stops waiting.
    pub(super) async fn receive(&mut self, bytes_max: usize) -> Result<Bytes, TransportError> {
        loop {
            if let Some(length) = self.received.first_chunk::<LENGTH_BYTES>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > bytes_max {
                    return Err(TransportError::new(format!(
                        "a frame of {length} bytes, where {bytes_max} are allowed"
                    )));
                }
                if let Some(frame) = self.received[LENGTH_BYTES..].get(..length) {
                    let frame = Bytes::copy_from_slice(frame);
                    self.received.advance(LENGTH_BYTES + length);
                    return Ok(frame);
                }
            }
            self.received.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.received).await.map_err(broken)? == 0 {
                return Err(TransportError::new("the peer closed the connection"));
            }
        }
    }
}

/// A bulk stream: an empty frame says that no more follow. A connection that ends without one was
/// aborted.
pub(super) struct Bulk {
    wire: Wire,
    /// False once the stream was finished, broken off, or left in the midst of a frame.
    can_send: bool,
    has_ended: bool,
    /// The same socket, through which the transport can shut it down.
    _socket: Arc<std::net::TcpStream>,
}

impl Bulk {
    pub(super) fn new(wire: Wire) -> Result<(Self, Arc<std::net::TcpStream>), TransportError> {
        let Wire { stream, received } = wire;
        let stream = stream.into_std().map_err(broken)?;
        let socket = Arc::new(stream.try_clone().map_err(broken)?);
        let stream = TcpStream::from_std(stream).map_err(broken)?;
        let (wire, _socket) = (Wire { stream, received }, Arc::clone(&socket));
        Ok((Self { wire, can_send: true, has_ended: false, _socket }, socket))
    }

    async fn send_frame(&mut self, frame: &[u8]) -> Result<(), TransportError> {
        if !std::mem::take(&mut self.can_send) {
            return Err(TransportError::new("the stream was finished or is broken"));
        }
        self.wire.send(frame).await
    }
}

#[async_trait::async_trait]
impl BulkStream for Bulk {
    async fn send(&mut self, frame: Bytes) -> Result<(), TransportError> {
        if frame.is_empty() || frame.len() > BULK_FRAME_BYTES_MAX {
            return Err(TransportError::new(format!(
                "a frame of {} bytes, where 1 to {BULK_FRAME_BYTES_MAX} are allowed",
                frame.len()
            )));
        }
        self.send_frame(&frame).await?;
        self.can_send = true;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        if !self.has_ended {
            let frame = self.wire.receive(BULK_FRAME_BYTES_MAX).await?;
            self.has_ended = frame.is_empty();
            return Ok(Some(frame).filter(|frame| !frame.is_empty()));
        }
        Ok(None)
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.send_frame(&[]).await?;
        self.wire.stream.shutdown().await.map_err(broken)
    }
}

pub(super) fn broken(error: std::io::Error) -> TransportError {
    TransportError::new(error.to_string())
}
