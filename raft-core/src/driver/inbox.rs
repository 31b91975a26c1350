//! Everything that the loop has to hear, in one place.
//!
//! Three queues under one lock: reports of work that the loop itself handed out (always room: their
//! number is bounded by the credit that the loop grants), messages of peers (bounded in bytes per
//! peer; what does not fit is dropped, the network may lose it as well), and requests of clients
//! (bounded in count and bytes; what does not fit is rejected `Busy`). The loop takes all of them in
//! one go, so that what came in together shares batches and messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::waiters::{ProposeReply, Reply};
use crate::consensus::{OfferAnswer, PersistId};
use crate::error::{Fatal, Rejected};
use crate::state_machine::{SnapshotSource, StateMachine};
use crate::transport::{BulkStream, Inbound};
use crate::types::{Index, Message, NodeId, SnapshotContent, SnapshotMeta, Term};

/// What waits to be read from one peer.
const PEER_BYTES_MAX: u64 = 64 << 20;
/// Snapshot streams offered and not yet looked at.
const BULK_STREAMS_MAX: usize = 8;

pub(super) enum Request<M: StateMachine> {
    Propose { command: Bytes, reply: ProposeReply<M::Output> },
    Query { query: M::Query, linearizable: bool, reply: Reply<M::Answer, Rejected> },
    Transfer { to: Option<NodeId> },
}

impl<M: StateMachine> Request<M> {
    fn size_bytes(&self) -> u64 {
        match self {
            Request::Propose { command, .. } => command.len() as u64,
            Request::Query { .. } | Request::Transfer { .. } => 0,
        }
    }

    /// The reply carries the count, so that answering it in whatever way ends the request.
    fn counted(self, guard: InFlight) -> Self {
        match self {
            Request::Propose { command, reply } => {
                Request::Propose { command, reply: reply.counted(guard) }
            }
            Request::Query { query, linearizable, reply } => {
                Request::Query { query, linearizable, reply: reply.counted(guard) }
            }
            Request::Transfer { to } => Request::Transfer { to },
        }
    }

    pub(super) fn reject(self, rejected: Rejected) {
        match self {
            Request::Propose { reply, .. } => reply.send(Err(rejected.into())),
            Request::Query { reply, .. } => reply.send(Err(rejected)),
            Request::Transfer { .. } => {}
        }
    }
}

/// What became of work that the loop handed out.
pub(super) enum Report {
    Persisted(PersistId),
    /// Entries through the index were applied, or the snapshot at it was restored.
    Applied(Index),
    ViewTaken(Box<dyn SnapshotSource>),
    SnapshotWritten {
        meta: SnapshotMeta,
        content: SnapshotContent,
    },
    StateFlushed(Index),
    Compacted,
    SnapshotSent {
        peer: NodeId,
        sent: Sent,
    },
    SnapshotOffered {
        from: NodeId,
        term: Term,
        meta: SnapshotMeta,
        answer: oneshot::Sender<OfferAnswer>,
    },
    SnapshotReceived {
        from: NodeId,
        term: Term,
        meta: SnapshotMeta,
    },
    ReceiveEnded,
    Failed(Fatal),
}

/// How sending a snapshot to a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The peer has, or does not need, what is through this index.
    Through(Index),
    /// The peer or the way to it failed; the same snapshot may be sent again.
    Interrupted,
    /// This node cannot read its own snapshot.
    Unreadable,
}

/// What a peer caused.
pub(super) enum PeerEvent {
    Message(Message),
    Bulk(Box<dyn BulkStream>),
    Unreachable,
}

/// All that came in since the last turn of the loop.
pub(super) struct Turn<M: StateMachine> {
    pub(super) reports: VecDeque<Report>,
    pub(super) peers: VecDeque<(NodeId, PeerEvent)>,
    pub(super) requests: VecDeque<Request<M>>,
    pub(super) shutdown: bool,
}

