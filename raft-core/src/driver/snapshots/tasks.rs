//! Snapshot work beside the event loop: each piece runs on a task of its own and ends with a
//! completion.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::transfer::{Admission, Meter, Sent, Stop, StopOnDrop, stop};
use super::wire::{self, Offer, OfferResponse};
use crate::driver::config::NodeConfig;
use crate::driver::inbox::{Completion, Inbox, OpenStream, Watchdog};
use crate::driver::tasks::{Tasks, Token};
use crate::state_machine::{Flusher, SnapshotSource, StateMachine};
use crate::storage::{Storage, StorageError, StorageResult};
use crate::transport::{BulkStream, Transport, TransportError};
use crate::types::{Index, NodeId, SnapshotContent, SnapshotMeta, Term};

/// Handles that the tasks work with.
pub(in crate::driver) struct JobParts<M: StateMachine> {
    pub(in crate::driver) storage: Arc<dyn Storage>,
    pub(in crate::driver) transport: Arc<dyn Transport>,
    pub(in crate::driver) inbox: Arc<Inbox<M>>,
    pub(in crate::driver) tasks: Tasks,
    /// True if calls of the machine may wait for a disk, and so must not be made on the runtime's
    /// threads.
    pub(in crate::driver) blocks: bool,
}

/// Starts tasks.
pub(super) struct Jobs<M: StateMachine> {
    parts: JobParts<M>,
    pace: Pace,
}

/// Limits of how slow a transfer may be.
#[derive(Clone, Copy)]
struct Pace {
    /// Longest time without any progress.
    patience: Duration,
    /// Least rate of a sender over any `patience`.
    bytes_per_second_min: u64,
}

impl<M: StateMachine> Jobs<M> {
    pub(super) fn new(config: &NodeConfig, parts: JobParts<M>) -> Self {
        let pace = Pace {
            patience: config.snapshot_patience,
            bytes_per_second_min: config.snapshot_bytes_per_second_min,
        };
        Self { parts, pace }
    }

    pub(super) fn log_bytes(&self) -> u64 {
        self.parts.storage.log_bytes()
    }

    /// Writes a view of this node's state; reports `SnapshotWritten`.
    pub(super) fn write(&self, meta: SnapshotMeta, view: Box<dyn SnapshotSource>) -> StopOnDrop {
        let (on_drop, stop) = stop();
        let storage = Arc::clone(&self.parts.storage);
        let inbox = Arc::clone(&self.parts.inbox);
        let blocks = self.parts.blocks;
        let token = self.parts.tasks.token();
        self.spawn("writing a snapshot", async move {
            let written = write_view(storage, meta.clone(), view, blocks, token, stop).await;
            inbox.push_completion(match written {
                Ok(content) => Completion::SnapshotWritten(content.map(|content| (meta, content))),
                Err(error) => Completion::Failed(error.into()),
            });
        });
        on_drop
    }

    /// Flushes a durable machine; reports `StateFlushed`, and gives the flusher back.
    pub(super) fn flush(
        &self,
        mut flusher: Box<dyn Flusher>,
    ) -> oneshot::Receiver<Box<dyn Flusher>> {
        let (give_back, back) = oneshot::channel();
        let inbox = Arc::clone(&self.parts.inbox);
        let (watchdog, token) = (self.watchdog("flushing the state"), self.parts.tasks.token());
        tokio::task::spawn_blocking(move || {
            let completion = match flusher.flush() {
                Ok(index) => Completion::StateFlushed(index),
                Err(error) => Completion::Failed(error.into()),
            };
            // The event loop holds the other end until it has taken the completion.
            let _ = give_back.send(flusher);
            inbox.push_completion(completion);
            watchdog.ended_well();
            drop(token);
        });
        back
    }

    pub(super) fn compact(&self, through: SnapshotMeta) {
        let storage = Arc::clone(&self.parts.storage);
        let inbox = Arc::clone(&self.parts.inbox);
        self.spawn("compacting the log", async move {
            inbox.push_completion(match storage.compact(through).await {
                Ok(()) => Completion::Compacted,
                Err(error) => Completion::Failed(error.into()),
            });
        });
    }

    /// Streams the published snapshot to a peer; reports `SnapshotSent`.
    pub(super) fn send(
        &self,
        peer: NodeId,
        term: Term,
        (meter, failures_in_a_row): (Meter, u32),
        stop: Stop,
    ) {
        let storage = Arc::clone(&self.parts.storage);
        let transport = Arc::clone(&self.parts.transport);
        let inbox = Arc::clone(&self.parts.inbox);
        let patience = self.pace.patience;
        self.spawn("sending a snapshot", async move {
            let sending = Sending { storage, transport, peer, term, patience, meter, stop };
            let sent = match sending.run().await {
                Ok(index) => Sent::Through(index),
                Err(TransferError::Stream(error)) => {
                    // Logged at powers of two only, so that a peer that keeps refusing does not
                    // fill the log.
                    let attempt = failures_in_a_row + 1;
                    if attempt.is_power_of_two() {
                        tracing::info!(peer, attempt, %error, "sending a snapshot failed; will try again");
                    }
                    Sent::Interrupted
                }
                Err(TransferError::Storage(error)) => {
                    tracing::error!(%error, "the published snapshot cannot be read");
                    Sent::Unreadable
                }
            };
            inbox.push_completion(Completion::SnapshotSent { peer, sent });
        });
    }

