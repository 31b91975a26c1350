//! A memtable: the changes of some commits in a row, which become one SST file.
//!
//! Most writes are to a key that was written a moment ago, and such a write costs one lookup in a
//! hash table. The order of the keys, which SST files and scans need, is kept beside it and changes
//! with new keys only.
//!
//! Values are slices of their commands, so a memtable keeps the buffers in which the commands
//! arrived. The log holds them as long anyway: no entry leaves it before its changes are in an SST
//! file. Only a view that outlives the memtable keeps them longer, while a snapshot is read: for
//! each of its few memtables, at most as much as the log may hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raft_core::types::Index;
use smallvec::SmallVec;

use crate::protocol::operation::Record;
use crate::state::engine::{AppliedMeta, format, owned};
use crate::state::session::Session;

/// Bytes of an entry beyond its value and, twice, its key: its slots, and the unused room of
/// tables.
const ENTRY_BYTES: usize = 176;

/// A short key is stored inline, where it is compared. Behind a pointer, the processor would wait
/// for it.
pub(super) type ShortKey = SmallVec<[u8; 24]>;

/// The newest change of a key; `None` is a deletion.
pub(super) type Change = Option<Record>;

#[derive(Default)]
pub(super) struct Memtable {
    records: HashMap<ShortKey, Change>,
    /// The keys of `records`, in order.
    keys: BTreeSet<ShortKey>,
    sessions: BTreeMap<Index, Option<Arc<Session>>>,
    applied_meta: AppliedMeta,
    size_bytes: usize,
}

impl Memtable {
    /// The memtable that follows this one. It will probably hold as many keys, so its hash table is
    /// allocated at that size: to grow it would take as long as thousands of writes.
    pub(super) fn next(&self) -> Self {
        Self { records: HashMap::with_capacity(self.records.len()), ..Self::default() }
    }

    pub(super) fn put(&mut self, key: &[u8], change: Change) {
        let value_bytes = |change: &Change| change.as_ref().map_or(0, |record| record.value.len());
        self.size_bytes += value_bytes(&change);
        if let Some(known) = self.records.get_mut(key) {
            assert!(self.size_bytes >= value_bytes(known), "its bytes were counted");
            self.size_bytes -= value_bytes(known);
            *known = change;
        } else {
            self.size_bytes += 2 * key.len() + ENTRY_BYTES;
            self.records.insert(key.into(), change);
            self.keys.insert(key.into());
            assert_eq!(self.keys.len(), self.records.len(), "each key is in both");
        }
    }

    pub(super) fn put_session(&mut self, id: Index, session: Option<&Arc<Session>>) {
        let bytes = |session: &Option<Arc<Session>>| {
            session.as_ref().map_or(0, |session| session.size_bytes())
        };
        let session = session.cloned();
        self.size_bytes += bytes(&session);
        match self.sessions.insert(id, session) {
            Some(before) => {
                assert!(self.size_bytes >= bytes(&before), "its bytes were counted");
                self.size_bytes -= bytes(&before);
            }
            None => self.size_bytes += ENTRY_BYTES,
        }
    }

    pub(super) fn set_applied_meta(&mut self, applied_meta: AppliedMeta) {
        assert!(applied_meta.position >= self.applied_meta.position, "positions never fall");
        assert!(applied_meta.revision <= applied_meta.position.index, "a revision is an index");
        self.applied_meta = applied_meta;
    }

    /// The metadata of the last commit in the memtable.
    pub(super) fn applied_meta(&self) -> AppliedMeta {
        self.applied_meta
    }

    /// Returns true if no commit is in the memtable.
    pub(super) fn is_empty(&self) -> bool {
        self.applied_meta == AppliedMeta::default()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The change of a key; `None` if there is none in this memtable.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Change> {
        self.records.get(key)
    }

    /// The changes from `start` to before `end`, an empty `end` being the end of all keys.
    pub(super) fn range<'a>(
        &'a self,
        start: &[u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = (Bytes, Change)> + use<'a> {
        self.shared_range(start, end).map(|(key, change)| (key, change.as_ref().map(owned)))
    }

    /// [`Memtable::range`] without copies of the values, which share the buffers of their commands.
    pub(super) fn shared_range<'a>(
        &'a self,
        start: &[u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = (Bytes, Change)> + use<'a> {
        self.keys
            .range::<[u8], _>((Bound::Included(start), Bound::Unbounded))
            .take_while(move |key| end.is_empty() || key[..] < *end)
            .map(|key| (Bytes::copy_from_slice(key), self.records[key].clone()))
    }

    /// The changes of all keys, in any order.
    pub(super) fn records(&self) -> impl Iterator<Item = (&ShortKey, &Change)> {
        self.records.iter()
    }

    /// Puts everything in the order of an SST file, as keys and values of the format; `None` is a
    /// deletion.
    ///
    /// # Errors
    /// The first error of `put`.
    pub(super) fn write_to<E>(
        &self,
        mut put: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(!self.is_empty(), "it holds a commit");
        let (mut key, mut value) = (Vec::new(), BytesMut::new());
        let mut size_bytes = 0;
        for record_key in &self.keys {
            let change = &self.records[record_key];
            let value_bytes = change.as_ref().map_or(0, |record| record.value.len());
            size_bytes += 2 * record_key.len() + ENTRY_BYTES + value_bytes;
            key.clear();
            key.extend_from_slice(&format::RECORDS_START);
            key.extend_from_slice(record_key);
            value.clear();
            format::encode_change(change.as_ref(), &mut value);
            put(&key, Some(&value))?;
        }
        put(&format::APPLIED_META_KEY, Some(&format::encode_applied_meta(self.applied_meta)))?;
        for (id, session) in &self.sessions {
            value.clear();
            size_bytes += ENTRY_BYTES + session.as_ref().map_or(0, |session| session.size_bytes());
            if let Some(session) = session {
                session.encode(&mut value);
            }
            put(&format::session_key(*id), session.as_ref().map(|_| &value[..]))?;
        }
        assert_eq!(size_bytes, self.size_bytes, "the size as counted is that of what it holds");
        Ok(())
    }
}