impl<M: StateMachine> Turn<M> {
    pub(super) fn new() -> Self {
        Self {
            reports: VecDeque::new(),
            peers: VecDeque::new(),
            requests: VecDeque::new(),
            shutdown: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.reports.is_empty()
            && self.peers.is_empty()
            && self.requests.is_empty()
            && !self.shutdown
    }
}

struct Queues<M: StateMachine> {
    turn: Turn<M>,
    peer_bytes: BTreeMap<NodeId, u64>,
    bulk_count: usize,
    request_bytes: u64,
    closed: bool,
}

pub(super) struct Inbox<M: StateMachine> {
    own_id: NodeId,
    queues: Mutex<Queues<M>>,
    filled: Notify,
    /// Requests accepted and not yet answered.
    in_flight_count: Arc<AtomicUsize>,
    in_flight_max: usize,
    request_bytes_max: u64,
    dropped_logged: AtomicBool,
}

/// Counts one request from acceptance to answer.
pub(super) struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<M: StateMachine> Inbox<M> {
    pub(super) fn new(own_id: NodeId, in_flight_max: usize, request_bytes_max: u64) -> Self {
        let turn = Turn::new();
        let peer_bytes = BTreeMap::new();
        let queues = Queues { turn, peer_bytes, bulk_count: 0, request_bytes: 0, closed: false };
        Self {
            own_id,
            queues: Mutex::new(queues),
            filled: Notify::new(),
            in_flight_count: Arc::new(AtomicUsize::new(0)),
            in_flight_max,
            request_bytes_max,
            dropped_logged: AtomicBool::new(false),
        }
    }

    /// Adds to what came in. Only the first addition wakes the loop: it does not sleep again before it has taken
    /// everything.
    fn add(&self, mut queues: MutexGuard<'_, Queues<M>>, add: impl FnOnce(&mut Turn<M>)) {
        let is_first = queues.turn.is_empty();
        add(&mut queues.turn);
        drop(queues);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// A report never waits, and is dropped only once the loop is gone: the loop granted the credit
    /// for it. What is dropped then may hold files open, so it must not be kept.
    pub(super) fn push_report(&self, report: Report) {
        let queues = self.lock();
        if queues.closed {
            drop(queues);
            return drop(report);
        }
        self.add(queues, |turn| turn.reports.push_back(report));
    }

    pub(super) fn push_shutdown(&self) {
        self.add(self.lock(), |turn| turn.shutdown = true);
    }

    /// Takes the request, or rejects it at once.
    pub(super) fn push_request(&self, request: Request<M>) {
        let in_flight_before = self.in_flight_count.fetch_add(1, Ordering::Relaxed);
        let guard = InFlight(Arc::clone(&self.in_flight_count));
        if in_flight_before >= self.in_flight_max {
            return request.reject(Rejected::Busy("too many requests are in flight"));
        }
        let request = request.counted(guard);
        let mut queues = self.lock();
        let refusal = if queues.closed {
            Rejected::ShuttingDown
        } else if queues.request_bytes >= self.request_bytes_max {
            Rejected::Busy("too many bytes wait to be proposed")
        } else {
            queues.request_bytes += request.size_bytes();
            return self.add(queues, |turn| turn.requests.push_back(request));
        };
        drop(queues);
        request.reject(refusal);
    }

    /// Waits until something is there. Cancel-safe.
    pub(super) async fn filled(&self) {
        loop {
            if !self.lock().turn.is_empty() {
                return;
            }
            self.filled.notified().await;
        }
    }

    /// Requests accepted and not yet answered.
    pub(super) fn in_flight_count(&self) -> usize {
        self.in_flight_count.load(Ordering::Relaxed)
    }

    /// Swaps what came in for an empty turn.
    pub(super) fn take(&self, turn: &mut Turn<M>) {
        assert!(turn.is_empty(), "a turn is worked off before the next is taken");
        let mut queues = self.lock();
        std::mem::swap(&mut queues.turn, turn);
        queues.peer_bytes.clear();
        queues.bulk_count = 0;
        queues.request_bytes = 0;
    }

    /// From now on every request is rejected.
    pub(super) fn close(&self) -> Turn<M> {
        let mut queues = self.lock();
        queues.closed = true;
        std::mem::replace(&mut queues.turn, Turn::new())
    }

    fn lock(&self) -> MutexGuard<'_, Queues<M>> {
        // The lock is held for pushes and swaps only; none of them panics half-way.
        self.queues.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn note_dropped(&self, from: NodeId) {
        if !self.dropped_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(from, "messages arrive faster than they are handled; dropping some");
        }
    }
}

/// Says that a task broke unless it says before that it ended well: whoever waits for its report must
/// not wait for ever because it panicked.
pub(super) struct Watchdog<M: StateMachine> {
    inbox: Arc<Inbox<M>>,
    task: &'static str,
    ended_well: bool,
}

impl<M: StateMachine> Watchdog<M> {
    pub(super) fn new(inbox: &Arc<Inbox<M>>, task: &'static str) -> Self {
        Self { inbox: Arc::clone(inbox), task, ended_well: false }
    }

    pub(super) fn ended_well(mut self) {
        self.ended_well = true;
    }
}

impl<M: StateMachine> Drop for Watchdog<M> {
    fn drop(&mut self) {
        if !self.ended_well {
            let problem = format!("{} broke", self.task);
            self.inbox.push_report(Report::Failed(Fatal::Internal(problem)));
        }
    }
}

impl<M: StateMachine> Inbound for Inbox<M> {
    fn on_message(&self, from: NodeId, message: Message) {
        if from == self.own_id {
            tracing::warn!("a peer claims this node's own id; ignoring its messages");
            return;
        }
        let size_bytes = message.size_bytes();
        let mut queues = self.lock();
        if queues.closed {
            return;
        }
        let bytes = queues.peer_bytes.entry(from).or_insert(0);
        if *bytes >= PEER_BYTES_MAX {
            drop(queues);
            return self.note_dropped(from);
        }
        *bytes += size_bytes;
        self.add(queues, |turn| turn.peers.push_back((from, PeerEvent::Message(message))));
    }

    fn on_bulk(&self, from: NodeId, stream: Box<dyn BulkStream>) {
        if from == self.own_id {
            tracing::warn!("a peer claims this node's own id; ignoring its snapshot");
            return;
        }
        let mut queues = self.lock();
        if queues.closed || queues.bulk_count >= BULK_STREAMS_MAX {
            return;
        }
        queues.bulk_count += 1;
        self.add(queues, |turn| turn.peers.push_back((from, PeerEvent::Bulk(stream))));
    }

    fn on_unreachable(&self, peer: NodeId) {
        let queues = self.lock();
        if queues.closed {
            return;
        }
        self.add(queues, |turn| turn.peers.push_back((peer, PeerEvent::Unreachable)));
    }
}
