//! The calls of a run's clients and the responses that they received: the input of the checker.
//!
//! One [`Call`] for each operation that a client began, however often it was sent: retries within a
//! client are one call. Times come from one monotonic clock, in any unit: `called_at` is taken
//! before anything is sent, `returned_at` after the response was received. A call that has no
//! response yet when the run ends is recorded as [`Outcome::Unknown`], never left out.

use std::collections::BTreeMap;
use std::fmt;

use crate::client::ClientError;
use crate::protocol::operation::{Expect, Operation, Record, Revision, WriteResponse};
use bytes::Bytes;

/// The operation that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// A read of one key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// A write.
    Write(Operation),
}

impl Request {
    /// A read of the key.
    pub fn get(key: impl Into<Bytes>) -> Self {
        Self::Get { key: key.into() }
    }

    /// A write of the value under the key.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Write(Operation::Put { key: key.into(), value: value.into() })
    }

    /// A write of the value behind that of the key.
    pub fn append(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Write(Operation::Append { key: key.into(), value: value.into() })
    }

    /// A write that removes the key.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Write(Operation::Delete { key: key.into() })
    }

    /// A write of the value if the key is as expected.
    pub fn compare_and_swap(
        key: impl Into<Bytes>,
        expect: Expect,
        value: impl Into<Bytes>,
    ) -> Self {
        Self::Write(Operation::CompareAndSwap { key: key.into(), expect, value: value.into() })
    }

    /// The key that is read or written.
    pub fn key(&self) -> &Bytes {
        match self {
            Request::Get { key } => key,
            Request::Write(operation) => operation.key(),
        }
    }

    /// The value that the request writes if it takes effect.
    pub(super) fn new_value(&self) -> Option<&Bytes> {
        match self {
            Request::Write(
                Operation::Put { value, .. }
                | Operation::Append { value, .. }
                | Operation::CompareAndSwap { value, .. },
            ) => Some(value),
            Request::Get { .. } | Request::Write(Operation::Delete { .. }) => None,
        }
    }
}

/// The response to a get. A field that is `None` was not reported, and is not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `None`: there was no such key. Always reported.
    pub value: Option<Bytes>,
    /// The version of the key.
    pub version: Option<u64>,
    /// The revision that created the key.
    pub create_revision: Option<Revision>,
    /// The revision that last changed the key.
    pub modify_revision: Option<Revision>,
    /// The index that the node had applied when it answered. Clients do not receive it; a harness
    /// that looks into the nodes may know it.
    pub served_at: Option<Revision>,
}

/// The response to a write. A field that is `None` was not reported, and is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// True if the write changed the key. Always reported for a compare-and-swap.
    pub changed: Option<bool>,
    /// The key's version afterwards.
    pub version: Option<u64>,
    /// The revision of the write.
    pub revision: Option<Revision>,
}

/// The outcome of a call, as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A get was answered.
    Got(Seen),
    /// A write was answered.
    Written(Written),
    /// The operation had no effect and never will.
    NotExecuted,
    /// The operation may have had its effect once, or may have it at any time after the call, even
    /// after the client gave up.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// Shown in reports; the checker draws no conclusion from it. A client may have several calls
    /// under way.
    pub client: u64,
    /// The operation that the client asked for.
    pub request: Request,
    /// Time before anything was sent.
    pub called_at: u64,
    /// Time after the response was received. With an unknown outcome: the time at which the client
    /// gave up, which says nothing about the effect.
    pub returned_at: u64,
    /// The response.
    pub outcome: Outcome,
}

impl Call {
    /// A call, with the times before and after it.
    pub fn new(
        client: u64,
        request: Request,
        (called_at, returned_at): (u64, u64),
        outcome: Outcome,
    ) -> Self {
        Self { client, request, called_at, returned_at, outcome }
    }

    /// A call of [`Client::get`](crate::client::Client::get), with the times around it.
    pub fn of_get(
        client: u64,
        key: impl Into<Bytes>,
        (called_at, returned_at): (u64, u64),
        response: &Result<Option<Record>, ClientError>,
    ) -> Self {
        let outcome = match response {
            Ok(None) => Outcome::Got(Seen::default()),
            Ok(Some(record)) => Outcome::Got(Seen {
                value: Some(record.value.clone()),
                version: Some(record.version),
                create_revision: Some(record.create_revision),
                modify_revision: Some(record.modify_revision),
                served_at: None,
            }),
            Err(error) => failed(error),
        };
        Self { client, request: Request::get(key), called_at, returned_at, outcome }
    }

    /// A call of [`Client::write`](crate::client::Client::write) or one of its shorthands.
    pub fn of_write(
        client: u64,
        operation: Operation,
        (called_at, returned_at): (u64, u64),
        response: &Result<WriteResponse, ClientError>,
    ) -> Self {
        let outcome = match response {
            Ok(answer) => Outcome::Written(Written {
                changed: Some(answer.changed),
                version: Some(answer.version),
                revision: Some(answer.revision),
            }),
            Err(error) => failed(error),
        };
        Self { client, request: Request::Write(operation), called_at, returned_at, outcome }
    }

    /// The key of the request.
    pub fn key(&self) -> &Bytes {
        self.request.key()
    }

    /// Returns true if the call was answered; it then had its effect, if it has one.
    pub fn is_ok(&self) -> bool {
        matches!(self.outcome, Outcome::Got(_) | Outcome::Written(_))
    }

    /// Returns true for a write of unknown outcome: it may have changed the key, unreported.
    pub(super) fn is_open_write(&self) -> bool {
        self.outcome == Outcome::Unknown && matches!(self.request, Request::Write(_))
    }

    pub(super) fn seen(&self) -> Option<&Seen> {
        match &self.outcome {
            Outcome::Got(seen) => Some(seen),
            _ => None,
        }
    }

