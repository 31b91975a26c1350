//! Raft's data as sealed records. `docs/format.md` promises this format, and the tests compare it
//! with fixtures.
//!
//! Records with bytes that a client or a peer chose are masked (`draft.rs`): entries, hard state,
//! log start and published snapshot. The format, the mark of a batch, and small files hold no such
//! bytes and are not masked.

use bytes::Bytes;
use raft_core::types::{
    Entry, HardState, Index, Memory, Payload, Position, SnapshotContent, SnapshotMeta,
};

use super::configuration::{configuration, put_configuration, put_count};
use super::draft::{Draft, unmask};
use super::keys::{KEY_HARD_STATE, KEY_LOG_START, KEY_SNAPSHOT, entry_key};
use super::log_key::LogKey;
use crate::record::{Damage, Fields, seal, unseal};

/// Version of log, metadata and snapshot files.
pub(crate) const FORMAT_VERSION: u16 = 2;

/// Largest number of a batch or a snapshot. Counting never reaches it. A larger number is damage,
/// and would leave no room for the next one.
pub(crate) const NUMBER_MAX: u64 = (1 << 63) - 1;

/// Identifies a RocksDB instance as a log of this crate.
pub(crate) const MAGIC: &[u8; 8] = b"raft-log";

const TAG_FORMAT: u8 = b'F';
const TAG_BATCH: u8 = b'B';
const TAG_HARD_STATE: u8 = b'H';
const TAG_LOG_START: u8 = b'S';
const TAG_SNAPSHOT: u8 = b'P';
/// A single entry. It is read and no longer written.
pub(crate) const TAG_ENTRY: u8 = b'E';
const TAG_RUN: u8 = b'R';
const TAG_SNAPSHOT_FILE: u8 = b'N';
const TAG_FLOOR: u8 = b'L';

const KIND_NOOP: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_CONFIGURATION: u8 = 2;

/// Adds the put of a *run*: entries with consecutive indexes in one record, so that a batch of many
/// small entries costs RocksDB one key.
///
/// A run may also be empty: it ends the log before `first`, see `docs/format.md`.
pub(crate) fn put_run(draft: &mut Draft, first: Index, entries: &[Entry]) {
    draft.put(entry_key(first), TAG_RUN, |out| {
        out.extend_from_slice(&first.to_be_bytes());
        for (entry, index) in entries.iter().zip(first..) {
            assert_eq!(entry.index, index, "a run has no gap");
            put_run_entry(out, entry);
        }
    });
}

fn put_run_entry(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&entry.term.to_be_bytes());
    out.push(match &entry.payload {
        Payload::Noop => KIND_NOOP,
        Payload::Command(_) => KIND_COMMAND,
        Payload::Configuration(_) => KIND_CONFIGURATION,
    });
    match &entry.payload {
        Payload::Noop => put_count(out, 0),
        Payload::Command(command) => {
            put_count(out, command.len());
            out.extend_from_slice(command);
        }
        Payload::Configuration(configuration) => {
            let length_at = out.len();
            put_count(out, 0);
            let payload_at = out.len();
            put_configuration(out, configuration);
            let length = u32::try_from(out.len() - payload_at).expect("bytes of a configuration");
            out[length_at..payload_at].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// Entries as one record holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The index in the record's key.
    pub(crate) first: Index,
    /// Consecutive from `first` on. Those that another run replaces are not part of the log.
    pub(crate) entries: Vec<Entry>,
}

/// Decodes a run, or the record of a single entry as programs before the first release wrote it.
pub(crate) fn decode_run(bytes: &[u8], key: &LogKey) -> Result<Run, Damage> {
    if bytes.first() == Some(&TAG_ENTRY) {
        let entry = decode_single_entry(bytes, key)?;
        return Ok(Run { first: entry.index, entries: vec![entry] });
    }
    let body = Bytes::from(unmask(TAG_RUN, bytes, key)?);
    let mut fields = Fields(&body);
    let first = in_range(Position::new(0, fields.u64()?))?.index;
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let next = first + entries.len() as u64;
        let Position { term, index } = in_range(Position::new(fields.u64()?, next))?;
        let kind = fields.u8()?;
        let length = fields.u32()? as usize;
        let at = body.len() - fields.0.len();
        fields.bytes(length)?;
        // Slices the body: no other copy.
        let payload = payload(kind, body.slice(at..at + length))?;
        entries.push(Entry { index, term, payload });
    }
    Ok(Run { first, entries })
}

