//! Where the runs of the log begin: the indexes in the keys of its entries' records.

use std::collections::VecDeque;

use raft_core::types::Index;

/// Ascending. A run ends where the next one begins, or with the log.
#[derive(Debug, Default)]
pub(crate) struct RunStarts(VecDeque<Index>);

impl RunStarts {
    /// Adds a run that was read, behind all others.
    pub(crate) fn push(&mut self, first: Index) {
        assert!(self.0.back().is_none_or(|last| *last < first), "runs are in order");
        self.0.push_back(first);
    }

    /// Adds the runs of a batch, in place of those that begin at or after the first of them.
    pub(crate) fn replace_from_first(&mut self, new_runs: Vec<Index>) {
        let Some(first) = new_runs.first() else { return };
        self.0.truncate(self.0.partition_point(|start| start < first));
        new_runs.into_iter().for_each(|start| self.push(start));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The keys of all runs without an entry behind `through`, from the first one to before the
    /// second one; `None` if there is no such run. `last_index` is the end of the log.
    pub(crate) fn compactable(&self, through: Index, last_index: Index) -> Option<(Index, Index)> {
        let first = *self.0.front()?;
        let end = if through >= last_index {
            last_index + 1
        } else {
            // The last run that begins at or before the first needed entry holds that entry.
            let begun = self.0.partition_point(|start| *start <= through + 1);
            *self.0.get(begun.checked_sub(1)?)?
        };
        (first < end).then_some((first, end))
    }

    /// Forgets the runs before `end`.
    pub(crate) fn forget_before(&mut self, end: Index) {
        self.0.drain(..self.0.partition_point(|start| *start < end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(indexes: impl IntoIterator<Item = Index>) -> RunStarts {
        RunStarts(indexes.into_iter().collect())
    }

    #[test]
    fn a_run_is_compacted_once_no_entry_of_it_is_needed() {
        let runs = starts([5, 8, 9]);
        for (through, expected) in [
            (4, None),
            (5, None),
            (6, None),
            (7, Some((5, 8))),
            (8, Some((5, 9))),
            (9, Some((5, 9))),
            (11, Some((5, 9))),
            (12, Some((5, 13))),
        ] {
            assert_eq!(runs.compactable(through, 12), expected, "through {through}");
        }
        assert_eq!(starts([]).compactable(9, 8), None);
    }

    #[test]
    fn new_runs_replace_those_that_begin_in_them() {
        let mut runs = starts([1, 5, 9]);
        runs.replace_from_first(vec![]);
        assert_eq!(runs.0, [1, 5, 9]);
        runs.replace_from_first(vec![5, 7]);
        assert_eq!(runs.0, [1, 5, 7]);
        runs.replace_from_first(vec![6]);
        assert_eq!(runs.0, [1, 5, 6]);
        runs.forget_before(5);
        assert_eq!(runs.0, [5, 6]);
    }
}
