//! The configuration that is in force at each index of the log.
//!
//! A configuration is in force from the moment its entry is appended (4.1). So appending pushes
//! one, truncating pops, compacting folds the older ones into the one at the log's start, and a
//! snapshot carries the one in force at its position, never a newer one.

use std::collections::VecDeque;

use crate::types::{Configuration, Index, Position};

/// The configuration at the log's start, and those of the entries after it, by rising index.
#[derive(Clone, Debug, Hash)]
pub(super) struct Configurations {
    at_start: Configuration,
    changes: VecDeque<(Position, Configuration)>,
}

impl Configurations {
    pub(super) fn new(at_start: Configuration) -> Self {
        Self { at_start, changes: VecDeque::new() }
    }

    /// Returns the one in force now, committed or not.
    pub(super) fn latest(&self) -> &Configuration {
        self.changes.back().map_or(&self.at_start, |(_, configuration)| configuration)
    }

    /// Returns the position of the entry that brought the latest one; `None` if it is the one at
    /// the log's start. Another entry at the same index has another term.
    pub(super) fn latest_position(&self) -> Option<Position> {
        self.changes.back().map(|(position, _)| *position)
    }

    pub(super) fn latest_index(&self) -> Option<Index> {
        self.latest_position().map(|position| position.index)
    }

    /// Returns the one in force at an index of the log.
    pub(super) fn at(&self, index: Index) -> &Configuration {
        let change = self.changes.iter().rev().find(|(change, _)| change.index <= index);
        change.map_or(&self.at_start, |(_, configuration)| configuration)
    }

    /// Returns those that no committed one supersedes: the latest committed one, and later ones.
    pub(super) fn active(&self, commit_index: Index) -> impl Iterator<Item = &Configuration> {
        let later = self.changes.iter().filter(move |(change, _)| change.index > commit_index);
        std::iter::once(self.at(commit_index)).chain(later.map(|(_, configuration)| configuration))
    }

    pub(super) fn push(&mut self, position: Position, configuration: Configuration) {
        assert!(self.latest_index().is_none_or(|last| last < position.index), "indexes rise");
        self.changes.push_back((position, configuration));
    }

    /// Drops the configurations of the entries from `index` on, which were truncated.
    pub(super) fn truncate_from(&mut self, index: Index) {
        while self.latest_index().is_some_and(|last| last >= index) {
            self.changes.pop_back();
        }
    }

    /// Makes the log start after `index`.
    pub(super) fn compact(&mut self, index: Index) {
        while self.changes.front().is_some_and(|(first, _)| first.index <= index) {
            let (_, configuration) = self.changes.pop_front().expect("just seen");
            self.at_start = configuration;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(cluster_version: u32) -> Configuration {
        Configuration { cluster_version, ..Configuration::of_voters([1, 2, 3]) }
    }

    /// C8. A snapshot carries the configuration at its own position, also while a newer one is in
    /// the log, and a truncation brings the earlier one back.
    #[test]
    fn c8_each_index_has_its_own() {
        let mut configurations = Configurations::new(version(1));
        configurations.push(Position::new(1, 4), version(2));
        configurations.push(Position::new(1, 7), version(3));
        let at = |configurations: &Configurations, index| configurations.at(index).cluster_version;
        let versions: Vec<u32> = (3..9).map(|index| at(&configurations, index)).collect();
        assert_eq!(versions, [1, 2, 2, 2, 3, 3]);
        configurations.truncate_from(8);
        assert_eq!(configurations.latest(), &version(3));
        configurations.truncate_from(7);
        assert_eq!(
            (configurations.latest(), configurations.latest_index()),
            (&version(2), Some(4))
        );
        configurations.compact(3);
        assert_eq!(at(&configurations, 3), 1);
        configurations.compact(5);
        assert_eq!((at(&configurations, 5), configurations.latest_index()), (2, None));
    }
}
