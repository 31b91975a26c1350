//! Owns the state machine: applies committed entries, answers queries, takes views, restores
//! snapshots.
//!
//! The loop feeds it at most [`WORK_IN_FLIGHT_MAX`] pieces of work. Work that comes up meanwhile
//! gathers into the next piece, so the slower the machine, the larger its batches. A machine that
//! may wait for a disk runs on a thread of its own, any other on a task. A few small entries that
//! the machine can apply inline ([`StateMachine::can_apply_inline`]) are applied on the event
//! loop's own task, because waking another task takes longer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::inbox::{Completion, Inbox, Watchdog};
use super::waiters::{ProposeReply, Reply};
use crate::error::{Fatal, Rejected};
use crate::state_machine::{MachineError, MachineResult, StateMachine};
use crate::storage::{SnapshotReader, Storage};
use crate::types::{Entry, Index, Payload, Position, SnapshotMeta};

pub(super) const WORK_IN_FLIGHT_MAX: usize = 2;

/// Longest time that queries are answered in a row while entries may be waiting to be applied. A
/// time and not a count, because each query may be a large scan.
const ANSWER_TIME: Duration = Duration::from_millis(2);

/// How long the answers to queries are held back so that those that follow can join them: answers
/// of one connection then leave in one write, and the task that sends them is woken once. A query
/// that takes longer than this is answered as soon as it is done.
const GATHER_TIME: Duration = Duration::from_micros(25);

/// Limits of the entries that are applied inline on the event loop's task, in number and bytes. The
/// loop has other work to do.
const INLINE_COUNT_MAX: usize = 64;
const INLINE_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a snapshot handed to the machine at a time.
pub(super) const RESTORE_CHUNK_BYTES: usize = 256 << 10;

/// A query, and the reply handle of its caller.
type Query<M> = (<M as StateMachine>::Query, Reply<<M as StateMachine>::Answer, Rejected>);

/// The answer to a query, and the reply handle of its caller.
type Answer<M> = (Reply<<M as StateMachine>::Answer, Rejected>, <M as StateMachine>::Answer);

pub(super) type Queries<M> = Vec<Query<M>>;

/// A piece of work, done in the order of the fields. Queries that [`ANSWER_TIME`] cuts off are
/// answered later, after the view is taken and between later pieces.
pub(super) struct Work<M: StateMachine> {
    pub(super) entries: Vec<Entry>,
    /// Reply handles of the commands that callers wait for, by ascending index.
    pub(super) replies: Vec<(Index, ProposeReply<M::Output>)>,
    pub(super) restore: Option<SnapshotMeta>,
    pub(super) queries: Queries<M>,
    pub(super) take_view: bool,
}

impl<M: StateMachine> Work<M> {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            replies: Vec::new(),
            restore: None,
            queries: Vec::new(),
            take_view: false,
        }
    }

    /// Adds entries that are committed, and the replies of the callers that wait for them.
    pub(super) fn push_entries(
        &mut self,
        entries: Vec<Entry>,
        replies: Vec<(Index, ProposeReply<M::Output>)>,
    ) {
        assert!(self.restore.is_none(), "entries after a snapshot wait until it is restored");
        let last = self.entries.last().map(|entry| entry.index);
        let next = entries.first().map(|entry| entry.index);
        assert!(last.zip(next).is_none_or(|(last, next)| next == last + 1), "without a gap");
        assert!(replies.len() <= entries.len(), "at most one caller waits for an entry");
        let last = self.replies.last().map(|(index, _)| *index);
        assert!(last < replies.first().map(|(index, _)| *index).or(Some(Index::MAX)), "in order");
        self.replies.extend(replies);
        self.entries.extend(entries);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.restore.is_none()
            && self.queries.is_empty()
            && !self.take_view
    }

    /// Returns true if the work is a few small entries and nothing else, so that it may be applied
    /// inline.
    fn is_small(&self) -> bool {
        let Self { entries, replies: _, restore, queries, take_view } = self;
        let is_nothing_else = restore.is_none() && queries.is_empty() && !take_view;
        is_nothing_else
            && entries.len() <= INLINE_COUNT_MAX
            && entries.iter().map(Entry::size_bytes).sum::<u64>() <= INLINE_BYTES_MAX
    }
}

