//! Answers on their way to one client.
//!
//! Answers that become ready together leave in one write. A client that does not take its answers harms
//! nobody but itself: the node reads no further from it while too many requests or bytes wait, and a read
//! whose answer does not fit into the connection's share, or into the budget of all connections, is
//! answered `Busy` instead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::load::Load;
use crate::protocol::{Rejection, Reply, Response, push_frame};

/// While more bytes of answers wait, nothing more is read from the connection.
const UNSENT_BYTES_READ_ON: usize = 4 << 20;
/// One connection may use this part of the budget of all: what was asked before may still need it.
const SHARE: u64 = 16;

pub(super) struct Outbox {
    state: Mutex<State>,
    /// Something to send, or closed.
    pub(super) filled: Notify,
    /// Answers have left, or closed.
    settled: Notify,
    load: Arc<Load>,
}

#[derive(Default)]
struct State {
    bytes: BytesMut,
    /// Of `bytes`, and of what the writer has taken and not sent.
    unsent_bytes: usize,
    /// Of the requests that are answered in `bytes`.
    answered_count: usize,
    /// Requests read whose answers have not left.
    open_count: usize,
    closed: bool,
}

/// What the writer takes at a time.
pub(super) struct Sending {
    pub(super) bytes: BytesMut,
    answered_count: usize,
}

impl Outbox {
    pub(super) fn new(load: Arc<Load>) -> Arc<Self> {
        let state = Mutex::default();
        Arc::new(Self { state, filled: Notify::new(), settled: Notify::new(), load })
    }

    /// A request was read; its answer follows.
    pub(super) fn open(&self) {
        self.lock().open_count += 1;
    }

    /// Waits until another request may be read.
    pub(super) async fn room(&self, open_max: usize) {
        self.settle(|state| {
            state.open_count < open_max && state.unsent_bytes <= UNSENT_BYTES_READ_ON
        })
        .await;
    }

    /// Waits until every answer has left.
    pub(super) async fn emptied(&self) {
        self.settle(|state| state.open_count == 0).await;
    }

    /// Only the connection's reader waits here, so one permit is enough.
    async fn settle(&self, settled: impl Fn(&State) -> bool) {
        while !settled(&self.lock()) {
            self.settled.notified().await;
        }
    }

    /// Takes the answer of a request that was opened.
    pub(super) fn push(&self, id: u64, reply: Reply) {
        {
            let mut state = self.lock();
            state.answered_count += 1;
            if !state.closed {
                let before = state.bytes.len();
                let is_read = matches!(reply, Reply::Answered(_));
                push_frame(&mut state.bytes, &Response { id, reply });
                let added = state.bytes.len() - before;
                // A single answer always fits.
                let share = (self.load.answer_bytes_max() / SHARE) as usize;
                let fits =
                    !is_read || state.unsent_bytes == 0 || state.unsent_bytes + added <= share;
                if !fits || !self.load.add_answer(added, is_read) {
                    state.bytes.truncate(before);
                    let busy = "too many answers wait to be sent".to_owned();
                    let reply = Reply::Rejected(Rejection::Busy(busy));
                    push_frame(&mut state.bytes, &Response { id, reply });
                    self.load.add_answer(state.bytes.len() - before, false);
                }
                state.unsent_bytes += state.bytes.len() - before;
            }
        }
        self.filled.notify_one();
    }

    /// Says something that no request asked for.
    pub(super) fn push_unasked(&self, message: &impl serde::Serialize) {
        let mut state = self.lock();
        let before = state.bytes.len();
        push_frame(&mut state.bytes, message);
        let added = state.bytes.len() - before;
        self.load.add_answer(added, false);
        state.unsent_bytes += added;
        drop(state);
        self.filled.notify_one();
    }

    /// Swaps what has gathered for an emptied buffer. False once closed.
    pub(super) fn take(&self, sending: &mut Sending) -> bool {
        let mut state = self.lock();
        std::mem::swap(&mut state.bytes, &mut sending.bytes);
        sending.answered_count = std::mem::take(&mut state.answered_count);
        !state.closed
    }

    /// What was taken has left.
    pub(super) fn sent(&self, sending: &mut Sending) {
        let bytes = sending.bytes.len();
        sending.bytes.clear();
        // One huge answer must not keep its buffer for good.
        const KEPT_BYTES: usize = 1 << 20;
        if sending.bytes.capacity() > KEPT_BYTES {
            sending.bytes = BytesMut::new();
        }
        let mut state = self.lock();
        state.open_count -= std::mem::take(&mut sending.answered_count);
        if !state.closed {
            state.unsent_bytes -= bytes;
            self.load.remove_answers(bytes);
        }
        drop(state);
        self.settled.notify_one();
    }

    /// The connection is gone: answers are dropped from now on, also those that the writer had taken.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.bytes = BytesMut::new();
        self.load.remove_answers(std::mem::take(&mut state.unsent_bytes));
        drop(state);
        self.filled.notify_one();
        self.settled.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for single steps only; none of them panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    pub(super) fn new() -> Self {
        Self { bytes: BytesMut::new(), answered_count: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Answer, Record};
    use crate::protocol::FrameBuffer;

    fn large_answer() -> Reply {
        let value = vec![7; 1000].into();
        let record = Record { value, version: 1, create_revision: 1, modify_revision: 1 };
        Reply::Answered(Answer::Get(Some(record)))
    }

    #[test]
    fn reads_beyond_the_budget_are_answered_busy_and_what_left_is_given_back() {
        let load = Load::new(20_000);
        let outbox = Outbox::new(Arc::clone(&load));
        for id in 1..=2 {
            outbox.open();
            outbox.push(id, large_answer());
        }
        let mut sending = Sending::new();
        assert!(outbox.take(&mut sending));
        let mut frames = FrameBuffer::with_limit(1 << 20);
        frames.input().extend_from_slice(&sending.bytes);
        let first: Response = frames.next_message().unwrap().unwrap();
        assert_eq!(first, Response { id: 1, reply: large_answer() });
        let second: Response = frames.next_message().unwrap().unwrap();
        assert!(matches!(second.reply, Reply::Rejected(Rejection::Busy(_))), "{second:?}");
        assert_eq!(outbox.lock().open_count, 2);
        outbox.sent(&mut sending);
        assert_eq!(outbox.lock().open_count, 0);
        assert!(load.is_quiet());
    }

    #[test]
    fn a_closed_connection_gives_everything_back() {
        let load = Load::new(10_000);
        let outbox = Outbox::new(Arc::clone(&load));
        outbox.open();
        outbox.push(1, large_answer());
        // The writer had begun when the connection broke.
        let mut sending = Sending::new();
        assert!(outbox.take(&mut sending));
        outbox.open();
        outbox.push(3, large_answer());
        outbox.close();
        outbox.open();
        outbox.push(2, large_answer());
        assert!(load.is_quiet());
        assert!(!outbox.take(&mut Sending::new()));
    }
}
