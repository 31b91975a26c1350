//! The protocol between clients and nodes, versions 2 and 3 (`docs/protocol.md`).
//!
//! Version 3 adds requests about members and leadership, and the list of members that a node sends
//! unasked: first after its [`Hello`], then whenever the members have changed.
//!
//! A client opens one two-way stream and sends a [`Greeting`]: the protocol versions that it
//! speaks, and its name. The node answers with a [`Welcome`]: the highest common version, the
//! node's identity and its limits, or the reason for a refusal. Then each [`Request`] gets one
//! [`Response`] of the same id, in any order.
//!
//! A frame is its length (u32, big-endian) and one value in MessagePack. The length is checked
//! before anything is allocated, and a frame with leftovers is refused. [`Greeting`] and
//! [`Welcome`] keep their form in every later version; everything else may change with the agreed
//! version.

mod frame;
pub mod operation;
pub mod version;

use bytes::Bytes;
use raft_core::types::{Index, NodeId, Term};
use serde::{Deserialize, Serialize};

pub use self::frame::{FRAME_BYTES_MAX, FrameBuffer, FrameError, push_frame};
use self::operation::{Answer, Consistency, Operation, Query, Refusal, SessionId, WriteResponse};
use crate::members::{ClusterReport, MemberList, MembersOrder};

/// The protocol versions that this program speaks, the best one first. Version 1 was never
/// released.
pub const PROTOCOL_VERSIONS: &[u32] =
    if cfg!(feature = "pretend-version-1") { &[2] } else { &[MEMBERS_SINCE, 2] };

/// The protocol version that brought orders about members and leadership, and [`Reply::Members`].
pub const MEMBERS_SINCE: u32 = 3;

/// Longer values are moved by calls of `memcpy`.
const _: () = assert!(size_of::<Request>() <= 128);

/// Versions that a greeting may offer; further ones are ignored.
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
    /// There is no common version; the text tells the client what to do.
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

/// Text for a client whose first bytes are not a [`Greeting`], such as a client of version 1.
pub fn no_greeting() -> String {
    format!(
        "the connection did not begin with a greeting of kv: this node speaks the protocol versions \
         {PROTOCOL_VERSIONS:?} (version 1 was never released). Use a client of the version of this \
         cluster"
    )
}

/// The node's response to a [`Greeting`]. The form of `Refused` is the same in every version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Welcome {
    /// The node accepts the connection.
    Hello(Hello),
    /// The node closes the connection; the text says why, and what to do.
    Refused(String),
}

/// The node's description of itself and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The protocol version of everything that follows.
    pub version: u32,
    /// The cluster version in force ([`crate::protocol::version`]), as far as the node knows.
    pub cluster_version: u32,
    /// The cluster to which the node belongs.
    pub cluster_id: String,
    /// The node's id.
    pub node_id: NodeId,
    /// The leader, as far as the node knows.
    pub leader_id: Option<NodeId>,
    /// Longest key that the node accepts, in bytes.
    pub key_bytes_max: u64,
    /// Longest value that the node accepts, in bytes.
    pub value_bytes_max: u64,
    /// Requests of one connection that may be unanswered; the node reads no further ones meanwhile.
    pub requests_max: u64,
}

/// One request of a client. It is moved from call to call on its way, so the fields that few
/// requests use are boxed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Chosen by the client, unique on its connection; not 0.
    pub id: u64,
    /// Reserved for the keys of another Raft group; empty for the only group there is.
    pub namespace: Box<str>,
    /// The trace that the request belongs to, for the node's slow-request log.
    pub traceparent: Option<Box<Traceparent>>,
    /// Reserved: (kind, content) of each extension.
    pub extensions: Box<[(u32, Bytes)]>,
    /// The action that the client asks for.
    pub kind: RequestKind,
}

impl Request {
    /// A request without namespace, trace and extensions.
    pub fn new(id: u64, kind: RequestKind) -> Self {
        let (namespace, extensions) = (Box::default(), Box::default());
        Self { id, namespace, traceparent: None, extensions, kind }
    }

    /// Checks that no reserved field is used.
    ///
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
    /// Id of the whole trace.
    pub trace_id: u128,
    /// Id of the calling span.
    pub parent_id: u64,
    /// Trace flags; bit 0 is "sampled".
    pub flags: u8,
}

/// The action of a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum RequestKind {
    /// Opens a session for exactly-once writes.
    OpenSession,
    CloseSession {
        session: SessionId,
    },
    /// Executes an operation, exactly once for each (session, sequence).
    Write(Box<Write>),
    /// Executes a query.
    Read {
        query: Query,
        consistency: Consistency,
    },
    /// Asks for the node's [`NodeStatus`].
    Status,
    /// Gives the node an order about the cluster version.
    Upgrade(UpgradeOrder),
    /// Asks for the members as the leader knows them. Since version 3, like the next two.
    Cluster,
    /// Orders a change of the members.
    ChangeMembers(Box<MembersOrder>),
    /// Orders the leader to hand leadership over.
    TransferLeadership {
        /// The voter that is to lead; without it, the one whose log is furthest.
        to: Option<NodeId>,
    },
}

impl RequestKind {
    /// Returns true if a node collects what it knows of all members, and answers at once.
    pub(crate) fn is_report(&self) -> bool {
        matches!(self, RequestKind::Status | RequestKind::Cluster)
    }

