//! What clients and nodes say to each other, version 1 (`docs/protocol.md`).
//!
//! A client opens one two-way stream and says who it is ([`Greeting`]); the node answers with who *it*
//! is and its limits ([`Hello`]). Then each [`Request`] gets one [`Response`] of the same id, in any
//! order. The version is part of
//! the connection's protocol name, so nothing here negotiates.
//!
//! A frame is its length (u32, big-endian) and one value in MessagePack. The length is checked before
//! anything is allocated, and a frame with leftovers is refused.

mod frame;

use raft_core::types::{Index, NodeId, Term};
use serde::{Deserialize, Serialize};

pub use self::frame::{FRAME_BYTES_MAX, FrameBuffer, FrameError, push_frame};
use crate::operation::Refusal;
use crate::operation::{Answer, Consistency, Operation, Query, SessionId, WriteAnswer};

/// The client's first words: a name for the node's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Greeting {
    pub client: String,
}

/// The node's answer to a [`Greeting`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    pub cluster_id: String,
    pub node_id: NodeId,
    pub leader_id: Option<NodeId>,
    pub key_bytes_max: u64,
    pub value_bytes_max: u64,
    /// Requests beyond this many are not read before earlier ones are answered.
    pub requests_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the client, unique on its connection.
    pub id: u64,
    pub kind: RequestKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum RequestKind {
    OpenSession,
    CloseSession {
        session: SessionId,
    },
    Write {
        session: SessionId,
        /// Numbers the session's writes from 1. A repeated one is answered and not executed again.
        sequence: u64,
        /// All smaller sequence numbers have been answered or given up.
        lowest_unanswered: u64,
        operation: Operation,
    },
    Read {
        query: Query,
        consistency: Consistency,
    },
    Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    pub id: u64,
    pub reply: Reply,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Reply {
    SessionOpened {
        session: SessionId,
    },
    SessionClosed,
    Written(WriteAnswer),
    /// The state machine refused: this copy of the request changed nothing.
    Refused(Refusal),
    Answered(Answer),
    Status(Box<NodeStatus>),
    /// This copy of the request surely had no effect and never will.
    Rejected(Rejection),
    /// Whether this copy of the request took effect is not known here.
    Unknown(String),
}

/// Why a node did not take a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
pub enum Rejection {
    #[error("node does not lead")]
    NotLeader { leader_id: Option<NodeId> },
    /// Try again a little later.
    #[error("busy: {0}")]
    Busy(String),
    /// Trying again is of no use.
    #[error("{0}")]
    Invalid(String),
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// Role of a node on an empty disk that no leader has filled and that `kv init` did not make.
pub const NOT_INITIALISED: &str = "not initialised";

/// Role of a node that started on an empty disk and is being filled by the leader.
pub const RECOVERING: &str = "recovering";

/// Role of a node that `kv init` has made, until it has met the other nodes of the new cluster.
pub const FOUNDING: &str = "founding";

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeStatus {
    pub id: NodeId,
    /// Of the operating system.
    pub pid: u32,
    /// Of Raft, or [`NOT_INITIALISED`], [`RECOVERING`] or [`FOUNDING`].
    pub role: String,
    pub term: Term,
    pub leader_id: Option<NodeId>,
    pub commit_index: Index,
    pub last_applied: Index,
    pub last_index: Index,
    /// What `max_raft_state` is compared with.
    pub log_bytes: u64,
    pub snapshot_index: Index,
    pub peers: Vec<PeerReachability>,
}

/// A peer seen from the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReachability {
    pub id: NodeId,
    /// Why it cannot be reached; `None` if it can.
    pub error: Option<String>,
}