    /// Receives a peer's offer, and then the snapshot if the event loop grants it. A granted
    /// transfer ends with the completion `ReceiveEnded`.
    pub(super) fn receive(&self, from: NodeId, mut open: OpenStream) {
        let storage = Arc::clone(&self.parts.storage);
        let inbox = Arc::clone(&self.parts.inbox);
        let pace = self.pace;
        self.spawn("receiving a snapshot", async move {
            let stream = &mut *open.stream;
            let received = receive_offer(&inbox, from, stream, pace.patience).await;
            let (offer, stop) = match received {
                Ok(Some(granted)) => granted,
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(from, %error, "the offer of a snapshot was interrupted");
                    return;
                }
            };
            match receive_snapshot(&*storage, &inbox, from, stream, offer, pace, stop).await {
                Ok(()) => {}
                Err(TransferError::Stream(error)) => {
                    tracing::info!(from, %error, "receiving a snapshot was interrupted");
                }
                Err(TransferError::Storage(error)) => {
                    inbox.push_completion(Completion::Failed(error.into()));
                }
            }
            inbox.push_completion(Completion::ReceiveEnded);
        });
    }

    /// Spawns a task that ends with a completion, or with the loop.
    fn spawn(&self, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let watchdog = self.watchdog(task);
        self.parts.tasks.spawn(async move {
            work.await;
            watchdog.ended_well();
        });
    }

    fn watchdog(&self, task: &'static str) -> Watchdog<M> {
        Watchdog::new(&self.parts.inbox, task)
    }
}

/// The side of a transfer that failed.
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

