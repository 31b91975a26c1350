//! A client's session: numbers its writes, so that each takes effect once however often it is sent.
//!
//! The cluster remembers the outputs of a window of writes, whose width it states when the session
//! is opened. The window starts at the lowest sequence number that is neither answered nor given
//! up. A new write waits until its number is within the window.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::protocol::operation::SessionId;

#[derive(Default)]
pub(super) struct Session {
    state: Mutex<SessionState>,
    /// Writes get their numbers in the order in which they come.
    turn: tokio::sync::Mutex<()>,
    settled: Notify,
}

#[derive(Default)]
struct SessionState {
    /// `None` until a session is opened.
    id: Option<SessionId>,
    window: u64,
    next_sequence: u64,
    unanswered: BTreeSet<u64>,
}

impl SessionState {
    fn lowest_unanswered(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next_sequence)
    }
}

/// The sequence number of one write. Dropping it records that the write is answered or given up.
pub(super) struct Ticket<'a> {
    session: &'a Session,
    pub(super) id: SessionId,
    pub(super) sequence: u64,
}

impl Session {
    /// Waits for the turn, whose holder may open a session or take a number.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(super) fn id(&self) -> Option<SessionId> {
        self.lock().id
    }

    /// Begins to number the writes of a session that was just opened.
    pub(super) fn begin(&self, id: SessionId, window: u32) {
        // With a window of 0, no write would be sent, because the node would refuse each of them.
        let window = u64::from(window.max(1));
        let unanswered = BTreeSet::new();
        assert!(self.turn.try_lock().is_err(), "the holder of the turn opens sessions");
        let mut state = self.lock();
        assert!(state.id.is_none(), "a session is opened where there is none");
        *state = SessionState { id: Some(id), window, next_sequence: 1, unanswered };
    }

    /// Drops a session that the cluster does not know, or whose writes it refuses.
    pub(super) fn forget(&self, id: SessionId) {
        let mut state = self.lock();
        if state.id == Some(id) {
            *state = SessionState::default();
        }
        drop(state);
        self.settled.notify_one();
    }

    /// Returns the next number once the window has room; `None` if there is no session. The caller
    /// must hold the turn.
    pub(super) async fn ticket(
        &self,
        _turn: &tokio::sync::MutexGuard<'_, ()>,
    ) -> Option<Ticket<'_>> {
        loop {
            {
                let mut state = self.lock();
                let id = state.id?;
                let sequence = state.next_sequence;
                assert!(
                    state.lowest_unanswered() <= sequence,
                    "the window starts at a given number"
                );
                if sequence - state.lowest_unanswered() < state.window {
                    state.next_sequence += 1;
                    let is_new = state.unanswered.insert(sequence);
                    assert!(is_new, "each write has a number of its own");
                    assert!(
                        state.unanswered.len() as u64 <= state.window,
                        "the unanswered writes are within the window"
                    );
                    return Some(Ticket { session: self, id, sequence });
                }
            }
            self.settled.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, SessionState> {
        // Held for single steps only; none of them panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    pub(super) fn lowest_unanswered(&self) -> u64 {
        let state = self.session.lock();
        // Once a new session has begun, the numbers of the old one mean nothing.
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
