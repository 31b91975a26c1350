//! The state as a stream of bytes, the same for every engine (format 2).
//!
//! ```text
//!   "KVSNAP" | format u16 = 2, little-endian
//!   section*  =  kind u8 | length u32, little-endian | payload
//!
//!   1 head      term  index  clock_ms  revision  generation  rules                once, first
//!   2 sessions  (index  session)+                                                 ascending
//!   3 records   (flags u8 = 0  key_len  value_len  version  create_revision
//!                modify_revision  key  value)+                                    ascending keys
//!   4 end       session_count  record_count                                       once, last
//! ```
//!
//! Numbers in payloads are varints (`codec`). `rules` is the newest cluster version that the state
//! may need: an older program refuses the stream and names the version to install, as it does for a
//! section or a record of an unknown kind. The other flags of a record are reserved, as on disk.
//!
//! Sessions come before records. Sender and receiver need memory for one section at a time. The
//! storage below protects the bytes by checksums. Decoding is strict all the same, and refuses
//! everything that the encoder would not have written: a stream that ends early, is out of order,
//! or goes on after its end, and sessions and records that the state at its index cannot hold.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource};
use raft_core::types::{Index, Position};

use super::codec::{
    ByteReader, DecodeError, DecodeResult, VARINT_BYTES_MAX, check_versions, malformed, put_len,
    put_varint,
};
use super::command::{KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT};
use super::engine::{AppliedMeta, Engine, View, format};
use super::session::{Session, SessionMap};
use super::sessions::Sessions;
use crate::protocol::operation::{Record, Revision};
use crate::protocol::version::{VERSION_MAX, VERSION_MIN};

const MAGIC: [u8; 6] = *b"KVSNAP";

/// The only format that is written, and read. Format 1 was never released.
const FORMAT: u16 = 2;

const START_BYTES: usize = MAGIC.len() + 2;

const HEAD: u8 = 1;
const SESSIONS: u8 = 2;
const RECORDS: u8 = 3;
const END: u8 = 4;

const SECTION_HEAD_BYTES: usize = 5;
const RECORD_HEAD_BYTES_MAX: usize = 1 + 5 * VARINT_BYTES_MAX;

/// A record without `modified_by` and lease.
const PLAIN: u8 = 0;

/// Where the encoder ends a section, in bytes; the last session or record may exceed it.
const SECTION_BYTES_TARGET: usize = 64 << 10;

/// The largest section that a decoder buffers: a record of the largest size and those before it.
const SECTION_BYTES_MAX: usize =
    SECTION_BYTES_TARGET + RECORD_HEAD_BYTES_MAX + KEY_BYTES_LIMIT + VALUE_BYTES_LIMIT;

enum Stage {
    AppliedMeta,
    /// Sessions of this index and later ones.
    Sessions(Index),
    Records,
    Ended,
}

/// Streams a view; see the module.
pub(super) struct SnapshotEncoder {
    applied_meta: AppliedMeta,
    sessions: SessionMap,
    view: Box<dyn View>,
    stage: Stage,
    record_count: u64,
    /// Encoded bytes that the caller has not taken: less than a section and the requested chunk.
    out: BytesMut,
}

impl SnapshotEncoder {
    pub(super) fn new(
        applied_meta: AppliedMeta,
        sessions: SessionMap,
        view: Box<dyn View>,
    ) -> Self {
        Self {
            applied_meta,
            sessions,
            view,
            stage: Stage::AppliedMeta,
            record_count: 0,
            out: BytesMut::new(),
        }
    }

    fn encode_section(&mut self) -> MachineResult<()> {
        match self.stage {
            Stage::AppliedMeta => {
                self.out.put_slice(&MAGIC);
                self.out.put_u16_le(FORMAT);
                self.section(HEAD, |this, out| format::put_applied_meta(this.applied_meta, out));
                self.stage = Stage::Sessions(0);
            }
            Stage::Sessions(from) => {
                let mut next = None;
                if self.sessions.range(from..).next().is_some() {
                    self.section(SESSIONS, |this, out| {
                        let start = out.len();
                        for (id, session) in this.sessions.range(from..) {
                            if out.len() - start >= SECTION_BYTES_TARGET {
                                next = Some(*id);
                                break;
                            }
                            put_varint(out, *id);
                            session.encode(out);
                        }
                    });
                }
                self.stage = next.map_or(Stage::Records, Stage::Sessions);
            }
            Stage::Records => {
                let page = self.view.next_page(SECTION_BYTES_TARGET)?;
                if page.is_empty() {
                    let counts = [self.sessions.len() as u64, self.record_count];
                    self.section(END, |_, out| counts.map(|count| put_varint(out, count)));
                    self.stage = Stage::Ended;
                } else {
                    self.record_count += page.len() as u64;
                    self.section(RECORDS, |_, out| {
                        for (key, record) in &page {
                            encode_record(key, record, out);
                        }
                    });
                }
            }
            Stage::Ended => {}
        }
        Ok(())
    }