/// The event loop's side of the apply task: gathers work and hands it over as credit allows.
pub(super) struct ApplyFeed<M: StateMachine> {
    sender: mpsc::Sender<Work<M>>,
    applier: Arc<Mutex<Applier<M>>>,
    pub(super) gathered: Work<M>,
    in_flight: usize,
}

impl<M: StateMachine> ApplyFeed<M> {
    pub(super) fn new(sender: mpsc::Sender<Work<M>>, applier: Arc<Mutex<Applier<M>>>) -> Self {
        Self { sender, applier, gathered: Work::new(), in_flight: 0 }
    }

    /// Hands the gathered work over if the machine has room. If the apply task is idle and the
    /// machine can apply the work without waiting, applies it inline instead. Returns false if the
    /// machine failed or its task is gone; the reason has been reported.
    pub(super) fn flush(&mut self) -> bool {
        // Checked first: work that was lost with the task is never reported done, so `in_flight`
        // would stay at its limit forever.
        if self.sender.is_closed() {
            return false;
        }
        if self.gathered.is_empty() || self.in_flight >= WORK_IN_FLIGHT_MAX {
            return true;
        }
        self.in_flight += 1;
        assert!(self.in_flight <= WORK_IN_FLIGHT_MAX, "work is handed out against credit");
        let work = std::mem::replace(&mut self.gathered, Work::new());
        // In order: no earlier work is in flight.
        if self.in_flight == 1
            && work.is_small()
            && let Ok(mut applier) = self.applier.try_lock()
            && applier.machine.can_apply_inline(&work.entries)
        {
            return applier.apply_inline(work);
        }
        self.sender.try_send(work).is_ok()
    }

    pub(super) fn on_done(&mut self) {
        assert!(self.in_flight > 0, "only work that was handed out is done");
        self.in_flight -= 1;
    }
}

/// Checks the contract of a machine, which may be a third party's: after `apply` it is at the last
/// of the entries.
fn check_position(entries: &[Entry], last_applied: Position) -> MachineResult<()> {
    let last = entries.last().map_or(last_applied, Entry::position);
    if last_applied == last {
        return Ok(());
    }
    Err(MachineError(format!(
        "the state machine says that its last applied position is {last_applied}, after it applied \
         the entries through {last}: `last_applied` must follow every entry, also one that holds no \
         command"
    )))
}

pub(super) struct Applier<M: StateMachine> {
    machine: M,
    storage: Arc<dyn Storage>,
    inbox: Arc<Inbox<M>>,
    outputs: Vec<M::Output>,
    /// Queries not answered yet; bounded by the limit of requests in flight.
    queries: VecDeque<Query<M>>,
    /// Answers not handed to their callers yet; empty when `answer` returns.
    answers: Vec<Answer<M>>,
}

impl<M: StateMachine> Applier<M> {
    pub(super) fn new(machine: M, storage: Arc<dyn Storage>, inbox: Arc<Inbox<M>>) -> Self {
        let (outputs, queries, answers) = Default::default();
        Self { machine, storage, inbox, outputs, queries, answers }
    }

    /// Runs until the event loop is gone or the machine fails. The event loop is the only other
    /// holder of the lock, and holds it only while it applies a small piece of work inline.
    pub(super) async fn run(shared: Arc<Mutex<Self>>, mut works: mpsc::Receiver<Work<M>>) {
        let inbox = Arc::clone(&shared.lock().await.inbox);
        let watchdog = Watchdog::new(&inbox, "the state machine");
        let mut has_queries = false;
        loop {
            let work = if has_queries {
                works.try_recv()
            } else {
                works.recv().await.ok_or(TryRecvError::Disconnected)
            };
            let mut applier = shared.lock().await;
            let completions = match work {
                Ok(work) => applier.work(work).await,
                Err(TryRecvError::Empty) => {
                    applier.answer();
                    Ok(Vec::new())
                }
                Err(TryRecvError::Disconnected) => break,
            };
            has_queries = !applier.queries.is_empty();
            // Unlocked before the completion, so that the event loop, once it takes the completion,
            // can lock the machine to apply inline.
            drop(applier);
            match completions {
                Ok(completions) => {
                    completions.into_iter().for_each(|completion| inbox.push_completion(completion))
                }
                Err(fatal) => {
                    inbox.push_completion(Completion::Failed(fatal));
                    break;
                }
            }
            if has_queries {
                tokio::task::yield_now().await;
            }
        }
        watchdog.ended_well();
    }

