//! Takes, keeps, streams and receives snapshots, beside the loop.
//!
//! The loop decides; here is what is then done, each on a task of its own that ends with a report:
//!
//! * a volatile machine's view is written to storage, published by a batch, and the log compacted;
//! * a durable machine is flushed, and the log compacted: no copy of the state is made;
//! * a peer that lags behind the log gets the published snapshot as a stream; a durable machine's
//!   is written for the purpose first, so that a transfer can resume and there is one way to send;
//! * a leader's snapshot is received into storage, at most one at a time, and never beside one of
//!   this node's own, since both would be the storage's unfinished one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::inbox::{Inbox, OpenStream, Report, Sent, Watchdog};
use super::snapshot_wire::{self as wire, Answer, Offer};
use super::tasks::{Tasks, Token};
use crate::consensus::OfferAnswer;
use crate::state_machine::{Flusher, SnapshotSource, StateMachine};
use crate::storage::{Storage, StorageError, StorageResult};
use crate::transport::{BulkStream, Transport, TransportError};
use crate::types::{Index, NodeId, SnapshotContent, SnapshotMeta, Term};

/// What this node is doing about a snapshot of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    Idle,
    /// The machine was asked for a view.
    TakingView,
    /// The view is being written.
    Writing,
    /// It waits for the batch that publishes it.
    Publishing,
    /// A durable machine is being flushed.
    Flushing,
}

/// The loop's side: what is under way.
pub(super) struct Snapshotter<M: StateMachine> {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) inbox: Arc<Inbox<M>>,
    pub(super) tasks: Tasks,
    pub(super) patience: Duration,
    /// Whether machine calls may wait for a disk, and so must not be made on the runtime's threads.
    pub(super) blocks: bool,
    /// Of a durable machine; absent also while a flush is under way.
    pub(super) flusher: Option<Box<dyn Flusher>>,
    pub(super) own: Own,
    pub(super) receiving: bool,
    pub(super) compacting: bool,
    /// Peers that need a snapshot and are not being sent one.
    pub(super) wanted_by: BTreeSet<NodeId>,
    /// Peers that are being sent a snapshot, which is at this index or a later one.
    pub(super) sending_to: BTreeMap<NodeId, Index>,
    /// Of the last snapshot written, for hysteresis.
    pub(super) last_size_bytes: u64,
}

impl<M: StateMachine> Snapshotter<M> {
    /// Writes a view of this node's state; reports `SnapshotWritten`.
    pub(super) fn write(&mut self, meta: SnapshotMeta, source: Box<dyn SnapshotSource>) {
        self.own = Own::Writing;
        let storage = Arc::clone(&self.storage);
        let inbox = Arc::clone(&self.inbox);
        let blocks = self.blocks;
        let token = self.tasks.token();
        self.spawn("writing a snapshot", async move {
            let report = match write_view(storage, meta.clone(), source, blocks, token).await {
                Ok(content) => Report::SnapshotWritten { meta, content },
                Err(error) => Report::Failed(error.into()),
            };
            inbox.push_report(report);
        });
    }

    /// Flushes a durable machine; reports `StateFlushed`, and puts the flusher back by `on_flushed`.
    pub(super) fn flush(&mut self, give_back: oneshot::Sender<Box<dyn Flusher>>) {
        let mut flusher = self.flusher.take().expect("one flush at a time");
        self.own = Own::Flushing;
        let inbox = Arc::clone(&self.inbox);
        let (watchdog, token) = (self.watchdog("flushing the state"), self.tasks.token());
        tokio::task::spawn_blocking(move || {
            let report = match flusher.flush() {
                Ok(index) => Report::StateFlushed(index),
                Err(error) => Report::Failed(error.into()),
            };
            // The loop holds the other end until it has heard the report.
            let _ = give_back.send(flusher);
            inbox.push_report(report);
            watchdog.ended_well();
            drop(token);
        });
    }

    pub(super) fn compact(&mut self, through: SnapshotMeta) {
        self.compacting = true;
        let storage = Arc::clone(&self.storage);
        let inbox = Arc::clone(&self.inbox);
        self.spawn("compacting the log", async move {
            inbox.push_report(match storage.compact(through).await {
                Ok(()) => Report::Compacted,
                Err(error) => Report::Failed(error.into()),
            });
        });
    }