    /// Writes a section whose length is known once its payload is there.
    fn section<T>(&mut self, kind: u8, payload: impl FnOnce(&Self, &mut BytesMut) -> T) {
        let mut out = std::mem::take(&mut self.out);
        out.put_u8(kind);
        let length_at = out.len();
        out.put_u32_le(0);
        payload(self, &mut out);
        let length = out.len() - length_at - 4;
        assert!(length > 0, "a section that the decoder takes");
        assert!(length <= SECTION_BYTES_MAX, "records are within their limits");
        out[length_at..length_at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self.out = out;
    }
}

impl SnapshotSource for SnapshotEncoder {
    fn position(&self) -> Position {
        self.applied_meta.position
    }

    fn next_chunk(&mut self, bytes_max: usize) -> MachineResult<Option<Bytes>> {
        let bytes_max = bytes_max.max(1);
        while self.out.len() < bytes_max && !matches!(self.stage, Stage::Ended) {
            self.encode_section()?;
        }
        let chunk_bytes = self.out.len().min(bytes_max);
        Ok((chunk_bytes > 0).then(|| self.out.split_to(chunk_bytes).freeze()))
    }
}

fn encode_record(key: &[u8], record: &Record, out: &mut BytesMut) {
    out.reserve(RECORD_HEAD_BYTES_MAX + key.len() + record.value.len());
    assert!(!key.is_empty() && key.len() <= KEY_BYTES_LIMIT, "a key that the decoder takes");
    assert!(record.value.len() <= VALUE_BYTES_LIMIT, "a value that the decoder takes");
    out.put_u8(PLAIN);
    put_len(out, key);
    put_len(out, &record.value);
    put_varint(out, record.version);
    put_varint(out, record.create_revision);
    put_varint(out, record.modify_revision);
    out.put_slice(key);
    out.put_slice(&record.value);
}

fn decode_record(reader: &mut ByteReader) -> DecodeResult<(Bytes, Record)> {
    if reader.u8()? != PLAIN {
        return Err(DecodeError::Newer("a newer kind of record"));
    }
    let (key_len, value_len) = (reader.varint()?, reader.varint()?);
    let (version, create_revision) = (reader.varint()?, reader.varint()?);
    let modify_revision = reader.varint()?;
    check_versions(version, create_revision, modify_revision)?;
    let (key, value) = (reader.bytes(key_len)?, reader.bytes(value_len)?);
    if key.is_empty() || key.len() > KEY_BYTES_LIMIT || value.len() > VALUE_BYTES_LIMIT {
        return Err(malformed("a key or value is beyond its limits"));
    }
    Ok((key, Record { value, version, create_revision, modify_revision }))
}

/// Decodes the stream from chunks of any size, and hands the records to an engine.
pub(super) struct SnapshotDecoder {
    expected: Position,
    buffer: BytesMut,
    magic_seen: bool,
    applied_meta: Option<AppliedMeta>,
    sessions: Sessions,
    record_count: u64,
    last_key: Bytes,
    ended: bool,
}

impl SnapshotDecoder {
    /// `expected` is the position that the snapshot was announced with.
    pub(super) fn new(expected: Position) -> Self {
        Self {
            expected,
            buffer: BytesMut::new(),
            magic_seen: false,
            applied_meta: None,
            sessions: Sessions::default(),
            record_count: 0,
            last_key: Bytes::new(),
            ended: false,
        }
    }

    pub(super) fn push(&mut self, chunk: Bytes, engine: &mut dyn Engine) -> MachineResult<()> {
        self.buffer.extend_from_slice(&chunk);
        if !self.magic_seen {
            let Some(start) = self.buffer.first_chunk::<START_BYTES>() else { return Ok(()) };
            check_start(start).map_err(refused)?;
            self.buffer.advance(START_BYTES);
            self.magic_seen = true;
        }
        while let Some((kind, payload)) = self.take_section().map_err(refused)? {
            self.on_section(kind, payload, engine)?;
        }
        Ok(())
    }

