//! Raft's data as sealed records: the promise of `docs/format.md`, kept by the fixtures at the
//! bottom.

use std::collections::BTreeSet;

use bytes::Bytes;
use raft_core::types::{
    Configuration, Entry, HardState, Index, Memory, NodeId, Payload, Position, SnapshotContent,
    SnapshotMeta,
};

use crate::record::{Damage, Fields, seal, seal_into, unseal};

/// Version of log, metadata and snapshot files.
pub(crate) const FORMAT_VERSION: u16 = 1;

/// Batches and snapshots are numbered, and none gets beyond this by counting: a number that did would
/// leave no room for the next one.
pub(crate) const NUMBER_MAX: u64 = (1 << 63) - 1;

/// What a RocksDB instance written by us is recognised by.
pub(crate) const MAGIC: &[u8; 8] = b"raft-log";

// Keys. One column family holds everything, so that one flush covers everything and a WAL file is
// never kept for the sake of a quiet one.
pub(crate) const KEY_FORMAT: &[u8] = b"f";
pub(crate) const KEY_BATCH: &[u8] = b"b";
pub(crate) const KEY_HARD_STATE: &[u8] = b"h";
pub(crate) const KEY_LOG_START: &[u8] = b"s";
pub(crate) const KEY_SNAPSHOT: &[u8] = b"p";
const KEY_ENTRY: u8 = b'e';
/// Behind every entry's key.
pub(crate) const KEY_ENTRY_END: &[u8] = &[KEY_ENTRY + 1];

const TAG_FORMAT: u8 = b'F';
const TAG_BATCH: u8 = b'B';
const TAG_HARD_STATE: u8 = b'H';
/// Hard states of nodes whose memory is not intact.
const TAG_RECOVERING: u8 = b'R';
const TAG_NEW: u8 = b'W';
const TAG_MET: u8 = b'M';
const TAG_LOG_START: u8 = b'S';
const TAG_SNAPSHOT: u8 = b'P';
const TAG_ENTRY: u8 = b'E';
const TAG_SNAPSHOT_FILE: u8 = b'N';
const TAG_FLOOR: u8 = b'L';

const KIND_NOOP: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_CONFIGURATION: u8 = 2;

