//! The other side: openraft with as little around it as its ports allow, and the settings of its
//! own minimal benchmark. Log and vote sit behind a lock without contention; an append is reported
//! durable at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::impls::{BoxedErrorSource, Entry, InlineBatch, OneshotResponder, TokioRuntime, Vote};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest,
    VoteResponse,
};
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine,
};
use openraft::vote::RaftLeaderId;
use openraft::{Config, EntryPayload, OptionalSend, Raft, RaftTypeConfig, StoredMembership};

use super::Group;

/// Written out, because the macro for it has no place for the responder that is cheapest here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Types;

impl RaftTypeConfig for Types {
    type D = Nothing;
    type R = Nothing;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = LeaderId<u64, u64>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = EntryPayload<Nothing, u64, ()>;
    type Entry = Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type AsyncRuntime = TokioRuntime;
    type ErrorSource = BoxedErrorSource;
}

type Node = Raft<Types, Machine>;

const NODES: [u64; 3] = [0, 1, 2];
const PATIENCE: Duration = Duration::from_secs(10);

/// An empty request, and the response to it.
#[derive(Clone, Debug)]
pub(super) struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

pub(super) struct Cluster {
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    pub(super) async fn start(pipelined: bool) -> anyhow::Result<Self> {
        let config = Config {
            election_timeout_min: 200,
            election_timeout_max: 2000,
            purge_batch_size: 1024,
            max_payload_entries: 1024,
            ..Config::default()
        };
        let config = Arc::new(config.validate()?);
        let router = Router { nodes: Arc::default(), pipelined };
        let mut nodes = BTreeMap::new();
        for id in NODES {
            let (log, machine) = (SharedLog::default(), Machine::default());
            let node = Raft::new(id, Arc::clone(&config), router.clone(), log, machine).await?;
            nodes.insert(id, node);
        }
        *lock(&router.nodes) = nodes.clone();
        nodes[&0].initialize(BTreeSet::from(NODES)).await?;
        for node in nodes.values() {
            node.wait(Some(PATIENCE)).applied_index(Some(1), "a leader").await?;
        }
        Ok(Self { nodes })
    }

    pub(super) fn leader(&self) -> Leader {
        Leader(self.nodes[&0].clone())
    }

    pub(super) async fn stop(self) {
        for node in self.nodes.into_values() {
            // The node ran until here, and no client needs it any longer.
            let _ = node.shutdown().await;
        }
    }
}

#[derive(Clone)]
pub(super) struct Leader(Node);

impl Group for Leader {
    async fn commit(&self) -> anyhow::Result<()> {
        self.0.client_write(Nothing).await.context("openraft refused a write")?;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log of one node; entries are contiguous.
#[derive(Default)]
struct Log {
    vote: Option<VoteOf<Types>>,
    purged: Option<LogIdOf<Types>>,
    first_index: u64,
    entries: VecDeque<EntryOf<Types>>,
}

#[derive(Clone, Default)]
struct SharedLog(Arc<Mutex<Log>>);

impl RaftLogReader<Types> for SharedLog {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<EntryOf<Types>>> {
        let log = lock(&self.0);
        let length = log.entries.len();
        let place = |index: u64| usize::try_from(index.saturating_sub(log.first_index));
        let place = |index| place(index).unwrap_or(usize::MAX).min(length);
        let start = match range.start_bound() {
            Bound::Included(index) => place(*index),
            Bound::Excluded(index) => place(index + 1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => place(index + 1),
            Bound::Excluded(index) => place(*index),
            Bound::Unbounded => length,
        };
        Ok(log.entries.range(start..end.max(start)).cloned().collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        Ok(lock(&self.0).vote)
    }
}

impl RaftLogStorage<Types> for SharedLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let log = lock(&self.0);
        let last = log.entries.back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: last.or(log.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        lock(&self.0).vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, done: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut log = lock(&self.0);
        for entry in entries {
            let index = entry.log_id.index;
            if log.entries.is_empty() {
                log.first_index = index;
            }
            assert_eq!(index, log.first_index + log.entries.len() as u64, "entries are contiguous");
            log.entries.push_back(entry);
        }
        drop(log);
        done.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let mut log = lock(&self.0);
        let first_dropped = last.map_or(0, |last| last.index + 1);
        let kept = first_dropped.saturating_sub(log.first_index);
        log.entries.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        Ok(())
    }

    async fn purge(&mut self, through: LogIdOf<Types>) -> io::Result<()> {
        let mut log = lock(&self.0);
        log.purged = Some(through);
        while log.entries.front().is_some_and(|entry| entry.log_id.index <= through.index) {
            log.entries.pop_front();
            log.first_index += 1;
        }
        Ok(())
    }
}

/// Knows how far it is and who the members are; a snapshot of it has no content.
#[derive(Clone, Default)]
struct Machine {
    last_applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<Types>>>>,
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, ()>> {
        let meta = SnapshotMetaOf::<Types> {
            last_log_id: self.last_applied,
            last_membership: self.membership.clone(),
        };
        *lock(&self.snapshot) = Some(meta.clone());
        Ok(SnapshotOf::<Types, ()> { meta, snapshot: () })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.last_applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Nothing);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, (): ()) -> io::Result<()> {
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *lock(&self.snapshot) = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, ()>>> {
        let meta = lock(&self.snapshot).clone();
        Ok(meta.map(|meta| SnapshotOf::<Types, ()> { meta, snapshot: () }))
    }
}

/// The network: a message is a call of the other node.
#[derive(Clone)]
struct Router {
    nodes: Arc<Mutex<BTreeMap<u64, Node>>>,
    pipelined: bool,
}

impl RaftNetworkFactory<Types> for Router {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &()) -> Link {
        let target = lock(&self.nodes).get(&target).expect("nodes lead once all are there").clone();
        Link { target, pipelined: self.pipelined }
    }
}

struct Link {
    target: Node,
    pipelined: bool,
}

fn unreachable<E: std::error::Error + 'static>(error: &E) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::new(error))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.target.append_entries(rpc).await.map_err(|error| unreachable(&error))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if !self.pipelined {
            return stream_append_sequential(self, input, option);
        }
        let answers = self.target.stream_append(input);
        let answers = answers.map_err(|error| unreachable(&error));
        Box::pin(async move { Ok(answers.boxed()) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.target.vote(rpc).await.map_err(|error| unreachable(&error))
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let installed = self.target.install_full_snapshot(vote, snapshot).await;
        installed.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
    }
}
