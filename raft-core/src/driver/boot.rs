//! Starts a node: loads storage, brings the state machine up to date, spawns the node's tasks.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::apply::{Applier, ApplyFeed, WORK_IN_FLIGHT_MAX, restore_from};
use super::config::NodeConfig;
use super::event_loop::{EventLoop, EventLoopParts};
use super::inbox::Inbox;
use super::members::Members;
use super::persist;
use super::snapshots::Published;
use super::status::{Leadership, Status};
use super::tasks::{Ended, Tasks};
use crate::consensus::{Boot, Raft};
use crate::error::Fatal;
use crate::state_machine::StateMachine;
use crate::storage::{Storage, StorageError};
use crate::transport::{Inbound, Transport};
use crate::types::{
    Configuration, ENTRY_OVERHEAD_BYTES, Loaded, NodeId, Position, SnapshotMeta, Time,
};

/// The handles of a running node.
pub(super) struct NodeShared<M: StateMachine> {
    pub(super) inbox: Arc<Inbox<M>>,
    pub(super) command_bytes_max: u64,
    pub(super) status: Arc<watch::Receiver<Status>>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) members: watch::Receiver<Members>,
    pub(super) stopped: watch::Receiver<Option<Result<(), Arc<Fatal>>>>,
    pub(super) abort: Arc<Notify>,
}

pub(super) async fn start<M: StateMachine>(
    config: NodeConfig,
    storage: Arc<dyn Storage>,
    transport: Arc<dyn Transport>,
    mut machine: M,
) -> Result<NodeShared<M>, Fatal> {
    config.validate().map_err(|error| Fatal::Config(error.to_string()))?;
    check_command_size(&config, &*transport)?;
    let (raft, published) = load_core(&config, &*storage, &mut machine).await?;
    assert_eq!(raft.last_applied(), machine.last_applied().index, "both go on from there");
    let request_bytes_max = config.raft.uncommitted_bytes_max;

    let inbox =
        Arc::new(Inbox::new(config.raft.id, config.requests_in_flight_max, request_bytes_max));
    let (persist_sender, persist_receiver) = mpsc::channel(config.raft.persists_in_flight_max);
    let (work_sender, work_receiver) = mpsc::channel(WORK_IN_FLIGHT_MAX);
    let flusher = machine.flusher();
    let blocks = machine.blocks();
    let applier = Applier::new(machine, Arc::clone(&storage), Arc::clone(&inbox));
    let applier = Arc::new(Mutex::new(applier));
    let applying = Applier::run(Arc::clone(&applier), work_receiver);
    let writer =
        tokio::spawn(persist::run(Arc::clone(&storage), persist_receiver, Arc::clone(&inbox)));
    let applying =
        if blocks { spawn_thread(config.raft.id, applying)? } else { tokio::spawn(applying) };

    let (tasks, tasks_ended) = Tasks::new();
    let event_loop = EventLoop::new(
        &config,
        EventLoopParts {
            raft,
            inbox: Arc::clone(&inbox),
            storage: Arc::clone(&storage),
            transport: Arc::clone(&transport),
            persist: persist_sender,
            apply: ApplyFeed::new(work_sender, Arc::clone(&applier)),
            tasks,
            flusher,
            blocks,
            published,
        },
    );
    let status = event_loop.status_receiver();
    let (leadership, members) = (event_loop.leadership_receiver(), event_loop.members_receiver());
    let (stopped_sender, stopped) = watch::channel(None);
    transport.start(Arc::clone(&inbox) as Arc<dyn Inbound>);

    let abort = Arc::new(Notify::new());
    let supervised = Supervised {
        running: tokio::spawn(event_loop.run()),
        abort: Arc::clone(&abort),
        inbox: Arc::clone(&inbox),
        transport,
        writer,
        applying,
        applier,
        blocks,
        tasks_ended,
    };
    tokio::spawn(async move {
        let result = supervised.run().await;
        if let Err(fatal) = &result {
            tracing::error!(%fatal, "the node stopped");
        }
        stopped_sender.send_replace(Some(result.map_err(Arc::new)));
    });

    let command_bytes_max = config.command_bytes_max;
    Ok(NodeShared { inbox, command_bytes_max, status, leadership, members, stopped, abort })
}

/// Loads the log, brings the machine up to date, and makes the core of both.
async fn load_core<M: StateMachine>(
    config: &NodeConfig,
    storage: &dyn Storage,
    machine: &mut M,
) -> Result<(Raft, Option<Published>), Fatal> {
    let loaded = storage.load().await?;
    bring_up_to_date(&loaded, storage, machine).await?;
    let published = find_published(&loaded, storage, machine.flusher().is_some()).await?;
    let bootstrap = Configuration::of_voters(config.voters.iter().copied());
    let is_empty = loaded.log_start == SnapshotMeta::default() && loaded.entries.is_empty();
    if is_empty && !bootstrap.is_empty() {
        // C3. Later starts are compared with the voters of the first one.
        storage.compact(SnapshotMeta::new(Position::ZERO, bootstrap.clone())).await?;
    }
    let boot = Boot { loaded, last_applied: machine.last_applied(), bootstrap };
    let raft = Raft::new(config.fitted(), boot, Time::ZERO)
        .map_err(|error| Fatal::Config(error.to_string()))?;
    Ok((raft, published))
}

