//! Reply handles, and proposals that wait to be applied.
//!
//! A reply is sent exactly once: sending consumes it, and a reply that is dropped unsent sends
//! *unknown* for a proposal and *not executed* for a query. So no caller is left waiting, whatever
//! happens to the task that held the reply.
//!
//! A callback is a caller's code. It may panic: the panic is caught, counted, and logged once.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::oneshot;

use crate::error::{ProposeError, Rejected};
use crate::types::{Entry, Index, Position};

/// Counters of one node's requests, shared by their replies.
#[derive(Debug, Default)]
pub(super) struct RequestCounts {
    /// Accepted and not yet answered.
    in_flight: AtomicUsize,
    /// Callbacks that panicked.
    panicked: AtomicU64,
}

impl RequestCounts {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    /// Calls a caller's code, whose panic must not end a task of the node.
    fn call(&self, callback: impl FnOnce()) {
        let Err(payload) = catch_unwind(AssertUnwindSafe(callback)) else { return };
        // The payload is the caller's as well, and dropping it could panic again.
        std::mem::forget(payload);
        if self.panicked.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!(
                "a `reply` panicked; the node goes on. Later panics are only counted, in \
                 `Status::reply_panics_count`"
            );
        }
    }
}

/// One request's place in [`RequestCounts`]: counted as in flight, once accepted, until dropped.
pub(super) struct Place {
    counts: Arc<RequestCounts>,
    in_flight: bool,
}

impl Place {
    pub(super) fn new(counts: &Arc<RequestCounts>) -> Self {
        Self { counts: Arc::clone(counts), in_flight: false }
    }

    /// Counts the request as in flight. False: `max` are in flight already.
    pub(super) fn enter(&mut self, max: usize) -> bool {
        assert!(!self.in_flight, "a request enters once");
        self.in_flight = self.counts.in_flight.fetch_add(1, Ordering::Relaxed) < max;
        if !self.in_flight {
            self.counts.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        self.in_flight
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.in_flight) {
            let before = self.counts.in_flight.fetch_sub(1, Ordering::Relaxed);
            assert!(before > 0, "a request leaves once");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The error that a dropped reply sends.
pub(super) trait Abandoned {
    fn abandoned() -> Self;
}

impl Abandoned for ProposeError {
    fn abandoned() -> Self {
        ProposeError::Unknown("the node stopped before the command was applied")
    }
}

impl Abandoned for Rejected {
    fn abandoned() -> Self {
        Rejected::ShuttingDown
    }
}

/// The caller's end of a request.
enum ReplyReceiver<T, E> {
    Callback(Box<dyn FnOnce(Result<T, E>) + Send>),
    Channel(oneshot::Sender<Result<T, E>>),
}

pub(super) struct Reply<T, E: Abandoned> {
    receiver: Option<ReplyReceiver<T, E>>,
    /// Receives the position of a proposal once it is appended.
    appended: Option<oneshot::Sender<Position>>,
    place: Place,
}

impl<T, E: Abandoned> Reply<T, E> {
    pub(super) fn new(place: Place, reply: impl FnOnce(Result<T, E>) + Send + 'static) -> Self {
        Self { receiver: Some(ReplyReceiver::Callback(Box::new(reply))), appended: None, place }
    }

    /// A reply through a channel, which runs no code of the caller.
    pub(super) fn channel(place: Place) -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { receiver: Some(ReplyReceiver::Channel(sender)), appended: None, place }, receiver)
    }

    pub(super) fn with_position(mut self, appended: oneshot::Sender<Position>) -> Self {
        self.appended = Some(appended);
        self
    }

    /// Counts the request as in flight until it is answered. False: `max` are in flight already.
    pub(super) fn enter(&mut self, max: usize) -> bool {
        self.place.enter(max)
    }

    /// True if sending runs no code of the caller.
    pub(super) fn is_channel(&self) -> bool {
        matches!(self.receiver, Some(ReplyReceiver::Channel(_)))
    }

    pub(super) fn send(mut self, result: Result<T, E>) {
        assert!(self.receiver.is_some(), "a reply is sent once");
        self.answer(result);
    }

    fn answer(&mut self, result: Result<T, E>) {
        let Some(receiver) = self.receiver.take() else { return };
        // Released before the reply is sent, so that the caller can issue its next request at once.
        self.place.leave();
        match receiver {
            ReplyReceiver::Callback(reply) => self.place.counts.call(|| reply(result)),
            ReplyReceiver::Channel(sender) => {
                // The caller may have dropped its future.
                let _ = sender.send(result);
            }
        }
    }
}

impl<T, E: Abandoned> Drop for Reply<T, E> {
    fn drop(&mut self) {
        self.answer(Err(E::abandoned()));
    }
}

pub(super) type ProposeReply<T> = Reply<T, ProposeError>;

/// Proposals in the log that are not yet handed to the state machine, in the order of their index.
pub(super) struct Waiters<T> {
    waiting: VecDeque<(Position, ProposeReply<T>)>,
}

impl<T> Waiters<T> {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    pub(super) fn push(&mut self, position: Position, mut reply: ProposeReply<T>) {
        if let Some(appended) = reply.appended.take() {
            // The caller may have dropped its handle.
            let _ = appended.send(position);
        }
        assert!(self.waiting.back().is_none_or(|(last, _)| last.index < position.index));
        self.waiting.push_back((position, reply));
    }

    /// Entries are committed: takes the replies that wait for just these. A proposal that waits for
    /// another entry at such an index was replaced.
    pub(super) fn take_committed(&mut self, entries: &[Entry]) -> Vec<(Index, ProposeReply<T>)> {
        let Some(last) = entries.last() else { return Vec::new() };
        let first_index = entries[0].index;
        let mut taken = Vec::new();
        while let Some((position, _)) = self.waiting.front()
            && position.index <= last.index
        {
            let (position, reply) = self.waiting.pop_front().expect("just seen");
            assert!(position.index >= first_index, "an index is handed out once, in order");
            let offset = usize::try_from(position.index - first_index).expect("within a batch");
            assert_eq!(entries[offset].index, position.index, "entries come without a gap");
            if entries[offset].term == position.term {
                taken.push((position.index, reply));
            } else {
                reply.send(Err(Rejected::Replaced.into()));
            }
        }
        taken
    }

    /// This node no longer leads: later leaders decide the fate of these entries.
    pub(super) fn fail_all(&mut self, why: &'static str) {
        for (_, reply) in self.waiting.drain(..) {
            reply.send(Err(ProposeError::Unknown(why)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::types::Payload;

    #[test]
    fn a_waiter_hears_only_of_its_own_entry() {
        let (sender, receiver) = mpsc::sync_channel(10);
        let mut waiters = Waiters::<u8>::new();
        for (index, term) in [(3, 1), (4, 1), (5, 1)] {
            let sender = sender.clone();
            let place = Place::new(&Arc::default());
            let reply =
                Reply::new(place, move |result| sender.send((index, result)).expect("room"));
            waiters.push(Position::new(term, index), reply);
        }
        let entry = |index, term| Entry { index, term, payload: Payload::Noop };
        let taken = waiters.take_committed(&[entry(2, 1), entry(3, 1), entry(4, 2)]);
        assert_eq!(taken.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3]);
        assert_eq!(receiver.try_recv(), Ok((4, Err(Rejected::Replaced.into()))));
        drop(taken);
        assert!(matches!(receiver.try_recv(), Ok((3, Err(ProposeError::Unknown(_))))));
        waiters.fail_all("gone");
        assert_eq!(receiver.try_recv(), Ok((5, Err(ProposeError::Unknown("gone")))));
    }
}
