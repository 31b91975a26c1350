//! The state as a stream of bytes, the same for every engine.
//!
//! ```text
//!   "KVSNAP" | version u16 = 1
//!   section*  =  kind u8 | length u32 | payload          all numbers little-endian
//!
//!   1 head      term u64  index u64  clock_ms u64                               once, first
//!   2 sessions  (id u64  session)+                                              ascending ids
//!   3 records   (key_len u32  value_len u32  version u64  create_revision u64
//!                modify_revision u64  key  value)+                              ascending keys
//!   4 end       session_count u64  record_count u64                             once, last
//! ```
//!
//! Sessions come before records. Both sides need memory for one section at a time. The storage below
//! guards the bytes by checksums; decoding is strict all the same, and refuses whatever the encoder
//! would not have written: a stream that ends early, out of order, or with something behind its end, and
//! sessions and records that the state at its index cannot hold.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::state_machine::{MachineError, MachineResult, SnapshotSource};
use raft_core::types::{Index, Position};

use super::codec::{DecodeError, DecodeResult, Reader, check_versions, put_len};
use super::command::{KEY_BYTES_LIMIT, VALUE_BYTES_LIMIT};
use super::engine::{Engine, Head, View};
use super::sessions::{Session, SessionMap, Sessions};
use crate::operation::{Record, SessionId};

const MAGIC: [u8; 8] = *b"KVSNAP\x01\x00";

const HEAD: u8 = 1;
const SESSIONS: u8 = 2;
const RECORDS: u8 = 3;
const END: u8 = 4;

const SECTION_HEAD_BYTES: usize = 5;
const RECORD_HEAD_BYTES: usize = 2 * 4 + 3 * 8;

/// Where the encoder ends a section, in bytes; the last session or record may exceed it.
const SECTION_BYTES_TARGET: usize = 64 << 10;

/// The largest section that a decoder gathers: a record of the largest size and those before it.
const SECTION_BYTES_MAX: usize =
    SECTION_BYTES_TARGET + RECORD_HEAD_BYTES + KEY_BYTES_LIMIT + VALUE_BYTES_LIMIT;

enum Stage {
    Head,
    /// Sessions with ids from here on.
    Sessions(SessionId),
    Records,
    Ended,
}

/// Streams a view; see the module.
pub(super) struct SnapshotEncoder {
    head: Head,
    sessions: SessionMap,
    view: Box<dyn View>,
    stage: Stage,
    record_count: u64,
    /// Encoded and not yet handed out: less than a section and the room that was asked for.
    out: BytesMut,
}

impl SnapshotEncoder {
    pub(super) fn new(head: Head, sessions: SessionMap, view: Box<dyn View>) -> Self {
        Self { head, sessions, view, stage: Stage::Head, record_count: 0, out: BytesMut::new() }
    }

