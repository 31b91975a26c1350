//! Exactly once: which requests of which session have been answered, and how.
//!
//! A client opens a session and numbers its requests. It may send many before it hears the first
//! answer, and send each again; so a request can be in the log many times, in any order. It is
//! executed the first time; its answer is kept, and given again, until the client says, by
//! `lowest_unanswered`, that it has heard it.
//!
//! ```text
//!     forgotten         answered or not, at most SESSION_WINDOW        too far ahead
//!   ---------------|=================================================|----------------> sequence
//!                  lowest_unanswered
//! ```
//!
//! * What is below `lowest_unanswered` is a late duplicate, and is refused, never executed again.
//! * A session that is not in the table is refused, never opened on the fly: it may be one that
//!   has expired, and its request one that was executed.
//! * A refusal by this table changes nothing, and is no activity of the session.
//!
//! Sessions expire by replicated time, and give way to newer ones when there are too many, the one
//! with the oldest activity first. That order is kept sorted for each time to live, and there are few
//! of those, so that a command costs O(log n).
//! (RIFL, Lee et al. 2015; dissertation 6.3.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use imbl::OrdMap;
use raft_core::types::Index;

use super::answers::Answers;
use super::codec::{DecodeError, DecodeResult, Reader};
use crate::operation::{Refusal, SessionId, WriteAnswer};

/// How many requests of a session may be unanswered, from `lowest_unanswered` on.
pub const SESSION_WINDOW: u64 = 1024;

/// What executing a request came to.
pub(super) type Outcome = Result<WriteAnswer, Refusal>;

/// All sessions at one moment; a clone is O(1).
pub(super) type SessionMap = OrdMap<SessionId, Arc<Session>>;

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is new: execute it and hand the outcome to [`Sessions::answer`].
    Execute,
    /// It was executed before; this was the outcome.
    Answered(Outcome),
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    ttl_ms: u64,
    last_active_ms: u64,
    lowest_unanswered: u64,
    /// All within the window.
    answers: Answers,
}

/// By time to live, and then by last activity: the first of each set is the one that expires first. A
/// time to live is a setting of a server, so there are few sets; none is empty.
type ByActivity = BTreeMap<u64, BTreeSet<(u64, SessionId)>>;

/// The table. Equality of what is replicated is equality of [`Sessions::view`].
#[derive(Default)]
pub(super) struct Sessions {
    map: SessionMap,
    by_activity: ByActivity,
    /// Touched since the engine last wrote; with repetitions, and also those that are gone.
    changed: Vec<SessionId>,
}

impl Sessions {
    pub(super) fn view(&self) -> SessionMap {
        self.map.clone()
    }

    /// What a durable engine has to write: each session that changed, once; `None` is one that ended.
    #[allow(dead_code, reason = "a build without a durable engine has no use for it")]
    pub(super) fn changes(&self) -> impl Iterator<Item = (SessionId, Option<&Arc<Session>>)> {
        let changed: BTreeSet<SessionId> = self.changed.iter().copied().collect();
        changed.into_iter().map(|id| (id, self.map.get(&id)))
    }

    pub(super) fn clear_changed(&mut self) {
        self.changed.clear();
    }

    /// Ends the sessions whose last activity is longer ago than they allow.
    pub(super) fn expire(&mut self, clock_ms: u64) {
        let expired = |(ttl_ms, order): (&u64, &BTreeSet<(u64, SessionId)>)| {
            let (last_active_ms, id) = *order.first().expect("none is empty");
            (last_active_ms.saturating_add(*ttl_ms) < clock_ms).then_some(id)
        };
        while let Some(id) = self.by_activity.iter().find_map(expired) {
            self.close(id);
        }
    }

    /// Opens a session, and ends others until there are at most `count_max`, itself included.
    pub(super) fn open(&mut self, id: SessionId, clock_ms: u64, ttl_ms: u64, count_max: u64) {
        let session = Session {
            ttl_ms,
            last_active_ms: clock_ms,
            lowest_unanswered: 0,
            answers: Answers::new(),
        };
        self.insert(id, Arc::new(session));
        self.changed.push(id);
        // The new one is last in the order: the clock does not go back, and ids grow.
        while self.map.len() as u64 > count_max.max(1) {
            let (_, oldest) = *self
                .by_activity
                .values()
                .filter_map(BTreeSet::first)
                .min()
                .expect("as many as in the map");
            self.close(oldest);
        }
    }

    pub(super) fn close(&mut self, id: SessionId) {
        if let Some(session) = self.map.remove(&id) {
            let order = self.by_activity.get_mut(&session.ttl_ms).expect("as in the map");
            order.remove(&(session.last_active_ms, id));
            if order.is_empty() {
                self.by_activity.remove(&session.ttl_ms);
            }
            self.changed.push(id);
        }
    }