pub(crate) fn entry_key(index: Index) -> [u8; 9] {
    let mut key = [KEY_ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The index in an entry's key; `None` if the key is not one.
pub(crate) fn entry_key_index(key: &[u8]) -> Option<Index> {
    let (&[KEY_ENTRY], index) = key.split_first_chunk::<1>()? else { return None };
    Some(Index::from_be_bytes(index.try_into().ok()?))
}

/// Encodes into a buffer that is used again.
pub(crate) fn encode_entry(out: &mut Vec<u8>, entry: &Entry) {
    seal_into(out, TAG_ENTRY, |out| {
        out.extend_from_slice(&entry.index.to_be_bytes());
        out.extend_from_slice(&entry.term.to_be_bytes());
        match &entry.payload {
            Payload::Noop => out.push(KIND_NOOP),
            Payload::Command(command) => {
                out.push(KIND_COMMAND);
                out.extend_from_slice(command);
            }
            Payload::Configuration(configuration) => {
                out.push(KIND_CONFIGURATION);
                put_configuration(out, configuration);
            }
        }
    });
}

pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry, Damage> {
    let mut fields = unseal(TAG_ENTRY, bytes)?;
    let index = fields.u64()?;
    let Position { term, index } = in_range(Position::new(fields.u64()?, index))?;
    let payload = match fields.u8()? {
        KIND_NOOP => Payload::Noop,
        KIND_COMMAND => {
            let left = fields.0.len();
            Payload::Command(Bytes::copy_from_slice(fields.bytes(left)?))
        }
        KIND_CONFIGURATION => Payload::Configuration(configuration(&mut fields)?),
        kind => return Err(Damage(format!("an entry of unknown kind {kind}"))),
    };
    fields.done()?;
    Ok(Entry { index, term, payload })
}

pub(crate) fn encode_format() -> Vec<u8> {
    seal(TAG_FORMAT, |out| {
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
    })
}

/// The version; all versions keep this record as it is.
pub(crate) fn decode_format(bytes: &[u8]) -> Result<u16, Damage> {
    let mut fields = unseal(TAG_FORMAT, bytes)?;
    if fields.bytes(MAGIC.len())? != MAGIC {
        return Err(Damage("not a raft log".to_owned()));
    }
    let version = fields.u16()?;
    fields.done()?;
    Ok(version)
}

/// First record of every batch. It is what tells a torn tail from damage: a batch that says that
/// batch 7 was durable before it proves that a log without batch 7 is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchMark {
    /// Of this batch, from 1, never reused.
    pub(crate) number: u64,
    /// The last batch that was durable when this one was written.
    pub(crate) durable_through: u64,
}

/// Length of an encoded [`BatchMark`]: tag, two numbers, checksum.
pub(crate) const BATCH_MARK_BYTES: usize = 1 + 8 + 8 + 4;

pub(crate) fn encode_batch_mark(mark: BatchMark) -> Vec<u8> {
    seal(TAG_BATCH, |out| {
        out.extend_from_slice(&mark.number.to_be_bytes());
        out.extend_from_slice(&mark.durable_through.to_be_bytes());
    })
}

pub(crate) fn decode_batch_mark(bytes: &[u8]) -> Result<BatchMark, Damage> {
    let mut fields = unseal(TAG_BATCH, bytes)?;
    let mark = BatchMark { number: number(&mut fields)?, durable_through: fields.u64()? };
    fields.done()?;
    if mark.durable_through > mark.number {
        return Err(Damage(format!("batch {} speaks of a later one", mark.number)));
    }
    Ok(mark)
}

pub(crate) fn encode_hard_state(hard_state: &HardState) -> Vec<u8> {
    let tag = match hard_state.memory {
        Memory::Intact => TAG_HARD_STATE,
        Memory::New => TAG_NEW,
        Memory::Met => TAG_MET,
        Memory::Lost => TAG_RECOVERING,
    };
    seal(tag, |out| {
        out.extend_from_slice(&hard_state.term.to_be_bytes());
        // No node has the id 0.
        out.extend_from_slice(&hard_state.voted_for.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&hard_state.commit_index.to_be_bytes());
    })
}

pub(crate) fn decode_hard_state(bytes: &[u8]) -> Result<HardState, Damage> {
    let (tag, memory) = match bytes.first() {
        Some(&TAG_RECOVERING) => (TAG_RECOVERING, Memory::Lost),
        Some(&TAG_NEW) => (TAG_NEW, Memory::New),
        Some(&TAG_MET) => (TAG_MET, Memory::Met),
        Some(_) | None => (TAG_HARD_STATE, Memory::Intact),
    };
    let mut fields = unseal(tag, bytes)?;
    let term = fields.u64()?;
    let voted_for = Some(fields.u64()?).filter(|node| *node != 0);
    let commit_index = fields.u64()?;
    fields.done()?;
    in_range(Position::new(term, commit_index))?;
    Ok(HardState { term, voted_for, commit_index, memory })
}

pub(crate) fn encode_log_start(meta: &SnapshotMeta) -> Vec<u8> {
    seal(TAG_LOG_START, |out| put_meta(out, meta))
}

pub(crate) fn decode_log_start(bytes: &[u8]) -> Result<SnapshotMeta, Damage> {
    let mut fields = unseal(TAG_LOG_START, bytes)?;
    let meta = meta(&mut fields)?;
    fields.done()?;
    Ok(meta)
}

/// The published snapshot: which file, and what must be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) meta: SnapshotMeta,
    pub(crate) content: SnapshotContent,
    /// Distinguishes the files of snapshots at one position; see `snapshot_file::file_name`.
    pub(crate) serial: u64,
}

pub(crate) fn encode_published(published: &Published) -> Vec<u8> {
    seal(TAG_SNAPSHOT, |out| {
        out.extend_from_slice(&published.serial.to_be_bytes());
        put_content(out, &published.content);
        put_meta(out, &published.meta);
    })
}

pub(crate) fn decode_published(bytes: &[u8]) -> Result<Published, Damage> {
    let mut fields = unseal(TAG_SNAPSHOT, bytes)?;
    let serial = number(&mut fields)?;
    let content = content(&mut fields)?;
    let meta = meta(&mut fields)?;
    fields.done()?;
    Ok(Published { meta, content, serial })
}

/// What a snapshot file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHeader {
    pub(crate) chunk_bytes: u32,
    pub(crate) meta: SnapshotMeta,
    /// Known beforehand when the bytes come from a peer; such a file can be resumed.
    pub(crate) expected: Option<SnapshotContent>,
}

/// What stands in a header for a content that is not known beforehand.
const UNKNOWN_CONTENT: SnapshotContent = SnapshotContent { size_bytes: 0, checksum: 0 };

