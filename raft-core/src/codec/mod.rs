//! Messages as bytes, for every transport that leaves the process.
//!
//! A transport encodes each [`Message`] into a frame and decodes it at the other end. The format is
//! a public promise, drawn in `docs/wire.md` of the QUIC transport and fixed by `tests/fixtures`. A
//! [`Version`] names one format. Two nodes agree on a version when they connect, by means of the
//! transport (QUIC: the ALPN), and use it for the life of that connection.
//!
//! [`decode`] is the one place where bytes become a message, and it checks everything that can be
//! checked without state ([`check`]). Memory is allocated for bytes that are there, never for a
//! length that the sender claims. A transport that moves messages by other means (serde, a remote
//! procedure call) passes each message through [`check`] before it delivers it.
//!
//! ```
//! use bytes::Bytes;
//! use raft_core::codec::{Encoder, LENGTH_BYTES, Version, decode};
//! use raft_core::types::{MessageBody, Message};
//!
//! let message = Message::new(7, MessageBody::ReadIndex { id: 1 });
//! let mut encoder = Encoder::new(Version::NEWEST);
//! encoder.push(&message)?;
//! // To be written in this order; large commands are chunks of their own and were not copied.
//! let frame: Bytes = encoder.take().concat().into();
//!
//! let length = u32::from_be_bytes(frame[..LENGTH_BYTES].try_into().unwrap());
//! assert_eq!(length as usize, frame.len() - LENGTH_BYTES);
//! assert_eq!(decode(Version::NEWEST, frame.slice(LENGTH_BYTES..))?, message);
//! # Ok::<(), raft_core::codec::CodecError>(())
//! ```

mod check;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use check::check;
pub use decode::{decode, skip_extensions};
pub use encode::Encoder;

use crate::types::Message;

/// A version of the message format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Version {
    /// The format of the first release. (Version 1 was never released, and no decoder for it is
    /// left.)
    V2,
}

impl Version {
    /// The version to prefer.
    pub const NEWEST: Self = Self::V2;
}

/// Size of a frame's length prefix: a big-endian u32, the number of bytes that follow it.
pub const LENGTH_BYTES: usize = 4;

/// The largest entry that a frame carries, in bytes as [`Entry::size_bytes`] counts them. A node
/// that accepts larger commands could append an entry that it can never replicate, and all later
/// entries would wait behind it; so [`Node::start`] compares its limit with
/// [`Transport::entry_bytes_max`](crate::transport::Transport::entry_bytes_max).
///
/// [`Entry::size_bytes`]: crate::types::Entry::size_bytes
/// [`Node::start`]: crate::driver::Node::start
pub const ENTRY_BYTES_MAX: u64 = 48 << 20;

/// Room in a frame beside its largest entry: the bytes that [`Message::size_bytes`] adds for the
/// message itself.
const ROOM_BYTES: u64 = 1 << 10;

/// The largest frame, in bytes without its length prefix. Also the limit of
/// [`Message::size_bytes`], so that a frame of many small entries does not become much more memory
/// than it has bytes.
pub const FRAME_BYTES_MAX: usize = (ENTRY_BYTES_MAX + ROOM_BYTES) as usize;

/// The Raft group of all messages today. Each header reserves a place for the number, so that
/// several groups can share a connection later.
const GROUP: u64 = 0;

/// Most bytes in the extension section of a header; the length field of each extension counts.
const EXTENSIONS_BYTES_MAX: usize = 1 << 10;

/// Most members that a set of a configuration may have in a message. Ids take much more memory in a
/// set than on the wire.
const MEMBERS_MAX: usize = 4096;

/// The first value of a header. The numbers are part of the format.
mod kind {
    pub(super) const PRE_VOTE: u8 = 0;
    pub(super) const PRE_VOTE_ANSWER: u8 = 1;
    pub(super) const VOTE: u8 = 2;
    pub(super) const VOTE_ANSWER: u8 = 3;
    pub(super) const APPEND: u8 = 4;
    pub(super) const APPEND_ACCEPTED: u8 = 5;
    pub(super) const APPEND_REJECTED: u8 = 6;
    pub(super) const HEARTBEAT: u8 = 7;
    pub(super) const HEARTBEAT_ANSWER: u8 = 8;
    pub(super) const READ_INDEX: u8 = 9;
    pub(super) const READ_INDEX_ANSWER: u8 = 10;
    pub(super) const TIMEOUT_NOW: u8 = 11;
    pub(super) const RECOVERED: u8 = 12;
    pub(super) const FOUNDING: u8 = 13;

    /// Added to the kind if the sender recovers.
    pub(super) const FROM_RECOVERING: u8 = 64;
}

/// The first value of a run of entries.
mod run {
    pub(super) const NOOP: u8 = 0;
    pub(super) const COMMANDS: u8 = 1;
    pub(super) const CONFIGURATION: u8 = 2;
    pub(super) const CONFIGURATION_IN_CONTEXT: u8 = 3;
}

/// The second value of the response to a request for a read index.
mod outcome {
    pub(super) const CONFIRMED: u8 = 0;
    pub(super) const NOT_LEADER: u8 = 1;
    pub(super) const BUSY: u8 = 2;
}

/// A message that cannot be written, or bytes that are not a message. The texts repeat no bytes of
/// the sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The message does not fit into a frame. Nothing was written.
    #[error(
        "a message of {size_bytes} bytes, where {max_bytes} are allowed; run equal versions and limits"
    )]
    TooLarge {
        /// Bytes of the message.
        size_bytes: u64,
        /// Bytes of the largest message.
        max_bytes: u64,
    },
    /// The bytes do not have the form of a message.
    #[error("undecodable message: {0}; run equal versions")]
    Undecodable(&'static str),
    /// The form is right, but no correct node sends the content.
    #[error("refused message: {0}")]
    Rule(&'static str),
}

fn check_size(message: &Message) -> Result<(), CodecError> {
    let (size_bytes, max_bytes) = (message.size_bytes(), FRAME_BYTES_MAX as u64);
    if size_bytes > max_bytes {
        return Err(CodecError::TooLarge { size_bytes, max_bytes });
    }
    Ok(())
}
