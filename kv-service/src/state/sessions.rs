//! Exactly once: the table of sessions, and the outputs that each of them remembers.
//!
//! A client opens a session and numbers its requests. It may send many before it receives the first
//! response, and send each again, so a request can be in the log many times, in any order. The
//! machine executes it the first time, keeps its output, and returns that output again until the
//! client says, by `lowest_unanswered`, that it has received it.
//!
//! ```text
//!     forgotten         answered or not, at most `window`              too far ahead
//!   ---------------|=================================================|----------------> sequence
//!                  lowest_unanswered
//! ```
//!
//! * A request below `lowest_unanswered` is a late duplicate. It is refused, never executed again.
//! * A request of a session that is not in the table is refused. The session is never opened on the
//!   fly: it may have expired after it executed this very request.
//! * A session is named by its index and the nonce that the leader drew: a client that knows the
//!   index alone can neither write in it nor end it.
//! * A repeated sequence number with another operation is refused, not answered (S9).
//! * A refusal by this table changes nothing, and is no activity of the session.
//!
//! Sessions expire by replicated time. When there are too many, of one principal or of all, the one
//! with the oldest activity is evicted first; queues keep that order (`idle`), so that a command
//! costs O(log n). When the outputs that all sessions remember exceed their limit in bytes, the
//! sessions with the most outputs are evicted (S11). An evicted session is unknown from then on.
//! (RIFL, Lee et al. 2015; dissertation 6.3.)

use std::collections::BTreeSet;
use std::sync::Arc;

use raft_core::types::Index;

use super::answers::{Answers, Kept, Outcome};
use super::codec::{DecodeResult, malformed};
use super::command::Opening;
use super::idle::Idle;
use super::output_counts::OutputCounts;
use super::session::{ANSWER_BYTES, Session, SessionMap};
use crate::protocol::operation::{Refusal, SessionId};

/// The place of a write in its session, and its operation's digest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) session: SessionId,
    pub(super) sequence: u64,
    pub(super) lowest_unanswered: u64,
    /// Digest of the operation's encoding.
    pub(super) digest: u32,
}

/// The decision about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The request is new: execute it and hand its output to [`Sessions::answer`].
    Execute,
    /// The request was executed before; this was its output.
    Answered(Outcome),
    Refused(Refusal),
}

/// The table. Equality of what is replicated is equality of [`Sessions::view`].
#[derive(Default)]
pub(super) struct Sessions {
    map: SessionMap,
    idle: Idle,
    output_counts: OutputCounts,
    /// Sessions that changed or ended since the engine's last commit, with repetitions.
    changed: Vec<Index>,
}

impl Sessions {
    pub(super) fn view(&self) -> SessionMap {
        self.map.clone()
    }

    /// The sessions that a durable engine has to write, each once; `None` is one that ended.
    #[allow(dead_code, reason = "a build without a durable engine has no use for it")]
    pub(super) fn changes(&self) -> impl Iterator<Item = (Index, Option<&Arc<Session>>)> {
        let changed: BTreeSet<Index> = self.changed.iter().copied().collect();
        changed.into_iter().map(|id| (id, self.map.get(&id)))
    }

    pub(super) fn clear_changed(&mut self) {
        self.changed.clear();
    }

    /// Ends the sessions whose last activity is longer ago than their time to live.
    pub(super) fn expire(&mut self, clock_ms: u64) {
        while let Some(id) = self.idle.expired(clock_ms, &self.map) {
            self.end(id);
        }
    }

