//! Which sessions remember the most answers: the first to be evicted when the answers of all sessions
//! exceed their limit.
//!
//! Nothing here is part of the state: it follows from the sessions, and is built again when they are
//! restored.

use std::collections::{BTreeMap, BTreeSet};

use raft_core::types::Index;

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
