//! Records the calls of clients and their responses, for the checker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kv_service::sim::linearizability::{Call, History, assert_linearizable};
use kv_service::sim::{Service, Trace};
use kv_service::{Client, ClientError, Expect, Operation, Record, WriteResponse};
use tokio::time::Instant;

/// Longer than any lab may take: a call without a response by then never gets one.
pub(crate) const LAB_PATIENCE: Duration = Duration::from_secs(120);

/// Everything that the clients of a run did. Clones share one record.
#[derive(Clone)]
pub(crate) struct Book {
    pages: Arc<Mutex<Pages>>,
    trace: Trace,
}

#[derive(Default)]
struct Pages {
    history: History,
    /// Counts calls and returns: one order of all of them, finer than the clock.
    tick: u64,
    open_count: usize,
    /// Duration of the slowest call that has returned.
    slowest: Duration,
}

impl Book {
    pub(crate) fn new(service: &Service) -> Self {
        Self::with_trace(&service.trace)
    }

    /// A book that notes each call in this trace as well.
    pub(crate) fn with_trace(trace: &Trace) -> Self {
        Self { pages: Arc::default(), trace: trace.clone() }
    }

    /// A client whose calls are recorded. Its name is also its place in the network.
    pub(crate) fn clerk(&self, service: &Service, name: u64) -> Clerk {
        self.clerk_of(service.client(name), name)
    }

    /// The same for a client of the caller's.
    pub(crate) fn clerk_of(&self, client: Client, name: u64) -> Clerk {
        Clerk { name, client: client.with_deadline(LAB_PATIENCE), book: self.clone() }
    }

    /// Operations that were begun and have not returned.
    pub(crate) fn open_count(&self) -> usize {
        self.pages().open_count
    }

    pub(crate) fn slowest(&self) -> Duration {
        self.pages().slowest
    }

    pub(crate) fn call_count(&self) -> usize {
        self.pages().history.calls().len()
    }

    /// # Panics
    /// If one copy of the store cannot explain the responses, if that could not be decided, or if a
    /// client still waits.
    pub(crate) fn check(&self) {
        let pages = self.pages();
        assert_eq!(pages.open_count, 0, "every operation returns");
        assert_linearizable(&pages.history);
    }

    fn begin(&self) -> (u64, Instant) {
        let mut pages = self.pages();
        pages.open_count += 1;
        pages.tick += 1;
        (pages.tick, Instant::now())
    }

    fn end(&self, (called_at, since): (u64, Instant), entry: impl FnOnce((u64, u64)) -> Call) {
        let mut pages = self.pages();
        pages.open_count -= 1;
        pages.tick += 1;
        pages.slowest = pages.slowest.max(since.elapsed());
        let call = entry((called_at, pages.tick));
        self.trace.note(format_args!("{call}"));
        pages.history.push(call);
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        // A panic under the lock is a panic of the test.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client of the labs: its requests have to be answered.
#[derive(Clone)]
pub(crate) struct Clerk {
    pub(crate) name: u64,
    pub(crate) client: Client,
    book: Book,
}

impl Clerk {
    /// The same client, which gives up sooner: see [`Clerk::try_write`].
    pub(crate) fn with_deadline(&self, deadline: Duration) -> Self {
        Self { client: self.client.with_deadline(deadline), ..self.clone() }
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Record> {
        let begun = self.book.begin();
        let heard = self.client.get(key.to_owned()).await;
        self.book.end(begun, |times| Call::of_get(self.name, key.to_owned(), times, &heard));
        heard.expect("a read is answered")
    }

    /// The value; a missing key counts as empty.
    pub(crate) async fn value(&self, key: &str) -> String {
        let record = self.get(key).await;
        let value = record.map_or(Bytes::new(), |record| record.value);
        String::from_utf8(value.to_vec()).expect("the labs write text")
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> WriteResponse {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        self.write(Operation::Put { key, value }).await
    }

    pub(crate) async fn append(&self, key: &str, value: &str) -> WriteResponse {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        self.write(Operation::Append { key, value }).await
    }

    /// A put of the versioned labs: version 0 stands for a key that does not exist.
    pub(crate) async fn try_put(
        &self,
        key: &str,
        value: &str,
        version: u64,
    ) -> Result<WriteResponse, ClientError> {
        let (key, value) = (key.to_owned().into(), value.to_owned().into());
        let expect = Expect::Version(version);
        self.try_write(Operation::CompareAndSwap { key, expect, value }).await
    }

    async fn write(&self, operation: Operation) -> WriteResponse {
        self.try_write(operation).await.expect("a write is answered")
    }

    pub(crate) async fn try_write(
        &self,
        operation: Operation,
    ) -> Result<WriteResponse, ClientError> {
        let begun = self.book.begin();
        let heard = self.client.write(operation.clone()).await;
        self.book.end(begun, |times| Call::of_write(self.name, operation, times, &heard));
        heard
    }
}
