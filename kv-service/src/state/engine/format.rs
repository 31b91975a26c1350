//! Encoding of the keys and values in RocksDB; nothing here needs RocksDB itself.
//!
//! ```text
//!   'd' key               flags u8 = 0  version  create_revision  modify_revision | value
//!                         flags u8 = 1: the key was deleted, nothing follows
//!   'm'                   format version u32 = 2  term  index  clock_ms  revision  generation
//!                         rules
//!   's' index, big-endian a session, as in a snapshot
//! ```
//!
//! Numbers are varints (`codec`) unless a width is given. Only an instance that was never written
//! to has no 'm'. The other flags are reserved: for `modified_by` (u32) and the lease of the key
//! (u64), which will stand behind the revisions.
//!
//! A deletion is stored as a value, not as a deletion of RocksDB: a scan finds it, and can count it
//! (S13).

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::types::{Index, Position};

use super::{AppliedMeta, Versions};
use crate::protocol::operation::Record;
use crate::state::codec::{
    ByteReader, DecodeError, DecodeResult, VARINT_BYTES_MAX, check_versions, malformed, put_varint,
    read_varint,
};

/// Format version of the state on disk. Version 1 was never released.
const VERSION: u32 = 2;

pub(in crate::state) const RECORDS_START: [u8; 1] = [b'd'];
pub(in crate::state) const RECORDS_END: [u8; 1] = [b'd' + 1];
pub(in crate::state) const APPLIED_META_KEY: [u8; 1] = [b'm'];
pub(in crate::state) const SESSIONS_START: [u8; 1] = [b's'];
pub(in crate::state) const SESSIONS_END: [u8; 1] = [b's' + 1];

/// Most bytes of a record before its value.
const RECORD_HEAD_BYTES_MAX: usize = 1 + 3 * VARINT_BYTES_MAX;

const RECORD: u8 = 0;
const DELETED: u8 = 1;

pub(in crate::state) fn record_key(key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(b'd');
    bytes.extend_from_slice(key);
    bytes
}

