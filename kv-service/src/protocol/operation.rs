//! Operations and queries of clients and their outputs, shared by client, server and state machine.

use std::fmt;

use bytes::Bytes;
use raft_core::types::Index;
use serde::{Deserialize, Serialize};

/// The log index of the entry that made a change. No two changes of the whole store have the same
/// revision, and later changes have larger ones.
pub type Revision = u64;

/// A client's identity for exactly-once. Any client that knows both parts can write in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionId {
    /// The log index at which the session was opened; never 0.
    pub index: Index,
    /// Drawn by the leader that opened the session, so that no other client can guess it.
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
    /// The stored bytes.
    pub value: Bytes,
    /// 1 when the key was created, one more with each change since. A key that is deleted and
    /// created anew starts at 1 again.
    pub version: u64,
    /// Revision of the change that created the key.
    pub create_revision: Revision,
    /// Revision of the last change of the key.
    pub modify_revision: Revision,
}

/// A write of one key, which must not be empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Operation {
    /// Stores the value.
    Put {
        /// The key to write.
        key: Bytes,
        /// The bytes to store.
        value: Bytes,
    },
    /// Adds to the end of the value; a missing key counts as empty.
    Append {
        /// The key to write.
        key: Bytes,
        /// The bytes to add.
        value: Bytes,
    },
    /// Removes the key. A missing key is not an error.
    Delete {
        /// The key to remove.
        key: Bytes,
    },
    /// Puts the value if the key is as expected.
    CompareAndSwap {
        /// The key to write.
        key: Bytes,
        /// The condition; if it does not hold, nothing is changed.
        expect: Expect,
        /// The bytes to store.
        value: Bytes,
    },
}

/// The condition of a compare-and-swap.
///
/// Use [`Expect::Revision`]: no two changes of the whole store have the same revision. A value may
/// come back, and a version starts again at 1 when a key is created anew, so both can hold again
/// after changes that the client has not seen (ABA). [`Expect::Version`] is safe for keys that are
/// never deleted, and for version 0, which creates a key. It stays because it counts changes, as
/// etcd's clients expect.
///
/// ```
/// # use kv_service::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = Network::Channel(LocalNetwork::new(1));
/// # let store = Store::Memory(MemoryDisk::of_new_member());
/// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
/// # let client = server.client();
/// // Version 0: the key does not exist.
/// assert!(client.compare_and_swap("lock", Expect::Version(0), "me").await?.changed);
/// assert!(!client.compare_and_swap("lock", Expect::Version(0), "you").await?.changed);
/// let record = client.get("lock").await?.ok_or("just put")?;
/// let mine = Expect::Revision(record.modify_revision);
/// assert!(client.compare_and_swap("lock", mine, "free").await?.changed);
/// # server.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Expect {
    /// The key exists and holds just this value.
    Value(Bytes),
    /// The key's version; 0 means that it does not exist.
    Version(u64),
    /// The key's `modify_revision`; 0 means that it does not exist. Needs cluster version 2
    /// ([`Feature::CompareRevision`](crate::protocol::version::Feature)).
    Revision(Revision),
}

impl Operation {
    /// The one key that the operation reads and changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Operation::Put { key, .. }
            | Operation::Append { key, .. }
            | Operation::Delete { key }
            | Operation::CompareAndSwap { key, .. } => key,
        }
    }
}

/// The output of an executed [`Operation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteResponse {
    /// Log index of the entry that executed the operation, whether it changed anything or not.
    pub revision: Revision,
    /// Put, append: always. Delete: the key existed. Compare-and-swap: it swapped.
    pub changed: bool,
    /// The key's version afterwards; 0 if it does not exist.
    pub version: u64,
}

/// Why a request that reached the state machine had no effect. Each variant describes one attempt:
/// only the client knows if an earlier attempt of the request may have been executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
pub enum Refusal {
    /// The session was closed, has expired, or was evicted: to make room for a newer one, or
    /// because it kept the most outputs when those of all sessions exceeded their limit. Its
    /// outputs are gone. This attempt was not executed. Open another session. It is no longer known
    /// if an earlier attempt of the same request was executed.
    #[error("the session no longer exists; open another one")]
    UnknownSession,
    /// The client has already acknowledged the response to this request, so this is a late
    /// duplicate. This attempt was not executed. If the client still waits for the response,
    /// another client has used its session: open another session.
    #[error("a late duplicate: the client has already confirmed the response to this request")]
    Forgotten,
    /// The sequence number is too far ahead of the lowest unanswered request. Not executed; wait
    /// for a response.
    #[error("too many requests of the session are unanswered; wait for an answer")]
    WindowExceeded,
    /// The value would become larger than the limit. Not executed, and final: the session remembers
    /// this output, so a retry receives it again and is not executed either.
    #[error("the value would have {size_bytes} bytes, the limit is {limit_bytes}")]
    ValueTooLarge {
        /// Size that the value would have.
        size_bytes: u64,
        /// Largest size of a value.
        limit_bytes: u64,
    },
    /// The key is empty or longer than the limit. Not executed, and final: a retry receives this
    /// again.
    #[error("the key has {size_bytes} bytes, it must have 1 to {limit_bytes}")]
    KeyOutOfRange {
        /// Size of the key.
        size_bytes: u64,
        /// Largest size of a key.
        limit_bytes: u64,
    },
    /// The session has executed another operation under this sequence number. This one was not
    /// executed and never will be: two clients share the session, or a client numbers its requests
    /// wrongly. Open another session.
    #[error("the sequence number belongs to another operation; open another session")]
    OtherOperation,
}

/// A read, which changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Query {
    /// Reads one key.
    Get {
        /// The key to read.
        key: Bytes,
    },
    /// Reads the keys in `[start, end)` in ascending order; an empty `end` is the end of all keys.
    /// The page ends early at `limit` keys (at least 1), when it is full by bytes, or when one
    /// query may examine no more keys. Deleted keys count as examined, so a page may be empty
    /// although more keys follow.
    Scan {
        /// The first key of the range.
        start: Bytes,
        /// The key after the range.
        end: Bytes,
        /// Most keys of the page.
        limit: u32,
    },
}

/// The output of a [`Query`], variant for variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    /// The key's record; `None` if the key does not exist.
    Get(Option<Record>),
    /// One page of the range.
    Scan(ScanPage),
}

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanPage {
    /// In ascending order of keys. May be empty although more records follow: see `continue_at`.
    pub records: Vec<(Bytes, Record)>,
    /// Start of the next page; `None` when nothing follows. It need not be an existing key.
    pub continue_at: Option<Bytes>,
}

/// How fresh the output of a read must be.
///
/// ```
/// # use kv_service::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = Network::Channel(LocalNetwork::new(1));
/// # let store = Store::Memory(MemoryDisk::of_new_member());
/// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
/// # let client = server.client();
/// client.put("key", "value").await?;
/// let fresh = client.get_with("key", Consistency::Linearizable).await?;
/// assert!(fresh.is_some(), "the write had completed");
/// // Asks one node only, which may not have applied the write yet.
/// let _maybe_old = client.get_with("key", Consistency::Stale).await?;
/// # server.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Consistency {
    /// Reflects every write that completed before the read began (ReadIndex).
    #[default]
    Linearizable,
    /// The state that the asked node has applied; may be arbitrarily old.
    Stale,
}
