//! A store that executes one operation at a time, and histories of random clients of it. It can be
//! given a bug, and then knows whether the responses that the clients received prove the bug.

use std::collections::BTreeMap;

use bytes::Bytes;
use integration_tests::linearizability::{Applied, Call, History, Outcome, Request, Seen, Written};
use kv_service::{Expect, Operation};

use crate::random::Random;

/// Which operations clients choose, in parts of the sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    pub(crate) get: usize,
    pub(crate) append: usize,
    pub(crate) put: usize,
    pub(crate) delete: usize,
    pub(crate) swap: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) clients: usize,
    pub(crate) calls: usize,
    pub(crate) keys: usize,
    pub(crate) mix: Mix,
    pub(crate) unknown_percent: usize,
    pub(crate) refused_percent: usize,
    /// Each value is written by one call, and none is a prefix of another.
    pub(crate) unique: bool,
    pub(crate) tell_versions: bool,
    pub(crate) tell_revisions: bool,
    /// The longest time between call, effect and return.
    pub(crate) span: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// An acknowledged append is not executed.
    Lost,
    /// A read returns the value that the last known write replaced.
    Stale,
    /// An append is executed again, some operations later.
    Duplicated,
    /// A read returns the last two appends in the wrong order.
    Reordered,
}

/// The content of a key, and the calls that made it: the one that replaced it, and the appends
/// since.
#[derive(Clone, Debug)]
struct Content {
    value: Vec<u8>,
    version: u64,
    created: u64,
    modified: u64,
    made_by: Vec<usize>,
}

pub(crate) struct Run {
    pub(crate) calls: Vec<Call>,
    pub(crate) log: Vec<Applied>,
    /// The bug occurred, and the responses prove it.
    pub(crate) proven: bool,
}

impl Run {
    pub(crate) fn history(&self) -> History {
        self.calls.iter().cloned().collect()
    }
}

/// The times of a call, and its fate.
struct Plan {
    client: u64,
    called_at: u64,
    effect_at: u64,
    returned_at: u64,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Refused,
    /// Unknown outcome; it was executed.
    Silent,
    /// Unknown outcome; it was not executed.
    Vanished,
}

fn plans(workload: &Workload, random: &mut Random) -> Vec<Plan> {
    let mut clocks: Vec<u64> =
        (0..workload.clients).map(|_| random.below(workload.span) as u64).collect();
    let mut plans: Vec<Plan> = (0..workload.calls)
        .map(|at| {
            let client = at % workload.clients;
            let mut wait = || random.below(workload.span) as u64;
            let called_at = clocks[client] + wait();
            let effect_at = called_at + wait();
            let returned_at = effect_at + wait();
            clocks[client] = returned_at;
            let fate = match random.below(100) {
                dice if dice < workload.refused_percent => Fate::Refused,
                dice if dice < workload.refused_percent + workload.unknown_percent => {
                    *random.pick(&[Fate::Silent, Fate::Vanished])
                }
                _ => Fate::Answered,
            };
            // An effect without a response may come long after the client gave up.
            let late = fate == Fate::Silent && random.percent(30);
            let effect_at = effect_at + if late { 20 * workload.span as u64 } else { 0 };
            Plan { client: client as u64, called_at, effect_at, returned_at, fate }
        })
        .collect();
    plans.sort_by_key(|plan| plan.effect_at);
    plans
}

struct Store<'a> {
    workload: &'a Workload,
    random: &'a mut Random,
    keys: BTreeMap<Bytes, Option<Content>>,
    /// All contents that a key ever had.
    past: BTreeMap<Bytes, Vec<Option<Content>>>,
    revision: u64,
    run: Run,
}

