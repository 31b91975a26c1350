//! Owns the state machine: applies what is committed, answers queries, takes views, restores.
//!
//! The loop feeds it at most [`WORK_IN_FLIGHT_MAX`] pieces of work; what comes up meanwhile gathers
//! into the next one, so the slower the machine, the larger its batches. A machine that may wait for
//! a disk runs on a thread of its own, another on a task. A few small entries that the machine says it
//! applies at once are applied on the loop's own task: to wake another takes longer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::inbox::{Inbox, Report, Watchdog};
use super::waiters::{ProposeReply, Reply};
use crate::error::{Fatal, Rejected};
use crate::state_machine::{MachineResult, StateMachine};
use crate::storage::{SnapshotReader, Storage};
use crate::types::{Entry, Index, Payload, SnapshotMeta};

pub(super) const WORK_IN_FLIGHT_MAX: usize = 2;

/// How long queries are answered while entries may wait to be applied; each may be a large scan.
const ANSWER_TIME: Duration = Duration::from_millis(2);

/// How long answers are held back for others that follow: those of one connection then leave in one write, and
/// whoever sends them is woken once. One that took longer waits for no other.
const GATHER_TIME: Duration = Duration::from_micros(25);

/// How many entries may be applied on the loop's task, and of how many bytes: it has more to do.
const AT_ONCE_COUNT_MAX: usize = 64;
const AT_ONCE_BYTES_MAX: u64 = 64 << 10;

/// How much of a snapshot is handed to the machine at a time, in bytes.
pub(super) const RESTORE_CHUNK_BYTES: usize = 256 << 10;

/// A query and who asked.
type Query<M> = (<M as StateMachine>::Query, Reply<<M as StateMachine>::Answer, Rejected>);

/// An answer and who waits for it.
type Answer<M> = (Reply<<M as StateMachine>::Answer, Rejected>, <M as StateMachine>::Answer);

pub(super) type Queries<M> = Vec<Query<M>>;

/// Done in the order of the fields; queries that take long may be answered later than what follows.
pub(super) struct Work<M: StateMachine> {
    pub(super) entries: Vec<Entry>,
    /// Who waits for the output of which entry, by ascending index.
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

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.restore.is_none()
            && self.queries.is_empty()
            && !self.take_view
    }

    /// Entries and nothing else, and so few that they need no thread if they wait for nothing.
    fn is_small(&self) -> bool {
        let Self { entries, replies: _, restore, queries, take_view } = self;
        let is_nothing_else = restore.is_none() && queries.is_empty() && !take_view;
        is_nothing_else
            && entries.len() <= AT_ONCE_COUNT_MAX
            && entries.iter().map(Entry::size_bytes).sum::<u64>() <= AT_ONCE_BYTES_MAX
    }
}

/// The state machine as the loop sees it: gathers work and hands it over as credit allows.
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

    /// Hands over what has gathered if the machine has room, or does it here if the machine has nothing else to do
    /// and does this at once. False: the machine is gone, and has said why.
    pub(super) fn flush(&mut self) -> bool {
        // Work that it took along is never reported, so that there will be no room any more.
        if self.sender.is_closed() {
            return false;
        }
        if self.gathered.is_empty() || self.in_flight >= WORK_IN_FLIGHT_MAX {
            return true;
        }
        self.in_flight += 1;
        let work = std::mem::replace(&mut self.gathered, Work::new());
        // Nothing is before it.
        if self.in_flight == 1
            && work.is_small()
            && let Ok(mut applier) = self.applier.try_lock()
            && applier.machine.applies_at_once(&work.entries)
        {
            return applier.apply_at_once(work);
        }
        self.sender.try_send(work).is_ok()
    }

    pub(super) fn on_done(&mut self) {
        self.in_flight -= 1;
    }
}

pub(super) struct Applier<M: StateMachine> {
    machine: M,
    storage: Arc<dyn Storage>,
    inbox: Arc<Inbox<M>>,
    outputs: Vec<M::Output>,
    /// Not answered yet; bounded by the requests in flight.
    queries: VecDeque<Query<M>>,
    /// Not handed out yet; none is left when `answer` returns.
    answers: Vec<Answer<M>>,
}

impl<M: StateMachine> Applier<M> {
    pub(super) fn new(machine: M, storage: Arc<dyn Storage>, inbox: Arc<Inbox<M>>) -> Self {
        let (outputs, queries, answers) = Default::default();
        Self { machine, storage, inbox, outputs, queries, answers }
    }

    /// Works until the loop is gone or the machine fails. Whoever else holds the lock does so for an instant.
    pub(super) async fn run(shared: Arc<Mutex<Self>>, mut works: mpsc::Receiver<Work<M>>) {
        let inbox = Arc::clone(&shared.lock().await.inbox);
        let watchdog = Watchdog::new(&inbox, "the state machine");
        let mut has_queries = false;
        loop {
            let work = match has_queries {
                false => works.recv().await.ok_or(TryRecvError::Disconnected),
                true => works.try_recv(),
            };
            let mut applier = shared.lock().await;
            let reports = match work {
                Ok(work) => applier.work(work).await,
                Err(TryRecvError::Empty) => {
                    applier.answer();
                    Ok(Vec::new())
                }
                Err(TryRecvError::Disconnected) => break,
            };
            has_queries = !applier.queries.is_empty();
            // The loop, once it hears that this is done, finds nobody with the machine.
            drop(applier);
            match reports {
                Ok(reports) => reports.into_iter().for_each(|report| inbox.push_report(report)),
                Err(fatal) => {
                    inbox.push_report(Report::Failed(fatal));
                    break;
                }
            }
            if has_queries {
                tokio::task::yield_now().await;
            }
        }
        watchdog.ended_well();
    }

    /// On the loop's task. False: the machine failed, which is reported.
    fn apply_at_once(&mut self, work: Work<M>) -> bool {
        let applied = work.entries.last().map(|last| last.index);
        let result = self.apply(&work.entries, work.replies);
        let is_well = result.is_ok();
        self.inbox.push_report(match result {
            Ok(()) => Report::Applied(applied.expect("entries")),
            Err(error) => Report::Failed(error.into()),
        });
        is_well
    }

    /// Answers what was asked, in order, for a while.
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

    /// Returns what is to be reported, in this order.
    async fn work(&mut self, work: Work<M>) -> Result<Vec<Report>, Fatal> {
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
        let mut reports = vec![Report::Applied(applied)];
        // A snapshot is of what is known to be applied.
        if take_view {
            reports.push(match self.machine.can_snapshot() {
                true => Report::ViewTaken(self.machine.snapshot()?),
                false => Report::NoView,
            });
        }
        Ok(reports)
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        replies: Vec<(Index, ProposeReply<M::Output>)>,
    ) -> MachineResult<()> {
        self.outputs.clear();
        self.machine.apply(entries, &mut self.outputs)?;
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
