//! Requests of clients and their outcomes. Shared by the client, the server and the state machine.

use std::fmt;

use bytes::Bytes;
use raft_core::types::Index;
use serde::{Deserialize, Serialize};

/// The log index at which a change was applied; grows with every command of the whole store.
pub type Revision = u64;

/// A client's identity for exactly-once. Whoever knows both parts may write in the session's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionId {
    /// The log index at which the session was opened; never 0.
    pub index: Index,
    /// Drawn by the leader that opened it, so that no other client can guess it.
    pub nonce: Nonce,
}

/// 128 random bits. A secret of the session's client: `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nonce(pub u128);

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// A value and the numbers of its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub value: Bytes,
    /// 1 when the key was created, one more with each change since. A key that is deleted and created
    /// anew starts at 1 again.
    pub version: u64,
    pub create_revision: Revision,
    pub modify_revision: Revision,
}

/// A change. Keys are not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Operation {
    Put {
        key: Bytes,
        value: Bytes,
    },
    /// Adds to the end of the value; a missing key counts as empty.
    Append {
        key: Bytes,
        value: Bytes,
    },
    Delete {
        key: Bytes,
    },
    /// Puts the value if the key is as expected.
    CompareAndSwap {
        key: Bytes,
        expect: Expect,
        value: Bytes,
    },
}

/// The condition of a compare-and-swap.
///
/// Use [`Expect::Revision`]: no two changes of the whole store have one revision. A value may come
/// back, and a version starts again at 1 when a key is created anew, so both can hold again after
/// changes that the client has not seen (ABA). [`Expect::Version`] is safe for keys that are never
/// deleted, and for version 0, which creates a key; it stays because it counts changes, which etcd's
/// clients know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Expect {
    /// The key exists and holds just this value.
    Value(Bytes),
    /// The key's version; 0 means that it does not exist.
    Version(u64),
    /// The key's `modify_revision`; 0 means that it does not exist. Needs cluster version 2
    /// ([`Feature::CompareRevision`](crate::version::Feature)).
    Revision(Revision),
}

impl Operation {
    /// The one key that it reads and changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Operation::Put { key, .. }
            | Operation::Append { key, .. }
            | Operation::Delete { key }
            | Operation::CompareAndSwap { key, .. } => key,
        }
    }
}

/// The outcome of an executed [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteAnswer {
    /// Where the operation was applied, whether it changed anything or not.
    pub revision: Revision,
    /// Put, append: always. Delete: the key existed. Compare-and-swap: it swapped.
    pub changed: bool,
    /// The key's version afterwards; 0 if it does not exist.
    pub version: u64,
}

/// Why a request that reached the state machine had no effect. Each variant speaks of one attempt:
/// only the client knows whether an earlier attempt of the request may have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
pub enum Refusal {
    /// The session was closed, has expired, or was evicted: to make room for a newer one, or because
    /// it kept the most answers when those of all sessions exceeded their limit. Its answers are
    /// gone. This attempt was not executed. Open another session; whether an earlier attempt of the
    /// same request was executed can no longer be told.
    #[error("the session does not exist any more; open another one")]
    UnknownSession,
    /// The client itself has said that it heard the answer of this request, so this is a duplicate
    /// that comes late. This attempt was not executed. A client that still waits for the answer has
    /// a session that another one used: open another session.
    #[error("a late duplicate: the session has already heard the answer of this request")]
    Forgotten,
    /// Too far ahead of the lowest request that is unanswered. Not executed; wait for an answer.
    #[error("too many requests of the session are unanswered; wait for an answer")]
    WindowExceeded,
    /// The value would become larger than the limit. The request is answered by this for good: a
    /// retry hears it again and is not executed either.
    #[error("the value would have {size_bytes} bytes, the limit is {limit_bytes}")]
    ValueTooLarge { size_bytes: u64, limit_bytes: u64 },
    /// The key is empty or longer than the limit. The answer of the request for good.
    #[error("the key has {size_bytes} bytes, it must have 1 to {limit_bytes}")]
    KeyOutOfRange { size_bytes: u64, limit_bytes: u64 },
    /// The session has executed another operation under this sequence number. This one was not
    /// executed and never will be: two clients share the session, or a client numbers its requests
    /// wrongly. Open another session.
    #[error("the sequence number belongs to another operation; open another session")]
    OtherOperation,
}

/// A question that changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Query {
    Get {
        key: Bytes,
    },
    /// Keys in `[start, end)` in ascending order; an empty `end` is the end of all keys. Ends early
    /// at `limit` keys (at least 1), when the page is full by bytes, or when so many keys were
    /// examined as one query may, deleted ones included: then the page may even be empty.
    Scan {
        start: Bytes,
        end: Bytes,
        limit: u32,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    Get(Option<Record>),
    Scan(ScanPage),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanPage {
    /// Possibly none although more follow: see `continue_at`.
    pub records: Vec<(Bytes, Record)>,
    /// Start of the next page; `None` when nothing follows. It need not be a key.
    pub continue_at: Option<Bytes>,
}

/// How fresh an answer has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Consistency {
    /// Reflects every write that completed before the question was asked (ReadIndex).
    #[default]
    Linearizable,
    /// The state that the asked node has applied; may be arbitrarily old.
    Stale,
}
