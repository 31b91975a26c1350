//! One thread that owns one piece of state and does blocking work on it, one job after the other.
//!
//! The async side sends a job and waits for its result. A permanent thread saves the hand-over of a
//! thread pool for each call, keeps the order, and never blocks the executor. The queue is bounded:
//! a caller that finds it full waits.

use std::thread::JoinHandle;

use raft_core::storage::{StorageError, StorageResult};
use tokio::sync::{mpsc, oneshot};

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Most queued jobs; further callers wait.
const QUEUE_JOBS_MAX: usize = 64;

/// The state that the thread owns.
pub(crate) trait Work: Send + 'static {
    /// Called while no job is queued, until it returns `false`. Must be short: an arriving job
    /// waits for it.
    fn idle(&mut self) -> bool {
        false
    }

    /// Called once at the end, unless a job panicked.
    fn close(self);
}

/// Owns the thread. Dropping it lets the jobs in the queue finish and waits for the end.
pub(crate) struct Worker<S> {
    jobs: Option<mpsc::Sender<Job<S>>>,
    thread: Option<JoinHandle<()>>,
    name: &'static str,
}

impl<S: Work> Worker<S> {
    pub(crate) fn spawn(name: &'static str, state: S) -> StorageResult<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE_JOBS_MAX);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(state, queue))
            .map_err(|source| StorageError::Io {
                operation: format!("start the thread {name}"),
                source,
            })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), name })
    }

    /// Runs the job on the thread. The job runs even if the caller stops waiting.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> StorageResult<T> + Send + 'static,
    ) -> StorageResult<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            // Fails if the caller has stopped waiting; the job is done nevertheless.
            let _ = answer.send(job(state));
        });
        let jobs = self.jobs.as_ref().expect("taken only when dropped");
        jobs.send(job).await.map_err(|_| self.gone())?;
        answered.await.map_err(|_| self.gone())?
    }

    /// Queues the job if there is room for it; returns true if there was.
    pub(crate) fn try_submit(&self, job: impl FnOnce(&mut S) + Send + 'static) -> bool {
        let jobs = self.jobs.as_ref().expect("taken only when dropped");
        jobs.try_send(Box::new(job)).is_ok()
    }

    fn gone(&self) -> StorageError {
        StorageError::Poisoned(format!("the thread {} has ended", self.name))
    }
}

fn serve<S: Work>(mut state: S, mut queue: mpsc::Receiver<Job<S>>) {
    let mut idle_work = true;
    loop {
        if idle_work {
            match queue.try_recv() {
                Ok(job) => job(&mut state),
                Err(mpsc::error::TryRecvError::Empty) => idle_work = state.idle(),
                Err(mpsc::error::TryRecvError::Disconnected) => break,
            }
            continue;
        }
        match queue.blocking_recv() {
            Some(job) => job(&mut state),
            None => break,
        }
        idle_work = true;
    }
    state.close();
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(thread = self.name, "a storage thread panicked");
        }
    }
}