    /// Opens a session, and evicts others until there are as many as its terms allow, of its
    /// principal and of all, itself included.
    pub(super) fn open(&mut self, id: Index, clock_ms: u64, opening: &Opening) {
        let session = Session {
            nonce_bytes: opening.nonce.0.to_le_bytes(),
            principal: Arc::from(&opening.principal[..]),
            ttl_ms: opening.ttl_ms,
            window: opening.window.max(1),
            last_active_ms: clock_ms,
            lowest_unanswered: 0,
            answers: Answers::new(),
        };
        assert!(self.map.get_max().is_none_or(|(last, _)| *last < id), "indexes grow");
        self.insert(id, session);
        self.changed.push(id);
        // The new one is last in each order: the clock does not go back, and ids grow.
        let quota = opening.principal_session_count_max.max(1);
        while self.idle.session_count(&opening.principal) > quota {
            let idle = self.idle.first_of_principal(&opening.principal, &self.map);
            self.end(idle.expect("it has more than one"));
        }
        while self.map.len() as u64 > opening.session_count_max.max(1) {
            let idle = self.idle.first(&self.map);
            self.end(idle.expect("as many as in the map"));
        }
        assert!(self.map.contains_key(&id), "the newest one stays");
    }

    /// Ends a session for its client; another nonce ends nothing.
    pub(super) fn close(&mut self, session: SessionId) {
        if self.map.get(&session.index).is_some_and(|held| held.nonce() == session.nonce) {
            self.end(session.index);
        }
    }

    fn end(&mut self, id: Index) {
        let session = self.map.remove(&id).expect("it is in the map");
        self.idle.remove(&session, &self.map);
        self.output_counts.recount(id, session.answers.len(), 0);
        self.changed.push(id);
    }

    /// Decides about a request; unless it is refused, it counts as activity.
    pub(super) fn admit(&mut self, place: &Place, clock_ms: u64) -> Admission {
        let Place { session: SessionId { index: id, nonce }, sequence, .. } = *place;
        let Some(session) = self.map.get_mut(&id).filter(|session| session.nonce() == nonce) else {
            return Admission::Refused(Refusal::UnknownSession);
        };
        let lowest = session.lowest_unanswered.max(place.lowest_unanswered);
        if sequence < lowest {
            return Admission::Refused(Refusal::Forgotten);
        }
        if sequence - lowest >= u64::from(session.window) {
            return Admission::Refused(Refusal::WindowExceeded);
        }
        let kept = session.answers.get(sequence);
        if kept.is_some_and(|kept| kept.digest != place.digest) {
            return Admission::Refused(Refusal::OtherOperation);
        }
        if session.last_active_ms != clock_ms {
            Arc::make_mut(session).last_active_ms = clock_ms;
        }
        self.changed.push(id);
        if session.lowest_unanswered != lowest {
            let session = Arc::make_mut(session);
            assert!(session.lowest_unanswered < lowest, "the window never moves back");
            session.lowest_unanswered = lowest;
            let before = session.answers.len();
            session.answers.forget_below(lowest);
            self.output_counts.recount(id, before, session.answers.len());
        }
        kept.map_or(Admission::Execute, |kept| Admission::Answered(kept.outcome()))
    }

    /// Keeps the output of a request that was just admitted for execution. Evicts sessions until
    /// the outputs of all are within `answer_bytes_max`; the request's own session may be among
    /// them.
    pub(super) fn answer(&mut self, place: &Place, outcome: Outcome, answer_bytes_max: u64) {
        let id = place.session.index;
        let session = Arc::make_mut(self.map.get_mut(&id).expect("it was admitted"));
        let before = session.answers.len();
        session.answers.insert(place.sequence, Kept::new(place.digest, outcome));
        self.output_counts.recount(id, before, before + 1);
        assert!(session.answers.len() <= session.window as usize, "outputs are within the window");
        while self.output_counts.answer_count().saturating_mul(ANSWER_BYTES) > answer_bytes_max {
            let largest = self.output_counts.first().or_else(|| self.idle.first(&self.map));
            self.end(largest.expect("answers belong to sessions"));
        }
    }