/// Runs the apply task on a thread of its own, because it may wait for a disk. The task returned
/// ends with the thread.
fn spawn_thread(
    id: NodeId,
    applying: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, Fatal> {
    let runtime = tokio::runtime::Handle::current();
    let (done, has_ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(format!("apply-{id}"))
        .spawn(move || {
            runtime.block_on(applying);
            // The task that waits for this may be gone with the runtime.
            let _ = done.send(());
        })
        .map_err(|error| Fatal::Internal(format!("starting the apply thread: {error}")))?;
    Ok(tokio::spawn(async move {
        // An error means that the thread panicked; the loop notices by the closed channel.
        let _ = has_ended.await;
    }))
}

/// The parts of a running node that its end has to wait for.
struct Supervised<M: StateMachine> {
    running: JoinHandle<Result<(), Fatal>>,
    abort: Arc<Notify>,
    inbox: Arc<Inbox<M>>,
    transport: Arc<dyn Transport>,
    writer: JoinHandle<()>,
    applying: JoinHandle<()>,
    applier: Arc<Mutex<Applier<M>>>,
    blocks: bool,
    tasks_ended: Ended,
}

impl<M: StateMachine> Supervised<M> {
    /// Waits for the event loop to end, ends the other parts, and returns once all tasks have
    /// ended.
    async fn run(self) -> Result<(), Fatal> {
        let Self { mut running, abort, inbox, transport, .. } = self;
        let Self { writer, applying, applier, blocks, tasks_ended, .. } = self;
        let ended = tokio::select! {
            biased;
            ended = &mut running => Some(ended),
            () = abort.notified() => None,
        };
        // Answers the requests that are still queued; no further ones are accepted.
        drop(inbox.close());
        let result = match ended {
            Some(ended) => {
                transport.close().await;
                ended.unwrap_or_else(|error| {
                    Err(Fatal::Internal(format!("the event loop broke: {error}")))
                })
            }
            None => {
                running.abort();
                writer.abort();
                // An error says that it was aborted.
                let _ = running.await;
                drop(transport);
                Ok(())
            }
        };
        // The loop's ends of the channels are gone, so these two finish what they have and end.
        let (_, _) = (writer.await, applying.await);
        // The last reference to the machine: dropping the machine may wait for the disk once more.
        if blocks {
            let _ = tokio::task::spawn_blocking(move || drop(applier)).await;
        } else {
            drop(applier);
        }
        tasks_ended.wait().await;
        result
    }
}

/// A command that the node accepts and the transport cannot carry would be appended and never be
/// replicated, and all later entries would wait behind it.
fn check_command_size(config: &NodeConfig, transport: &dyn Transport) -> Result<(), Fatal> {
    let entry_bytes = config.command_bytes_max.saturating_add(ENTRY_OVERHEAD_BYTES);
    let carried_bytes = transport.entry_bytes_max();
    if entry_bytes > carried_bytes {
        return Err(Fatal::Config(format!(
            "command_bytes_max is {}, and the transport carries commands of up to {} bytes; choose a \
             smaller command_bytes_max, or raise the transport's limits",
            config.command_bytes_max,
            carried_bytes.saturating_sub(ENTRY_OVERHEAD_BYTES)
        )));
    }
    Ok(())
}

/// S6: a durable machine does not need the published snapshot, so damage to it is no reason not to
/// start.
async fn find_published(
    loaded: &Loaded,
    storage: &dyn Storage,
    is_durable: bool,
) -> Result<Option<Published>, Fatal> {
    let (size_bytes, is_readable) = match storage.snapshot_reader().await {
        Ok(reader) => (reader.map_or(0, |reader| reader.content().size_bytes), true),
        Err(StorageError::Corrupt(damage)) if is_durable => {
            tracing::warn!(%damage, "the published snapshot is damaged, and is not needed");
            (0, false)
        }
        Err(error) => return Err(error.into()),
    };
    let of = |meta: &SnapshotMeta| Published { index: meta.index(), size_bytes, is_readable };
    Ok(loaded.snapshot.as_ref().map(of))
}

/// Restores the machine from the published snapshot if the machine holds less: a machine that lives
/// in memory, or one that was interrupted before it took over a leader's snapshot. A durable
/// machine that the log can bring up to date is not restored: replaying a few entries is cheaper
/// than writing the whole state.
async fn bring_up_to_date<M: StateMachine>(
    loaded: &Loaded,
    storage: &dyn Storage,
    machine: &mut M,
) -> Result<(), Fatal> {
    let applied = machine.last_applied().index;
    let behind = loaded.snapshot.as_ref().is_some_and(|meta| meta.index() > applied);
    if behind && (applied < loaded.log_start.index() || machine.flusher().is_none()) {
        let reader = storage.snapshot_reader().await?;
        let reader = reader.ok_or_else(|| {
            Fatal::Internal("storage lists a snapshot that it cannot open".into())
        })?;
        restore_from(machine, reader).await?;
    }
    let applied = machine.last_applied().index;
    let start_index = loaded.log_start.index();
    if applied < start_index {
        return Err(Fatal::Config(format!(
            "the state machine holds index {applied}, the log starts behind {start_index}, and no \
             snapshot fills the gap: the state directory was removed or restored alone. Restore the \
             whole data directory from one backup, or wipe it and let the node join as a new one"
        )));
    }
    Ok(())
}
