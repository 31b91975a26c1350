//! The inputs of the event loop, in one place.
//!
//! Three queues under one lock:
//!
//! * completions of work that the loop itself handed out. There is always room: the credit that the
//!   loop grants bounds their number;
//! * messages of peers, bounded in bytes for each peer and class. A message beyond the bound is
//!   dropped, as the network may drop it. Snapshot streams are bounded in number for each peer,
//!   from their arrival until their end;
//! * requests of callers, bounded in count and bytes. A request beyond the bound is rejected
//!   `Busy`.
//!
//! The loop takes all of them in one go, so that inputs that arrive together share batches and
//! messages.
//!
//! A refusal is never delivered on the caller's stack, where the caller may hold a lock that its
//! callback takes: a task of its own delivers it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::members::MembersOrder;
use super::peer_queue::PeerQueue;
use super::snapshots::transfer::{Admission, Sent};
use super::waiters::{Abandoned, Place, ProposeReply, Reply, RequestCounts};
use crate::consensus::PersistId;
use crate::error::{Fatal, Rejected};
use crate::state_machine::{SnapshotSource, StateMachine};
use crate::transport::{BulkStream, Inbound};
use crate::types::{
    Configuration, Index, Message, NodeId, Position, SnapshotContent, SnapshotMeta, Term,
};

/// Open snapshot streams of one peer. Beyond, a further one is aborted. A peer needs one, and a
/// second while this node has not yet noticed the end of the first.
const PEER_STREAMS_MAX: usize = 2;
/// Bytes that a request is charged beyond its command, for its place in the queues.
const REQUEST_OVERHEAD_BYTES: u64 = 256;

pub(super) enum Request<M: StateMachine> {
    Propose { command: Bytes, reply: ProposeReply<M::Output> },
    Query { query: M::Query, linearizable: bool, reply: Reply<M::Answer, Rejected> },
    Transfer { to: Option<NodeId>, place: Place },
    Snapshot { place: Place },
    RaiseVersion { version: u32, reply: Reply<Position, Rejected> },
    ChangeMembers { order: Box<MembersOrder>, reply: Reply<Position, Rejected> },
    PlanMembers { order: Box<MembersOrder>, reply: Reply<Option<Configuration>, Rejected> },
}

impl<M: StateMachine> Request<M> {
    fn size_bytes(&self) -> u64 {
        REQUEST_OVERHEAD_BYTES
            + match self {
                Request::Propose { command, .. } => command.len() as u64,
                Request::Query { .. } => size_of::<M::Query>() as u64,
                Request::ChangeMembers { order, .. } | Request::PlanMembers { order, .. } => {
                    order.size_bytes()
                }
                Request::Transfer { .. }
                | Request::Snapshot { .. }
                | Request::RaiseVersion { .. } => 0,
            }
    }

    /// Counts the request as in flight. False: `max` are in flight already.
    fn enter(&mut self, max: usize) -> bool {
        match self {
            Request::Propose { reply, .. } => reply.enter(max),
            Request::Query { reply, .. } => reply.enter(max),
            Request::Transfer { place, .. } | Request::Snapshot { place } => place.enter(max),
            Request::RaiseVersion { reply, .. } | Request::ChangeMembers { reply, .. } => {
                reply.enter(max)
            }
            Request::PlanMembers { reply, .. } => reply.enter(max),
        }
    }
}

/// Completion of work that the loop handed out.
pub(super) enum Completion {
    Persisted(PersistId),
    /// Entries through the index were applied, or the snapshot at it was restored.
    Applied(Index),
    ViewTaken(Box<dyn SnapshotSource>),
    /// The machine does not want to give a view now.
    NoView,
    /// `None`: the snapshot was given up before it was complete.
    SnapshotWritten(Option<(SnapshotMeta, SnapshotContent)>),
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
        answer: oneshot::Sender<Admission>,
    },
    SnapshotReceived {
        from: NodeId,
        term: Term,
        meta: SnapshotMeta,
    },
    ReceiveEnded,
    Failed(Fatal),
}

/// An input from or about a peer.
pub(super) enum PeerEvent {
    Message {
        message: Message,
        /// Incarnation of the sender's disk, with the first message of a connection.
        incarnation: Option<u64>,
    },
    Bulk(OpenStream),
    Unreachable,
}

/// A snapshot stream that a peer opened; counted until it is dropped.
pub(super) struct OpenStream {
    pub(super) stream: Box<dyn BulkStream>,
    /// Dropped after the stream.
    _slot: StreamSlot,
}

/// Open streams of each peer.
type StreamCounts = Arc<Mutex<BTreeMap<NodeId, usize>>>;

