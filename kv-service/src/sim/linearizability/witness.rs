//! The log is the order: replays it, compares every response, and checks that the order agrees with
//! time.
//!
//! A write is placed at its revision. A read is placed at the index it was served at, if that is
//! known, otherwise at the earliest index that its result and the responses before it allow; if
//! that is too late for the calls that follow, so is any other place. Without a log, only a key
//! whose answered writes all reported their revisions can be decided. Its writes of unknown outcome
//! are then assumed not to have happened, so a contradiction is a proof only if there are none.

use std::collections::{BTreeMap, HashMap};

use crate::protocol::operation::{Expect, Operation, Revision};
use bytes::Bytes;

use super::history::{Call, History, Outcome, Request, Seen, quoted};
use super::verdict::{Rule, Verdict, Violation};

/// A write that the nodes executed, with or without an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Index of the write in the log.
    pub revision: Revision,
    /// The write.
    pub operation: Operation,
}

/// A write and its place in the order.
struct Placed<'a> {
    revision: Revision,
    call: &'a Call,
}

/// The content of a key after a change.
#[derive(Clone, Copy, Debug)]
struct Content {
    /// Which of the key's texts, and how many bytes of it.
    text: usize,
    len: usize,
    version: u64,
    created: Revision,
}

/// The contents of a key over the revisions. A text only grows, so several contents share it.
#[derive(Default)]
struct Timeline {
    texts: Vec<Vec<u8>>,
    changes: Vec<(Revision, Option<Content>)>,
}

impl Timeline {
    fn now(&self) -> Option<Content> {
        self.changes.last().and_then(|(_, content)| *content)
    }

    fn bytes(&self, content: Content) -> &[u8] {
        &self.texts[content.text][..content.len]
    }

    fn apply(&mut self, operation: &Operation, revision: Revision) -> (bool, u64) {
        let now = self.now();
        let changed = match operation {
            Operation::Put { .. } | Operation::Append { .. } => true,
            Operation::Delete { .. } => now.is_some(),
            Operation::CompareAndSwap { expect: Expect::Value(expected), .. } => {
                now.is_some_and(|content| self.bytes(content) == expected)
            }
            Operation::CompareAndSwap { expect: Expect::Version(expected), .. } => {
                now.map_or(0, |content| content.version) == *expected
            }
            Operation::CompareAndSwap { expect: Expect::Revision(expected), .. } => {
                let modified = self.changes.last().filter(|(_, content)| content.is_some());
                modified.map_or(0, |(revision, _)| *revision) == *expected
            }
        };
        let version = now.map_or(0, |content| content.version);
        if !changed {
            return (false, version);
        }
        let content = match operation {
            Operation::Delete { .. } => None,
            Operation::Append { value, .. } if now.is_some() => {
                let now = now.expect("just looked");
                self.texts[now.text].extend_from_slice(value);
                Some(Content { len: now.len + value.len(), version: version + 1, ..now })
            }
            Operation::Append { value, .. }
            | Operation::Put { value, .. }
            | Operation::CompareAndSwap { value, .. } => {
                self.texts.push(value.to_vec());
                Some(Content {
                    text: self.texts.len() - 1,
                    len: value.len(),
                    version: version + 1,
                    created: now.map_or(revision, |content| content.created),
                })
            }
        };
        self.changes.push((revision, content));
        (true, content.map_or(0, |content| content.version))
    }

    /// Index of the last change at or before the revision; `None` before the first.
    fn change_at(&self, revision: Revision) -> Option<usize> {
        self.changes.partition_point(|(at, _)| *at <= revision).checked_sub(1)
    }

    fn shows(&self, change: Option<usize>, seen: &Seen) -> bool {
        let change = change.map(|at| self.changes[at]);
        let Some((modified, Some(content))) = change else { return seen.value.is_none() };
        let told = |told: Option<u64>, is: u64| told.is_none_or(|told| told == is);
        seen.value.as_ref().is_some_and(|value| self.bytes(content) == value)
            && told(seen.version, content.version)
            && told(seen.create_revision, content.created)
            && told(seen.modify_revision, modified)
    }

