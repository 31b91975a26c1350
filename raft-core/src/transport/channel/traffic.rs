//! Traffic that a network shows to its listeners: for traces, and for counts that a test bounds.

use bytes::Bytes;

use crate::types::Message;

/// A message or a frame on its way from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic<'a> {
    /// A message handed to `send`. It may arrive once, several times, or never.
    Sent(&'a Message),
    /// A message about to be handed to the receiver.
    Delivered(&'a Message),
    /// A frame of a bulk stream, which arrives unless the stream breaks.
    Frame(&'a Bytes),
}