/// Runs the clients against a store with this bug, which strikes one operation at most.
pub(crate) fn run(workload: &Workload, bug: Bug, seed: u64) -> Run {
    let mut random = Random::new(seed);
    let plans = plans(workload, &mut random);
    let strikes_from = random.below(plans.len() * 2 / 3 + 1);
    let run = Run { calls: Vec::new(), log: Vec::new(), proven: false };
    let mut store = Store {
        workload,
        random: &mut random,
        keys: BTreeMap::new(),
        past: BTreeMap::new(),
        revision: 0,
        run,
    };
    let mut struck: Option<usize> = None;
    let mut again: Option<usize> = None;
    for (at, plan) in plans.iter().enumerate() {
        let strikes = at >= strikes_from && struck.is_none();
        let request = store.request(at);
        let is_append = matches!(request, Request::Write(Operation::Append { .. }));
        let answered = plan.fate == Fate::Answered;
        let lost = strikes && bug == Bug::Lost && is_append && answered;
        let mut outcome = match plan.fate {
            Fate::Refused => Outcome::NotExecuted,
            Fate::Vanished => Outcome::Unknown,
            Fate::Silent | Fate::Answered => store.execute(at, &request, lost),
        };
        if lost {
            struck = Some(at);
        }
        if strikes && bug == Bug::Duplicated && is_append && answered {
            (struck, again) = (Some(at), Some(at + store.random.below(4)));
        }
        if strikes && answered {
            let wrong = match bug {
                Bug::Stale => store.stale(&request, plan.called_at),
                Bug::Reordered => store.reordered(&request),
                Bug::None | Bug::Lost | Bug::Duplicated => None,
            };
            if let Some(wrong) = wrong {
                (outcome, struck) = (wrong, Some(at));
                store.run.proven = true;
            }
        }
        if plan.fate == Fate::Silent {
            outcome = Outcome::Unknown;
        }
        let Plan { client, called_at, returned_at, .. } = *plan;
        store.run.calls.push(Call { client, request, called_at, returned_at, outcome });
        if again == Some(at) {
            let victim = struck.expect("it was chosen");
            let request = store.run.calls[victim].request.clone();
            store.execute(victim, &request, false);
        }
    }
    match (bug, struck) {
        (Bug::Lost, Some(struck)) => store.prove_lost(struck),
        (Bug::Duplicated, Some(struck)) => store.prove_duplicated(struck),
        _ => {}
    }
    if bug == Bug::Reordered && store.run.proven {
        store.run.proven = store.right_way_round_was_seen(struck.expect("it struck"));
    }
    store.run
}

