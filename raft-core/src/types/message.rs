//! What nodes say to each other.

use super::{Entry, Index, Position, Term};

/// A message and the sender's term. Who sent it is known from the authenticated connection, never
/// from the message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// The sender's current term. (In a `PreVote` too: the term it would campaign in is one more,
    /// and nobody adopts a term from it.)
    pub term: Term,
    /// The sender may have lost what it once promised (`consensus::recovery`); a number drawn anew
    /// whenever it starts in that state.
    pub recovering: Option<u64>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// "Would you vote for me?" (9.6), with the position of the sender's last entry.
    PreVote {
        last: Position,
    },
    /// The message's term is the request's if granted, else the answering node's own.
    PreVoteAnswer {
        granted: bool,
    },
    /// RequestVote (3.4). `transfer`: the leader itself asked for this election (3.10), so voters need
    /// not stick to it.
    Vote {
        last: Position,
        transfer: bool,
    },
    VoteAnswer {
        granted: bool,
    },
    /// AppendEntries (3.5). Without entries it carries the commit index alone, or probes.
    Append {
        previous: Position,
        entries: Vec<Entry>,
        commit_index: Index,
    },
    /// The log agrees with the leader's through `match_index`, durably.
    AppendAccepted {
        match_index: Index,
    },
    /// The log does not hold the previous position of an append. `hint` is the last position that
    /// could agree: the largest at or before it whose term is not larger.
    AppendRejected {
        previous_index: Index,
        hint: Position,
    },
    /// "I lead." `round` numbers the leader's rounds, so that an answer confirms just the round
    /// that it answers (6.4). `commit_index` never exceeds what the receiver has acknowledged.
    Heartbeat {
        round: u64,
        commit_index: Index,
    },
    HeartbeatAnswer {
        round: u64,
    },
    /// A follower asks for a read index on behalf of reads that wait there. `id` is unique to the
    /// attempt.
    ReadIndex {
        id: u64,
    },
    /// `None`: the node asked is not a leader that can serve it; ask again later or elsewhere.
    ReadIndexAnswer {
        id: u64,
        read_index: Option<Index>,
    },
    /// Campaign at once (leadership transfer, 3.10).
    TimeoutNow,
    /// The leader has seen to it that nothing which the receiver promised before it started under this
    /// number can matter any more: its word counts again (`consensus::recovery`).
    Recovered {
        number: u64,
    },
}

/// Messages of one class stay in order and share a stream; one class never waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Small and urgent: elections, heartbeats, reads.
    Control,
    /// Entries and their acknowledgements.
    Log,
}

impl Class {
    pub const ALL: [Class; 2] = [Class::Control, Class::Log];
}

impl Message {
    pub fn new(term: Term, body: Body) -> Self {
        Self { term, recovering: None, body }
    }

    pub fn class(&self) -> Class {
        match &self.body {
            Body::Append { .. } | Body::AppendAccepted { .. } | Body::AppendRejected { .. } => {
                Class::Log
            }
            Body::PreVote { .. }
            | Body::PreVoteAnswer { .. }
            | Body::Vote { .. }
            | Body::VoteAnswer { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::ReadIndex { .. }
            | Body::ReadIndexAnswer { .. }
            | Body::TimeoutNow
            | Body::Recovered { .. } => Class::Control,
        }
    }

    /// Whether it answers another message, as the reply of a remote procedure call does.
    pub fn is_answer(&self) -> bool {
        match &self.body {
            Body::PreVoteAnswer { .. }
            | Body::VoteAnswer { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatAnswer { .. }
            | Body::ReadIndexAnswer { .. } => true,
            Body::PreVote { .. }
            | Body::Vote { .. }
            | Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::ReadIndex { .. }
            | Body::TimeoutNow
            | Body::Recovered { .. } => false,
        }
    }

    /// What the message is charged in a bounded mailbox: its entries, and a little for the rest.
    pub fn size_bytes(&self) -> u64 {
        const HEADER_BYTES: u64 = 64;
        match &self.body {
            Body::Append { entries, .. } => {
                HEADER_BYTES + entries.iter().map(Entry::size_bytes).sum::<u64>()
            }
            _ => HEADER_BYTES,
        }
    }
}
