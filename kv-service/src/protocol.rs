//! The protocol between clients and nodes, version 2 (`docs/protocol.md`).
//!
//! A client opens one two-way stream and sends a [`Greeting`]: the protocol versions that it speaks,
//! and its name. The node answers with a [`Welcome`]: the highest common version, who it is and its
//! limits, or why it refuses. Then each [`Request`] gets one [`Response`] of the same id, in any order.
//!
//! A frame is its length (u32, big-endian) and one value in MessagePack. The length is checked before
//! anything is allocated, and a frame with leftovers is refused. [`Greeting`] and [`Welcome`] keep
//! their form in every later version; all else may change with the version that they agree on.

mod frame;

use bytes::Bytes;
use raft_core::types::{Index, NodeId, Term};
use serde::{Deserialize, Serialize};

pub use self::frame::{FRAME_BYTES_MAX, FrameBuffer, FrameError, push_frame};
use crate::operation::Refusal;
use crate::operation::{Answer, Consistency, Operation, Query, SessionId, WriteAnswer};

/// The protocol versions that this program speaks, the best one first. Version 1 was never released.
pub const PROTOCOL_VERSIONS: [u32; 1] = [2];

/// Versions that a greeting may offer; more are not looked at.
const OFFERED_MAX: usize = 64;

/// The first message of a client. Its form is the same in every version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Greeting {
    /// The protocol versions that the client speaks.
    pub versions: Vec<u32>,
    /// A name for the node's log.
    pub client: String,
}

impl Greeting {
    /// A greeting that offers all versions of this program.
    pub fn new(client: impl Into<String>) -> Self {
        Self { versions: PROTOCOL_VERSIONS.to_vec(), client: client.into() }
    }

    /// The highest version that both sides speak.
    ///
    /// # Errors
    /// There is none: a sentence for the client.
    pub fn common_version(&self) -> Result<u32, String> {
        let offered = &self.versions[..self.versions.len().min(OFFERED_MAX)];
        let common = PROTOCOL_VERSIONS.iter().copied().filter(|ours| offered.contains(ours));
        common.max().ok_or_else(|| {
            format!(
                "this node speaks the protocol versions {PROTOCOL_VERSIONS:?}, the client \
                 {offered:?}: use a client of the version of this cluster"
            )
        })
    }
}

/// Sentence for a client whose first bytes are no [`Greeting`], such as one of version 1.
pub fn no_greeting() -> String {
    format!(
        "the connection did not begin with a greeting of kv: this node speaks the protocol versions \
         {PROTOCOL_VERSIONS:?} (version 1 was never released). Use a client of the version of this \
         cluster"
    )
}

/// The node's answer to a [`Greeting`]. The form of `Refused` is the same in every version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Welcome {
    Hello(Hello),
    /// The connection ends: why, and what to do.
    Refused(String),
}

/// The node's description of itself and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The protocol version of everything that follows.
    pub version: u32,
    /// The cluster version in force ([`crate::version`]), as far as the node knows.
    pub cluster_version: u32,
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
    /// Reserved: the keys of another Raft group. Empty: the only one there is.
    pub namespace: String,
    /// The trace that the request belongs to, for the node's slow-request log.
    pub traceparent: Option<Traceparent>,
    /// Reserved: (kind, content) of each extension.
    pub extensions: Vec<(u32, Bytes)>,
    pub kind: RequestKind,
}

impl Request {
    /// A request without namespace, trace and extensions.
    pub fn new(id: u64, kind: RequestKind) -> Self {
        Self { id, namespace: String::new(), traceparent: None, extensions: Vec::new(), kind }
    }

    /// # Errors
    /// The request uses a reserved field, which this program does not understand.
    pub fn check(&self) -> Result<(), Rejection> {
        let refused = |what: &str| {
            let text = format!("{what}: this version of kv does not know that");
            Err(Rejection::Invalid(text))
        };
        match (self.namespace.is_empty(), self.extensions.is_empty()) {
            (false, _) => refused("the request names a namespace"),
            (_, false) => refused("the request has an extension"),
            (true, true) => Ok(()),
        }
    }
}

/// A trace context of the W3C, version 00, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traceparent {
    pub trace_id: u128,
    pub parent_id: u64,
    pub flags: u8,
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
    /// A word of the operator about the cluster version.
    Upgrade(UpgradeOrder),
}

/// What the operator wants of the cluster version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum UpgradeOrder {
    /// The leader puts the newest version that all members support into force, if the one in force is still
    /// this one.
    Finalize { above: u32 },
    /// The node does not raise the version by itself, until it restarts.
    Hold,
    /// Undoes `Hold`.
    Release,
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
        /// How many requests of the session may be unanswered.
        window: u32,
    },
    SessionClosed,
    Written(WriteAnswer),
    /// The state machine refused: this copy of the request changed nothing.
    Refused(Refusal),
    Answered(Answer),
    Status(Box<NodeStatus>),
    /// The order was carried out: a sentence for the operator.
    Upgraded(String),
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    pub versions: Versions,
    /// While a cluster is being founded: the nodes that this one waits for.
    pub waits_for: Vec<NodeId>,
    /// A majority of the nodes is on new or lost disks: the cluster stands still.
    pub is_majority_lost: bool,
}

/// Versions of one node's program and of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// Of the program, such as `1.2.0`.
    pub program: String,
    /// Cluster version in force, as far as the node knows.
    pub in_force: u32,
    /// Cluster versions that the program supports.
    pub oldest: u32,
    pub newest: u32,
    /// `auto`, `manual` or `held`.
    pub upgrade: String,
}

/// A peer seen from the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReachability {
    pub id: NodeId,
    /// Why it cannot be reached; `None` if it can.
    pub error: Option<String>,
}
