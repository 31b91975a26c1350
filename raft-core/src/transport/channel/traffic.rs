//! What a network shows to whoever listens: for traces, and for counts that a test bounds.

use bytes::Bytes;

use crate::types::Message;

/// Something on its way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic<'a> {
    /// Handed to `send`; whether it arrives, and how often, shows later.
    Sent(&'a Message),
    /// About to be handed to the receiver.
    Delivered(&'a Message),
    /// A frame of a bulk stream, which arrives unless the stream breaks.
    Frame(&'a Bytes),
}
