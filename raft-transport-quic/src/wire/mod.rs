//! The door: here bytes become messages, and everything that can be checked without state is
//! checked. Behind it all of that is assumed. `docs/wire.md` draws the frames.

pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod message;

#[cfg(test)]
mod tests;

/// Why bytes from the network are refused. The text closes the connection, and the operator at either
/// end reads it.
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
}
