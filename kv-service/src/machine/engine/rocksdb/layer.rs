//! What some commits in a row have changed: what is to become one table.
//!
//! Most writes are to a key that was written a moment ago, and such a one costs one look into a hash table:
//! the order of the keys, which tables and scans need, stands beside it and changes with new keys only.
//!
//! Values are slices of their commands, and what those came in stays for as long as the layer does. The log
//! holds them as long anyway: nothing leaves it before it is in a table. Only a view that outlives the layer's
//! table keeps them longer, while a snapshot is read: for each of its few layers what the log may hold at most.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raft_core::types::Index;
use smallvec::SmallVec;

use crate::machine::engine::{Head, format, owned};
use crate::machine::session::Session;
use crate::operation::Record;

/// What an entry takes beyond its value and, twice, its key: its places, and the room that is not used.
const ENTRY_BYTES: usize = 176;

/// A short key lies where it is compared, and not at the end of a pointer, which the processor would wait for.
pub(super) type ShortKey = SmallVec<[u8; 24]>;

/// What is said of a key; `None` is a deletion.
pub(super) type Word = Option<Record>;

#[derive(Default)]
pub(super) struct Layer {
    records: HashMap<ShortKey, Word>,
    /// Those of `records`.
    keys: BTreeSet<ShortKey>,
    sessions: BTreeMap<Index, Option<Arc<Session>>>,
    head: Head,
    size_bytes: usize,
}

impl Layer {
    /// What follows this one, and will probably hold as much: its table need not grow, which would take as long
    /// as thousands of writes.
    pub(super) fn next(&self) -> Self {
        Self { records: HashMap::with_capacity(self.records.len()), ..Self::default() }
    }

    pub(super) fn put(&mut self, key: &[u8], word: Word) {
        let value_bytes = |word: &Word| word.as_ref().map_or(0, |record| record.value.len());
        self.size_bytes += value_bytes(&word);
        if let Some(known) = self.records.get_mut(key) {
            self.size_bytes -= value_bytes(known);
            *known = word;
        } else {
            self.size_bytes += 2 * key.len() + ENTRY_BYTES;
            self.records.insert(key.into(), word);
            self.keys.insert(key.into());
        }
    }

    pub(super) fn put_session(&mut self, id: Index, session: Option<&Arc<Session>>) {
        let bytes = |session: &Option<Arc<Session>>| {
            session.as_ref().map_or(0, |session| session.size_bytes())
        };
        let session = session.cloned();
        self.size_bytes += bytes(&session);
        match self.sessions.insert(id, session) {
            Some(before) => self.size_bytes -= bytes(&before),
            None => self.size_bytes += ENTRY_BYTES,
        }
    }

    pub(super) fn set_head(&mut self, head: Head) {
        self.head = head;
    }

    /// Of the last commit in it.
    pub(super) fn head(&self) -> Head {
        self.head
    }

    /// No commit is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.head == Head::default()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// What it says of a key, if anything.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Word> {
        self.records.get(key)
    }

    /// From `start` to before `end`, an empty `end` being the end of all keys.
    pub(super) fn range<'a>(
        &'a self,
        start: &[u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = (Bytes, Word)> + use<'a> {
        self.shared_range(start, end).map(|(key, word)| (key, word.as_ref().map(owned)))
    }

    /// [`Layer::range`] without copies of the values, which share what their commands came in.
    pub(super) fn shared_range<'a>(
        &'a self,
        start: &[u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = (Bytes, Word)> + use<'a> {
        self.keys
            .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
            .take_while(move |key| end.is_empty() || key[..] < *end)
            .map(|key| (Bytes::copy_from_slice(key), self.records[key].clone()))
    }

    /// The words on all keys, in any order.
    pub(super) fn records(&self) -> impl Iterator<Item = (&ShortKey, &Word)> {
        self.records.iter()
    }

    /// All of it in the order of the table, as keys and values of the format; `None` is a deletion.
    ///
    /// # Errors
    /// The first of `put`.
    pub(super) fn write_to<E>(
        &self,
        mut put: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut key, mut value) = (Vec::new(), BytesMut::new());
        for record_key in &self.keys {
            let word = &self.records[record_key];
            key.clear();
            key.extend_from_slice(&format::RECORDS_START);
            key.extend_from_slice(record_key);
            value.clear();
            format::encode_word(word.as_ref(), &mut value);
            put(&key, Some(&value))?;
        }
        put(&format::HEAD_KEY, Some(&format::encode_head(self.head)))?;
        for (id, session) in &self.sessions {
            value.clear();
            if let Some(session) = session {
                session.encode(&mut value);
            }
            put(&format::session_key(*id), session.as_ref().map(|_| &value[..]))?;
        }
        Ok(())
    }
}