    /// Streams the published snapshot, which is at `published`, to a peer; reports `SnapshotSent`.
    pub(super) fn send(&mut self, peer: NodeId, term: Term, published: Index) {
        self.wanted_by.remove(&peer);
        self.sending_to.insert(peer, published);
        let storage = Arc::clone(&self.storage);
        let transport = Arc::clone(&self.transport);
        let inbox = Arc::clone(&self.inbox);
        let patience = self.patience;
        self.spawn("sending a snapshot", async move {
            let sent = match send_snapshot(storage, transport, peer, term, patience).await {
                Ok(index) => Sent::Through(index),
                Err(TransferError::Stream(error)) => {
                    tracing::info!(peer, %error, "sending a snapshot failed; will try again");
                    Sent::Interrupted
                }
                Err(TransferError::Storage(error)) => {
                    tracing::error!(%error, "the published snapshot cannot be read");
                    Sent::Unreadable
                }
            };
            inbox.push_report(Report::SnapshotSent { peer, sent });
        });
    }

    /// Receives a snapshot that a peer wants to send; reports on the way, and `ReceiveEnded`.
    pub(super) fn receive(&mut self, from: NodeId, mut open: OpenStream) {
        let busy = self.receiving || self.own != Own::Idle;
        let patience = self.patience;
        if busy {
            self.spawn("refusing a snapshot", async move {
                let answer = open.stream.send(wire::encode(&Answer::Busy));
                // The peer tries again whether it hears this or not.
                let _ = timeout(patience, answer).await;
                let _ = timeout(patience, open.stream.finish()).await;
            });
            return;
        }
        self.receiving = true;
        let storage = Arc::clone(&self.storage);
        let inbox = Arc::clone(&self.inbox);
        self.spawn("receiving a snapshot", async move {
            let received = receive_snapshot(&*storage, &inbox, from, open, patience).await;
            match received {
                Ok(()) => {}
                Err(TransferError::Stream(error)) => {
                    tracing::info!(from, %error, "receiving a snapshot was interrupted");
                }
                Err(TransferError::Storage(error)) => {
                    inbox.push_report(Report::Failed(error.into()));
                }
            }
            inbox.push_report(Report::ReceiveEnded);
        });
    }

    /// Runs a task that ends with a report, or with the loop.
    fn spawn(&self, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let watchdog = self.watchdog(task);
        self.tasks.spawn(async move {
            work.await;
            watchdog.ended_well();
        });
    }

    fn watchdog(&self, task: &'static str) -> Watchdog<M> {
        Watchdog::new(&self.inbox, task)
    }
}

/// Which side of a transfer failed.
enum TransferError {
    Stream(TransportError),
    Storage(StorageError),
}

impl From<TransportError> for TransferError {
    fn from(error: TransportError) -> Self {
        TransferError::Stream(error)
    }
}

impl From<StorageError> for TransferError {
    fn from(error: StorageError) -> Self {
        TransferError::Storage(error)
    }
}

async fn write_view(
    storage: Arc<dyn Storage>,
    meta: SnapshotMeta,
    mut source: Box<dyn SnapshotSource>,
    blocks: bool,
    token: Token,
) -> StorageResult<SnapshotContent> {
    let mut writer = storage.snapshot_writer(meta, None).await?;
    loop {
        let (returned, chunk) = if blocks {
            let token = token.clone();
            let next = move || {
                let chunk = source.next_chunk(wire::CHUNK_BYTES);
                // The token last: the view holds files open.
                (source, chunk, token)
            };
            let (source, chunk, _) =
                tokio::task::spawn_blocking(next).await.map_err(|error| StorageError::Engine {
                    operation: "reading a view of the state machine".into(),
                    message: error.to_string(),
                })?;
            (source, chunk)
        } else {
            // Others get their turn between two pieces.
            tokio::task::yield_now().await;
            let chunk = source.next_chunk(wire::CHUNK_BYTES);
            (source, chunk)
        };
        source = returned;
        let chunk = chunk.map_err(|error| StorageError::Engine {
            operation: "reading a view of the state machine".into(),
            message: error.to_string(),
        })?;
        match chunk {
            Some(chunk) => writer.write(chunk).await?,
            None => return writer.finish().await,
        }
    }
}

async fn within<T>(
    patience: Duration,
    step: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    match timeout(patience, step).await {
        Ok(result) => result,
        Err(_) => Err(TransportError::new(format!("no progress for {patience:?}"))),
    }
}

