//! What some commits in a row have changed, in key order: what is to become one table.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::machine::engine::{Head, format};
use crate::machine::sessions::Session;
use crate::operation::{Record, SessionId};

/// What an entry takes beyond its bytes: its place in the tree, the allocations.
const ENTRY_BYTES: usize = 128;

/// A record as it is stored; `None` is a deletion.
pub(super) type Stored = Option<Bytes>;

#[derive(Default)]
pub(super) struct Layer {
    /// Copies of their own: what a command brought would keep the whole message that it came in.
    records: BTreeMap<Bytes, Stored>,
    sessions: BTreeMap<SessionId, Option<Arc<Session>>>,
    head: Head,
    size_bytes: usize,
}

impl Layer {
    pub(super) fn put(&mut self, key: &[u8], record: Option<&Record>) {
        let stored = record.map(|record| {
            let mut bytes = BytesMut::new();
            format::encode_record(record, &mut bytes);
            bytes.freeze()
        });
        let size = |stored: &Stored| stored.as_ref().map_or(0, Bytes::len);
        self.size_bytes += size(&stored);
        if let Some(known) = self.records.get_mut(key) {
            self.size_bytes -= size(known);
            *known = stored;
        } else {
            self.size_bytes += key.len() + ENTRY_BYTES;
            self.records.insert(Bytes::copy_from_slice(key), stored);
        }
    }

    pub(super) fn put_session(&mut self, id: SessionId, session: Option<&Arc<Session>>) {
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
    pub(super) fn get(&self, key: &[u8]) -> Option<&Stored> {
        self.records.get(key)
    }

    /// From `start` to before `end`, an empty `end` being the end of all keys.
    pub(super) fn range<'a>(
        &'a self,
        start: &[u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = (&'a Bytes, &'a Stored)> + use<'a> {
        let from_start = self
            .records
            .range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded));
        from_start.take_while(move |(key, _)| end.is_empty() || key[..] < *end)
    }

    /// All of it in the order of the table, as keys and values of the format; `None` is a deletion.
    ///
    /// # Errors
    /// The first of `put`.
    pub(super) fn write_to<E>(
        &self,
        mut put: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut key = Vec::new();
        for (record_key, stored) in &self.records {
            key.clear();
            key.extend_from_slice(&format::RECORDS_START);
            key.extend_from_slice(record_key);
            put(&key, stored.as_deref())?;
        }
        put(&format::HEAD_KEY, Some(&format::encode_head(self.head)))?;
        let mut value = BytesMut::new();
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