    fn encode_section(&mut self) -> MachineResult<()> {
        match self.stage {
            Stage::Head => {
                self.out.put_slice(&MAGIC);
                let Head { position, clock_ms } = self.head;
                self.section(HEAD, |_, out| {
                    for number in [position.term, position.index, clock_ms] {
                        out.put_u64_le(number);
                    }
                });
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
                            out.put_u64_le(*id);
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
                    self.section(END, |_, out| counts.map(|count| out.put_u64_le(count)));
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
        assert!(length <= SECTION_BYTES_MAX, "records are within their limits");
        out[length_at..length_at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self.out = out;
    }
}

impl SnapshotSource for SnapshotEncoder {
    fn position(&self) -> Position {
        self.head.position
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
    out.reserve(RECORD_HEAD_BYTES + key.len() + record.value.len());
    put_len(out, key);
    put_len(out, &record.value);
    out.put_u64_le(record.version);
    out.put_u64_le(record.create_revision);
    out.put_u64_le(record.modify_revision);
    out.put_slice(key);
    out.put_slice(&record.value);
}

fn decode_record(reader: &mut Reader) -> DecodeResult<(Bytes, Record)> {
    let (key_len, value_len) = (reader.u32()?, reader.u32()?);
    let (version, create_revision) = (reader.u64()?, reader.u64()?);
    let modify_revision = reader.u64()?;
    check_versions(version, create_revision, modify_revision)?;
    let (key, value) = (reader.bytes(key_len)?, reader.bytes(value_len)?);
    if key.is_empty() || key.len() > KEY_BYTES_LIMIT || value.len() > VALUE_BYTES_LIMIT {
        return Err(DecodeError("a key or value is beyond its limits"));
    }
    Ok((key, Record { value, version, create_revision, modify_revision }))
}

/// Takes the stream in arbitrary cuts and hands records on to an engine.
pub(super) struct SnapshotDecoder {
    expected: Position,
    buffer: BytesMut,
    magic_seen: bool,
    head: Option<Head>,
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
            head: None,
            sessions: Sessions::default(),
            record_count: 0,
            last_key: Bytes::new(),
            ended: false,
        }
    }

    pub(super) fn push(&mut self, chunk: Bytes, engine: &mut dyn Engine) -> MachineResult<()> {
        self.buffer.extend_from_slice(&chunk);
        if !self.magic_seen {
            if self.buffer.len() < MAGIC.len() {
                return Ok(());
            }
            if self.buffer[..MAGIC.len()] != MAGIC {
                return Err(refused(DecodeError("no snapshot of a known version")));
            }
            self.buffer.advance(MAGIC.len());
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
            return Err(DecodeError("a section is beyond its limit"));
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
        let mut reader = Reader::new(payload);
        match (kind, self.head) {
            _ if self.ended => return Err(refused(DecodeError("something follows the end"))),
            _ if reader.is_empty() => return Err(refused(DecodeError("a section is empty"))),
            (HEAD, None) => self.on_head(&mut reader).map_err(refused)?,
            (SESSIONS, Some(head)) if self.record_count == 0 => {
                self.on_sessions(&mut reader, head.position.index).map_err(refused)?;
            }
            (RECORDS, Some(head)) => {
                while !reader.is_empty() {
                    let (key, record) =
                        self.next_record(&mut reader, head.position.index).map_err(refused)?;
                    engine.restore_record(key, record)?;
                }
            }
            (END, Some(_)) => {
                let counts = self.on_end(&mut reader);
                counts.map_err(refused)?;
            }
            _ => return Err(refused(DecodeError("a section is unknown or out of order"))),
        }
        reader.finish().map_err(refused)
    }

    fn on_head(&mut self, reader: &mut Reader) -> DecodeResult<()> {
        let position = Position::new(reader.u64()?, reader.u64()?);
        if position != self.expected {
            return Err(DecodeError("the snapshot is of another position than announced"));
        }
        self.head = Some(Head { position, clock_ms: reader.u64()? });
        Ok(())
    }

    fn on_sessions(&mut self, reader: &mut Reader, through: Index) -> DecodeResult<()> {
        while !reader.is_empty() {
            let id = reader.u64()?;
            self.sessions.restore(id, Session::decode(reader)?, through)?;
        }
        Ok(())
    }

    fn next_record(
        &mut self,
        reader: &mut Reader,
        through: Index,
    ) -> DecodeResult<(Bytes, Record)> {
        let (key, record) = decode_record(reader)?;
        if record.modify_revision > through {
            return Err(DecodeError("a record is newer than the state"));
        }
        // No key is empty, so the first is above the empty one.
        if key <= self.last_key {
            return Err(DecodeError("records are out of order"));
        }
        self.last_key = key.clone();
        self.record_count += 1;
        Ok((key, record))
    }

    fn on_end(&mut self, reader: &mut Reader) -> DecodeResult<()> {
        let counts = (reader.u64()?, reader.u64()?);
        if counts != (self.sessions.len() as u64, self.record_count) {
            return Err(DecodeError("the counts at the end do not match"));
        }
        self.ended = true;
        Ok(())
    }

    /// All pieces are in: the state beside the records, which the engine holds.
    pub(super) fn finish(self) -> MachineResult<(Head, Sessions)> {
        match self.head {
            Some(head) if self.ended && self.buffer.is_empty() => Ok((head, self.sessions)),
            _ => Err(refused(DecodeError("the stream ends too early or goes on after its end"))),
        }
    }
}

fn refused(error: DecodeError) -> MachineError {
    MachineError(format!(
        "the snapshot cannot be restored ({error}); it was written by another version, or is \
         damaged: start this node again without its data, and it gets a copy from the leader"
    ))
}
