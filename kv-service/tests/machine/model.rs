//! What the machine should do, written as plainly as can be: no shared structure, no order kept.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_service::machine::{Command, Output, SESSION_WINDOW};
use kv_service::operation::{Expect, Operation, Record, Refusal, WriteAnswer};

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) records: BTreeMap<Bytes, Record>,
    sessions: BTreeMap<u64, ModelSession>,
    pub(crate) clock_ms: u64,
}

struct ModelSession {
    ttl_ms: u64,
    last_active_ms: u64,
    lowest_unanswered: u64,
    answers: BTreeMap<u64, Output>,
}

impl Model {
    pub(crate) fn apply(&mut self, index: u64, command: &Command) -> Output {
        let (Command::OpenSession { time_ms, .. }
        | Command::CloseSession { time_ms, .. }
        | Command::Write { time_ms, .. }) = command;
        self.clock_ms = self.clock_ms.max(*time_ms);
        let clock_ms = self.clock_ms;
        self.sessions.retain(|_, session| session.last_active_ms + session.ttl_ms >= clock_ms);
        match command {
            Command::OpenSession { ttl_ms, session_count_max, .. } => {
                let session = ModelSession {
                    ttl_ms: *ttl_ms,
                    last_active_ms: clock_ms,
                    lowest_unanswered: 0,
                    answers: BTreeMap::new(),
                };
                self.sessions.insert(index, session);
                while self.sessions.len() as u64 > (*session_count_max).max(1) {
                    let oldest =
                        self.sessions.iter().min_by_key(|(id, s)| (s.last_active_ms, **id));
                    let oldest = *oldest.unwrap().0;
                    self.sessions.remove(&oldest);
                }
                Output::SessionOpened { session: index }
            }
            Command::CloseSession { session, .. } => {
                self.sessions.remove(session);
                Output::SessionClosed
            }
            Command::Write {
                session,
                sequence,
                lowest_unanswered,
                value_bytes_max,
                operation,
                ..
            } => {
                let Some(held) = self.sessions.get_mut(session) else {
                    return Output::Refused(Refusal::UnknownSession);
                };
                let lowest = held.lowest_unanswered.max(*lowest_unanswered);
                if *sequence < lowest {
                    return Output::Refused(Refusal::Forgotten);
                }
                if *sequence >= lowest + SESSION_WINDOW {
                    return Output::Refused(Refusal::WindowExceeded);
                }
                held.lowest_unanswered = lowest;
                held.last_active_ms = clock_ms;
                held.answers.retain(|sequence, _| *sequence >= lowest);
                if let Some(answer) = held.answers.get(sequence) {
                    return answer.clone();
                }
                let answer = self.write(index, operation, *value_bytes_max);
                let held = self.sessions.get_mut(session).unwrap();
                held.answers.insert(*sequence, answer.clone());
                answer
            }
        }
    }

    fn write(&mut self, index: u64, operation: &Operation, value_bytes_max: u64) -> Output {
        let before = self.records.get(operation.key()).cloned();
        let version = before.as_ref().map_or(0, |record| record.version);
        let unchanged = Output::Written(WriteAnswer { revision: index, changed: false, version });
        let value = match operation {
            Operation::Put { value, .. } => value.to_vec(),
            Operation::Append { value, .. } => {
                let mut whole = before.as_ref().map_or(Vec::new(), |record| record.value.to_vec());
                whole.extend_from_slice(value);
                whole
            }
            Operation::Delete { key } => {
                let changed = self.records.remove(key).is_some();
                return Output::Written(WriteAnswer { revision: index, changed, version: 0 });
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
        Output::Written(WriteAnswer { revision: index, changed: true, version })
    }
}