/// Writes a view to storage. Returns `None` if the view was no longer of use.
async fn write_view(
    storage: Arc<dyn Storage>,
    meta: SnapshotMeta,
    mut source: Box<dyn SnapshotSource>,
    blocks: bool,
    token: Token,
    stop: Stop,
) -> StorageResult<Option<SnapshotContent>> {
    let mut writer = storage.snapshot_writer(meta, None).await?;
    assert_eq!(writer.offset(), 0, "this node's own copies are not resumed");
    loop {
        if stop.is_set() {
            return Ok(None);
        }
        let (returned, chunk) = if blocks {
            let token = token.clone();
            let next = move || {
                let chunk = source.next_chunk(wire::CHUNK_BYTES);
                // The token comes last, so that it is dropped after the view, which holds files
                // open.
                (source, chunk, token)
            };
            let (source, chunk, _) =
                tokio::task::spawn_blocking(next).await.map_err(|error| StorageError::Engine {
                    operation: "reading a view of the state machine".into(),
                    message: error.to_string(),
                })?;
            (source, chunk)
        } else {
            // Other tasks get their turn between two chunks.
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
            Some(chunk) => {
                let offset = writer.offset();
                let length = chunk.len() as u64;
                writer.write(chunk).await?;
                assert_eq!(writer.offset(), offset + length, "a write moves the writer on");
            }
            None => {
                let size_bytes = writer.offset();
                let content = writer.finish().await?;
                assert_eq!(content.size_bytes, size_bytes, "all bytes are kept");
                return Ok(Some(content));
            }
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

/// One transfer to a peer.
struct Sending {
    storage: Arc<dyn Storage>,
    transport: Arc<dyn Transport>,
    peer: NodeId,
    term: Term,
    patience: Duration,
    meter: Meter,
    stop: Stop,
}

impl Sending {
    /// Returns the index of the snapshot once the peer has it, or has said that it does not need
    /// it.
    async fn run(mut self) -> Result<Index, TransferError> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.set() => Err(TransportError::new("this node leads no more").into()),
            sent = self.send() => sent,
        }
    }

    async fn send(&mut self) -> Result<Index, TransferError> {
        let patience = self.patience;
        let reader = self.storage.snapshot_reader().await?;
        let mut reader = reader.ok_or_else(|| TransportError::new("no snapshot is published"))?;
        let meta = reader.meta().clone();
        let index = meta.index();
        let content = reader.content();
        let mut stream = within(patience, self.transport.open_bulk(self.peer)).await?;
        let offer = Offer { term: self.term, meta, content };
        within(patience, stream.send(wire::encode(&offer))).await?;
        let mut offset = match receive_response(&mut *stream, patience).await? {
            OfferResponse::Accept { offset } => offset,
            OfferResponse::NotNeeded => return Ok(index),
            OfferResponse::Stale { term } => {
                return Err(TransportError::new(format!("the peer is in term {term}")).into());
            }
            OfferResponse::Busy => {
                return Err(TransportError::new("the peer is busy with another snapshot").into());
            }
            OfferResponse::Done => return Err(TransportError::new("done before it began").into()),
        };
        loop {
            self.meter.set(offset, content.size_bytes);
            let chunk = reader.read(offset, wire::CHUNK_BYTES).await?;
            assert!(chunk.len() <= wire::CHUNK_BYTES, "storage returns no more than asked for");
            if chunk.is_empty() {
                break;
            }
            within(patience, stream.send(wire::encode_chunk(offset, &chunk))).await?;
            offset += chunk.len() as u64;
        }
        within(patience, stream.finish()).await?;
        match receive_response(&mut *stream, patience).await? {
            OfferResponse::Done => Ok(index),
            other => Err(TransportError::new(format!("unexpected answer {other:?}")).into()),
        }
    }
}

async fn receive_response(
    stream: &mut dyn BulkStream,
    patience: Duration,
) -> Result<OfferResponse, TransportError> {
    let frame = within(patience, stream.receive()).await?;
    wire::decode_answer(&frame.ok_or_else(|| TransportError::new("the peer ended the stream"))?)
}

/// Receives an offer. Returns it if the event loop grants it; otherwise the peer was told why not.
async fn receive_offer<M: StateMachine>(
    inbox: &Inbox<M>,
    from: NodeId,
    stream: &mut dyn BulkStream,
    patience: Duration,
) -> Result<Option<(Offer, Stop)>, TransportError> {
    let frame = within(patience, stream.receive()).await?;
    let frame = frame.ok_or_else(|| TransportError::new("the peer offered nothing"))?;
    let offer = wire::decode_offer(&frame)?;
    let (answer, admission) = oneshot::channel();
    let (term, meta) = (offer.term, offer.meta.clone());
    inbox.push_completion(Completion::SnapshotOffered { from, term, meta, answer });
    let admission = admission.await.map_err(|_| TransportError::new("this node is stopping"))?;
    match admission {
        Admission::Granted(stop) => Ok(Some((offer, stop))),
        Admission::Refused(refusal) => {
            within(patience, stream.send(wire::encode(&refusal))).await?;
            within(patience, stream.finish()).await?;
            Ok(None)
        }
    }
}

async fn receive_snapshot<M: StateMachine>(
    storage: &dyn Storage,
    inbox: &Inbox<M>,
    from: NodeId,
    stream: &mut dyn BulkStream,
    offer: Offer,
    pace: Pace,
    mut stop: Stop,
) -> Result<(), TransferError> {
    let Offer { term, meta, content } = offer;
    let patience = pace.patience;
    let mut writer = storage.snapshot_writer(meta.clone(), Some(content)).await?;
    let accept = OfferResponse::Accept { offset: writer.offset() };
    within(patience, stream.send(wire::encode(&accept))).await?;
    let mut rate = Rate::new(pace);
    loop {
        let since = Instant::now();
        let frame = tokio::select! {
            biased;
            () = stop.set() => {
                let reason = "it is no longer needed, or a newer leader offers another";
                return Err(TransportError::new(reason).into());
            }
            frame = within(patience, stream.receive()) => frame?,
        };
        let Some(frame) = frame else { break };
        rate.check(frame.len() as u64, since.elapsed())?;
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
        // Wrong bytes from a peer do not mean that this node's disk is damaged.
        Err(StorageError::Corrupt(what)) => return Err(TransportError::new(what).into()),
        Err(error) => return Err(error.into()),
    }
    inbox.push_completion(Completion::SnapshotReceived { from, term, meta });
    within(patience, stream.send(wire::encode(&OfferResponse::Done))).await?;
    within(patience, stream.finish()).await?;
    Ok(())
}

/// C13. Detects a sender that makes some progress within each `patience`, but too slowly to be
/// worth waiting for. Only the time spent on waiting for the sender counts, not that of this node's
/// disk.
struct Rate {
    pace: Pace,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    fn new(pace: Pace) -> Self {
        Self { pace, waited: Duration::ZERO, bytes: 0 }
    }

    fn check(&mut self, bytes: u64, waited: Duration) -> Result<(), TransportError> {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < self.pace.patience {
            return Ok(());
        }
        let bytes_per_second = (self.bytes as f64 / self.waited.as_secs_f64()) as u64;
        let bytes_min = self.pace.bytes_per_second_min;
        if bytes_per_second < bytes_min {
            return Err(TransportError::new(format!(
                "the sender sends {bytes_per_second} bytes a second, and must send {bytes_min}"
            )));
        }
        *self = Self::new(self.pace);
        Ok(())
    }
}