fn decode_single_entry(bytes: &[u8], key: &LogKey) -> Result<Entry, Damage> {
    let body = Bytes::from(unmask(TAG_ENTRY, bytes, key)?);
    let mut fields = Fields(&body);
    let index = fields.u64()?;
    let Position { term, index } = in_range(Position::new(fields.u64()?, index))?;
    let kind = fields.u8()?;
    let at = body.len() - fields.0.len();
    Ok(Entry { index, term, payload: payload(kind, body.slice(at..))? })
}

fn payload(kind: u8, bytes: Bytes) -> Result<Payload, Damage> {
    match kind {
        KIND_NOOP if bytes.is_empty() => Ok(Payload::Noop),
        KIND_NOOP => Err(Damage(format!("a no-op with {} bytes", bytes.len()))),
        KIND_COMMAND => Ok(Payload::Command(bytes)),
        KIND_CONFIGURATION => {
            let mut fields = Fields(&bytes);
            let configuration = configuration(&mut fields)?;
            fields.done()?;
            Ok(Payload::Configuration(Box::new(configuration)))
        }
        kind => Err(Damage(format!("an entry of unknown kind {kind}"))),
    }
}

/// The format of a log, and which secret it was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) version: u16,
    /// Fingerprint of the [`LogKey`]; `None` for another version, which may not have one.
    pub(crate) fingerprint: Option<u64>,
}

pub(crate) fn encode_format(key: &LogKey) -> Vec<u8> {
    let fingerprint = key.fingerprint();
    seal(TAG_FORMAT, |out| {
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_be_bytes());
        out.extend_from_slice(&fingerprint.to_be_bytes());
    })
}

/// All versions keep the layout of this record up to and including the version.
pub(crate) fn decode_format(bytes: &[u8]) -> Result<Format, Damage> {
    let mut fields = unseal(TAG_FORMAT, bytes)?;
    if fields.bytes(MAGIC.len())? != MAGIC {
        return Err(Damage("not a raft log".to_owned()));
    }
    let version = fields.u16()?;
    if version != FORMAT_VERSION {
        return Ok(Format { version, fingerprint: None });
    }
    let fingerprint = Some(fields.u64()?);
    fields.done()?;
    Ok(Format { version, fingerprint })
}

/// First record of every batch. It distinguishes a torn tail from damage: if a mark says that batch
/// 7 was durable before its own batch, a log without batch 7 is damaged. It carries a MAC, so that
/// no other bytes can make that claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchMark {
    /// Number of this batch, from 1, never reused. Batch 0 creates the log.
    pub(crate) number: u64,
    /// The last batch that was durable when this one was written.
    pub(crate) durable_through: u64,
    /// Checksum of the operations after the mark.
    pub(crate) content: u32,
}

/// Length of an encoded [`BatchMark`]: tag, two numbers, content, MAC, checksum.
pub(crate) const BATCH_MARK_BYTES: usize = 1 + 8 + 8 + 4 + 8 + 4;

pub(crate) fn encode_batch_mark(mark: BatchMark, key: &LogKey) -> Vec<u8> {
    let BatchMark { number, durable_through, content } = mark;
    seal(TAG_BATCH, |out| {
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&durable_through.to_be_bytes());
        out.extend_from_slice(&content.to_be_bytes());
        out.extend_from_slice(&key.mac(number, durable_through, content).to_be_bytes());
    })
}

pub(crate) fn decode_batch_mark(bytes: &[u8], key: &LogKey) -> Result<BatchMark, Damage> {
    let mut fields = unseal(TAG_BATCH, bytes)?;
    let mark = BatchMark {
        number: number(&mut fields)?,
        durable_through: fields.u64()?,
        content: fields.u32()?,
    };
    let mac = fields.u64()?;
    fields.done()?;
    if mac != key.mac(mark.number, mark.durable_through, mark.content) {
        return Err(Damage("its MAC is not of this log".to_owned()));
    }
    if mark.durable_through > mark.number {
        return Err(Damage(format!("batch {} speaks of a later one", mark.number)));
    }
    Ok(mark)
}

