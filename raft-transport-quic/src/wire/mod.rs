//! Frames on streams, and the hello. Messages are decoded by [`raft_core::codec`]. `docs/wire.md`
//! draws all of it.

pub(crate) mod frame;
pub(crate) mod hello;

#[cfg(test)]
mod tests;

use raft_core::codec::CodecError;

/// Why bytes from the network are refused. The text is the close reason of the connection, so the
/// operators of both nodes can read it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error(
        "a frame of {claimed} bytes where 1 to {max} are allowed; run equal versions and limits"
    )]
    FrameLength { claimed: usize, max: usize },
    #[error("undecodable {what}: {reason}; run equal versions")]
    Undecodable { what: &'static str, reason: String },
    #[error("refused {what}: {rule}")]
    Rule { what: &'static str, rule: &'static str },
    #[error(transparent)]
    Message(#[from] CodecError),
}
