//! A client's session: numbers its writes, so that each takes effect once however often it is sent.
//!
//! The cluster remembers the answers of a window of writes, as wide as it said when the session was
//! opened. The window starts at the lowest sequence number that is neither answered nor given up, so a
//! new write waits while that one is a whole window back.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::operation::SessionId;

#[derive(Default)]
pub(super) struct Session {
    state: Mutex<State>,
    /// Writes get their numbers in the order in which they come.
    turn: tokio::sync::Mutex<()>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    /// `None` until one is opened.
    id: Option<SessionId>,
    window: u64,
    next_sequence: u64,
    unanswered: BTreeSet<u64>,
}

impl State {
    fn lowest_unanswered(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next_sequence)
    }
}

/// One write's number; dropping it says that the write is answered or given up.
pub(super) struct Ticket<'a> {
    session: &'a Session,
    pub(super) id: SessionId,
    pub(super) sequence: u64,
}

impl Session {
    /// The holder may open a session or take a number.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(super) fn id(&self) -> Option<SessionId> {
        self.lock().id
    }

    /// A new session was opened.
    pub(super) fn begin(&self, id: SessionId, window: u32) {
        // No window lets no write through: the node would refuse each of them.
        let window = u64::from(window.max(1));
        let unanswered = BTreeSet::new();
        *self.lock() = State { id: Some(id), window, next_sequence: 1, unanswered };
    }

    /// The session is of no use any more: the cluster does not know it, or refuses its writes.
    pub(super) fn forget(&self, id: SessionId) {
        let mut state = self.lock();
        if state.id == Some(id) {
            *state = State::default();
        }
        drop(state);
        self.settled.notify_one();
    }

    /// The next number once the window has room; `None` if there is no session. Needs the turn.
    pub(super) async fn ticket(
        &self,
        _turn: &tokio::sync::MutexGuard<'_, ()>,
    ) -> Option<Ticket<'_>> {
        loop {
            {
                let mut state = self.lock();
                let id = state.id?;
                let sequence = state.next_sequence;
                if sequence - state.lowest_unanswered() < state.window {
                    state.next_sequence += 1;
                    state.unanswered.insert(sequence);
                    return Some(Ticket { session: self, id, sequence });
                }
            }
            self.settled.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Held for single steps only; none of them panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    pub(super) fn lowest_unanswered(&self) -> u64 {
        let state = self.session.lock();
        // After a new session was begun the old one's numbers mean nothing.
        if state.id == Some(self.id) { state.lowest_unanswered() } else { self.sequence }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.session.lock();
        if state.id == Some(self.id) {
            state.unanswered.remove(&self.sequence);
        }
        drop(state);
        self.session.settled.notify_one();
    }
}
