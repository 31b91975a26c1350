//! The client: finds the leader, retries until the deadline, and never executes a write twice.
//!
//! A client is cheap to clone. Clones share one session and one connection to each node, over which
//! many operations are in flight at once. Writes are numbered within the session, so a write that
//! is sent again after a lost response takes effect once (dissertation 6.3). Reads are linearizable
//! unless asked otherwise.
//!
//! Every error says whether the operation may have happened ([`Outcome`]). A read that failed is
//! *not executed*: it has no effect that could be unknown.

mod attempts;
mod cluster;
mod connection;
mod error;
mod links;
mod orders;
mod session;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_core::types::NodeId;
use tokio::time::{Instant, timeout_at};

use self::attempts::{Attempts, Completed, Target};
pub use self::cluster::Cluster;
pub use self::error::{ClientError, Outcome, Reason};
use self::error::{closed, strange, unexpected};
use self::links::Links;
use self::session::{Session, Ticket};
use crate::net::stream::Connector;
use crate::protocol::operation::{
    Answer, Consistency, Expect, Operation, Query, Record, Refusal, Revision, ScanPage,
    WriteResponse,
};
use crate::protocol::{FRAME_BYTES_MAX, Reply, RequestKind, Write};
use crate::rng::NodeRng;

/// How long [`Client::close`] waits for the cluster to close the session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest deadline: longer than any caller waits, and short enough to be added to any time.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A client of one cluster. Cheap to clone; clones share one session and one connection to each
/// node.
///
/// An operation is retried until the deadline ([`Client::with_deadline`]), at whichever node leads.
/// Dropping the future of an operation gives the operation up: a write may still take effect.
///
/// ```
/// # use kv_service::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let network = Network::Channel(LocalNetwork::new(1));
/// # let store = Store::Memory(MemoryDisk::of_new_member());
/// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
/// # let client = server.client();
/// client.put("color", "red").await?;
/// client.append("color", "dish").await?;
/// let record = client.get("color").await?.ok_or("just put")?;
/// assert_eq!((&record.value[..], record.version), (&b"reddish"[..], 2));
///
/// // Swaps only if nothing has changed the key since it was read.
/// let swap = client.cas_revision("color", record.modify_revision, "blue").await?;
/// assert!(swap.changed);
///
/// let page = client.scan("a", "d", 100).await?;
/// assert_eq!(page.records.len(), 1);
/// assert!(client.delete("color").await?.changed);
/// # server.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<ClientShared>,
    deadline: Duration,
}

struct ClientShared {
    links: Arc<Links>,
    session: Session,
}

impl Client {
    /// Creates a client that reaches its nodes through `connector` and retries an operation until
    /// the deadline, at most a year. Needs a tokio runtime. Connections are opened on demand.
    pub fn new(connector: Arc<dyn Connector>, deadline: Duration) -> Self {
        let name = format!("process {}", std::process::id());
        Self::with_chance(connector, deadline, name, NodeRng::from_system())
    }

    /// Like [`Client::new`], for runs that must be repeatable: the seed decides which node the
    /// client asks first and how long it pauses. Clients of one cluster need different seeds.
    pub fn with_seed(connector: Arc<dyn Connector>, deadline: Duration, seed: u64) -> Self {
        let name = format!("seed {seed:016x}");
        Self::with_chance(connector, deadline, name, NodeRng::from_seed(seed))
    }

    /// The client within the process of a node.
    pub(crate) fn of_node(connector: Arc<dyn Connector>, id: NodeId, seed: u64) -> Self {
        let deadline = crate::config::default_deadline();
        Self::with_chance(connector, deadline, format!("node {id}"), NodeRng::from_seed(seed))
    }

    /// `name` is for the nodes' logs.
    fn with_chance(
        connector: Arc<dyn Connector>,
        deadline: Duration,
        name: String,
        rng: NodeRng,
    ) -> Self {
        let links = Links::new(connector, name, rng);
        let shared = ClientShared { links: Arc::new(links), session: Session::default() };
        Self { shared: Arc::new(shared), deadline: deadline.min(DEADLINE_MAX) }
    }