struct StreamSlot {
    counts: StreamCounts,
    peer: NodeId,
}

impl StreamSlot {
    /// `None`: the peer has as many open as it may.
    fn take(counts: &StreamCounts, peer: NodeId) -> Option<Self> {
        let mut open = lock(counts);
        let count = open.entry(peer).or_insert(0);
        if *count >= PEER_STREAMS_MAX {
            return None;
        }
        *count += 1;
        Some(Self { counts: Arc::clone(counts), peer })
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut open = lock(&self.counts);
        let count = open.get_mut(&self.peer).expect("counted when it was taken");
        assert!((1..=PEER_STREAMS_MAX).contains(count), "each open stream is counted once");
        *count -= 1;
        if *count == 0 {
            open.remove(&self.peer);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No lock of this module is held across anything that panics half-way.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// All inputs that arrived since the last turn of the loop.
pub(super) struct InputBatch<M: StateMachine> {
    pub(super) completions: VecDeque<Completion>,
    pub(super) peers: VecDeque<(NodeId, PeerEvent)>,
    pub(super) requests: VecDeque<Request<M>>,
    /// The nodes that are to lead only if no other voter can, if that has changed.
    pub(super) avoided: Option<BTreeSet<NodeId>>,
    pub(super) shutdown: bool,
}

impl<M: StateMachine> InputBatch<M> {
    pub(super) fn new() -> Self {
        Self {
            completions: VecDeque::new(),
            peers: VecDeque::new(),
            requests: VecDeque::new(),
            avoided: None,
            shutdown: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.completions.is_empty()
            && self.peers.is_empty()
            && self.requests.is_empty()
            && self.avoided.is_none()
            && !self.shutdown
    }
}

struct InboxQueues<M: StateMachine> {
    turn: InputBatch<M>,
    peers: BTreeMap<NodeId, PeerQueue>,
    /// Incarnations of peers that have connected, until their first message is queued.
    incarnations: BTreeMap<NodeId, u64>,
    request_bytes: u64,
    closed: bool,
}

pub(super) struct Inbox<M: StateMachine> {
    own_id: NodeId,
    queues: Mutex<InboxQueues<M>>,
    filled: Notify,
    counts: Arc<RequestCounts>,
    in_flight_max: usize,
    request_bytes_max: u64,
    streams: StreamCounts,
    dropped_logged: AtomicBool,
    /// Runs the tasks that deliver refusals.
    runtime: tokio::runtime::Handle,
}

impl<M: StateMachine> Inbox<M> {
    /// Must be called within a tokio runtime.
    pub(super) fn new(own_id: NodeId, in_flight_max: usize, request_bytes_max: u64) -> Self {
        assert!(in_flight_max > 0 && request_bytes_max > 0, "checked when the node starts");
        let (turn, peers) = (InputBatch::new(), BTreeMap::new());
        let incarnations = BTreeMap::new();
        let queues = InboxQueues { turn, peers, incarnations, request_bytes: 0, closed: false };
        Self {
            own_id,
            queues: Mutex::new(queues),
            filled: Notify::new(),
            counts: Arc::default(),
            in_flight_max,
            request_bytes_max,
            streams: Arc::default(),
            dropped_logged: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Adds an input. Only the first addition wakes the loop: it does not sleep again before it has
    /// taken everything.
    fn add(
        &self,
        mut queues: MutexGuard<'_, InboxQueues<M>>,
        add: impl FnOnce(&mut InputBatch<M>),
    ) {
        let is_first = queues.turn.is_empty();
        add(&mut queues.turn);
        drop(queues);
        if is_first {
            self.filled.notify_one();
        }
    }

    /// Queues a completion. It never waits, because the loop granted the credit for it. Once the
    /// loop is gone, the completion is dropped at once, because it may hold files open.
    pub(super) fn push_completion(&self, completion: Completion) {
        let queues = self.lock();
        if queues.closed {
            drop(queues);
            return drop(completion);
        }
        self.add(queues, |turn| turn.completions.push_back(completion));
    }

    /// Replaces the last value, which need not have been taken.
    pub(super) fn push_avoided(&self, nodes: BTreeSet<NodeId>) {
        self.add(self.lock(), |turn| turn.avoided = Some(nodes));
    }

    pub(super) fn push_shutdown(&self) {
        self.add(self.lock(), |turn| turn.shutdown = true);
    }

    /// Returns a place for a new request; it counts as in flight once the request is accepted.
    pub(super) fn place(&self) -> Place {
        Place::new(&self.counts)
    }

    /// Takes the request, or rejects it.
    pub(super) fn push_request(&self, mut request: Request<M>) {
        if !request.enter(self.in_flight_max) {
            return self.refuse(request, Rejected::Busy("too many requests are in flight"));
        }
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
        self.refuse(request, refusal);
    }

    /// Rejects the request, and frees its command at once.
    pub(super) fn refuse(&self, request: Request<M>, rejected: Rejected) {
        match request {
            Request::Propose { reply, .. } => self.deliver(reply, Err(rejected.into())),
            Request::Query { reply, .. } => self.deliver(reply, Err(rejected)),
            Request::RaiseVersion { reply, .. } | Request::ChangeMembers { reply, .. } => {
                self.deliver(reply, Err(rejected));
            }
            Request::PlanMembers { reply, .. } => self.deliver(reply, Err(rejected)),
            // These have no reply. A service may repeat them often, so the log says it at debug
            // level.
            Request::Transfer { .. } => {
                tracing::debug!(%rejected, "a request to hand leadership over is dropped");
            }
            Request::Snapshot { .. } => {
                tracing::debug!(%rejected, "a request for a snapshot is dropped");
            }
        }
    }

    /// Sends a reply from a task of its own, unless sending runs no code of the caller.
    fn deliver<T, E>(&self, reply: Reply<T, E>, result: Result<T, E>)
    where
        T: Send + 'static,
        E: Abandoned + Send + 'static,
    {
        if reply.is_channel() {
            reply.send(result);
        } else {
            self.runtime.spawn(async move { reply.send(result) });
        }
    }

    /// Waits until an input is queued. Cancel-safe.
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
        self.counts.in_flight()
    }

    /// Callbacks that panicked.
    pub(super) fn panicked_count(&self) -> u64 {
        self.counts.panicked()
    }

    /// Swaps the queues for an empty turn.
    pub(super) fn take(&self, turn: &mut InputBatch<M>) {
        assert!(turn.is_empty(), "a turn is worked off before the next is taken");
        let mut queues = self.lock();
        std::mem::swap(&mut queues.turn, turn);
        queues.peers.clear();
        queues.request_bytes = 0;
    }

    /// Closes the inbox: from now on every request is rejected and every message dropped. Returns
    /// the queues; dropping them answers the requests in them.
    #[must_use]
    pub(super) fn close(&self) -> InputBatch<M> {
        let mut queues = self.lock();
        queues.closed = true;
        std::mem::replace(&mut queues.turn, InputBatch::new())
    }

    fn lock(&self) -> MutexGuard<'_, InboxQueues<M>> {
        lock(&self.queues)
    }

    fn note_dropped(&self, from: NodeId) {
        if !self.dropped_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(from, "messages arrive faster than they are handled; dropping some");
        }
    }
}

/// Reports that a task broke, unless the task declared before that it ended well. The event loop
/// waits for the task's completion, and must not wait forever because the task panicked.
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
            self.inbox.push_completion(Completion::Failed(Fatal::Internal(problem)));
        }
    }
}

