//! What clients ask for and what they hear. Shared by the client, the server and the state machine.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The log index at which a change was applied; grows with every command of the whole store.
pub type Revision = u64;

/// A client's identity for exactly-once: the revision at which it was opened. Never 0.
pub type SessionId = u64;

/// What is stored under a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub value: Bytes,
    /// 1 when the key was created, one more with each change since.
    pub version: u64,
    pub create_revision: Revision,
    pub modify_revision: Revision,
}

/// A change. Keys are not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// What a compare-and-swap compares with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Expect {
    /// The key exists and holds just this value.
    Value(Bytes),
    /// The key's version; 0 means that it does not exist.
    Version(u64),
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

/// What became of an executed [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteAnswer {
    /// Where the operation was applied, whether it changed anything or not.
    pub revision: Revision,
    /// Put, append: always. Delete: the key existed. Compare-and-swap: it swapped.
    pub changed: bool,
    /// The key's version afterwards; 0 if it does not exist.
    pub version: u64,
}

/// Why a request that reached the state machine had no effect. What is said here of one request is
/// said of that attempt: only the client knows whether an earlier attempt of it may have been
/// executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The session was closed, has expired, or gave way to a newer one; its answers are gone. This
    /// attempt was not executed. Open another session; whether an earlier attempt of the same
    /// request was executed can no longer be told.
    #[error("the session does not exist any more; open another one")]
    UnknownSession,
    /// The client itself has said that it heard the answer of this request, so this is a duplicate
    /// that comes late. This attempt was not executed, and nobody waits for its answer.
    #[error("a late duplicate: the session has already heard the answer of this request")]
    Forgotten,
    /// Too far ahead of the lowest request that is unanswered. Not executed; wait for an answer.
    #[error("too many requests of the session are unanswered; wait for an answer")]
    WindowExceeded,
    /// The value would become larger than the limit. The request is answered by this for good: a
    /// retry hears it again and is not executed either.
    #[error("the value would have {size_bytes} bytes, the limit is {limit_bytes}")]
    ValueTooLarge { size_bytes: u64, limit_bytes: u64 },
}

/// A question that changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    Get {
        key: Bytes,
    },
    /// Keys in `[start, end)` in ascending order; an empty `end` is the end of all keys. Ends early
    /// at `limit` keys (at least 1), or when the page is full by bytes.
    Scan {
        start: Bytes,
        end: Bytes,
        limit: u32,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Get(Option<Record>),
    Scan(ScanPage),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanPage {
    pub records: Vec<(Bytes, Record)>,
    /// Where the next page starts; `None` when nothing follows.
    pub continue_at: Option<Bytes>,
}

/// How fresh an answer has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Reflects every write that completed before the question was asked (ReadIndex).
    #[default]
    Linearizable,
    /// Whatever the node asked has applied; may be arbitrarily old.
    Stale,
}
