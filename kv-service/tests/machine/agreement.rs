//! Every engine agrees with the model, and with the snapshots of the others, for any entries in any
//! batches, with any restarts in between.

use bytes::Bytes;
use kv_service::protocol::operation::{Nonce, SessionId};
use kv_service::state::{
    ANSWER_BYTES, Action, MachineQuery, Opening, Output, QueryOutput, WriteLimits,
};
use kv_service::{Expect, KvMachine, Operation};
use proptest::prelude::*;
use raft_core::state_machine::StateMachine;
use raft_core::types::{Configuration, Entry, Payload};

use crate::model::Model;
use crate::{command, next_entry, restore, scan_all, session_at, snapshot_bytes};

/// A machine under test that can be restarted.
pub(crate) trait Subject {
    fn machine(&mut self) -> &mut KvMachine;

    /// Restarts as after a stop, or as after a crash; lost entries are replayed from `log`.
    fn restart(&mut self, crash: bool, log: &[Entry]);
}

/// A volatile machine: it restarts from a snapshot, or after a crash from the log.
pub(crate) struct InMemory(pub(crate) KvMachine);

impl Subject for InMemory {
    fn machine(&mut self) -> &mut KvMachine {
        &mut self.0
    }

    fn restart(&mut self, crash: bool, log: &[Entry]) {
        let position = self.0.last_applied();
        let bytes = snapshot_bytes(&mut self.0, 1000);
        self.0 = KvMachine::memory();
        if crash {
            self.0.apply(log, &mut Vec::new()).unwrap();
        } else {
            restore(&mut self.0, position, &bytes, 777).unwrap();
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Open {
        time: i64,
        ttl_ms: u64,
        window: u32,
        count_max: u64,
        /// The limit of sessions of a principal, and the principal.
        quota: (u64, u8),
    },
    Close {
        time: i64,
        slot: usize,
    },
    Write {
        time: i64,
        slot: usize,
        sequence: u64,
        lowest: u64,
        /// The limits of the value, and of the remembered outputs of all sessions.
        max: (u64, u64),
        operation: Operation,
    },
    Noop,
    Configuration,
    /// Applies the pending entries as one batch.
    Apply,
    /// Gives each machine the snapshot of the next one.
    Exchange {
        chunk_bytes: usize,
    },
    Restart {
        crash: bool,
    },
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just("a"), Just("b"), Just("ba"), Just("\u{ff}"), Just(""), Just("bac")]
        .prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(0u8..3, 0..4).prop_map(Bytes::from)
}

pub(crate) fn operation() -> impl Strategy<Value = Operation> {
    let expect = prop_oneof![
        value().prop_map(Expect::Value),
        (0u64..4).prop_map(Expect::Version),
        (0u64..30).prop_map(Expect::Revision),
    ];
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Operation::Put { key, value }),
        (key(), value()).prop_map(|(key, value)| Operation::Append { key, value }),
        key().prop_map(|key| Operation::Delete { key }),
        (key(), expect, value()).prop_map(|(key, expect, value)| Operation::CompareAndSwap {
            key,
            expect,
            value
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let time = || -20i64..40;
    let sequence = prop_oneof![20 => 0u64..8, 1 => 1020u64..1030, 1 => Just(u64::MAX)];
    let answer_bytes =
        prop_oneof![3 => Just(u64::MAX), 1 => (0u64..9).prop_map(|n| n * ANSWER_BYTES)];
    let max = (prop_oneof![Just(3u64), Just(100)], answer_bytes);
    prop_oneof![
        3 => (time(), 0u64..200, prop_oneof![Just(1024u32), 0u32..9], 0u64..6, (0u64..4, 0u8..2))
            .prop_map(|(time, ttl_ms, window, count_max, quota)| {
                Step::Open { time, ttl_ms, window, count_max, quota }
            }),
        1 => (time(), 0usize..9).prop_map(|(time, slot)| Step::Close { time, slot }),
        30 => (time(), 0usize..9, sequence, 0u64..6, max, operation())
            .prop_map(|(time, slot, sequence, lowest, max, operation)| {
                Step::Write { time, slot, sequence, lowest, max, operation }
            }),
        1 => Just(Step::Noop),
        1 => Just(Step::Configuration),
        6 => Just(Step::Apply),
        1 => (1usize..300).prop_map(|chunk_bytes| Step::Exchange { chunk_bytes }),
        1 => any::<bool>().prop_map(|crash| Step::Restart { crash }),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..200)
}

pub(crate) fn agree(subjects: &mut [Box<dyn Subject>], steps: &[Step]) {
    let mut run =
        Run { model: Model::default(), log: Vec::new(), pending: Vec::new(), ids: vec![] };
    for step in steps {
        match step {
            Step::Apply => run.apply(subjects),
            Step::Exchange { chunk_bytes } => {
                run.apply(subjects);
                run.exchange(subjects, *chunk_bytes);
            }
            Step::Restart { crash } => {
                run.apply(subjects);
                for subject in subjects.iter_mut() {
                    subject.restart(*crash, &run.log);
                }
            }
            other => run.push(other),
        }
    }
    run.apply(subjects);
    run.exchange(subjects, 100);
    run.compare(subjects);
}

struct Run {
    model: Model,
    log: Vec<Entry>,
    /// Payloads that are not yet applied, with their expected outputs.
    pending: Vec<(Payload, Option<Output>)>,
    ids: Vec<SessionId>,
}

impl Run {
    fn push(&mut self, step: &Step) {
        let time = |time: i64| self.model.clock_ms.saturating_add_signed(time);
        // Sessions that exist, that are gone, and three that never were.
        let session = |slot: usize| match slot {
            0 => session_at(0),
            1 => session_at(u64::MAX),
            2 => {
                let index = self.ids.last().map_or(1, |id| id.index);
                SessionId { index, nonce: Nonce(1) }
            }
            slot => self.ids.iter().rev().nth(slot - 3).copied().unwrap_or(session_at(7777)),
        };
        let command = match step.clone() {
            Step::Open { time: at, ttl_ms, window, count_max, quota: (quota, name) } => {
                let index = (self.log.len() + self.pending.len() + 1) as u128;
                let opening = Opening {
                    nonce: Nonce(index << 90),
                    ttl_ms,
                    window,
                    session_count_max: count_max,
                    principal_session_count_max: quota,
                    principal: vec![name].into(),
                };
                command(time(at), Action::OpenSession(opening))
            }
            Step::Close { time: at, slot } => {
                command(time(at), Action::CloseSession { session: session(slot) })
            }
            Step::Write { time: at, slot, sequence, lowest, max, operation } => {
                let (value_bytes_max, answer_bytes_max) = max;
                let limits = WriteLimits { key_bytes_max: 2, value_bytes_max, answer_bytes_max };
                let write = Action::Write {
                    session: session(slot),
                    sequence,
                    lowest_unanswered: lowest,
                    limits,
                    operation,
                };
                command(time(at), write)
            }
            Step::Noop => return self.pending.push((Payload::Noop, None)),
            Step::Configuration => {
                let payload = Payload::Configuration(Box::new(Configuration::of_voters([1, 2, 3])));
                return self.pending.push((payload, None));
            }
            Step::Apply | Step::Exchange { .. } | Step::Restart { .. } => unreachable!(),
        };
        let index = (self.log.len() + self.pending.len() + 1) as u64;
        let output = self.model.apply(index, &command);
        if let Output::SessionOpened { session, .. } = output {
            self.ids.push(session);
        }
        self.pending.push((Payload::Command(command.encode()), Some(output)));
    }

    fn apply(&mut self, subjects: &mut [Box<dyn Subject>]) {
        let first_index = self.log.len() as u64 + 1;
        let (payloads, expected): (Vec<_>, Vec<_>) = self.pending.drain(..).unzip();
        let expected: Vec<Output> = expected.into_iter().flatten().collect();
        let entry = |(index, payload)| Entry { index, term: 1, payload };
        let entries: Vec<Entry> = (first_index..).zip(payloads).map(entry).collect();
        for subject in subjects.iter_mut() {
            let machine = subject.machine();
            assert_eq!(next_entry(machine, Payload::Noop).index, first_index);
            let mut outputs = Vec::new();
            // This question must not change the result; the machine may only cache the versions
            // that it looked up.
            if first_index.is_multiple_of(2) {
                machine.can_apply_inline(&entries);
            }
            machine.apply(&entries, &mut outputs).unwrap();
            assert_eq!(outputs, expected);
        }
        self.log.extend(entries);
    }

    fn exchange(&self, subjects: &mut [Box<dyn Subject>], chunk_bytes: usize) {
        let snapshots: Vec<(_, Vec<u8>)> = subjects
            .iter_mut()
            .map(|subject| {
                let machine = subject.machine();
                (machine.last_applied(), snapshot_bytes(machine, chunk_bytes))
            })
            .collect();
        assert!(snapshots.windows(2).all(|pair| pair[0] == pair[1]), "one state, one stream");
        for (subject, (position, bytes)) in
            subjects.iter_mut().zip(snapshots.iter().cycle().skip(1))
        {
            restore(subject.machine(), *position, bytes, chunk_bytes).unwrap();
            assert_eq!(snapshot_bytes(subject.machine(), 4096), *bytes);
        }
        self.compare(subjects);
    }

    fn compare(&self, subjects: &mut [Box<dyn Subject>]) {
        let expected: Vec<_> =
            self.model.records.iter().map(|(k, r)| (k.clone(), r.clone())).collect();
        for subject in subjects {
            assert_eq!(scan_all(subject.machine()), expected);
            let clock = subject.machine().query(MachineQuery::ClockMs).unwrap();
            assert_eq!(clock, QueryOutput::ClockMs(self.model.clock_ms));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn memory_agrees_with_the_model(steps in steps()) {
        let machine = || Box::new(InMemory(KvMachine::memory())) as Box<dyn Subject>;
        agree(&mut [machine(), machine()], &steps);
    }
}
