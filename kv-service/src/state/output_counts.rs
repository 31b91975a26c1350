//! Sessions ordered by their numbers of remembered outputs: those with the most are evicted first
//! when the outputs of all sessions exceed their limit.
//!
//! Nothing here is part of the state: it follows from the sessions, and is rebuilt when they are
//! restored.

use std::collections::{BTreeMap, BTreeSet};

use raft_core::types::Index;

/// Sessions by how many outputs they remember, in classes: 2 to 3, 4 to 7, 8 to 15, ...
///
/// A session changes its class rarely. A session with at most one output, as most are, is in no
/// class.
#[derive(Default)]
pub(super) struct OutputCounts {
    answer_count: u64,
    by_class: BTreeMap<u32, BTreeSet<Index>>,
}

fn class(answer_count: usize) -> Option<u32> {
    answer_count.checked_ilog2().filter(|class| *class > 0)
}

impl OutputCounts {
    /// Records that a session now remembers another number of outputs; the number is 0 before it
    /// comes and after it is gone.
    pub(super) fn recount(&mut self, id: Index, before: usize, after: usize) {
        assert!(self.answer_count >= before as u64, "its outputs were counted");
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

    /// Number of outputs that all sessions remember.
    pub(super) fn answer_count(&self) -> u64 {
        self.answer_count
    }

    /// The oldest session of the highest class; `None` if no session remembers two outputs.
    pub(super) fn first(&self) -> Option<Index> {
        let (_, sessions) = self.by_class.last_key_value()?;
        sessions.first().copied()
    }
}
