//! The order in which sessions are evicted: beyond the quota of a principal, and when the answers
//! that all sessions remember exceed their limit.
//!
//! Nothing here is part of the state: it follows from the sessions, and is built again when they are
//! restored. Each decision is a function of the sessions alone, so it is the same on every node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use raft_core::types::Index;

use super::sessions::SessionMap;

/// Stale entries that a queue may hold beyond the live ones before it is built again.
const STALE_MAX: usize = 64;

/// The sessions of each principal.
#[derive(Default)]
pub(super) struct Principals {
    by_name: BTreeMap<Bytes, Principal>,
}

/// The queue has one entry for each live session: its last activity when it was queued, or later
/// when the entry was looked at, and its id. Activity only grows, so an entry is a lower bound, and
/// the first whose bound is exact is the session that was active the longest ago. Ended sessions
/// leave stale entries, which are dropped when they are met.
#[derive(Default)]
struct Principal {
    session_count: usize,
    queue: BinaryHeap<Reverse<(u64, Index)>>,
}

impl Principals {
    /// Returns the name to keep: one copy for all sessions of a principal.
    pub(super) fn insert(&mut self, name: &Bytes, last_active_ms: u64, id: Index) -> Bytes {
        let kept = match self.by_name.get_key_value(name) {
            Some((kept, _)) => kept.clone(),
            None => Bytes::copy_from_slice(name),
        };
        let principal = self.by_name.entry(kept.clone()).or_default();
        principal.session_count += 1;
        principal.queue.push(Reverse((last_active_ms, id)));
        kept
    }

    /// The session has left `map`.
    pub(super) fn remove(&mut self, name: &Bytes, map: &SessionMap) {
        let principal = self.by_name.get_mut(name).expect("each session has its principal");
        principal.session_count -= 1;
        if principal.session_count == 0 {
            self.by_name.remove(name);
        } else if principal.queue.len() > 2 * principal.session_count + STALE_MAX {
            principal.queue.retain(|Reverse((_, id))| map.contains_key(id));
        }
    }

    pub(super) fn session_count(&self, name: &Bytes) -> u64 {
        self.by_name.get(name).map_or(0, |principal| principal.session_count as u64)
    }

    /// The principal's session whose last activity is the longest ago; of several, the oldest one.
    ///
    /// # Panics
    /// If it has none.
    pub(super) fn longest_idle(&mut self, name: &Bytes, map: &SessionMap) -> Index {
        let principal = self.by_name.get_mut(name).expect("it has a session");
        loop {
            let Reverse((bound_ms, id)) = *principal.queue.peek().expect("one for each session");
            match map.get(&id) {
                Some(session) if session.last_active_ms == bound_ms => return id,
                Some(session) => {
                    assert!(session.last_active_ms > bound_ms, "activity only grows");
                    principal.queue.pop();
                    principal.queue.push(Reverse((session.last_active_ms, id)));
                }
                None => {
                    principal.queue.pop();
                }
            }
        }
    }
}

/// Sessions by how many answers they remember, in classes: 2 to 3, 4 to 7, 8 to 15, ...
///
/// A class changes rarely, and a session with one answer, as most have, is in none.
#[derive(Default)]
pub(super) struct Hoarders {
    answer_count: u64,
    by_class: BTreeMap<u32, BTreeSet<Index>>,
}

fn class(answer_count: usize) -> Option<u32> {
    answer_count.checked_ilog2().filter(|class| *class > 0)
}

impl Hoarders {
    /// The session remembers another number of answers than before; 0 if it has just come or gone.
    pub(super) fn recount(&mut self, id: Index, before: usize, after: usize) {
        self.answer_count = self.answer_count + after as u64 - before as u64;
        let (old, new) = (class(before), class(after));
        if old == new {
            return;
        }
        if let Some(old) = old {
            let sessions = self.by_class.get_mut(&old).expect("it was put there");
            assert!(sessions.remove(&id), "it was put there");
            if sessions.is_empty() {
                self.by_class.remove(&old);
            }
        }
        if let Some(new) = new {
            self.by_class.entry(new).or_default().insert(id);
        }
    }

    /// Of all sessions.
    pub(super) fn answer_count(&self) -> u64 {
        self.answer_count
    }

    /// The oldest session of the highest class; `None` if no session remembers two answers.
    pub(super) fn first(&self) -> Option<Index> {
        let (_, sessions) = self.by_class.last_key_value()?;
        sessions.first().copied()
    }
}
