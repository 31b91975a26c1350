//! Keys and values in the instance.
//!
//! ```text
//!   'd' key               version u64  create_revision u64  modify_revision u64  value
//!   'm'                   format version u32 = 1  term u64  index u64  clock_ms u64
//!   's' id, big-endian    a session, as in a snapshot
//! ```
//!
//! Numbers are little-endian but in keys. Only an instance that was never written to has no 'm'.

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::types::Position;
use rocksdb::WriteBatch;

use crate::machine::codec::{DecodeError, DecodeResult, Reader};
use crate::machine::engine::{Head, Versions};
use crate::machine::sessions::Session;
use crate::operation::{Record, SessionId};

const VERSION: u32 = 1;

pub(super) const RECORDS_START: [u8; 1] = [b'd'];
pub(super) const RECORDS_END: [u8; 1] = [b'd' + 1];
pub(super) const HEAD_KEY: [u8; 1] = [b'm'];
pub(super) const SESSIONS_START: [u8; 1] = [b's'];
pub(super) const SESSIONS_END: [u8; 1] = [b's' + 1];

const RECORD_HEAD_BYTES: usize = 3 * 8;

pub(super) fn record_key(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(b'd');
    bytes.extend_from_slice(key);
    bytes
}

pub(super) fn session_key(id: SessionId) -> [u8; 9] {
    let mut key = [b's'; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

pub(super) fn decode_session_key(key: &[u8]) -> DecodeResult<SessionId> {
    match key {
        [b's', id @ ..] => id
            .try_into()
            .map(SessionId::from_be_bytes)
            .map_err(|_| DecodeError("a session's key has another length")),
        _ => Err(DecodeError("not a session's key")),
    }
}

/// Buffers that are reused from one put to the next.
#[derive(Default)]
pub(super) struct Scratch {
    key: Vec<u8>,
    value: BytesMut,
}

impl Scratch {
    pub(super) fn put_record(&mut self, batch: &mut WriteBatch, key: &[u8], record: &Record) {
        self.key.clear();
        self.key.push(b'd');
        self.key.extend_from_slice(key);
        self.value.clear();
        self.value.reserve(RECORD_HEAD_BYTES + record.value.len());
        self.value.put_u64_le(record.version);
        self.value.put_u64_le(record.create_revision);
        self.value.put_u64_le(record.modify_revision);
        self.value.put_slice(&record.value);
        batch.put(&self.key, &self.value);
    }

    pub(super) fn put_session(&mut self, batch: &mut WriteBatch, id: SessionId, session: &Session) {
        self.value.clear();
        session.encode(&mut self.value);
        batch.put(session_key(id), &self.value);
    }
}

pub(super) fn decode_record(bytes: Bytes) -> DecodeResult<Record> {
    let [version, create_revision, modify_revision] = record_head(&bytes)?;
    let value = bytes.slice(RECORD_HEAD_BYTES..);
    Ok(Record { value, version, create_revision, modify_revision })
}

/// Of a record, without reading its value.
pub(super) fn decode_versions(bytes: &[u8]) -> DecodeResult<Versions> {
    let [version, create_revision, _] = record_head(bytes)?;
    Ok(Versions { version, create_revision })
}

fn record_head(bytes: &[u8]) -> DecodeResult<[u64; 3]> {
    match bytes.as_chunks::<8>().0 {
        [version, create_revision, modify_revision, ..] => {
            Ok([version, create_revision, modify_revision].map(|bytes| u64::from_le_bytes(*bytes)))
        }
        _ => Err(DecodeError("a record is cut short")),
    }
}

pub(super) fn put_head(batch: &mut WriteBatch, head: Head) {
    let mut value = BytesMut::with_capacity(4 + 3 * 8);
    value.put_u32_le(VERSION);
    value.put_u64_le(head.position.term);
    value.put_u64_le(head.position.index);
    value.put_u64_le(head.clock_ms);
    batch.put(HEAD_KEY, &value);
}

pub(super) fn decode_head(bytes: Bytes) -> DecodeResult<Head> {
    let mut reader = Reader::new(bytes);
    if reader.u32()? != VERSION {
        return Err(DecodeError("another version of the state's format"));
    }
    let position = Position::new(reader.u64()?, reader.u64()?);
    let clock_ms = reader.u64()?;
    reader.finish()?;
    Ok(Head { position, clock_ms })
}
