//! Who waits for what.
//!
//! A reply is given exactly once: taking it consumes it, and dropping it unanswered answers
//! *unknown* for a proposal, *not answered* for a query. So nobody is left waiting, whatever
//! happens to the task that held it.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::inbox::InFlight;
use crate::error::{ProposeError, Rejected};
use crate::types::{Entry, Index, Position};

/// An error that a dropped reply stands for.
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

/// How the answer gets to whoever asked.
enum Way<T, E> {
    Call(Box<dyn FnOnce(Result<T, E>) + Send>),
    Channel(oneshot::Sender<Result<T, E>>),
}

pub(super) struct Reply<T, E: Abandoned> {
    way: Option<Way<T, E>>,
    /// Goes before the answer does: whoever hears it may ask again.
    in_flight: Option<InFlight>,
}

impl<T, E: Abandoned> Reply<T, E> {
    pub(super) fn new(reply: impl FnOnce(Result<T, E>) + Send + 'static) -> Self {
        Self { way: Some(Way::Call(Box::new(reply))), in_flight: None }
    }

    /// A reply that somebody waits for.
    pub(super) fn channel() -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (sender, receiver) = oneshot::channel();
        (Self { way: Some(Way::Channel(sender)), in_flight: None }, receiver)
    }

    /// The request counts until it is answered.
    pub(super) fn counted(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    pub(super) fn send(mut self, result: Result<T, E>) {
        assert!(self.way.is_some(), "a reply is sent once");
        self.answer(result);
    }

    fn answer(&mut self, result: Result<T, E>) {
        let Some(way) = self.way.take() else { return };
        drop(self.in_flight.take());
        match way {
            Way::Call(reply) => reply(result),
            Way::Channel(sender) => {
                // Whoever asked may have gone.
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

    pub(super) fn push(&mut self, position: Position, reply: ProposeReply<T>) {
        assert!(self.waiting.back().is_none_or(|(last, _)| last.index < position.index));
        self.waiting.push_back((position, reply));
    }

    /// Entries are committed: takes the replies that wait for just these. Whoever waits for another
    /// entry at such an index has been replaced.
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
            if entries[offset].term == position.term {
                taken.push((position.index, reply));
            } else {
                reply.send(Err(Rejected::Replaced.into()));
            }
        }
        taken
    }

    /// This node no longer leads: what becomes of these entries is up to others.
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
            let reply = Reply::new(move |result| sender.send((index, result)).expect("room"));
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
