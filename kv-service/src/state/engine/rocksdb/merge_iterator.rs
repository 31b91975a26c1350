//! Merges memtables and RocksDB into one ascending run with the newest change of each key.

use std::cmp::Ordering;
use std::iter::Peekable;

use bytes::Bytes;
use raft_core::state_machine::MachineResult;

use super::memtable::Change;

/// The changes in one source, ascending by key.
pub(super) type Source<'a> = Box<dyn Iterator<Item = MachineResult<(Bytes, Change)>> + 'a>;

pub(super) struct MergeIterator<'a> {
    /// The newest first.
    sources: Vec<Peekable<Source<'a>>>,
}

impl<'a> MergeIterator<'a> {
    pub(super) fn new(sources: Vec<Source<'a>>) -> Self {
        Self { sources: sources.into_iter().map(Iterator::peekable).collect() }
    }

    /// The lowest key of all sources, and its newest change.
    fn next_change(&mut self) -> Option<MachineResult<(Bytes, Change)>> {
        let mut first: Option<(usize, Bytes)> = None;
        for place in 0..self.sources.len() {
            match self.sources[place].peek() {
                None => {}
                Some(Err(_)) => return self.sources[place].next(),
                Some(Ok((key, _))) => match first.as_ref().map(|(_, known)| key.cmp(known)) {
                    None | Some(Ordering::Less) => first = Some((place, key.clone())),
                    // An older change of the same key.
                    Some(Ordering::Equal) => {
                        self.sources[place].next();
                    }
                    Some(Ordering::Greater) => {}
                },
            }
        }
        let (newest, _) = first?;
        self.sources[newest].next()
    }
}

impl Iterator for MergeIterator<'_> {
    type Item = MachineResult<(Bytes, Change)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_change()
    }
}