pub(crate) fn put_hard_state(draft: &mut Draft, hard_state: &HardState) {
    // Names every field, so that a new one cannot be forgotten here.
    let HardState { term, voted_for, commit_index, memory } = hard_state;
    draft.put(KEY_HARD_STATE, TAG_HARD_STATE, |out| {
        out.extend_from_slice(&term.to_be_bytes());
        // No node has the id 0.
        out.extend_from_slice(&voted_for.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&commit_index.to_be_bytes());
        out.push(match memory {
            Memory::Intact => 0,
            Memory::New => 1,
            Memory::Met => 2,
            Memory::Lost => 3,
        });
    });
}

pub(crate) fn decode_hard_state(bytes: &[u8], key: &LogKey) -> Result<HardState, Damage> {
    let body = unmask(TAG_HARD_STATE, bytes, key)?;
    let mut fields = Fields(&body);
    let term = fields.u64()?;
    let voted_for = Some(fields.u64()?).filter(|node| *node != 0);
    let commit_index = fields.u64()?;
    let memory = match fields.u8()? {
        0 => Memory::Intact,
        1 => Memory::New,
        2 => Memory::Met,
        3 => Memory::Lost,
        other => return Err(Damage(format!("a memory of unknown kind {other}"))),
    };
    fields.done()?;
    in_range(Position::new(term, commit_index))?;
    Ok(HardState { term, voted_for, commit_index, memory })
}

pub(crate) fn put_log_start(draft: &mut Draft, meta: &SnapshotMeta) {
    draft.put(KEY_LOG_START, TAG_LOG_START, |out| put_meta(out, meta));
}

pub(crate) fn decode_log_start(bytes: &[u8], key: &LogKey) -> Result<SnapshotMeta, Damage> {
    let body = unmask(TAG_LOG_START, bytes, key)?;
    let mut fields = Fields(&body);
    let meta = meta(&mut fields)?;
    fields.done()?;
    Ok(meta)
}

/// The published snapshot: the serial number of its file, and the content that must be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) meta: SnapshotMeta,
    pub(crate) content: SnapshotContent,
    /// Distinguishes the files of snapshots at one position; see `snapshot_file::file_name`.
    pub(crate) serial: u64,
}

pub(crate) fn put_published(draft: &mut Draft, published: &Published) {
    draft.put(KEY_SNAPSHOT, TAG_SNAPSHOT, |out| {
        out.extend_from_slice(&published.serial.to_be_bytes());
        put_content(out, &published.content);
        put_meta(out, &published.meta);
    });
}

pub(crate) fn decode_published(bytes: &[u8], key: &LogKey) -> Result<Published, Damage> {
    let body = unmask(TAG_SNAPSHOT, bytes, key)?;
    let mut fields = Fields(&body);
    let serial = number(&mut fields)?;
    if serial == NUMBER_MAX {
        return Err(Damage("no serial follows that of the snapshot".into()));
    }
    let content = content(&mut fields)?;
    let meta = meta(&mut fields)?;
    fields.done()?;
    Ok(Published { meta, content, serial })
}

/// The record at the beginning of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHeader {
    pub(crate) chunk_bytes: u32,
    pub(crate) meta: SnapshotMeta,
    /// Known beforehand if the bytes come from a peer; such a file can be resumed.
    pub(crate) expected: Option<SnapshotContent>,
}

/// Placeholder in a header for a content that is not known beforehand.
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

/// Encodes the floor: the number of a batch that the log must contain. It is written when the
/// storage is closed in good order, and when a log is opened whose marks claim more.
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
    if position.is_in_range() {
        Ok(position)
    } else {
        Err(Damage(format!("the position {position}, which nothing gets to")))
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
    Ok(SnapshotMeta::new(position, configuration(fields)?))
}

pub(crate) fn flag(fields: &mut Fields<'_>) -> Result<bool, Damage> {
    match fields.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Damage(format!("{other} where 0 or 1 belongs"))),
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
