//! Encodes records, sessions and the applied meta into a batch, by way of buffers that are used
//! again.

use bytes::BytesMut;
use raft_core::types::Index;
use rocksdb::WriteBatch;

use crate::protocol::operation::Record;
use crate::state::engine::{AppliedMeta, format};
use crate::state::session::Session;

#[derive(Default)]
pub(super) struct Scratch {
    key: Vec<u8>,
    value: BytesMut,
}

impl Scratch {
    pub(super) fn put_record(&mut self, batch: &mut WriteBatch, key: &[u8], record: &Record) {
        self.key.clear();
        self.key.extend_from_slice(&format::RECORDS_START);
        self.key.extend_from_slice(key);
        self.value.clear();
        format::encode_change(Some(record), &mut self.value);
        batch.put(&self.key, &self.value);
    }

    pub(super) fn put_session(&mut self, batch: &mut WriteBatch, id: Index, session: &Session) {
        self.value.clear();
        session.encode(&mut self.value);
        batch.put(format::session_key(id), &self.value);
    }
}

pub(super) fn put_applied_meta(batch: &mut WriteBatch, applied_meta: AppliedMeta) {
    batch.put(format::APPLIED_META_KEY, format::encode_applied_meta(applied_meta));
}