    /// The same client with another deadline: how long an operation is retried, at most a year.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), deadline: deadline.min(DEADLINE_MAX) }
    }

    /// The nodes that the client knows: those of its configuration until a node has answered, then
    /// the members of the cluster.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shared.links.nodes()
    }

    /// Returns the record stored under the key; `None` if the key does not exist.
    ///
    /// # Errors
    /// No node answered in time, or the key is outside the limits. A failed read is always
    /// [`Outcome::NotExecuted`].
    ///
    /// ```
    /// # use kv_service::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let network = Network::Channel(LocalNetwork::new(1));
    /// # let store = Store::Memory(MemoryDisk::of_new_member());
    /// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
    /// # let client = server.client();
    /// assert_eq!(client.get("missing").await?, None);
    /// let error = client.get("").await.expect_err("a key is not empty");
    /// assert_eq!(error.outcome, Outcome::NotExecuted);
    /// assert!(matches!(error.reason, Reason::Invalid(_)));
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Record>, ClientError> {
        self.get_with(key, Consistency::Linearizable).await
    }

    /// Like [`Client::get`], with the given consistency.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub async fn get_with(
        &self,
        key: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Option<Record>, ClientError> {
        match self.query(Query::Get { key: key.into() }, consistency).await? {
            Answer::Get(record) => Ok(record),
            Answer::Scan(_) => Err(strange("a page for a get")),
        }
    }

    /// Stores the value.
    ///
    /// # Errors
    /// [`ClientError::outcome`] says if the write may have been executed. This holds for every
    /// write.
    ///
    /// ```
    /// # use kv_service::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let network = Network::Channel(LocalNetwork::new(1));
    /// # let store = Store::Memory(MemoryDisk::of_new_member());
    /// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
    /// # let client = server.client();
    /// let first = client.put("key", "one").await?;
    /// let second = client.put("key", "two").await?;
    /// assert!(second.revision > first.revision);
    /// assert_eq!(second.version, 2);
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<WriteResponse, ClientError> {
        self.write(Operation::Put { key: key.into(), value: value.into() }).await
    }

    /// Adds to the end of the value; a missing key counts as empty.
    ///
    /// # Errors
    /// The errors of [`Client::put`]; also if the value would grow beyond the cluster's limit.
    pub async fn append(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<WriteResponse, ClientError> {
        self.write(Operation::Append { key: key.into(), value: value.into() }).await
    }

    /// Removes the key; [`WriteResponse::changed`] says if the key existed.
    ///
    /// # Errors
    /// The errors of [`Client::put`].
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
    /// assert!(client.delete("key").await?.changed);
    /// assert!(!client.delete("key").await?.changed, "it is gone already");
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<WriteResponse, ClientError> {
        self.write(Operation::Delete { key: key.into() }).await
    }

    /// Stores the value if the key has not changed since a read returned this
    /// [`Record::modify_revision`], or, with 0, if the key does not exist.
    /// [`WriteResponse::changed`] says if the value was stored. This is the safe compare-and-swap:
    /// see [`Expect`].
    ///
    /// # Errors
    /// The errors of [`Client::put`]; also if the cluster's version is below 2.
    ///
    /// ```
    /// # use kv_service::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let network = Network::Channel(LocalNetwork::new(1));
    /// # let store = Store::Memory(MemoryDisk::of_new_member());
    /// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
    /// # let client = server.client();
    /// // Creates the key, unless another client was faster.
    /// assert!(client.cas_revision("counter", 0, "0").await?.changed);
    /// loop {
    ///     let record = client.get("counter").await?.ok_or("never deleted")?;
    ///     let count: u64 = std::str::from_utf8(&record.value)?.parse()?;
    ///     let next = (count + 1).to_string();
    ///     if client.cas_revision("counter", record.modify_revision, next).await?.changed {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(client.get("counter").await?.ok_or("never deleted")?.value, "1");
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cas_revision(
        &self,
        key: impl Into<Bytes>,
        modify_revision: Revision,
        value: impl Into<Bytes>,
    ) -> Result<WriteResponse, ClientError> {
        self.compare_and_swap(key, Expect::Revision(modify_revision), value).await
    }

    /// Stores the value if the key is as expected; [`WriteResponse::changed`] says whether it was.
    ///
    /// # Errors
    /// The errors of [`Client::put`].
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
        value: impl Into<Bytes>,
    ) -> Result<WriteResponse, ClientError> {
        let (key, value) = (key.into(), value.into());
        self.write(Operation::CompareAndSwap { key, expect, value }).await
    }

    /// Returns the records in `[start, end)` in ascending order of keys; an empty `end` is the end
    /// of all keys. A page has at most `limit` records and may have fewer, even none: go on at
    /// [`ScanPage::continue_at`] until that is `None`.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    ///
    /// ```
    /// # use kv_service::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let network = Network::Channel(LocalNetwork::new(1));
    /// # let store = Store::Memory(MemoryDisk::of_new_member());
    /// # let server = Server::start_with(ServerConfig::in_process(1, [1]), store, network).await?;
    /// # let client = server.client();
    /// for key in ["user/1", "user/2", "user/3"] {
    ///     client.put(key, "x").await?;
    /// }
    /// let (mut keys, mut start) = (Vec::new(), bytes::Bytes::from("user/"));
    /// loop {
    ///     let page = client.scan(start, "user0", 2).await?;
    ///     keys.extend(page.records.into_iter().map(|(key, _record)| key));
    ///     let Some(next) = page.continue_at else { break };
    ///     start = next;
    /// }
    /// assert_eq!(keys, ["user/1", "user/2", "user/3"]);
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn scan(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
        limit: u32,
    ) -> Result<ScanPage, ClientError> {
        self.scan_with(start, end, limit, Consistency::Linearizable).await
    }

    /// Like [`Client::scan`], with the given consistency. Each page is a view of its own.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub async fn scan_with(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
        limit: u32,
        consistency: Consistency,
    ) -> Result<ScanPage, ClientError> {
        let query = Query::Scan { start: start.into(), end: end.into(), limit };
        match self.query(query, consistency).await? {
            Answer::Scan(page) => Ok(page),
            Answer::Get(_) => Err(strange("a record for a scan")),
        }
    }

    /// Executes any query.
    ///
    /// # Errors
    /// The errors of [`Client::get`].
    pub async fn query(
        &self,
        query: Query,
        consistency: Consistency,
    ) -> Result<Answer, ClientError> {
        check_size(match &query {
            Query::Get { key } => key.len(),
            Query::Scan { start, end, limit: _ } => start.len() + end.len(),
        })?;
        let target = match consistency {
            Consistency::Linearizable => Target::LeaderFirst,
            Consistency::Stale => Target::Any(self.any_node()),
        };
        let attempts = Attempts::new(&self.shared.links, target, Instant::now() + self.deadline);
        let settled =
            attempts.run(|| RequestKind::Read { query: query.clone(), consistency }).await;
        // A query changes nothing, so a failed one is not executed, whatever became of its
        // attempts.
        match settled.map_err(|error| ClientError::not_executed(error.reason))?.reply {
            Reply::Answered(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Executes any write, exactly once.
    ///
    /// # Errors
    /// The errors of [`Client::put`].
    pub async fn write(&self, operation: Operation) -> Result<WriteResponse, ClientError> {
        check_size(match &operation {
            Operation::Put { key, value } | Operation::Append { key, value } => {
                key.len() + value.len()
            }
            Operation::Delete { key } => key.len(),
            Operation::CompareAndSwap { key, expect: Expect::Value(expected), value } => {
                key.len() + expected.len() + value.len()
            }
            Operation::CompareAndSwap {
                key,
                expect: Expect::Version(_) | Expect::Revision(_),
                value,
            } => key.len() + value.len(),
        })?;
        assert!(self.deadline <= DEADLINE_MAX, "a deadline can be added to any time");
        let deadline = Instant::now() + self.deadline;
        loop {
            let ticket = self.ticket(deadline).await?;
            let attempts = Attempts::new(&self.shared.links, Target::Leader, deadline);
            let write = || {
                RequestKind::Write(Box::new(Write {
                    session: ticket.id,
                    sequence: ticket.sequence,
                    lowest_unanswered: ticket.lowest_unanswered(),
                    operation: operation.clone(),
                }))
            };
            let Completed { reply, maybe_executed } = attempts.run(write).await?;
            match reply {
                Reply::Written(answer) => return Ok(answer),
                Reply::Refused(refusal) if ends_session(&refusal) => {
                    // The session is useless, so the next write opens another one (S9).
                    self.shared.session.forget(ticket.id);
                    if self.shared.links.is_closed() {
                        return Err(closed(maybe_executed));
                    }
                    if maybe_executed && refusal != Refusal::OtherOperation {
                        return Err(ClientError::unknown(Reason::SessionExpired));
                    }
                    // No attempt had an effect, so the operation starts anew.
                }
                // The session remembers this refusal, so it is the output of all attempts.
                Reply::Refused(refusal) => {
                    return Err(ClientError::not_executed(Reason::Invalid(refusal.to_string())));
                }
                other => return Err(ClientError::unknown(unexpected(&other).reason)),
            }
        }
    }

    /// Closes the session, if the cluster can be reached, and the connections. Clones are closed
    /// too: their operations fail with [`Reason::Closed`].
    pub async fn close(&self) {
        self.shared.links.begin_close();
        if let Some(session) = self.shared.session.id() {
            let deadline = Instant::now() + CLOSE_TIMEOUT.min(self.deadline);
            let attempts = Attempts::new(&self.shared.links, Target::Leader, deadline).in_closing();
            // A session that cannot be closed expires.
            let _ = attempts.run(|| RequestKind::CloseSession { session }).await;
            self.shared.session.forget(session);
        }
        self.shared.links.close().await;
    }

    /// Returns the sequence number for a write. Opens a session first if there is none.
    async fn ticket(&self, deadline: Instant) -> Result<Ticket<'_>, ClientError> {
        let session = &self.shared.session;
        let late =
            |last: &str| ClientError::not_executed(Reason::Deadline { last: last.to_owned() });
        let crowded = "none: earlier writes of this session are not answered yet, or the session \
                       could not be opened yet";
        let turn = timeout_at(deadline, session.turn()).await.map_err(|_| late(crowded))?;
        loop {
            match timeout_at(deadline, session.ticket(&turn)).await {
                Ok(Some(ticket)) => return Ok(ticket),
                Ok(None) => {}
                Err(_) => return Err(late(crowded)),
            }
            let attempts = Attempts::new(&self.shared.links, Target::Leader, deadline);
            let opened = attempts.run(|| RequestKind::OpenSession).await;
            // An attempt may have opened a session of which no response arrived. It changes no
            // data, and expires.
            let opened = opened.map_err(|error| ClientError::not_executed(error.reason))?;
            match opened.reply {
                Reply::SessionOpened { session: id, window } => session.begin(id, window),
                other => return Err(unexpected(&other)),
            }
        }
    }

    fn any_node(&self) -> NodeId {
        let nodes = self.nodes();
        nodes[self.shared.links.rng.below(nodes.len())]
    }
}

/// Rejects an operation that no node can be configured to accept; the nodes check the rest.
fn check_size(bytes: usize) -> Result<(), ClientError> {
    const ROOM_FOR_THE_REST: usize = 4 << 10;
    if bytes > FRAME_BYTES_MAX - ROOM_FOR_THE_REST {
        let text = format!("an operation of {bytes} bytes, no cluster takes {FRAME_BYTES_MAX}");
        return Err(ClientError::not_executed(Reason::Invalid(text)));
    }
    Ok(())
}

/// Returns true if the session will refuse this write forever. Only the client of a session knows
/// its nonce, so a window that another client has moved is a fault, but no reason to go on failing.
fn ends_session(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::UnknownSession
        | Refusal::Forgotten
        | Refusal::WindowExceeded
        | Refusal::OtherOperation => true,
        Refusal::ValueTooLarge { .. } | Refusal::KeyOutOfRange { .. } => false,
    }
}