/// Returns the index that the peer now has, or does not need.
async fn send_snapshot(
    storage: Arc<dyn Storage>,
    transport: Arc<dyn Transport>,
    peer: NodeId,
    term: Term,
    patience: Duration,
) -> Result<Index, TransferError> {
    let reader = storage.snapshot_reader().await?;
    let mut reader = reader.ok_or_else(|| TransportError::new("no snapshot is published"))?;
    let meta = reader.meta().clone();
    let index = meta.index();
    let content = reader.content();
    let mut stream = within(patience, transport.open_bulk(peer)).await?;
    within(patience, stream.send(wire::encode(&Offer { term, meta, content }))).await?;
    let mut offset = match receive_answer(&mut *stream, patience).await? {
        Answer::Accept { offset } => offset,
        Answer::NotNeeded => return Ok(index),
        Answer::Stale { term } => {
            return Err(TransportError::new(format!("the peer is in term {term}")).into());
        }
        Answer::Busy => {
            return Err(TransportError::new("the peer is busy with another snapshot").into());
        }
        Answer::Done => return Err(TransportError::new("done before it began").into()),
    };
    loop {
        let chunk = reader.read(offset, wire::CHUNK_BYTES).await?;
        if chunk.is_empty() {
            break;
        }
        within(patience, stream.send(wire::encode_chunk(offset, &chunk))).await?;
        offset += chunk.len() as u64;
    }
    within(patience, stream.finish()).await?;
    match receive_answer(&mut *stream, patience).await? {
        Answer::Done => Ok(index),
        other => Err(TransportError::new(format!("unexpected answer {other:?}")).into()),
    }
}

async fn receive_answer(
    stream: &mut dyn BulkStream,
    patience: Duration,
) -> Result<Answer, TransportError> {
    let frame = within(patience, stream.receive()).await?;
    wire::decode_answer(&frame.ok_or_else(|| TransportError::new("the peer ended the stream"))?)
}

async fn receive_snapshot<M: StateMachine>(
    storage: &dyn Storage,
    inbox: &Inbox<M>,
    from: NodeId,
    mut open: OpenStream,
    patience: Duration,
) -> Result<(), TransferError> {
    let stream = &mut *open.stream;
    let frame = within(patience, stream.receive()).await?;
    let frame = frame.ok_or_else(|| TransportError::new("the peer offered nothing"))?;
    let Offer { term, meta, content } = wire::decode_offer(&frame)?;
    let (sender, answer) = oneshot::channel();
    let offered = meta.clone();
    inbox.push_report(Report::SnapshotOffered { from, term, meta: offered, answer: sender });
    let answer = answer.await.map_err(|_| TransportError::new("this node is stopping"))?;
    let refusal = match answer {
        OfferAnswer::Wanted => None,
        OfferAnswer::NotNeeded => Some(Answer::NotNeeded),
        OfferAnswer::Refused => Some(Answer::Busy),
        OfferAnswer::Stale { term } => Some(Answer::Stale { term }),
    };
    if let Some(refusal) = refusal {
        within(patience, stream.send(wire::encode(&refusal))).await?;
        within(patience, stream.finish()).await?;
        return Ok(());
    }
    let mut writer = storage.snapshot_writer(meta.clone(), Some(content)).await?;
    let accept = Answer::Accept { offset: writer.offset() };
    within(patience, stream.send(wire::encode(&accept))).await?;
    while let Some(frame) = within(patience, stream.receive()).await? {
        let (offset, chunk) = wire::decode_chunk(frame)?;
        if offset != writer.offset() || offset + chunk.len() as u64 > content.size_bytes {
            return Err(TransportError::new("a piece that does not follow the last one").into());
        }
        writer.write(chunk).await?;
    }
    if writer.offset() < content.size_bytes {
        return Err(TransportError::new("the peer ended the stream early").into());
    }
    match writer.finish().await {
        Ok(_) => {}
        // What a peer sent does not make this node's disk bad.
        Err(StorageError::Corrupt(what)) => return Err(TransportError::new(what).into()),
        Err(error) => return Err(error.into()),
    }
    inbox.push_report(Report::SnapshotReceived { from, term, meta });
    within(patience, stream.send(wire::encode(&Answer::Done))).await?;
    within(patience, stream.finish()).await?;
    Ok(())
}
