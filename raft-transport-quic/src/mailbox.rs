//! The queue of messages to one peer in one class.
//!
//! It is bounded in bytes, including the messages that the writer has taken. A message that does
//! not fit is dropped and counted, and so is every message while there is no connection: a queue of
//! old messages would only delay the new ones.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use raft_core::types::Message;
use tokio::sync::Notify;

#[derive(Debug)]
pub(crate) struct Mailbox {
    bytes_max: u64,
    state: Mutex<MailboxState>,
    /// Notified when an empty mailbox gets a message. One writer waits for it.
    filled: Notify,
}

#[derive(Debug, Default)]
struct MailboxState {
    open: bool,
    waiting: VecDeque<Message>,
    /// Bytes of the queued messages, and of those that the writer has taken and not released.
    bytes: u64,
    dropped_count: u64,
    drop_reported: bool,
}

/// Result of [`Mailbox::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Waiting,
    /// Dropped: there is no connection.
    Closed,
    /// Dropped: the mailbox is full. `first` is true for the first dropped message of a connection.
    Full {
        first: bool,
    },
}

impl Mailbox {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, state: Mutex::default(), filled: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, MailboxState> {
        self.state.lock().expect("nothing panics while it holds a mailbox")
    }

    /// Queues the message or drops it. Never waits.
    pub(crate) fn put(&self, message: Message) -> Put {
        let mut state = self.state();
        if !state.open {
            state.dropped_count += 1;
            return Put::Closed;
        }
        let size_bytes = message.size_bytes();
        if state.bytes.saturating_add(size_bytes) > self.bytes_max {
            state.dropped_count += 1;
            let first = !std::mem::replace(&mut state.drop_reported, true);
            return Put::Full { first };
        }
        state.bytes += size_bytes;
        let was_empty = state.waiting.is_empty();
        state.waiting.push_back(message);
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
        Put::Waiting
    }

    /// Waits for messages and moves about `bytes` of them, at least one, into `into`. Returns their
    /// size, which must be given to [`release`](Self::release) once they have been written.
    pub(crate) async fn take(&self, bytes: u64, into: &mut Vec<Message>) -> u64 {
        loop {
            let filled = self.filled.notified();
            let taken = self.take_waiting(bytes, into);
            if taken > 0 {
                return taken;
            }
            filled.await;
        }
    }

    fn take_waiting(&self, bytes: u64, into: &mut Vec<Message>) -> u64 {
        let mut state = self.state();
        let mut taken = 0;
        while taken < bytes {
            let Some(message) = state.waiting.pop_front() else { break };
            taken += message.size_bytes();
            into.push(message);
        }
        taken
    }

    /// Frees the bytes of messages that were taken and have been written.
    pub(crate) fn release(&self, bytes: u64) {
        let mut state = self.state();
        assert!(bytes <= state.bytes, "what is released was taken");
        state.bytes -= bytes;
    }

    /// Counts a message that is dropped because it cannot be encoded. Returns true if it is the
    /// first dropped message of the connection.
    pub(crate) fn count_dropped(&self) -> bool {
        let mut state = self.state();
        state.dropped_count += 1;
        !std::mem::replace(&mut state.drop_reported, true)
    }

    /// Opens the mailbox for a new connection.
    pub(crate) fn open(&self) {
        let mut state = self.state();
        assert!(state.waiting.is_empty() && state.bytes == 0, "closing leaves it empty");
        state.open = true;
        state.drop_reported = false;
    }

    /// Closes the mailbox when the connection and its writer are gone. Drops the queued messages.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.open = false;
        state.dropped_count += state.waiting.len() as u64;
        state.waiting = VecDeque::new();
        state.bytes = 0;
    }

    /// Messages dropped since the start.
    pub(crate) fn dropped_count(&self) -> u64 {
        self.state().dropped_count
    }
}

#[cfg(test)]
mod tests {
    use raft_core::types::MessageBody;

    use super::*;

    fn message(id: u64) -> Message {
        Message::new(1, MessageBody::ReadIndex { id })
    }

    #[tokio::test]
    async fn a_full_mailbox_drops_the_newest_and_counts() {
        let size = message(0).size_bytes();
        let mailbox = Mailbox::new(2 * size);
        assert_eq!(mailbox.put(message(0)), Put::Closed);
        mailbox.open();
        assert_eq!(mailbox.put(message(1)), Put::Waiting);
        assert_eq!(mailbox.put(message(2)), Put::Waiting);
        assert_eq!(mailbox.put(message(3)), Put::Full { first: true });
        assert_eq!(mailbox.put(message(4)), Put::Full { first: false });
        let mut taken = Vec::new();
        assert_eq!(mailbox.take(1, &mut taken).await, size);
        assert_eq!(taken, [message(1)]);
        // A message that the writer has taken still counts.
        assert_eq!(mailbox.put(message(5)), Put::Full { first: false });
        mailbox.release(size);
        assert_eq!(mailbox.put(message(6)), Put::Waiting);
        assert_eq!(mailbox.take(u64::MAX, &mut taken).await, 2 * size);
        assert_eq!(taken, [message(1), message(2), message(6)]);
        assert_eq!(mailbox.dropped_count(), 4);
    }

    #[tokio::test]
    async fn closing_forgets_what_waits() {
        let mailbox = Mailbox::new(1024);
        mailbox.open();
        assert_eq!(mailbox.put(message(1)), Put::Waiting);
        mailbox.close();
        assert_eq!(mailbox.put(message(2)), Put::Closed);
        mailbox.open();
        assert_eq!(mailbox.put(message(3)), Put::Waiting);
        let mut taken = Vec::new();
        mailbox.take(u64::MAX, &mut taken).await;
        assert_eq!(taken, [message(3)]);
        assert_eq!(mailbox.dropped_count(), 2);
    }
}