    /// Decides about a request; unless it is refused, it counts as activity.
    pub(super) fn admit(
        &mut self,
        id: SessionId,
        sequence: u64,
        lowest_unanswered: u64,
        clock_ms: u64,
    ) -> Admission {
        let Some(session) = self.map.get_mut(&id) else {
            return Admission::Refused(Refusal::UnknownSession);
        };
        let lowest = session.lowest_unanswered.max(lowest_unanswered);
        if sequence < lowest {
            return Admission::Refused(Refusal::Forgotten);
        }
        if sequence - lowest >= SESSION_WINDOW {
            return Admission::Refused(Refusal::WindowExceeded);
        }
        if session.last_active_ms != clock_ms {
            let order = self.by_activity.get_mut(&session.ttl_ms).expect("as in the map");
            order.remove(&(session.last_active_ms, id));
            order.insert((clock_ms, id));
            Arc::make_mut(session).last_active_ms = clock_ms;
        }
        self.changed.push(id);
        if session.lowest_unanswered != lowest {
            let session = Arc::make_mut(session);
            session.lowest_unanswered = lowest;
            session.answers.forget_below(lowest);
        }
        session.answers.get(sequence).map_or(Admission::Execute, Admission::Answered)
    }

    /// Keeps the outcome of a request that was just admitted for execution.
    pub(super) fn answer(&mut self, id: SessionId, sequence: u64, outcome: Outcome) {
        let session = self.map.get_mut(&id).expect("it was admitted");
        Arc::make_mut(session).answers.insert(sequence, outcome);
    }

    /// Takes over a session from a snapshot or from disk, in ascending order of ids. `through` is the
    /// index of the state: later ones have not been opened, and will be.
    pub(super) fn restore(
        &mut self,
        id: SessionId,
        session: Session,
        through: Index,
    ) -> DecodeResult<()> {
        let last = self.map.iter().next_back().map_or(0, |(last, _)| *last);
        if id <= last || id > through {
            return Err(DecodeError("sessions are out of order, or not opened yet"));
        }
        self.insert(id, Arc::new(session));
        Ok(())
    }

    fn insert(&mut self, id: SessionId, session: Arc<Session>) {
        let order = self.by_activity.entry(session.ttl_ms).or_default();
        order.insert((session.last_active_ms, id));
        self.map.insert(id, session);
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}

// A session in bytes, all numbers u64 little-endian:
//
//   ttl_ms  last_active_ms  lowest_unanswered  answer_count u32
//   per answer:  sequence  tag u8 | 0, 1 written (unchanged, changed): revision  version
//                                 | 2 value too large: size_bytes  limit_bytes

const UNCHANGED: u8 = 0;
const CHANGED: u8 = 1;
const VALUE_TOO_LARGE: u8 = 2;

const SESSION_HEAD_BYTES: usize = 3 * 8 + 4;
const ANSWER_BYTES: usize = 3 * 8 + 1;

impl Session {
    pub(super) fn size_bytes(&self) -> usize {
        SESSION_HEAD_BYTES + self.answers.len() * ANSWER_BYTES
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.reserve(self.size_bytes());
        out.put_u64_le(self.ttl_ms);
        out.put_u64_le(self.last_active_ms);
        out.put_u64_le(self.lowest_unanswered);
        let count = u32::try_from(self.answers.len()).expect("at most SESSION_WINDOW");
        out.put_u32_le(count);
        for (sequence, outcome) in self.answers.iter() {
            let (tag, first, second) = match *outcome {
                Ok(WriteAnswer { revision, changed, version }) => {
                    (if changed { CHANGED } else { UNCHANGED }, revision, version)
                }
                Err(Refusal::ValueTooLarge { size_bytes, limit_bytes }) => {
                    (VALUE_TOO_LARGE, size_bytes, limit_bytes)
                }
                Err(Refusal::UnknownSession | Refusal::Forgotten | Refusal::WindowExceeded) => {
                    unreachable!("refusals by the table itself are not kept")
                }
            };
            out.put_u64_le(*sequence);
            out.put_u8(tag);
            out.put_u64_le(first);
            out.put_u64_le(second);
        }
    }

