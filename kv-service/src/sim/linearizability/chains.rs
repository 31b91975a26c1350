//! Conclusions from the observed values alone, on a key whose writes can be told apart.
//!
//! If no two writes of a key have the same value, and (where there are appends) none is a prefix of
//! another, then a value can be read as the list of the writes that made it: a put or swap and the
//! appends that followed. As each write takes effect at most once, each has one predecessor, each
//! value existed during one stretch of time, and no two writes follow the same value.
//! Contradictions to this are found here, without any search, and the search learns where each
//! write belongs.
//!
//! On other keys [`Chains::of`] returns `None`, and the search works without chains.

use crate::protocol::operation::{Expect, Operation};
use bytes::Bytes;

use super::history::{Call, Outcome, Request, quoted};
use super::verdict::{Rule, Violation};

/// Index of a write in [`Chains::writers`]. It also names the value that the write made, if that
/// value was observed.
pub(super) type WriterId = usize;

pub(super) struct Writer<'a> {
    pub(super) call: &'a Call,
    /// Index of the call among those of the key.
    pub(super) at: usize,
    value: &'a Bytes,
    pub(super) link: Option<Link>,
}

/// Place of a write in its chain, proved by a value that a call observed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// The write before it; `None` for the first of a chain.
    pub(super) parent: Option<WriterId>,
    pub(super) root: WriterId,
    pub(super) depth: usize,
    /// A call that observed the value that this write made, or one that begins with it.
    witness: usize,
    /// The write that took effect on this value, if a call observed that.
    pub(super) successor: Option<WriterId>,
}

pub(super) struct Chains<'a> {
    /// Sorted by value.
    pub(super) writers: Vec<Writer<'a>>,
    /// For each call of the key, the value that it observed, or expected and found.
    pub(super) seen: Vec<Option<WriterId>>,
    /// Parents before their successors.
    pub(super) linked: Vec<WriterId>,
    calls: &'a [&'a Call],
    has_appends: bool,
}

/// The value that must have been stored when the call took effect.
pub(super) fn seen_value(call: &Call) -> Option<&Bytes> {
    match (&call.request, &call.outcome) {
        (_, Outcome::Got(seen)) => seen.value.as_ref(),
        (
            Request::Write(Operation::CompareAndSwap { expect: Expect::Value(expected), .. }),
            Outcome::Written(written),
        ) if written.changed == Some(true) => Some(expected),
        _ => None,
    }
}

fn is_append(call: &Call) -> bool {
    matches!(call.request, Request::Write(Operation::Append { .. }))
}