pub(crate) fn encode_snapshot_header(header: &SnapshotHeader) -> Vec<u8> {
    seal(TAG_SNAPSHOT_FILE, |out| {
        out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
        out.extend_from_slice(&header.chunk_bytes.to_be_bytes());
        out.push(u8::from(header.expected.is_some()));
        put_content(out, &header.expected.unwrap_or(UNKNOWN_CONTENT));
        put_meta(out, &header.meta);
    })
}

pub(crate) fn decode_snapshot_header(bytes: &[u8]) -> Result<SnapshotHeader, Damage> {
    let mut fields = unseal(TAG_SNAPSHOT_FILE, bytes)?;
    let version = fields.u16()?;
    if version != FORMAT_VERSION {
        return Err(Damage(format!(
            "format version {version}, this program knows {FORMAT_VERSION}"
        )));
    }
    let chunk_bytes = fields.u32()?;
    let expected = match (fields.u8()?, content(&mut fields)?) {
        (0, UNKNOWN_CONTENT) => None,
        (1, content) => Some(content),
        _ => return Err(Damage("neither with nor without a content".to_owned())),
    };
    let meta = meta(&mut fields)?;
    fields.done()?;
    if chunk_bytes == 0 {
        return Err(Damage("chunks of no bytes".to_owned()));
    }
    Ok(SnapshotHeader { chunk_bytes, meta, expected })
}

/// The number of the last batch known durable when the storage was last closed in good order.
pub(crate) fn encode_floor(number: u64) -> Vec<u8> {
    seal(TAG_FLOOR, |out| out.extend_from_slice(&number.to_be_bytes()))
}

pub(crate) fn decode_floor(bytes: &[u8]) -> Result<u64, Damage> {
    let mut fields = unseal(TAG_FLOOR, bytes)?;
    let number = number(&mut fields)?;
    fields.done()?;
    Ok(number)
}

fn number(fields: &mut Fields<'_>) -> Result<u64, Damage> {
    match fields.u64()? {
        number @ 0..=NUMBER_MAX => Ok(number),
        number => Err(Damage(format!("the number {number}, which nothing gets to"))),
    }
}

fn in_range(position: Position) -> Result<Position, Damage> {
    match position.is_in_range() {
        true => Ok(position),
        false => Err(Damage(format!("the position {position}, which nothing gets to"))),
    }
}

fn put_content(out: &mut Vec<u8>, content: &SnapshotContent) {
    out.extend_from_slice(&content.size_bytes.to_be_bytes());
    out.extend_from_slice(&content.checksum.to_be_bytes());
}

fn content(fields: &mut Fields<'_>) -> Result<SnapshotContent, Damage> {
    Ok(SnapshotContent { size_bytes: fields.u64()?, checksum: fields.u32()? })
}

fn put_meta(out: &mut Vec<u8>, meta: &SnapshotMeta) {
    out.extend_from_slice(&meta.position.term.to_be_bytes());
    out.extend_from_slice(&meta.position.index.to_be_bytes());
    put_configuration(out, &meta.configuration);
}

fn meta(fields: &mut Fields<'_>) -> Result<SnapshotMeta, Damage> {
    let position = in_range(Position::new(fields.u64()?, fields.u64()?))?;
    Ok(SnapshotMeta { position, configuration: configuration(fields)? })
}

fn put_configuration(out: &mut Vec<u8>, configuration: &Configuration) {
    let Configuration { voters, outgoing, learners, .. } = configuration;
    for set in [voters, outgoing, learners] {
        let count = u32::try_from(set.len()).expect("fewer than 2^32 members");
        out.extend_from_slice(&count.to_be_bytes());
        for node in set {
            out.extend_from_slice(&node.to_be_bytes());
        }
    }
}

fn configuration(fields: &mut Fields<'_>) -> Result<Configuration, Damage> {
    let mut set = || {
        // A count is believed only as far as there are bytes, so nothing is reserved for it.
        let mut members = BTreeSet::new();
        for _ in 0..fields.u32()? {
            let member: NodeId = fields.u64()?;
            if member <= members.last().copied().unwrap_or(0) {
                return Err(Damage("members are out of order, twice there, or 0".to_owned()));
            }
            members.insert(member);
        }
        Ok(members)
    };
    Ok(Configuration {
        voters: set()?,
        outgoing: set()?,
        learners: set()?,
        ..Configuration::default()
    })
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
