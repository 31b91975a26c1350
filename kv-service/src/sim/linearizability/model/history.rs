//! The calls of a run's clients, and a recorder that notes them in virtual time.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_core::error::ProposeError;
use tokio::time::Instant;

/// The outcome of a call, as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<R> {
    /// The operation was executed once, between the call and the return, and this is its output.
    Returned(R),
    /// The operation had no effect and never will.
    NotExecuted,
    /// The operation may have had its effect once, or may have it at any time after the call, even
    /// after the client gave up.
    Unknown,
}

/// One operation of one client, however often it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call<O, R> {
    /// The client. Shown in reports; the checker draws no conclusion from it.
    pub client: u64,
    /// The operation that the client asked for.
    pub operation: O,
    /// Time before anything was sent.
    pub called_at: u64,
    /// Time after the response was received; for an unknown outcome the time at which the client
    /// gave up, which says nothing about the effect.
    pub returned_at: u64,
    /// The response.
    pub outcome: Outcome<R>,
}

impl<O, R> Call<O, R> {
    /// A call, with the times before and after it from one clock in any unit.
    ///
    /// # Panics
    /// If the call returned before it began.
    pub fn new(
        client: u64,
        operation: O,
        (called_at, returned_at): (u64, u64),
        outcome: Outcome<R>,
    ) -> Self {
        assert!(called_at <= returned_at, "returned at {returned_at}, called at {called_at}");
        Self { client, operation, called_at, returned_at, outcome }
    }
}

/// `client 3: Push(7) -> Front(None)`
impl<O: fmt::Debug, R: fmt::Debug> fmt::Display for Call<O, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "client {}: {:?} -> ", self.client, self.operation)?;
        match &self.outcome {
            Outcome::Returned(output) => write!(out, "{output:?}"),
            Outcome::NotExecuted => write!(out, "not executed"),
            Outcome::Unknown => write!(out, "unknown"),
        }
    }
}

/// All calls of a run, in any order. A call without a response belongs in it as
/// [`Outcome::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History<O, R> {
    calls: Vec<Call<O, R>>,
}

impl<O, R> History<O, R> {
    /// Creates a history without calls.
    pub fn new() -> Self {
        Self { calls: Vec::new() }
    }

    /// Adds a call.
    ///
    /// # Panics
    /// If the call returned before it began: a defect of the harness.
    pub fn push(&mut self, call: Call<O, R>) {
        assert!(call.called_at <= call.returned_at, "a call returns after it began");
        self.calls.push(call);
    }

    /// The calls, in the order in which they were added.
    pub fn calls(&self) -> &[Call<O, R>] {
        &self.calls
    }
}

impl<O, R> Default for History<O, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<O, R> FromIterator<Call<O, R>> for History<O, R> {
    fn from_iter<T: IntoIterator<Item = Call<O, R>>>(calls: T) -> Self {
        let mut history = Self::new();
        calls.into_iter().for_each(|call| history.push(call));
        history
    }
}

/// Notes the calls of the clients of a run while they happen. Clones note into the same history.
///
/// Times are microseconds of the paused clock since the recorder was made. Virtual time stands
/// still while tasks run, so an event that would have the time of the one before it is noted a
/// microsecond later. So of two calls the recorder always tells which returned before the other
/// began.
///
/// ```
/// use kv_service::sim::linearizability::model::{Outcome, Recorder};
///
/// let recorder = Recorder::new();
/// let read = recorder.call(1, "read");
/// recorder.call(2, "write").returned(5);
/// read.not_executed();
/// let history = recorder.history();
/// assert_eq!(history.calls()[0].outcome, Outcome::NotExecuted);
/// assert!(history.calls()[1].called_at < history.calls()[0].returned_at, "they overlap");
/// ```
pub struct Recorder<O, R>(Arc<Mutex<RecorderState<O, R>>>);

struct RecorderState<O, R> {
    started: Instant,
    last_event_at: u64,
    calls: Vec<Call<O, R>>,
}

impl<O, R> RecorderState<O, R> {
    fn tick(&mut self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_event_at = now.max(self.last_event_at + 1);
        self.last_event_at
    }
}

impl<O, R> Recorder<O, R> {
    /// Creates a recorder whose time starts now.
    pub fn new() -> Self {
        let started = Instant::now();
        Self(Arc::new(Mutex::new(RecorderState { started, last_event_at: 0, calls: Vec::new() })))
    }

    /// Notes that the client is about to send this operation. Until the returned value is told the
    /// outcome, and if it never is, the outcome counts as unknown.
    pub fn call(&self, client: u64, operation: O) -> OpenCall<O, R> {
        let mut state = self.state();
        let at = state.tick();
        state.calls.push(Call::new(client, operation, (at, at), Outcome::Unknown));
        OpenCall { place: state.calls.len() - 1, recorder: self.clone() }
    }

    /// The calls noted so far.
    pub fn history(&self) -> History<O, R>
    where
        O: Clone,
        R: Clone,
    {
        History { calls: self.state().calls.clone() }
    }

    fn state(&self) -> MutexGuard<'_, RecorderState<O, R>> {
        // Each change is one assignment or push, so the state is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<O, R> Clone for Recorder<O, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O, R> Default for Recorder<O, R> {
    fn default() -> Self {
        Self::new()
    }
}

/// A call that a [`Recorder`] has noted and that has no outcome yet.
#[must_use = "a call that is dropped has an unknown outcome"]
pub struct OpenCall<O, R> {
    place: usize,
    recorder: Recorder<O, R>,
}

impl<O, R> OpenCall<O, R> {
    /// Notes that the operation was executed and had this output.
    pub fn returned(self, output: R) {
        self.end(Outcome::Returned(output));
    }

    /// Notes that the operation had no effect and never will.
    pub fn not_executed(self) {
        self.end(Outcome::NotExecuted);
    }

    /// Notes that the client gave up and does not know the outcome.
    pub fn unknown(self) {
        self.end(Outcome::Unknown);
    }

    /// Notes the result of a proposal. A result of a query becomes one by
    /// `result.map_err(ProposeError::from)`: a query that was rejected was not executed.
    pub fn finish(self, result: Result<R, ProposeError>) {
        match result {
            Ok(output) => self.returned(output),
            Err(ProposeError::Rejected(_)) => self.not_executed(),
            Err(ProposeError::Unknown(_)) => self.unknown(),
        }
    }

    fn end(self, outcome: Outcome<R>) {
        let mut state = self.recorder.state();
        let at = state.tick();
        let call = &mut state.calls[self.place];
        (call.returned_at, call.outcome) = (at, outcome);
    }
}