    /// The first index from `floor` on at which a get could have returned `seen`.
    fn place(&self, seen: &Seen, floor: Revision) -> Option<Revision> {
        if let Some(served_at) = seen.served_at {
            let fits = served_at >= floor && self.shows(self.change_at(served_at), seen);
            return fits.then_some(served_at);
        }
        let start = self.change_at(floor);
        if self.shows(start, seen) {
            return Some(floor);
        }
        let later = start.map_or(0, |at| at + 1)..self.changes.len();
        let found = later.into_iter().find(|at| self.shows(Some(*at), seen))?;
        Some(self.changes[found].0)
    }

    fn describe(&self, revision: Revision) -> String {
        self.describe_change(self.change_at(revision))
    }

    fn describe_change(&self, change: Option<usize>) -> String {
        match change.map(|at| self.changes[at]) {
            Some((modified, Some(content))) => format!(
                "{}, version {}, of revision {modified}",
                quoted(self.bytes(content)),
                content.version
            ),
            Some((_, None)) | None => "nothing".to_owned(),
        }
    }
}

/// Decides the calls of one key by their revisions; `None` if an answered write reported none.
pub(super) fn check_key(calls: &[&Call]) -> Option<Result<(), Violation>> {
    let answered = calls.iter().filter(|call| call.is_ok());
    let mut placed = Vec::new();
    for call in answered {
        if let Some(written) = call.written() {
            placed.push(Placed { revision: written.revision?, call });
        }
    }
    placed.sort_by_key(|placed| placed.revision);
    Some(replay(&placed, calls))
}

/// Decides a whole history by the log.
pub(super) fn check_log(history: &History, mut log: Vec<Applied>) -> Verdict {
    log.sort_by_key(|applied| applied.revision);
    let told_all =
        history.calls().iter().filter_map(Call::written).all(|written| written.revision.is_some());
    if !told_all {
        return Verdict::Unknown("a write that was answered tells no revision".to_owned());
    }
    let calls: Vec<&Call> = history.calls().iter().collect();
    match place_all(&calls, &log).and_then(|placed| replay(&placed, &calls)) {
        Ok(()) => Verdict::Linearizable,
        Err(violation) => Verdict::Violation(violation),
    }
}

/// Finds the call of each entry of the log. Answered calls are identified by their revision. The
/// others are identified by their operation: where several calls ask for the same, the one that was
/// called first gets the earliest entry, since it could stand wherever another one could.
fn place_all<'a>(calls: &[&'a Call], log: &[Applied]) -> Result<Vec<Placed<'a>>, Violation> {
    let mut answered: BTreeMap<Revision, &Call> =
        calls.iter().filter_map(|call| Some((call.written()?.revision?, *call))).collect();
    let mut open: HashMap<&Operation, Vec<&Call>> = HashMap::new();
    let mut open_calls: Vec<&Call> =
        calls.iter().copied().filter(|call| call.is_open_write()).collect();
    open_calls.sort_by_key(|call| std::cmp::Reverse(call.called_at));
    for call in open_calls {
        let Request::Write(operation) = &call.request else { continue };
        open.entry(operation).or_default().push(call);
    }
    let mut placed = Vec::with_capacity(log.len());
    for applied in log {
        let Applied { revision, operation } = applied;
        let call = match answered.remove(revision) {
            Some(call) => Some(call),
            None => open.get_mut(operation).and_then(Vec::pop),
        };
        let Some(call) = call else { return Err(unclaimed(calls, applied)) };
        if call.request != Request::Write(operation.clone()) {
            let story = format!("at its revision the log has another write: {operation:?}");
            return Err(Violation::new(Rule::Lost, story, [call]));
        }
        placed.push(Placed { revision: *revision, call });
    }
    match answered.into_values().next() {
        None => Ok(placed),
        Some(call) => {
            let story = "an acknowledged write is not in the log";
            Err(Violation::new(Rule::Lost, story, [call]))
        }
    }
}

