//! The specified behaviour of the machine, as plain as can be: no shared structure, no order kept.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bytes::Bytes;
use kv_service::protocol::operation::{Nonce, Refusal, SessionId};
use kv_service::state::{ANSWER_BYTES, Action, Command, Opening, Output, WriteLimits};
use kv_service::{Expect, Operation, Record, WriteResponse};

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) records: BTreeMap<Bytes, Record>,
    sessions: BTreeMap<u64, ModelSession>,
    pub(crate) clock_ms: u64,
}

struct ModelSession {
    nonce: Nonce,
    principal: Bytes,
    window: u64,
    ttl_ms: u64,
    last_active_ms: u64,
    lowest_unanswered: u64,
    answers: BTreeMap<u64, (Operation, Output)>,
}

impl Model {
    pub(crate) fn apply(&mut self, index: u64, command: &Command) -> Output {
        self.clock_ms = self.clock_ms.max(command.time_ms);
        let clock_ms = self.clock_ms;
        self.sessions.retain(|_, session| session.last_active_ms + session.ttl_ms >= clock_ms);
        match &command.action {
            Action::OpenSession(opening) => self.open(index, opening),
            Action::CloseSession { session } => {
                if self.sessions.get(&session.index).is_some_and(|s| s.nonce == session.nonce) {
                    self.sessions.remove(&session.index);
                }
                Output::SessionClosed
            }
            Action::Write { session, sequence, lowest_unanswered, limits, operation } => {
                let held = self.sessions.get_mut(&session.index);
                let Some(held) = held.filter(|held| held.nonce == session.nonce) else {
                    return Output::Refused(Refusal::UnknownSession);
                };
                let lowest = held.lowest_unanswered.max(*lowest_unanswered);
                if *sequence < lowest {
                    return Output::Refused(Refusal::Forgotten);
                }
                if *sequence >= lowest + held.window {
                    return Output::Refused(Refusal::WindowExceeded);
                }
                let answer = held.answers.get(sequence).cloned();
                if answer.as_ref().is_some_and(|(answered, _)| answered != operation) {
                    return Output::Refused(Refusal::OtherOperation);
                }
                held.lowest_unanswered = lowest;
                held.last_active_ms = clock_ms;
                held.answers.retain(|sequence, _| *sequence >= lowest);
                if let Some((_, answer)) = answer {
                    return answer;
                }
                let answer = self.write(index, operation, limits);
                let held = self.sessions.get_mut(&session.index).unwrap();
                held.answers.insert(*sequence, (operation.clone(), answer.clone()));
                self.evict_largest(limits.answer_bytes_max);
                answer
            }
        }
    }

    fn open(&mut self, index: u64, opening: &Opening) -> Output {
        let session = ModelSession {
            nonce: opening.nonce,
            principal: opening.principal.clone(),
            window: u64::from(opening.window.max(1)),
            ttl_ms: opening.ttl_ms,
            last_active_ms: self.clock_ms,
            lowest_unanswered: 0,
            answers: BTreeMap::new(),
        };
        self.sessions.insert(index, session);
        let quota = opening.principal_session_count_max.max(1) as usize;
        self.evict_idle(|session| session.principal == opening.principal, quota);
        self.evict_idle(|_| true, opening.session_count_max.max(1) as usize);
        let session = SessionId { index, nonce: opening.nonce };
        Output::SessionOpened { session, window: opening.window.max(1) }
    }

    /// Evicts idle sessions until at most `count_max` of these are left.
    fn evict_idle(&mut self, of: impl Fn(&ModelSession) -> bool, count_max: usize) {
        loop {
            let these = self.sessions.iter().filter(|(_, session)| of(session));
            let oldest = these.clone().min_by_key(|(id, session)| (session.last_active_ms, **id));
            let oldest = oldest.map(|(id, _)| *id);
            if these.count() > count_max {
                self.sessions.remove(&oldest.unwrap())
            } else {
                return;
            };
        }
    }

    fn evict_largest(&mut self, answer_bytes_max: u64) {
        loop {
            let count = self.sessions.values().map(|session| session.answers.len()).sum::<usize>();
            if (count as u64).saturating_mul(ANSWER_BYTES) <= answer_bytes_max {
                return;
            }
            // Sessions are classed by powers of two of their remembered outputs. Evict the oldest
            // session of the highest class; in the lowest class, evict the one that has been idle
            // for the longest time.
            let class = |session: &ModelSession| session.answers.len().max(1).ilog2();
            let (_, evicted) = self
                .sessions
                .iter()
                .map(|(id, session)| match class(session) {
                    0 => ((Reverse(0), session.last_active_ms), *id),
                    class => ((Reverse(class), 0), *id),
                })
                .min()
                .unwrap();
            self.sessions.remove(&evicted);
        }
    }

    fn write(&mut self, index: u64, operation: &Operation, limits: &WriteLimits) -> Output {
        let WriteLimits { key_bytes_max, value_bytes_max, .. } = *limits;
        let key_bytes = operation.key().len() as u64;
        if key_bytes == 0 || key_bytes > key_bytes_max {
            let limit_bytes = key_bytes_max;
            return Output::Refused(Refusal::KeyOutOfRange { size_bytes: key_bytes, limit_bytes });
        }
        let before = self.records.get(operation.key()).cloned();
        let version = before.as_ref().map_or(0, |record| record.version);
        let unchanged = Output::Written(WriteResponse { revision: index, changed: false, version });
        let value = match operation {
            Operation::Put { value, .. } => value.to_vec(),
            Operation::Append { value, .. } => {
                let mut whole = before.as_ref().map_or(Vec::new(), |record| record.value.to_vec());
                whole.extend_from_slice(value);
                whole
            }
            Operation::Delete { key } => {
                let changed = self.records.remove(key).is_some();
                return Output::Written(WriteResponse { revision: index, changed, version: 0 });
            }
            Operation::CompareAndSwap { expect: Expect::Value(expected), value, .. } => {
                if before.as_ref().map(|record| &record.value) != Some(expected) {
                    return unchanged;
                }
                value.to_vec()
            }
            Operation::CompareAndSwap { expect: Expect::Version(expected), value, .. } => {
                if version != *expected {
                    return unchanged;
                }
                value.to_vec()
            }
            Operation::CompareAndSwap { expect: Expect::Revision(expected), value, .. } => {
                if before.as_ref().map_or(0, |record| record.modify_revision) != *expected {
                    return unchanged;
                }
                value.to_vec()
            }
        };
        if value.len() as u64 > value_bytes_max {
            return Output::Refused(Refusal::ValueTooLarge {
                size_bytes: value.len() as u64,
                limit_bytes: value_bytes_max,
            });
        }
        let record = Record {
            value: value.into(),
            version: version + 1,
            create_revision: before.map_or(index, |record| record.create_revision),
            modify_revision: index,
        };
        let version = record.version;
        self.records.insert(operation.key().clone(), record);
        Output::Written(WriteResponse { revision: index, changed: true, version })
    }
}
