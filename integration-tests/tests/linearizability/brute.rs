//! The definition, tried out: every order of a few calls of one key. As different from the checker
//! as possible: whole values, no memory, no pruning.

use bytes::Bytes;
use integration_tests::linearizability::{Call, Outcome, Request};
use kv_service::{Expect, Operation};

#[derive(Clone, Debug, Default)]
struct State {
    /// Value, version, revisions of creation and last change.
    record: Option<Stored>,
    /// Last revision of the log.
    revision: u64,
}

pub(crate) struct Brute<'a> {
    calls: &'a [Call],
    /// True if the order must agree with the reported revisions. Unreported revisions may be any up
    /// to `revision_max`.
    by_revision: bool,
    revision_max: u64,
}

impl<'a> Brute<'a> {
    pub(crate) fn new(calls: &'a [Call], by_revision: bool) -> Self {
        assert!(calls.len() <= 10, "this takes the factorial of the number of calls");
        let told = calls.iter().filter_map(|call| match &call.outcome {
            Outcome::Written(written) => written.revision,
            Outcome::Got(seen) => seen.modify_revision.max(seen.served_at),
            Outcome::NotExecuted | Outcome::Unknown => None,
        });
        let revision_max = told.max().unwrap_or(0) + calls.len() as u64;
        Self { calls, by_revision, revision_max }
    }

    pub(crate) fn is_linearizable(&self) -> bool {
        let used: Vec<bool> =
            self.calls.iter().map(|call| call.outcome == Outcome::NotExecuted).collect();
        self.go_on(&State::default(), &used)
    }

    fn go_on(&self, state: &State, used: &[bool]) -> bool {
        let left = || (0..self.calls.len()).filter(|at| !used[*at]);
        let answered = || left().filter(|at| self.calls[*at].is_ok());
        if answered().next().is_none() {
            return true;
        }
        left().any(|at| {
            let late =
                answered().any(|other| self.calls[other].returned_at < self.calls[at].called_at);
            if late {
                return false;
            }
            let mut used = used.to_vec();
            used[at] = true;
            self.after(state, &self.calls[at]).iter().any(|state| self.go_on(state, &used))
        })
    }

    /// All possible states after the call, given its response.
    fn after(&self, state: &State, call: &Call) -> Vec<State> {
        let Request::Write(operation) = &call.request else { return self.after_get(state, call) };
        let written = match &call.outcome {
            Outcome::Written(written) => *written,
            _ => Default::default(),
        };
        let revisions = match (self.by_revision, written.revision) {
            (false, _) => 0..=0,
            (true, Some(revision)) if revision > state.revision => revision..=revision,
            (true, Some(_)) => return Vec::new(),
            (true, None) => state.revision + 1..=self.revision_max,
        };
        let mut states = Vec::new();
        for revision in revisions {
            let (changed, record) = apply(state, operation, revision);
            let version = record.as_ref().map_or(0, |record| record.1);
            if written.changed.is_none_or(|told| told == changed)
                && written.version.is_none_or(|told| told == version)
            {
                states.push(State { record, revision });
            }
        }
        states
    }

    fn after_get(&self, state: &State, call: &Call) -> Vec<State> {
        let Outcome::Got(seen) = &call.outcome else { return vec![state.clone()] };
        let record = state.record.as_ref();
        let told = |told: Option<u64>, is: Option<u64>| told.is_none() || told == is;
        let fits = seen.value == record.map(|record| Bytes::from(record.0.clone()))
            && told(seen.version, record.map(|record| record.1))
            && (!self.by_revision
                || told(seen.create_revision, record.map(|record| record.2))
                    && told(seen.modify_revision, record.map(|record| record.3))
                    && seen.served_at.is_none_or(|served_at| served_at >= state.revision));
        let served_at = seen.served_at.filter(|_| self.by_revision).unwrap_or(0);
        let revision = state.revision.max(served_at);
        if fits { vec![State { revision, ..state.clone() }] } else { Vec::new() }
    }
}

/// Value, version, create revision, modify revision.
type Stored = (Vec<u8>, u64, u64, u64);

fn apply(state: &State, operation: &Operation, revision: u64) -> (bool, Option<Stored>) {
    let (value, version, created) = match &state.record {
        Some((value, version, created, _)) => (Some(value), *version, *created),
        None => (None, 0, revision),
    };
    let store = |value: Vec<u8>| (true, Some((value, version + 1, created, revision)));
    match operation {
        Operation::Put { value, .. } => store(value.to_vec()),
        Operation::Append { value: tail, .. } => {
            store([value.map(Vec::as_slice).unwrap_or_default(), tail].concat())
        }
        Operation::Delete { .. } => (value.is_some(), None),
        Operation::CompareAndSwap { expect, value: new, .. } => {
            let as_expected = match expect {
                Expect::Value(expected) => value.is_some_and(|value| value == expected),
                Expect::Version(expected) => version == *expected,
                Expect::Revision(expected) => {
                    state.record.as_ref().map_or(0, |(.., modified)| *modified) == *expected
                }
            };
            match as_expected {
                true => store(new.to_vec()),
                false => (false, state.record.clone()),
            }
        }
    }
}