pub(in crate::state) fn session_key(id: Index) -> [u8; 9] {
    let mut key = [b's'; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

pub(in crate::state) fn decode_session_key(key: &[u8]) -> DecodeResult<Index> {
    match key {
        [b's', id @ ..] => id
            .try_into()
            .map(Index::from_be_bytes)
            .map_err(|_| malformed("a session's key has another length")),
        _ => Err(malformed("not a session's key")),
    }
}

/// Appends a record; `None` is a deletion.
pub(in crate::state) fn encode_change(change: Option<&Record>, out: &mut BytesMut) {
    let Some(record) = change else { return out.put_u8(DELETED) };
    out.reserve(RECORD_HEAD_BYTES_MAX + record.value.len());
    out.put_u8(RECORD);
    put_varint(out, record.version);
    put_varint(out, record.create_revision);
    put_varint(out, record.modify_revision);
    out.put_slice(&record.value);
}

/// Reads a record; `None` is a deletion.
pub(in crate::state) fn decode_change(bytes: &Bytes) -> DecodeResult<Option<Record>> {
    Ok(record_head(bytes)?.map(|(versions, size_bytes)| {
        let Versions { version, create_revision, modify_revision } = versions;
        let value = bytes.slice(size_bytes..);
        Record { value, version, create_revision, modify_revision }
    }))
}

/// Reads the versions of a record without its value; `None` is a deletion.
pub(in crate::state) fn decode_versions(bytes: &[u8]) -> DecodeResult<Option<Versions>> {
    Ok(record_head(bytes)?.map(|(versions, _)| versions))
}

/// Returns true for the value of a deleted key.
pub(in crate::state) fn is_deletion(key: &[u8], value: &[u8]) -> bool {
    key.starts_with(&RECORDS_START) && value == [DELETED]
}

/// Decodes the versions of a record and the place where its value starts; `None` is a deletion.
fn record_head(bytes: &[u8]) -> DecodeResult<Option<(Versions, usize)>> {
    match bytes {
        [] => return Err(malformed("a record is cut short")),
        [DELETED] => return Ok(None),
        [DELETED, ..] => return Err(malformed("something follows a deletion")),
        [RECORD, ..] => {}
        [_, ..] => return Err(DecodeError::Newer("a newer kind of record")),
    }
    let mut place = 1;
    let mut next = || {
        let (number, size_bytes) = read_varint(&bytes[place..])?;
        place += size_bytes;
        Ok(number)
    };
    let (version, create_revision, modify_revision) = (next()?, next()?, next()?);
    check_versions(version, create_revision, modify_revision)?;
    Ok(Some((Versions { version, create_revision, modify_revision }, place)))
}

pub(in crate::state) fn encode_applied_meta(applied_meta: AppliedMeta) -> BytesMut {
    let mut value = BytesMut::with_capacity(4 + 6 * VARINT_BYTES_MAX);
    value.put_u32_le(VERSION);
    put_applied_meta(applied_meta, &mut value);
    value
}

pub(in crate::state) fn decode_applied_meta(bytes: &Bytes) -> DecodeResult<AppliedMeta> {
    let mut reader = ByteReader::new(bytes);
    match reader.u32()? {
        VERSION => {}
        0 | 1 => return Err(malformed("format 1 of the state, which no release has written")),
        _ => return Err(DecodeError::Newer("a newer format of the state")),
    }
    let applied_meta = read_applied_meta(&mut reader)?;
    reader.finish()?;
    Ok(applied_meta)
}

/// Appends the metadata, encoded as on disk and in snapshots.
pub(in crate::state) fn put_applied_meta(applied_meta: AppliedMeta, out: &mut BytesMut) {
    let AppliedMeta { position, clock_ms, revision, generation, rules } = applied_meta;
    for number in [position.term, position.index, clock_ms, revision] {
        put_varint(out, number);
    }
    put_varint(out, generation.into());
    put_varint(out, rules.into());
}

pub(in crate::state) fn read_applied_meta(reader: &mut ByteReader) -> DecodeResult<AppliedMeta> {
    let position = Position::new(reader.varint()?, reader.varint()?);
    let applied_meta = AppliedMeta {
        position,
        clock_ms: reader.varint()?,
        revision: reader.varint()?,
        generation: reader.varint_u32()?,
        rules: reader.varint_u32()?,
    };
    applied_meta.check()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::version::VERSION_MAX;

    /// These bytes are in existing data directories.
    #[test]
    fn bytes_stay_what_they_were() {
        let value = Bytes::from_static(b"value");
        let record = Record { value, version: 2, create_revision: 3, modify_revision: 400 };
        let mut encoded = BytesMut::new();
        encode_change(Some(&record), &mut encoded);
        assert_eq!(&encoded[..], b"\0\x02\x03\x90\x03value");
        let mut encoded = BytesMut::new();
        encode_change(None, &mut encoded);
        assert_eq!(&encoded[..], b"\x01");
        let position = Position::new(5, 600);
        let applied_meta =
            AppliedMeta { position, clock_ms: 7, revision: 8, generation: 9, rules: 1 };
        assert_eq!(
            &encode_applied_meta(applied_meta)[..],
            b"\x02\0\0\0\x05\xd8\x04\x07\x08\x09\x01"
        );
        assert_eq!(record_key(b"k"), b"dk");
        assert_eq!(session_key(258), *b"s\0\0\0\0\0\0\x01\x02");
    }

    /// S3. A state of a newer format, or of one that was never released, is refused by name.
    #[test]
    fn other_formats_are_refused_by_name() {
        let version_1 = [&1u32.to_le_bytes()[..], &[0; 24]].concat();
        let error = decode_applied_meta(&Bytes::from(version_1)).unwrap_err();
        assert!(error.to_string().contains("format 1 of the state"), "{error}");
        let version_3 = [&3u32.to_le_bytes()[..], &[0; 24]].concat();
        assert!(decode_applied_meta(&Bytes::from(version_3)).unwrap_err().is_newer());
        let applied_meta = AppliedMeta { rules: VERSION_MAX + 1, ..AppliedMeta::default() };
        let error = decode_applied_meta(&encode_applied_meta(applied_meta).freeze()).unwrap_err();
        assert_eq!(error, DecodeError::NewerRules(VERSION_MAX + 1));
        assert!(decode_change(&Bytes::from_static(b"\x02\x01\x01\x01")).unwrap_err().is_newer());
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
            let versions = Versions { version, create_revision, modify_revision };
            let record = Record { value: value.into(), version, create_revision, modify_revision };
            let head_bytes = [version, create_revision, modify_revision]
                .map(crate::state::codec::varint_bytes);
            let head_bytes = 1 + head_bytes.iter().sum::<usize>();
            let mut encoded = BytesMut::new();
            encode_change(Some(&record), &mut encoded);
            let encoded = encoded.freeze();
            prop_assert_eq!(decode_change(&encoded), Ok(Some(record)));
            prop_assert_eq!(decode_versions(&encoded), Ok(Some(versions)));
            for end in 0..head_bytes {
                prop_assert!(decode_change(&encoded.slice(..end)).is_err());
                prop_assert!(decode_versions(&encoded[..end]).is_err());
            }
            let [term, index, clock_ms, id] = numbers;
            let (term, index) = (term >> 1, index >> 1);
            let (position, revision) = (Position::new(term, index), index / 2);
            let applied_meta = AppliedMeta { position, clock_ms, revision, generation: id as u32, rules: 1 };
            let encoded = encode_applied_meta(applied_meta).freeze();
            prop_assert_eq!(decode_applied_meta(&encoded), Ok(applied_meta));
            for end in 0..encoded.len() {
                prop_assert!(decode_applied_meta(&encoded.slice(..end)).is_err());
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
            encode_change(Some(&record), &mut encoded);
            assert!(decode_versions(&encoded).is_err(), "{record:?}");
            assert!(decode_change(&encoded.freeze()).is_err(), "{record:?}");
        }
    }
}