    /// Adds a session from a snapshot or from disk, in ascending order of ids. `through` is the
    /// index of the state: a session with a larger id cannot have been opened yet.
    pub(super) fn restore(
        &mut self,
        id: Index,
        session: Session,
        through: Index,
    ) -> DecodeResult<()> {
        let last = self.map.iter().next_back().map_or(0, |(last, _)| *last);
        if id <= last || id > through {
            return Err(malformed("sessions are out of order, or not opened yet"));
        }
        self.insert(id, session);
        Ok(())
    }

    /// Checks what is counted beside the sessions against the sessions themselves. It costs a look
    /// at each of them, so it is called where all of them were read.
    pub(super) fn assert_counts(&self) {
        assert_eq!(self.idle.total(), self.map.len(), "each session is in one queue");
        let answer_count: usize = self.map.values().map(|session| session.answers.len()).sum();
        assert_eq!(
            self.output_counts.answer_count(),
            answer_count as u64,
            "each output is counted"
        );
    }

    fn insert(&mut self, id: Index, mut session: Session) {
        self.idle.insert(id, &mut session);
        self.output_counts.recount(id, 0, session.answers.len());
        self.map.insert(id, Arc::new(session));
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::operation::{Nonce, WriteResponse};

    const ANSWER: Outcome = Ok(WriteResponse { revision: 5, changed: true, version: 1 });

    fn opening(session_count_max: u64) -> Opening {
        Opening {
            nonce: Nonce(9),
            ttl_ms: 1000,
            window: 1024,
            session_count_max,
            principal_session_count_max: u64::MAX,
            principal: "client".into(),
        }
    }

    fn place(index: Index, sequence: u64, lowest_unanswered: u64) -> Place {
        let session = SessionId { index, nonce: Nonce(9) };
        Place { session, sequence, lowest_unanswered, digest: 3 }
    }

    /// A commit costs what changed, not what there is.
    #[test]
    fn what_was_written_is_not_written_again() {
        let changes = |sessions: &Sessions| -> Vec<(Index, bool)> {
            sessions.changes().map(|(id, session)| (id, session.is_some())).collect()
        };
        let mut sessions = Sessions::default();
        for id in [1, 2, 3] {
            sessions.open(id, 0, &opening(10));
        }
        assert_eq!(changes(&sessions), [(1, true), (2, true), (3, true)]);
        sessions.clear_changed();
        assert_eq!(changes(&sessions), []);
        assert_eq!(sessions.admit(&place(2, 1, 1), 7), Admission::Execute);
        sessions.answer(&place(2, 1, 1), ANSWER, u64::MAX);
        assert_eq!(sessions.admit(&place(2, 1, 1), 7), Admission::Answered(ANSWER));
        let late = sessions.admit(&place(3, 1, 2), 7);
        assert_eq!(late, Admission::Refused(Refusal::Forgotten));
        sessions.close(place(1, 0, 0).session);
        sessions.close(place(9, 0, 0).session);
        assert_eq!(changes(&sessions), [(1, false), (2, true)]);
        sessions.clear_changed();
        // Session 2 was active later.
        sessions.expire(1001);
        assert_eq!(changes(&sessions), [(3, false)]);
        assert_eq!(sessions.len(), 1);
    }

    /// A principal's queue is as long as its number of sessions, however many have come and gone.
    #[test]
    fn ended_sessions_leave_nothing_behind() {
        let mut sessions = Sessions::default();
        let mut keeps = opening(u64::MAX);
        keeps.principal_session_count_max = 3;
        for id in 1..10_000 {
            sessions.open(id, id, &keeps);
            sessions.admit(&place(id, 1, 1), id);
            sessions.answer(&place(id, 1, 1), ANSWER, u64::MAX);
        }
        assert_eq!(sessions.len(), 3);
        assert_eq!(sessions.output_counts.answer_count(), 3);
        assert_eq!(sessions.idle.session_count(b"client"), 3);
        sessions.expire(u64::MAX);
        assert_eq!((sessions.len(), sessions.output_counts.answer_count()), (0, 0));
        assert_eq!(sessions.idle.session_count(b"client"), 0);
    }
}