    pub(super) fn written(&self) -> Option<&Written> {
        match &self.outcome {
            Outcome::Written(written) => Some(written),
            _ => None,
        }
    }

    /// Returns true if the call was answered and did change the key. The response to a delete may
    /// not report whether it did.
    pub(super) fn surely_changed(&self) -> bool {
        let Some(written) = self.written() else { return false };
        match &self.request {
            Request::Write(Operation::Put { .. } | Operation::Append { .. }) => true,
            _ => written.changed == Some(true),
        }
    }

    fn assert_sound(&self) {
        assert!(self.called_at <= self.returned_at, "returned before it was called: {self}");
        match (&self.request, &self.outcome) {
            (_, Outcome::NotExecuted | Outcome::Unknown) => {}
            (Request::Get { .. }, Outcome::Got(seen)) => {
                let told = seen.version.is_some_and(|version| version != 0)
                    || seen.modify_revision.is_some()
                    || seen.create_revision.is_some();
                assert!(seen.value.is_some() || !told, "versions of nothing: {self}");
            }
            (Request::Write(operation), Outcome::Written(written)) => {
                let swap = matches!(operation, Operation::CompareAndSwap { .. });
                assert!(!swap || written.changed.is_some(), "did it swap? {self}");
            }
            _ => panic!("an answer to another question: {self}"),
        }
    }
}

fn failed(error: &ClientError) -> Outcome {
    match error.outcome {
        crate::Outcome::NotExecuted => Outcome::NotExecuted,
        crate::Outcome::Unknown => Outcome::Unknown,
    }
}

/// All calls of a run, in any order. Every key is missing at first.
#[derive(Clone, Debug, Default)]
pub struct History {
    calls: Vec<Call>,
}

impl History {
    /// Creates a history without calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a call.
    ///
    /// # Panics
    /// If the call contradicts itself, which is an error of the harness.
    pub fn push(&mut self, call: Call) {
        call.assert_sound();
        self.calls.push(call);
    }

    /// The calls, in the order in which they were added.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Returns true if there are no calls.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// The calls of each key, in the order in which they were called.
    pub(super) fn by_key(&self) -> BTreeMap<&Bytes, Vec<&Call>> {
        let mut keys: BTreeMap<&Bytes, Vec<&Call>> = BTreeMap::new();
        for call in &self.calls {
            keys.entry(call.key()).or_default().push(call);
        }
        for calls in keys.values_mut() {
            calls.sort_by_key(|call| (call.called_at, call.returned_at));
        }
        keys
    }
}

impl Extend<Call> for History {
    fn extend<T: IntoIterator<Item = Call>>(&mut self, calls: T) {
        calls.into_iter().for_each(|call| self.push(call));
    }
}

impl FromIterator<Call> for History {
    fn from_iter<T: IntoIterator<Item = Call>>(calls: T) -> Self {
        let mut history = Self::new();
        history.extend(calls);
        history
    }
}

/// `[10, 12] client 3: append(k, "x") -> ok, version 4, revision 17`
impl fmt::Display for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let returned_at = match self.outcome {
            Outcome::Unknown => "-".to_owned(),
            _ => self.returned_at.to_string(),
        };
        write!(out, "[{}, {returned_at}] client {}: ", self.called_at, self.client)?;
        let key = text(self.key());
        match &self.request {
            Request::Get { .. } => write!(out, "get({key})"),
            Request::Write(Operation::Put { value, .. }) => {
                write!(out, "put({key}, {})", quoted(value))
            }
            Request::Write(Operation::Append { value, .. }) => {
                write!(out, "append({key}, {})", quoted(value))
            }
            Request::Write(Operation::Delete { .. }) => write!(out, "delete({key})"),
            Request::Write(Operation::CompareAndSwap { expect, value, .. }) => match expect {
                Expect::Value(expected) => {
                    write!(out, "swap({key}, {} by {})", quoted(expected), quoted(value))
                }
                Expect::Version(version) => {
                    write!(out, "swap({key}, version {version} by {})", quoted(value))
                }
                Expect::Revision(revision) => {
                    write!(out, "swap({key}, revision {revision} by {})", quoted(value))
                }
            },
        }?;
        match &self.outcome {
            Outcome::NotExecuted => write!(out, " -> not executed"),
            Outcome::Unknown => write!(out, " -> unknown"),
            Outcome::Got(seen) => {
                let value = seen.value.as_ref().map_or("nothing".to_owned(), |value| quoted(value));
                write!(out, " -> {value}")?;
                told(out, "version", seen.version)?;
                told(out, "modified at", seen.modify_revision)?;
                told(out, "created at", seen.create_revision)?;
                told(out, "served at", seen.served_at)
            }
            Outcome::Written(written) => {
                let ok = if written.changed == Some(false) { "changed nothing" } else { "ok" };
                write!(out, " -> {ok}")?;
                told(out, "version", written.version)?;
                told(out, "revision", written.revision)
            }
        }
    }
}

fn told(out: &mut fmt::Formatter<'_>, what: &str, number: Option<u64>) -> fmt::Result {
    number.map_or(Ok(()), |number| write!(out, ", {what} {number}"))
}

pub(super) fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Quotes a value. A long one is shown by its two ends, since the newest append is at the end.
pub(super) fn quoted(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 96;
    if bytes.len() <= SHOWN_BYTES_MAX {
        return format!("\"{}\"", text(bytes));
    }
    let (head, tail) = (&bytes[..SHOWN_BYTES_MAX / 4], &bytes[bytes.len() - SHOWN_BYTES_MAX / 2..]);
    format!("\"{} ...({} bytes)... {}\"", text(head), bytes.len(), text(tail))
}