impl Store<'_> {
    fn request(&mut self, at: usize) -> Request {
        let key = Bytes::from(format!("k{}", self.random.below(self.workload.keys)));
        let value = match self.workload.unique {
            true => Bytes::from(format!("{at};")),
            false => Bytes::from_static(self.random.pick::<&str>(&["a", "b", "ab", ""]).as_bytes()),
        };
        let Mix { get, append, put, delete, swap } = self.workload.mix;
        let dice = self.random.below(get + append + put + delete + swap);
        if dice < get {
            Request::get(key)
        } else if dice < get + append {
            Request::append(key, value)
        } else if dice < get + append + put {
            Request::put(key, value)
        } else if dice < get + append + put + delete {
            Request::delete(key)
        } else {
            let expect = self.expectation(&key);
            Request::compare_and_swap(key, expect, value)
        }
    }

    /// Often the present content, sometimes an earlier one.
    fn expectation(&mut self, key: &Bytes) -> Expect {
        let past = self.past.get(key).map(Vec::as_slice).unwrap_or_default();
        let current = self.keys.get(key).cloned().flatten();
        let chosen = match past.is_empty() || self.random.percent(60) {
            true => current,
            false => self.random.pick(past).clone(),
        };
        match (self.random.percent(50), chosen) {
            (true, Some(content)) => Expect::Value(content.value.into()),
            (_, chosen) => Expect::Version(chosen.map_or(0, |content| content.version)),
        }
    }

    /// Executes the request, or with `lost` only reports that it did.
    fn execute(&mut self, at: usize, request: &Request, lost: bool) -> Outcome {
        let before = self.keys.get(request.key()).cloned().flatten();
        let Request::Write(operation) = request else {
            return Outcome::Got(self.seen(before.as_ref()));
        };
        // Other keys, sessions and terms take revisions, too.
        self.revision += 1 + self.random.below(2) as u64;
        let revision = self.revision;
        let version = before.as_ref().map_or(0, |content| content.version);
        let as_expected = match operation {
            Operation::CompareAndSwap { expect: Expect::Value(expected), .. } => {
                before.as_ref().is_some_and(|content| content.value == *expected)
            }
            Operation::CompareAndSwap { expect: Expect::Version(expected), .. } => {
                version == *expected
            }
            Operation::CompareAndSwap { expect: Expect::Revision(expected), .. } => {
                before.as_ref().map_or(0, |content| content.modified) == *expected
            }
            Operation::Delete { .. } => before.is_some(),
            Operation::Put { .. } | Operation::Append { .. } => true,
        };
        if !lost {
            self.run.log.push(Applied { revision, operation: operation.clone() });
        }
        let after = match operation {
            _ if !as_expected => before.clone(),
            Operation::Delete { .. } => None,
            Operation::Put { value, .. }
            | Operation::Append { value, .. }
            | Operation::CompareAndSwap { value, .. } => {
                let appended =
                    before.as_ref().filter(|_| matches!(operation, Operation::Append { .. }));
                let (mut bytes, mut made_by) = appended.map_or_else(Default::default, |content| {
                    (content.value.clone(), content.made_by.clone())
                });
                bytes.extend_from_slice(value);
                made_by.push(at);
                Some(Content {
                    value: bytes,
                    version: version + 1,
                    created: before.as_ref().map_or(revision, |content| content.created),
                    modified: revision,
                    made_by,
                })
            }
        };
        let told_version = after.as_ref().map_or(0, |content| content.version);
        if !lost && as_expected {
            self.past.entry(request.key().clone()).or_default().push(before);
            self.keys.insert(request.key().clone(), after);
        }
        Outcome::Written(Written {
            changed: Some(as_expected),
            version: self.workload.tell_versions.then_some(told_version),
            revision: self.workload.tell_revisions.then_some(revision),
        })
    }

    fn seen(&self, content: Option<&Content>) -> Seen {
        let Some(content) = content else { return Seen::default() };
        let revision = |revision| self.workload.tell_revisions.then_some(revision);
        Seen {
            value: Some(content.value.clone().into()),
            version: self.workload.tell_versions.then_some(content.version),
            create_revision: revision(content.created),
            modify_revision: revision(content.modified),
            served_at: None,
        }
    }

    /// A stale response: the value before the last change. It is given only if the value was surely
    /// gone: the call that made it returned before the change was called, and the change returned
    /// before `called_at`.
    fn stale(&self, request: &Request, called_at: u64) -> Option<Outcome> {
        let Request::Get { key } = request else { return None };
        let now = self.keys.get(key)?.as_ref()?;
        let before = self.past.get(key)?.last()?.as_ref()?;
        let change = &self.run.calls[*now.made_by.last()?];
        let maker = &self.run.calls[*before.made_by.last()?];
        let gone = maker.is_ok()
            && change.is_ok()
            && maker.returned_at < change.called_at
            && change.returned_at < called_at;
        gone.then(|| Outcome::Got(self.seen(Some(before))))
    }

    fn reordered(&self, request: &Request) -> Option<Outcome> {
        let Request::Get { key } = request else { return None };
        let mut now = self.keys.get(key)?.clone()?;
        let [.., one, other] = now.made_by[..] else { return None };
        if now.made_by.len() < 3 {
            return None;
        }
        let (one, other) = (self.value_of(one), self.value_of(other));
        let kept = now.value.len() - one.len() - other.len();
        now.value.truncate(kept);
        now.value.extend_from_slice(&other);
        now.value.extend_from_slice(&one);
        Some(Outcome::Got(self.seen(Some(&now))))
    }

    fn value_of(&self, call: usize) -> Bytes {
        match &self.run.calls[call].request {
            Request::Write(Operation::Append { value, .. } | Operation::Put { value, .. }) => {
                value.clone()
            }
            other => panic!("{other:?} appends nothing"),
        }
    }

    fn gets(&self) -> impl Iterator<Item = (&Call, &Bytes)> {
        self.run.calls.iter().filter_map(|call| match &call.outcome {
            Outcome::Got(Seen { value: Some(value), .. }) => Some((call, value)),
            _ => None,
        })
    }

    /// The proof is a read that began after the append was acknowledged and returned a value
    /// without it, whose first part was there before the append began.
    fn prove_lost(&mut self, victim: usize) {
        let append = &self.run.calls[victim];
        let proven = self.gets().any(|(get, value)| {
            let first = value.split_inclusive(|byte| *byte == b';').next().unwrap_or_default();
            let first = std::str::from_utf8(first).expect("values are numbers");
            let root: usize = first.trim_end_matches(';').parse().expect("values are numbers");
            let root = &self.run.calls[root];
            get.key() == append.key()
                && append.returned_at < get.called_at
                && root.is_ok()
                && root.returned_at < append.called_at
        });
        self.run.proven = proven;
    }

    fn prove_duplicated(&mut self, victim: usize) {
        let token = format!("{victim};");
        let proven = self.gets().any(|(_, value)| {
            let parts = value.split_inclusive(|byte| *byte == b';');
            parts.filter(|part| *part == token.as_bytes()).count() > 1
        });
        self.run.proven = proven;
    }

    /// Returns true if another read shows the last two parts of the value of call `at` in the other
    /// order.
    fn right_way_round_was_seen(&self, at: usize) -> bool {
        let Outcome::Got(Seen { value: Some(wrong), .. }) = &self.run.calls[at].outcome else {
            return false;
        };
        let parts: Vec<&[u8]> = wrong.split_inclusive(|byte| *byte == b';').collect();
        let [.., other, one] = parts[..] else { return false };
        self.gets().any(|(_, value)| {
            let parts: Vec<&[u8]> = value.split_inclusive(|byte| *byte == b';').collect();
            parts.windows(2).any(|pair| *pair == [one, other])
        })
    }
}