    /// The next section, once all of it is there.
    fn take_section(&mut self) -> DecodeResult<Option<(u8, Bytes)>> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<SECTION_HEAD_BYTES>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *head;
        let length = u32::from_le_bytes(length) as usize;
        if length > SECTION_BYTES_MAX {
            return Err(malformed("a section is beyond its limit"));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(SECTION_HEAD_BYTES);
        Ok(Some((kind, self.buffer.split_to(length).freeze())))
    }

    fn on_section(
        &mut self,
        kind: u8,
        payload: Bytes,
        engine: &mut dyn Engine,
    ) -> MachineResult<()> {
        let mut reader = ByteReader::new(&payload);
        match (kind, self.applied_meta) {
            _ if self.ended => return Err(refused(malformed("something follows the end"))),
            _ if reader.is_empty() => return Err(refused(malformed("a section is empty"))),
            (HEAD, None) => self.on_head(&mut reader).map_err(refused)?,
            (SESSIONS, Some(applied_meta)) if self.record_count == 0 => {
                self.on_sessions(&mut reader, applied_meta.position.index).map_err(refused)?;
            }
            (RECORDS, Some(applied_meta)) => {
                while !reader.is_empty() {
                    let (key, record) =
                        self.next_record(&mut reader, applied_meta.revision).map_err(refused)?;
                    engine.restore_record(key, record)?;
                }
            }
            (END, Some(_)) => {
                let counts = self.on_end(&mut reader);
                counts.map_err(refused)?;
            }
            (HEAD..=END, _) => return Err(refused(malformed("a section is out of order"))),
            _ => return Err(refused(DecodeError::Newer("an unknown section of a snapshot"))),
        }
        reader.finish().map_err(refused)
    }

    fn on_head(&mut self, reader: &mut ByteReader) -> DecodeResult<()> {
        let applied_meta = format::read_applied_meta(reader)?;
        if applied_meta.position != self.expected {
            return Err(malformed("the snapshot is of another position than announced"));
        }
        self.applied_meta = Some(applied_meta);
        Ok(())
    }

    fn on_sessions(&mut self, reader: &mut ByteReader, through: Index) -> DecodeResult<()> {
        while !reader.is_empty() {
            let id = reader.varint()?;
            self.sessions.restore(id, Session::decode(reader)?, through)?;
        }
        Ok(())
    }

    fn next_record(
        &mut self,
        reader: &mut ByteReader,
        last_revision: Revision,
    ) -> DecodeResult<(Bytes, Record)> {
        let (key, record) = decode_record(reader)?;
        if record.modify_revision > last_revision {
            return Err(malformed("a record is newer than the state"));
        }
        // No key is empty, so the first one is above the initial `last_key`.
        if key <= self.last_key {
            return Err(malformed("records are out of order"));
        }
        self.last_key = key.clone();
        self.record_count += 1;
        Ok((key, record))
    }

    fn on_end(&mut self, reader: &mut ByteReader) -> DecodeResult<()> {
        let counts = (reader.varint()?, reader.varint()?);
        if counts != (self.sessions.len() as u64, self.record_count) {
            return Err(malformed("the counts at the end do not match"));
        }
        self.ended = true;
        Ok(())
    }

    /// Called after the last chunk. Returns the state other than the records, which the engine
    /// holds.
    pub(super) fn finish(self) -> MachineResult<(AppliedMeta, Sessions)> {
        match self.applied_meta {
            Some(applied_meta) if self.ended && self.buffer.is_empty() => {
                assert_eq!(applied_meta.position, self.expected, "checked when it was read");
                self.sessions.assert_counts();
                Ok((applied_meta, self.sessions))
            }
            _ => Err(refused(malformed("the stream ends too early or goes on after its end"))),
        }
    }
}

fn check_start(start: &[u8; START_BYTES]) -> DecodeResult<()> {
    let [magic @ .., low, high] = start;
    match (*magic == MAGIC, u16::from_le_bytes([*low, *high])) {
        (true, FORMAT) => Ok(()),
        (true, 0 | 1) => {
            Err(malformed("it has format 1 of snapshots, which no release has written"))
        }
        (true, _) => Err(DecodeError::Newer("a newer format of snapshots")),
        (false, _) => Err(malformed("it is no snapshot of this state machine")),
    }
}

fn refused(error: DecodeError) -> MachineError {
    MachineError(if error.is_newer() {
        format!(
            "the snapshot was written by a newer version of kv ({error}; this program supports \
             cluster versions {VERSION_MIN} to {VERSION_MAX}): start that version on this node. \
             Nothing was changed"
        )
    } else {
        format!(
            "the snapshot cannot be restored ({error}): it is damaged, or of another program. Start \
             this node again without its data, and it gets a copy from the leader"
        )
    })
}