    pub(super) fn decode(reader: &mut Reader) -> DecodeResult<Session> {
        let (ttl_ms, last_active_ms) = (reader.u64()?, reader.u64()?);
        let lowest_unanswered = reader.u64()?;
        let count = reader.u32()?;
        if u64::from(count) > SESSION_WINDOW {
            return Err(DecodeError("a session has more answers than its window"));
        }
        let mut answers = Answers::new();
        let mut last = None;
        for _ in 0..count {
            let (sequence, tag) = (reader.u64()?, reader.u8()?);
            let (first, second) = (reader.u64()?, reader.u64()?);
            let within =
                sequence.checked_sub(lowest_unanswered).is_some_and(|place| place < SESSION_WINDOW);
            if !within || last.is_some_and(|last| sequence <= last) {
                return Err(DecodeError("a session's answers are out of order"));
            }
            last = Some(sequence);
            let written = |changed| WriteAnswer { revision: first, changed, version: second };
            let outcome = match tag {
                UNCHANGED => Ok(written(false)),
                CHANGED => Ok(written(true)),
                VALUE_TOO_LARGE => {
                    Err(Refusal::ValueTooLarge { size_bytes: first, limit_bytes: second })
                }
                _ => return Err(DecodeError("unknown outcome in a session")),
            };
            answers.insert(sequence, outcome);
        }
        Ok(Session { ttl_ms, last_active_ms, lowest_unanswered, answers })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome() -> impl Strategy<Value = Outcome> {
        let written =
            any::<(u64, bool, u64)>().prop_map(|(revision, changed, version)| -> Outcome {
                Ok(WriteAnswer { revision, changed, version })
            });
        let too_large = any::<(u64, u64)>().prop_map(|(size_bytes, limit_bytes)| -> Outcome {
            Err(Refusal::ValueTooLarge { size_bytes, limit_bytes })
        });
        prop_oneof![3 => written, 1 => too_large]
    }

    fn session() -> impl Strategy<Value = Session> {
        let answers = prop::collection::btree_map(0..SESSION_WINDOW, outcome(), 0..6);
        let lowest = prop_oneof![Just(0), Just(u64::MAX - SESSION_WINDOW), any::<u64>()];
        (any::<[u64; 2]>(), lowest, answers).prop_map(
            |([ttl_ms, last_active_ms], lowest_unanswered, outcomes)| {
                let mut answers = Answers::new();
                for (place, outcome) in outcomes {
                    if let Some(sequence) = lowest_unanswered.checked_add(place) {
                        answers.insert(sequence, outcome);
                    }
                }
                Session { ttl_ms, last_active_ms, lowest_unanswered, answers }
            },
        )
    }

    /// The number of answers is believed up to the window, and beyond it nothing is read for it.
    #[test]
    fn a_window_of_answers_is_read_and_no_more() {
        let claimed = |count: u32, answers: u64| {
            let mut encoded = BytesMut::new();
            for number in [0, 0, 0] {
                encoded.put_u64_le(number);
            }
            encoded.put_u32_le(count);
            for sequence in 0..answers {
                encoded.put_u64_le(sequence);
                encoded.put_u8(UNCHANGED);
                encoded.put_bytes(0, 16);
            }
            Session::decode(&mut Reader::new(encoded.freeze()))
        };
        let full = claimed(SESSION_WINDOW as u32, SESSION_WINDOW).unwrap();
        assert_eq!(full.answers.len() as u64, SESSION_WINDOW);
        let error = claimed(SESSION_WINDOW as u32 + 1, 0).unwrap_err();
        assert_eq!(error.0, "a session has more answers than its window");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_less_or_more(session in session()) {
            let mut encoded = BytesMut::new();
            session.encode(&mut encoded);
            prop_assert_eq!(encoded.len(), session.size_bytes());
            encoded.put_u8(7);
            let encoded = encoded.freeze();
            let mut reader = Reader::new(encoded.clone());
            prop_assert_eq!(Session::decode(&mut reader), Ok(session.clone()));
            prop_assert_eq!(reader.u8(), Ok(7), "what follows is left to others");
            prop_assert!(reader.finish().is_ok());
            for end in 0..session.size_bytes() {
                let mut reader = Reader::new(encoded.slice(..end));
                prop_assert!(Session::decode(&mut reader).is_err(), "cut at {}", end);
            }
        }
    }

    /// Each commit costs what changed, not what there is.
    #[test]
    fn what_was_written_is_not_written_again() {
        const ANSWER: Outcome = Ok(WriteAnswer { revision: 5, changed: true, version: 1 });
        let changes = |sessions: &Sessions| -> Vec<(SessionId, bool)> {
            sessions.changes().map(|(id, session)| (id, session.is_some())).collect()
        };
        let mut sessions = Sessions::default();
        for id in [1, 2, 3] {
            sessions.open(id, 0, 1000, 10);
        }
        assert_eq!(changes(&sessions), [(1, true), (2, true), (3, true)]);
        sessions.clear_changed();
        assert_eq!(changes(&sessions), []);
        assert_eq!(sessions.admit(2, 1, 1, 7), Admission::Execute);
        sessions.answer(2, 1, ANSWER);
        assert_eq!(sessions.admit(2, 1, 1, 7), Admission::Answered(ANSWER));
        assert_eq!(sessions.admit(3, 1, 2, 7), Admission::Refused(Refusal::Forgotten));
        sessions.close(1);
        sessions.close(9);
        assert_eq!(changes(&sessions), [(1, false), (2, true)]);
        sessions.clear_changed();
        // The second one was active later.
        sessions.expire(1001);
        assert_eq!(changes(&sessions), [(3, false)]);
        assert_eq!(sessions.len(), 1);
    }
}
