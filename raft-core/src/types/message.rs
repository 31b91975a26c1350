//! Messages between nodes.

use serde::{Deserialize, Serialize};

use super::{Entry, Index, Position, Term};

/// A message and the sender's term. Who sent it is known from the authenticated connection, never
/// from the message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The sender's current term. (In a `RequestPreVote` too: the term it would campaign
    /// in is one more, and no receiver adopts a term from it.)
    pub term: Term,
    /// Set if the sender may have lost promises it once gave (`consensus::recovery`): a number
    /// drawn anew at each start in that state.
    pub recovering: Option<u64>,
    /// The request or response.
    pub body: MessageBody,
}

/// The outcome of a request for a read index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReadOutcome {
    /// A quorum confirmed the leader: apply through this index, then read.
    Confirmed(Index),
    /// No leader that can serve the read is known; ask again later or elsewhere.
    NotLeader,
    /// The leader has too many reads waiting; ask again later.
    Busy,
}

impl ReadOutcome {
    /// Returns the index, if the read was confirmed.
    pub fn index(self) -> Option<Index> {
        match self {
            ReadOutcome::Confirmed(index) => Some(index),
            ReadOutcome::NotLeader | ReadOutcome::Busy => None,
        }
    }
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageBody {
    /// RequestVote without consequences (9.6): asks if the receiver would grant a vote.
    RequestPreVote {
        /// The position of the sender's last entry.
        last: Position,
    },
    /// Responds to a `RequestPreVote`. The message's term is the request's if granted, else the
    /// responder's own.
    PreVoteResponse {
        /// The responder would vote for the sender of the request.
        granted: bool,
    },
    /// RequestVote (3.4).
    RequestVote {
        /// The position of the candidate's last entry.
        last: Position,
        /// The leader itself asked for this election (3.10), so voters need not stick to it.
        transfer: bool,
    },
    /// Responds to a `RequestVote`; a grant is on the voter's disk.
    VoteResponse {
        /// The responder votes for the candidate in this term.
        granted: bool,
    },
    /// AppendEntries (3.5). Without entries it carries the commit index alone, or probes.
    AppendEntries {
        /// The position before the first entry; the receiver's log must contain it.
        previous: Position,
        /// Contiguous.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit_index: Index,
    },
    /// The log agrees with the leader's through `match_index`, durably.
    AppendAccepted {
        /// The last index that is known to agree.
        match_index: Index,
    },
    /// The log does not hold the previous position of an append.
    AppendRejected {
        /// The index of that position.
        previous_index: Index,
        /// The last position that could agree: the largest at or before it whose term is not
        /// larger.
        hint: Position,
    },
    /// Asserts leadership.
    Heartbeat {
        /// Numbers the leader's rounds, so that a response confirms only the round to which it
        /// responds (6.4).
        round: u64,
        /// The leader's commit index, as far as the receiver has acknowledged.
        commit_index: Index,
    },
    /// Responds to a `Heartbeat`.
    HeartbeatResponse {
        /// The round of the heartbeat; 0 if the response only tells a newer term.
        round: u64,
        /// The newest cluster version that the responder's program supports.
        version_max: u32,
    },
    /// A follower asks for a read index on behalf of reads that wait there (6.4).
    ReadIndex {
        /// Unique to the attempt.
        id: u64,
    },
    /// Responds to a `ReadIndex`.
    ReadIndexResponse {
        /// The id of the attempt.
        id: u64,
        /// The read index, or why there is none.
        outcome: ReadOutcome,
    },
    /// Campaign at once (leadership transfer, 3.10). A receiver that has lost its disk since does
    /// not.
    TimeoutNow {
        /// The receiver's log must be at least as up to date as this position.
        last: Position,
    },
    /// Readmits a recovering receiver: its votes and acknowledgements are counted again. The leader
    /// has made sure that no promise which the receiver gave before it started under this number
    /// can matter (`consensus::recovery`).
    Recovered {
        /// The number under which the receiver recovers.
        number: u64,
    },
    /// A new member of a cluster that is being founded announces itself (`consensus::founding`).
    /// Only in term 0.
    Founding {
        /// Drawn anew whenever the sender starts.
        number: u64,
        /// The number of the receiver, if the sender has received one.
        heard: Option<u64>,
        /// The sender's memory is [`Memory::Met`](super::Memory::Met), and that is on its disk.
        met: bool,
        /// The newest cluster version that the sender supports.
        version_max: u32,
    },
}

impl MessageBody {
    /// Returns true if it is the response to another message.
    pub fn is_answer(&self) -> bool {
        match self {
            MessageBody::PreVoteResponse { .. }
            | MessageBody::VoteResponse { .. }
            | MessageBody::AppendAccepted { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::HeartbeatResponse { .. }
            | MessageBody::ReadIndexResponse { .. } => true,
            MessageBody::RequestPreVote { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::AppendEntries { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::ReadIndex { .. }
            | MessageBody::TimeoutNow { .. }
            | MessageBody::Recovered { .. }
            | MessageBody::Founding { .. } => false,
        }
    }
}

/// A class of messages. Messages of one class stay in order and share a stream; one class never
/// waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// Small and urgent: elections, heartbeats, reads.
    Control,
    /// Entries and their acknowledgements.
    Log,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 2] = [Class::Control, Class::Log];
}

impl Message {
    /// A message of a sender that does not recover.
    pub fn new(term: Term, body: MessageBody) -> Self {
        Self { term, recovering: None, body }
    }

    /// The class in which the message travels.
    pub fn class(&self) -> Class {
        match &self.body {
            MessageBody::AppendEntries { .. }
            | MessageBody::AppendAccepted { .. }
            | MessageBody::AppendRejected { .. } => Class::Log,
            MessageBody::RequestPreVote { .. }
            | MessageBody::PreVoteResponse { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::VoteResponse { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::HeartbeatResponse { .. }
            | MessageBody::ReadIndex { .. }
            | MessageBody::ReadIndexResponse { .. }
            | MessageBody::TimeoutNow { .. }
            | MessageBody::Recovered { .. }
            | MessageBody::Founding { .. } => Class::Control,
        }
    }

    /// Bytes that the message is charged in a bounded mailbox: its entries, and a little for the
    /// rest.
    pub fn size_bytes(&self) -> u64 {
        const HEADER_BYTES: u64 = 64;
        match &self.body {
            MessageBody::AppendEntries { entries, .. } => {
                HEADER_BYTES + entries.iter().map(Entry::size_bytes).sum::<u64>()
            }
            _ => HEADER_BYTES,
        }
    }
}