impl<M: StateMachine> Inbound for Inbox<M> {
    fn on_message(&self, from: NodeId, message: Message) {
        if from == self.own_id {
            tracing::warn!("a peer claims this node's own id; ignoring its messages");
            return;
        }
        let mut queues = self.lock();
        if queues.closed {
            return;
        }
        if !queues.peers.entry(from).or_default().charge(&message) {
            drop(queues);
            return self.note_dropped(from);
        }
        let incarnation = queues.incarnations.remove(&from);
        let event = PeerEvent::Message { message, incarnation };
        self.add(queues, |turn| turn.peers.push_back((from, event)));
    }

    fn on_connected(&self, peer: NodeId, incarnation: u64) {
        self.lock().incarnations.insert(peer, incarnation);
    }

    fn on_bulk(&self, from: NodeId, stream: Box<dyn BulkStream>) {
        if from == self.own_id {
            tracing::warn!("a peer claims this node's own id; ignoring its snapshot");
            return;
        }
        // Dropping the stream tells the peer, which tries again later.
        let Some(slot) = StreamSlot::take(&self.streams, from) else { return };
        let stream = OpenStream { stream, _slot: slot };
        let queues = self.lock();
        if queues.closed {
            drop(queues);
            return drop(stream);
        }
        self.add(queues, |turn| turn.peers.push_back((from, PeerEvent::Bulk(stream))));
    }

    fn on_unreachable(&self, peer: NodeId) {
        let mut queues = self.lock();
        // An event that is queued already says the same.
        if queues.closed
            || std::mem::replace(&mut queues.peers.entry(peer).or_default().unreachable, true)
        {
            return;
        }
        self.add(queues, |turn| turn.peers.push_back((peer, PeerEvent::Unreachable)));
    }
}
