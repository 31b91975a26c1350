//! Merges memtables and an instance into one ascending run with the newest change of each key.

use std::cmp::Ordering;
use std::iter::Peekable;

use bytes::Bytes;
use raft_core::state_machine::MachineResult;

use super::layer::Word;

/// The changes in one source, ascending by key.
pub(super) type Source<'a> = Box<dyn Iterator<Item = MachineResult<(Bytes, Word)>> + 'a>;

pub(super) struct Merged<'a> {
    /// The newest first.
    sources: Vec<Peekable<Source<'a>>>,
}

impl<'a> Merged<'a> {
    pub(super) fn new(sources: Vec<Source<'a>>) -> Self {
        Self { sources: sources.into_iter().map(Iterator::peekable).collect() }
    }

    /// The lowest key of all sources, and its newest change.
    fn next_word(&mut self) -> Option<MachineResult<(Bytes, Word)>> {
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

impl Iterator for Merged<'_> {
    type Item = MachineResult<(Bytes, Word)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_word()
    }
}