impl<'a> Chains<'a> {
    /// # Errors
    /// The observed values contradict each other or the writes.
    pub(super) fn of(calls: &'a [&'a Call]) -> Result<Option<Self>, Violation> {
        let writes = calls.iter().enumerate().filter(|(_, call)| {
            call.written().is_none_or(|written| written.changed != Some(false))
        });
        let mut writers: Vec<Writer<'a>> = writes
            .filter_map(|(at, call)| {
                let value = call.request.new_value()?;
                Some(Writer { call, at, value, link: None })
            })
            .collect();
        writers.sort_by(|one, other| one.value.cmp(other.value));
        let has_appends = writers.iter().any(|writer| is_append(writer.call));
        let ambiguous = writers.windows(2).any(|pair| match has_appends {
            true => pair[1].value.starts_with(pair[0].value),
            false => pair[1].value == pair[0].value,
        });
        if ambiguous || has_appends && writers.iter().any(|writer| writer.value.is_empty()) {
            return Ok(None);
        }
        let seen = vec![None; calls.len()];
        let mut chains = Self { writers, seen, linked: Vec::new(), calls, has_appends };
        chains.read_all()?;
        Ok(Some(chains))
    }

    /// Reads the values in sorted order, so that each costs only the part that the value before it
    /// does not share.
    fn read_all(&mut self) -> Result<(), Violation> {
        let mut values: Vec<(&Bytes, usize)> = self
            .calls
            .iter()
            .enumerate()
            .filter_map(|(at, call)| Some((seen_value(call)?, at)))
            .collect();
        values.sort_unstable();
        let mut previous: &[u8] = &[];
        // The writes that make up the value read last, each with the offset at which its part ends.
        let mut path: Vec<(usize, WriterId)> = Vec::new();
        for (value, at) in values {
            let common = previous.iter().zip(value).take_while(|(one, other)| one == other).count();
            while path.last().is_some_and(|(end, _)| *end > common) {
                path.pop();
            }
            // Without appends only a whole value counts, and nothing follows it.
            if !self.has_appends && path.last().is_some_and(|(end, _)| *end < value.len()) {
                path.pop();
            }
            loop {
                let (end, parent) = path.last().map_or((0, None), |(end, id)| (*end, Some(*id)));
                if parent.is_some() && end == value.len() {
                    break;
                }
                let id = self.next_writer(&value[end..], at)?;
                self.link(id, parent, at)?;
                path.push((end + self.writers[id].value.len(), id));
            }
            self.seen[at] = path.last().map(|(_, id)| *id);
            previous = value;
        }
        Ok(())
    }

    /// Finds the write whose value is a prefix of `rest`; there is at most one.
    fn next_writer(&self, rest: &[u8], at: usize) -> Result<WriterId, Violation> {
        let after = self.writers.partition_point(|writer| writer.value.as_ref() <= rest);
        let found = after.checked_sub(1).filter(|id| match self.has_appends {
            true => rest.starts_with(self.writers[*id].value),
            false => rest == self.writers[*id].value,
        });
        let Some(id) = found else {
            let story = format!("it saw what no call wrote: {}", quoted(rest));
            return Err(Violation::new(Rule::Phantom, story, [self.calls[at]]));
        };
        let writer = self.writers[id].call;
        if writer.outcome == Outcome::NotExecuted {
            let story = "a write that was answered as not executed was seen";
            return Err(Violation::new(Rule::Refused, story, [writer, self.calls[at]]));
        }
        if self.calls[at].is_ok() && self.calls[at].returned_at < writer.called_at {
            let story = "it saw a write that had not begun";
            return Err(Violation::new(Rule::Phantom, story, [self.calls[at], writer]));
        }
        Ok(id)
    }

    fn link(
        &mut self,
        id: WriterId,
        parent: Option<WriterId>,
        witness: usize,
    ) -> Result<(), Violation> {
        let call = self.writers[id].call;
        let reader = self.calls[witness];
        if parent.is_some() && !is_append(call) {
            let story = "a value that replaces was seen after the end of another one";
            return Err(Violation::new(Rule::Phantom, story, [call, reader]));
        }
        if let Some(known) = self.writers[id].link {
            if known.parent == parent {
                return Ok(());
            }
            let story = "one write was seen in two places";
            let calls = [call, self.calls[known.witness], reader];
            return Err(Violation::new(Rule::Duplicated, story, calls));
        }
        let (root, depth) = match parent {
            None => (id, 0),
            Some(parent) => {
                let above = self.writers[parent].link.expect("a parent was read before");
                if let Some(rival) = above.successor {
                    let rival = &self.writers[rival];
                    let story = "two writes were seen upon the same value, each without the other";
                    let other = rival.link.expect("a successor was seen").witness;
                    let calls = [rival.call, call, self.calls[other], reader];
                    return Err(Violation::new(Rule::Lost, story, calls));
                }
                (above.root, above.depth + 1)
            }
        };
        if let Some(parent) = parent {
            let above = self.writers[parent].link.as_mut().expect("a parent was read before");
            above.successor = Some(id);
        }
        self.writers[id].link = Some(Link { parent, root, depth, witness, successor: None });
        self.linked.push(id);
        Ok(())
    }

    /// For each call, the chain of the value that it observed or made, and how far the chain had
    /// come.
    pub(super) fn links_of_calls(&self) -> Vec<Option<Link>> {
        let mut links: Vec<Option<Link>> =
            self.seen.iter().map(|seen| seen.and_then(|id| self.writers[id].link)).collect();
        for id in &self.linked {
            links[self.writers[*id].at] = self.writers[*id].link;
        }
        links
    }
}
