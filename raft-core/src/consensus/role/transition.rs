//! The role change that a handler asks for. Only `raft` carries it out.

/// The next role, as seen by the handler of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(in crate::consensus) enum Transition {
    Stay,
    /// Follow in the current term, without a known leader.
    Follow,
    /// Ask for pre-votes.
    PreCampaign,
    /// Ask for votes in the next term. `transfer`: on request of the leader.
    Campaign {
        transfer: bool,
    },
    Lead,
}