    /// The protocol version that brought the request.
    pub fn since(&self) -> u32 {
        match self {
            RequestKind::OpenSession
            | RequestKind::CloseSession { .. }
            | RequestKind::Write(_)
            | RequestKind::Read { .. }
            | RequestKind::Status
            | RequestKind::Upgrade(_) => 2,
            RequestKind::Cluster
            | RequestKind::ChangeMembers(_)
            | RequestKind::TransferLeadership { .. } => MEMBERS_SINCE,
        }
    }
}

/// A write of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// The session.
    pub session: SessionId,
    /// Number of the write in its session, from 1. A repeated number gets the remembered output
    /// and is not executed again.
    pub sequence: u64,
    /// All smaller sequence numbers have been answered or given up.
    pub lowest_unanswered: u64,
    /// The operation.
    pub operation: Operation,
}

/// The operator's orders about the cluster version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum UpgradeOrder {
    /// The leader puts the newest version that all members support into force, if the version in
    /// force is still `above`.
    Finalize {
        /// The cluster version that the operator believes to be in force.
        above: u32,
    },
    /// The node does not raise the version on its own until it restarts.
    Hold,
    /// Undoes `Hold`.
    Release,
}

/// The node's response to one [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// The id of the request; 0 for what the node tells unasked.
    pub id: u64,
    /// The result of the request.
    pub reply: Reply,
}

/// The result that a [`Response`] carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Reply {
    /// The session was opened.
    SessionOpened {
        session: SessionId,
        /// How many requests of the session may be unanswered.
        window: u32,
    },
    /// The session does not exist, or no longer exists.
    SessionClosed,
    /// The write was executed; every copy of the request gets this output.
    Written(WriteResponse),
    /// The state machine refused: this copy of the request changed nothing.
    Refused(Refusal),
    /// The output of a query.
    Answered(Answer),
    /// The node's status.
    Status(Box<NodeStatus>),
    /// The order was carried out; the text is for the operator. Its name on the wire is from the
    /// time when there were no orders but those about the cluster version.
    #[serde(rename = "Upgraded")]
    Done(String),
    /// The members as the leader knows them; after a change that was ordered, as they are now, or
    /// would be after a change that was only checked.
    Cluster(Box<ClusterReport>),
    /// Unasked, since version 3: the members.
    Members(MemberList),
    /// This copy of the request surely had no effect and never will.
    Rejected(Rejection),
    /// The node does not know if this copy of the request took effect, or still will; the text says
    /// why.
    Unknown(String),
}

/// Why a node did not accept a request, which was therefore not executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
pub enum Rejection {
    /// The node is not the leader; `leader_id` is the leader, as far as the node knows.
    #[error("node does not lead")]
    NotLeader {
        /// The leader, as far as the node knows.
        leader_id: Option<NodeId>,
    },
    /// Try again a little later.
    #[error("busy: {0}")]
    Busy(String),
    /// A retry would be rejected again.
    #[error("{0}")]
    Invalid(String),
    /// The node is stopping; ask another one.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// Role of a node that started on an empty disk, was not created by `kv init`, and has received
/// nothing from a leader.
pub const NOT_INITIALISED: &str = "not initialised";

/// Role of a node that started on an empty disk and is being caught up by the leader.
pub const RECOVERING: &str = "recovering";

/// Role of a node that `kv init` has created, until it has met the other nodes of the new cluster.
pub const FOUNDING: &str = "founding";

/// A node's description of its own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeStatus {
    /// The node's id.
    pub id: NodeId,
    /// Id of its process in the operating system.
    pub pid: u32,
    /// Role in Raft, or [`NOT_INITIALISED`], [`RECOVERING`] or [`FOUNDING`].
    pub role: String,
    /// The node's current term.
    pub term: Term,
    /// The leader, as far as the node knows.
    pub leader_id: Option<NodeId>,
    /// Last index that the node knows to be committed.
    pub commit_index: Index,
    /// Last index that the node's state machine has applied.
    pub last_applied: Index,
    /// Last index of the node's log.
    pub last_index: Index,
    /// Bytes of the persisted log, which the node compares with `max_raft_state`.
    pub log_bytes: u64,
    /// Last index of the node's newest snapshot.
    pub snapshot_index: Index,
    /// Reachability of each other node.
    pub peers: Vec<PeerReachability>,
    /// Versions of the program and of the cluster.
    pub versions: Versions,
    /// While a cluster is being founded: the nodes that this one waits for.
    pub waits_for: Vec<NodeId>,
    /// Set while a majority of the nodes is on new or lost disks: the cluster makes no progress.
    pub is_majority_lost: bool,
}

/// Versions of one node's program and of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// Version of the program, such as `1.2.0`.
    pub program: String,
    /// Cluster version in force, as far as the node knows.
    pub in_force: u32,
    /// Oldest cluster version that the program supports.
    pub oldest: u32,
    /// Newest cluster version that the program supports.
    pub newest: u32,
    /// `auto`, `manual` or `held`.
    pub upgrade: String,
}

/// A peer seen from the node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReachability {
    /// The peer's id.
    pub id: NodeId,
    /// Why it cannot be reached; `None` if it can.
    pub error: Option<String>,
}
