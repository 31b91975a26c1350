//! Keys and values in the RocksDB instance, as bytes; nothing here needs RocksDB.
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

use super::{Head, Versions};
use crate::machine::codec::{DecodeError, DecodeResult, Reader, check_versions};
use crate::operation::{Record, SessionId};

const VERSION: u32 = 1;

pub(in crate::machine) const RECORDS_START: [u8; 1] = [b'd'];
pub(in crate::machine) const RECORDS_END: [u8; 1] = [b'd' + 1];
pub(in crate::machine) const HEAD_KEY: [u8; 1] = [b'm'];
pub(in crate::machine) const SESSIONS_START: [u8; 1] = [b's'];
pub(in crate::machine) const SESSIONS_END: [u8; 1] = [b's' + 1];

const RECORD_HEAD_BYTES: usize = 3 * 8;

pub(in crate::machine) fn record_key(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(b'd');
    bytes.extend_from_slice(key);
    bytes
}

pub(in crate::machine) fn session_key(id: SessionId) -> [u8; 9] {
    let mut key = [b's'; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

pub(in crate::machine) fn decode_session_key(key: &[u8]) -> DecodeResult<SessionId> {
    match key {
        [b's', id @ ..] => id
            .try_into()
            .map(SessionId::from_be_bytes)
            .map_err(|_| DecodeError("a session's key has another length")),
        _ => Err(DecodeError("not a session's key")),
    }
}

pub(in crate::machine) fn encode_record(record: &Record, out: &mut BytesMut) {
    out.reserve(RECORD_HEAD_BYTES + record.value.len());
    out.put_u64_le(record.version);
    out.put_u64_le(record.create_revision);
    out.put_u64_le(record.modify_revision);
    out.put_slice(&record.value);
}

pub(in crate::machine) fn decode_record(bytes: Bytes) -> DecodeResult<Record> {
    let [version, create_revision, modify_revision] = record_head(&bytes)?;
    let value = bytes.slice(RECORD_HEAD_BYTES..);
    Ok(Record { value, version, create_revision, modify_revision })
}

/// Of a record, without reading its value.
pub(in crate::machine) fn decode_versions(bytes: &[u8]) -> DecodeResult<Versions> {
    let [version, create_revision, _] = record_head(bytes)?;
    Ok(Versions { version, create_revision })
}

fn record_head(bytes: &[u8]) -> DecodeResult<[u64; 3]> {
    match bytes.as_chunks::<8>().0 {
        [version, create_revision, modify_revision, ..] => {
            let [version, create_revision, modify_revision] =
                [version, create_revision, modify_revision].map(|bytes| u64::from_le_bytes(*bytes));
            check_versions(version, create_revision, modify_revision)?;
            Ok([version, create_revision, modify_revision])
        }
        _ => Err(DecodeError("a record is cut short")),
    }
}

pub(in crate::machine) fn encode_head(head: Head) -> BytesMut {
    let mut value = BytesMut::with_capacity(4 + 3 * 8);
    value.put_u32_le(VERSION);
    value.put_u64_le(head.position.term);
    value.put_u64_le(head.position.index);
    value.put_u64_le(head.clock_ms);
    value
}

pub(in crate::machine) fn decode_head(bytes: Bytes) -> DecodeResult<Head> {
    let mut reader = Reader::new(bytes);
    if reader.u32()? != VERSION {
        return Err(DecodeError("another version of the state's format"));
    }
    let position = Position::new(reader.u64()?, reader.u64()?);
    if !position.is_in_range() {
        return Err(DecodeError("a position that nothing gets to"));
    }
    let clock_ms = reader.u64()?;
    reader.finish()?;
    Ok(Head { position, clock_ms })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes are in data directories.
    #[test]
    fn bytes_stay_what_they_were() {
        let value = Bytes::from_static(b"value");
        let record = Record { value, version: 2, create_revision: 3, modify_revision: 4 };
        let mut encoded = BytesMut::new();
        encode_record(&record, &mut encoded);
        assert_eq!(&encoded[..], b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0value");
        let head = Head { position: Position::new(5, 6), clock_ms: 7 };
        let encoded = encode_head(head);
        assert_eq!(&encoded[..12], b"\x01\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(&encoded[12..], b"\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0");
        assert_eq!(record_key(b"k"), b"dk");
        assert_eq!(session_key(258), *b"s\0\0\0\0\0\0\x01\x02");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_less(
            value in prop::collection::vec(any::<u8>(), 0..40),
            create_revision in 1u64..1 << 62,
            changes in 0u64..1 << 62,
            version in any::<prop::sample::Index>(),
            numbers in any::<[u64; 4]>(),
        ) {
            let version = 1 + version.index(changes as usize + 1) as u64;
            let modify_revision = create_revision + changes;
            let record = Record { value: value.into(), version, create_revision, modify_revision };
            let mut encoded = BytesMut::new();
            encode_record(&record, &mut encoded);
            let encoded = encoded.freeze();
            prop_assert_eq!(decode_record(encoded.clone()), Ok(record));
            let versions = Versions { version, create_revision };
            prop_assert_eq!(decode_versions(&encoded), Ok(versions));
            for end in 0..RECORD_HEAD_BYTES {
                prop_assert!(decode_record(encoded.slice(..end)).is_err());
                prop_assert!(decode_versions(&encoded[..end]).is_err());
            }
            let [term, index, clock_ms, id] = numbers;
            let (term, index) = (term >> 1, index >> 1);
            let head = Head { position: Position::new(term, index), clock_ms };
            let encoded = encode_head(head).freeze();
            prop_assert_eq!(decode_head(encoded.clone()), Ok(head));
            for end in 0..encoded.len() {
                prop_assert!(decode_head(encoded.slice(..end)).is_err());
            }
            prop_assert_eq!(decode_session_key(&session_key(id)), Ok(id));
        }
    }

    #[test]
    fn versions_that_no_machine_writes_are_refused() {
        for (version, create_revision, modify_revision) in
            [(0, 1, 1), (1, 0, 1), (1, 2, 1), (3, 1, 2), (u64::MAX, 1, u64::MAX)]
        {
            let value = Bytes::new();
            let record = Record { value, version, create_revision, modify_revision };
            let mut encoded = BytesMut::new();
            encode_record(&record, &mut encoded);
            assert!(decode_versions(&encoded).is_err(), "{record:?}");
            assert!(decode_record(encoded.freeze()).is_err(), "{record:?}");
        }
    }
}