/// The violation of an entry for which no call is left.
fn unclaimed(calls: &[&Call], applied: &Applied) -> Violation {
    let Applied { revision, operation } = applied;
    let same = calls.iter().filter(
        |call| matches!(&call.request, Request::Write(asked_for) if asked_for == operation),
    );
    let same: Vec<&Call> = same.copied().collect();
    let refused = same.iter().find(|call| call.outcome == Outcome::NotExecuted);
    let story = format!("the log has it at revision {revision}");
    match (refused, same.is_empty()) {
        (Some(call), _) => Violation::new(Rule::Refused, story, [*call]),
        (None, false) => {
            Violation::new(Rule::Duplicated, format!("{story} once more than it was called"), same)
        }
        (None, true) => Violation {
            rule: Rule::Phantom,
            key: operation.key().clone(),
            story: format!(
                "the log has at revision {revision} what no call asked for: {operation:?}"
            ),
            calls: Vec::new(),
        },
    }
}

/// `placed` is in the order of revisions.
fn replay(placed: &[Placed], calls: &[&Call]) -> Result<(), Violation> {
    let mut keys: HashMap<&Bytes, Timeline> = HashMap::new();
    for Placed { revision, call } in placed {
        let Request::Write(operation) = &call.request else { continue };
        let timeline = keys.entry(call.key()).or_default();
        let found_change = timeline.changes.len();
        let (changed, version) = timeline.apply(operation, *revision);
        let Some(written) = call.written() else { continue };
        let fits = written.changed.is_none_or(|told| told == changed)
            && written.version.is_none_or(|told| told == version);
        if !fits {
            let before = timeline.describe_change(found_change.checked_sub(1));
            let story = format!(
                "by the revisions it found {before}, and changed {} to version {version}",
                if changed { "it" } else { "nothing, which left it" }
            );
            return Err(Violation::new(Rule::Order, story, [*call]));
        }
    }
    check_time(placed, calls, &keys)
}

/// Gives every read a place, and checks that places grow with time.
fn check_time(
    placed: &[Placed],
    calls: &[&Call],
    keys: &HashMap<&Bytes, Timeline>,
) -> Result<(), Violation> {
    let nothing = Timeline::default();
    let reads = calls.iter().filter(|call| call.seen().is_some()).map(|call| (*call, None));
    let writes = placed.iter().map(|placed| (placed.call, Some(placed.revision)));
    let mut events: Vec<(&Call, Option<Revision>)> = reads.chain(writes).collect();
    events.sort_by_key(|(call, _)| call.called_at);
    let mut by_return: Vec<usize> = (0..events.len()).filter(|at| events[*at].0.is_ok()).collect();
    by_return.sort_by_key(|at| events[*at].0.returned_at);
    let mut returned = by_return.into_iter().peekable();
    let mut floor: (Revision, Option<&Call>) = (0, None);
    for at in 0..events.len() {
        let (call, revision) = events[at];
        // Every call that returned before this one began was also called before it, so it has its
        // place.
        while let Some(other) =
            returned.next_if(|other| events[*other].0.returned_at < call.called_at)
        {
            let (other, place) = events[other];
            let place = place.expect("placed in the order of calls");
            if place > floor.0 || floor.1.is_none() {
                floor = (place, Some(other));
            }
        }
        match (revision, call.seen()) {
            (Some(revision), _) if revision > floor.0 => {}
            (Some(revision), _) => {
                let story = format!(
                    "it is at revision {revision}, but {} was known before it began",
                    floor.0
                );
                return Err(Violation::new(Rule::Stale, story, [call].into_iter().chain(floor.1)));
            }
            (None, seen) => {
                let seen = seen.expect("only reads have no revision");
                let timeline = keys.get(call.key()).unwrap_or(&nothing);
                events[at].1 = Some(timeline.place(seen, floor.0).ok_or_else(|| {
                    let story = format!(
                        "revision {} was known before it began, where the key had {}; what it saw \
                         is not there then or later",
                        floor.0,
                        timeline.describe(floor.0)
                    );
                    Violation::new(Rule::Stale, story, [call].into_iter().chain(floor.1))
                })?);
            }
        }
    }
    Ok(())
}