    /// Applies entries on the event loop's task. Returns false if the machine failed; the failure
    /// is reported.
    fn apply_inline(&mut self, work: Work<M>) -> bool {
        let applied = work.entries.last().map(|last| last.index);
        let result = self.apply(&work.entries, work.replies);
        let is_well = result.is_ok();
        self.inbox.push_completion(match result {
            Ok(()) => Completion::Applied(applied.expect("entries")),
            Err(error) => Completion::Failed(error.into()),
        });
        is_well
    }

    /// Answers queued queries in order, until none is left or [`ANSWER_TIME`] is over.
    fn answer(&mut self) {
        let since = Instant::now();
        let mut gathered_since = since;
        while let Some((query, reply)) = self.queries.pop_front() {
            let answer = self.machine.query(query);
            self.answers.push((reply, answer));
            let now = Instant::now();
            let is_over = now - since >= ANSWER_TIME;
            if is_over || self.queries.is_empty() || now - gathered_since >= GATHER_TIME {
                for (reply, answer) in self.answers.drain(..) {
                    reply.send(Ok(answer));
                }
                gathered_since = now;
            }
            if is_over {
                break;
            }
        }
    }

    /// Does one piece of work. Returns the completions for the event loop, in the order in which
    /// they must be sent.
    async fn work(&mut self, work: Work<M>) -> Result<Vec<Completion>, Fatal> {
        let Work { entries, replies, restore, queries, take_view } = work;
        let mut applied = self.machine.last_applied().index;
        if let Some(last) = entries.last() {
            applied = last.index;
            self.apply(&entries, replies)?;
        }
        if let Some(meta) = restore {
            let reader = self.storage.snapshot_reader().await?;
            let reader = reader.filter(|reader| *reader.meta() == meta);
            let Some(reader) = reader else {
                let problem =
                    format!("the snapshot at {} was published and is gone", meta.position);
                return Err(Fatal::Internal(problem));
            };
            restore_from(&mut self.machine, reader).await?;
            applied = meta.index();
        }
        self.queries.extend(queries);
        self.answer();
        let mut completions = vec![Completion::Applied(applied)];
        // Reported after `Applied`: the core accepts a snapshot only of entries that it knows to be
        // applied.
        if take_view {
            completions.push(if self.machine.can_snapshot() {
                let view = self.machine.snapshot()?;
                assert!(view.position().index <= applied, "a view is of what is applied");
                Completion::ViewTaken(view)
            } else {
                Completion::NoView
            });
        }
        Ok(completions)
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        replies: Vec<(Index, ProposeReply<M::Output>)>,
    ) -> MachineResult<()> {
        self.outputs.clear();
        self.machine.apply(entries, &mut self.outputs)?;
        check_position(entries, self.machine.last_applied())?;
        let is_command = |entry: &&Entry| matches!(entry.payload, Payload::Command(_));
        let commands = entries.iter().filter(is_command);
        assert_eq!(self.outputs.len(), commands.clone().count(), "one output for each command");
        let mut replies = replies.into_iter().peekable();
        for (entry, output) in commands.zip(self.outputs.drain(..)) {
            if let Some((_, reply)) = replies.next_if(|(index, _)| *index == entry.index) {
                reply.send(Ok(output));
            }
        }
        assert!(replies.next().is_none(), "replies wait for commands only");
        Ok(())
    }
}

/// Replaces the machine's state by a snapshot's, in bounded memory.
pub(super) async fn restore_from<M: StateMachine>(
    machine: &mut M,
    mut reader: Box<dyn SnapshotReader>,
) -> Result<(), Fatal> {
    let meta = reader.meta().clone();
    machine.begin_restore(&meta)?;
    let mut offset = 0;
    loop {
        let chunk = reader.read(offset, RESTORE_CHUNK_BYTES).await?;
        assert!(chunk.len() <= RESTORE_CHUNK_BYTES, "storage returns no more than asked for");
        if chunk.is_empty() {
            break;
        }
        offset += chunk.len() as u64;
        machine.restore_chunk(chunk)?;
    }
    machine.finish_restore()?;
    assert_eq!(machine.last_applied(), meta.position, "the snapshot is the state at its position");
    Ok(())
}
