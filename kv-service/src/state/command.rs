//! Commands: the entries of the log, as the machine understands them, and their bytes (format 2).
//!
//! Everything that decides a command's effect travels in the command: the cluster version whose
//! rules hold, the leader's time, the limits in force, the session. So nodes with different
//! configurations still reach equal states.
//!
//! ```text
//!   format u8 = 2 | rules | kind u8 | namespace | principal | auth_revision | time_ms
//!                 | body | extensions
//!
//!   kind 1 open    nonce 16 bytes  ttl_ms  window  session_count_max
//!                  principal_session_count_max  name_len  name
//!        2 close   index  nonce 16 bytes
//!        3 write   index  nonce 16 bytes  sequence  lowest_unanswered
//!                  key_bytes_max  value_bytes_max  answer_bytes_max | operation
//!        4 to 9    reserved: leases
//!
//!   operation: tag u8 | lengths and numbers | bytes
//!        1 put               key_len  value_len              | key  value
//!        2 append            key_len  value_len              | key  value
//!        3 delete            key_len                         | key
//!        4 swap by value     key_len  value_len  expect_len  | key  value  expect
//!        5 swap by version   key_len  value_len  version     | key  value
//!        6 swap by revision  key_len  value_len  revision    | key  value       since version 2
//!        7                   reserved: transaction of several keys
//! ```
//!
//! Numbers are varints (`codec`) unless a width is given. `format` and `rules` keep their places in
//! every later format, so that each program can name the version to install. `rules` is the cluster
//! version in force when the command was proposed; an operation that needs a later version than
//! `rules` is refused. `namespace`, `principal` and `auth_revision` are reserved and 0.
//! `extensions` is the length of a reserved section (a lease of the key, a trace) and 0. Each of
//! these four takes one byte.
//!
//! [`Command::encode`] is total: its bytes decode to the command, whatever the fields hold, if the
//! program supports `rules`. The log therefore never holds a command of this program that no node
//! can apply. Decoding is strict. It distinguishes newer from malformed bytes only for the text of
//! its error: a node stops at either.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{
    ByteReader, DecodeError, DecodeResult, len_bytes, malformed, put_len, put_varint, varint_bytes,
};
use crate::protocol::operation::{Expect, Nonce, Operation, SessionId};
use crate::protocol::version::{Feature, VERSION_MAX, has};

/// The longest key that the machine stores, in bytes, whatever limit a command carries. A rule of
/// every cluster version so far: to change it takes a [`Feature`].
pub const KEY_BYTES_LIMIT: usize = 64 << 10;

/// The longest value that the machine stores, in bytes, whatever limit a command carries. A rule of
/// every cluster version so far, like [`KEY_BYTES_LIMIT`].
pub const VALUE_BYTES_LIMIT: usize = 64 << 20;

/// The only format that is written, and read. Format 1 was never released.
const FORMAT: u8 = 2;

const OPEN: u8 = 1;
const CLOSE: u8 = 2;
const WRITE: u8 = 3;

const PUT: u8 = 1;
const APPEND: u8 = 2;
const DELETE: u8 = 3;
const SWAP_BY_VALUE: u8 = 4;
const SWAP_BY_VERSION: u8 = 5;
const SWAP_BY_REVISION: u8 = 6;

const NONCE_BYTES: usize = 16;

/// One command; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The cluster version in force at the node that proposes, at least [`Command::rules_min`].
    pub rules: u32,
    /// *Replicated time* in milliseconds: the machine's clock when the proposing leader took
    /// office, plus the monotonic time since then. The machine's clock is the largest time that a
    /// command carried.
    pub time_ms: u64,
    /// The action that the command executes.
    pub action: Action,
}

/// The action of a [`Command`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Opens a session; its id is the index of the entry and the nonce.
    OpenSession(Opening),
    /// Ends a session; a session that does not exist is not an error.
    CloseSession { session: SessionId },
    /// Executes an operation, exactly once for each (session, sequence).
    Write {
        session: SessionId,
        /// The request's number in its session, chosen by the client.
        sequence: u64,
        /// All smaller sequence numbers have been answered or given up.
        lowest_unanswered: u64,
        limits: WriteLimits,
        operation: Operation,
    },
}

/// The terms of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Random bits, drawn by the leader.
    pub nonce: Nonce,
    /// The session expires once its last activity is longer ago than this.
    pub ttl_ms: u64,
    /// How many requests of the session may be unanswered, from `lowest_unanswered` on; at least 1.
    pub window: u32,
    /// How many sessions there may be, this one included; at least 1. Those whose last activity is
    /// the longest ago are evicted.
    pub session_count_max: u64,
    /// The same for the sessions of this principal.
    pub principal_session_count_max: u64,
    /// The name in the client's certificate, as the leader verified it; empty if there is none.
    pub principal: Bytes,
}

/// Limits of a write, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLimits {
    /// Longest key; [`KEY_BYTES_LIMIT`] holds anyway.
    pub key_bytes_max: u64,
    /// Longest value that may result; [`VALUE_BYTES_LIMIT`] holds anyway.
    pub value_bytes_max: u64,
    /// Most bytes of outputs that all sessions together remember, each output counted as
    /// [`ANSWER_BYTES`](super::ANSWER_BYTES). Beyond, the session with the most outputs is evicted.
    pub answer_bytes_max: u64,
}

impl Command {
    /// The oldest cluster version that knows everything in the command.
    pub fn rules_min(&self) -> u32 {
        match &self.action {
            Action::Write { operation, .. } => {
                operation_feature(operation).map_or(1, Feature::since)
            }
            Action::OpenSession(_) | Action::CloseSession { .. } => 1,
        }
    }

    /// Encodes into one allocation of the exact size.
    ///
    /// # Panics
    /// If `rules` does not cover the command: the server checks the cluster version first.
    pub fn encode(&self) -> Bytes {
        assert!(self.rules >= self.rules_min(), "a command of a later version than the cluster's");
        assert!(self.rules <= VERSION_MAX, "a command that this program could not read");
        let size_bytes = self.size_bytes();
        let mut out = BytesMut::with_capacity(size_bytes);
        out.put_u8(FORMAT);
        put_varint(&mut out, self.rules.into());
        out.put_u8(match self.action {
            Action::OpenSession(_) => OPEN,
            Action::CloseSession { .. } => CLOSE,
            Action::Write { .. } => WRITE,
        });
        // See `check_reserved`.
        out.put_slice(&[0, 0, 0]);
        put_varint(&mut out, self.time_ms);
        match &self.action {
            Action::OpenSession(opening) => encode_opening(opening, &mut out),
            Action::CloseSession { session } => put_session(&mut out, *session),
            Action::Write { session, sequence, lowest_unanswered, limits, operation } => {
                put_session(&mut out, *session);
                put_varint(&mut out, *sequence);
                put_varint(&mut out, *lowest_unanswered);
                put_varint(&mut out, limits.key_bytes_max);
                put_varint(&mut out, limits.value_bytes_max);
                put_varint(&mut out, limits.answer_bytes_max);
                encode_operation(operation, &mut out);
            }
        }
        // Extensions.
        out.put_u8(0);
        assert_eq!(out.len(), size_bytes, "a command is as long as was counted");
        out.freeze()
    }

    /// The bytes that [`Command::encode`] returns, counted without encoding.
    pub fn size_bytes(&self) -> usize {
        let head = 6 + varint_bytes(self.rules.into()) + varint_bytes(self.time_ms);
        head + match &self.action {
            Action::OpenSession(opening) => {
                NONCE_BYTES
                    + varint_bytes(opening.ttl_ms)
                    + varint_bytes(opening.window.into())
                    + varint_bytes(opening.session_count_max)
                    + varint_bytes(opening.principal_session_count_max)
                    + len_bytes(&opening.principal)
                    + opening.principal.len()
            }
            Action::CloseSession { session } => session_bytes(*session),
            Action::Write { session, sequence, lowest_unanswered, limits, operation } => {
                session_bytes(*session)
                    + varint_bytes(*sequence)
                    + varint_bytes(*lowest_unanswered)
                    + varint_bytes(limits.key_bytes_max)
                    + varint_bytes(limits.value_bytes_max)
                    + varint_bytes(limits.answer_bytes_max)
                    + operation_bytes(operation)
            }
        }
    }

    /// Reads a command back; its keys and values share `bytes`.
    ///
    /// # Errors
    /// Bytes that `encode` would not have written.
    pub fn decode(bytes: &Bytes) -> Result<Command, DecodeError> {
        Self::decode_parts(bytes).map(|(command, _)| command)
    }

    /// [`Command::decode`], and the encoding of a write's operation.
    pub(super) fn decode_parts(bytes: &Bytes) -> Result<(Command, &[u8]), DecodeError> {
        let mut reader = ByteReader::new(bytes);
        let mut encoded_operation: &[u8] = &[];
        match reader.u8()? {
            FORMAT => {}
            0 | 1 => return Err(malformed("format 1 of commands, which no release has written")),
            _ => return Err(newer_format(&mut reader)),
        }
        let rules = reader.varint_u32()?;
        match rules {
            0 => return Err(malformed("a command of no cluster version")),
            1..=VERSION_MAX => {}
            _ => return Err(DecodeError::NewerRules(rules)),
        }
        let kind = reader.u8()?;
        check_reserved(reader.array()?)?;
        let time_ms = reader.varint()?;
        let action = match kind {
            OPEN => Action::OpenSession(decode_opening(&mut reader)?),
            CLOSE => Action::CloseSession { session: read_session(&mut reader)? },
            WRITE => Action::Write {
                session: read_session(&mut reader)?,
                sequence: reader.varint()?,
                lowest_unanswered: reader.varint()?,
                limits: WriteLimits {
                    key_bytes_max: reader.varint()?,
                    value_bytes_max: reader.varint()?,
                    answer_bytes_max: reader.varint()?,
                },
                operation: {
                    let start = reader.position();
                    let operation = decode_operation(&mut reader, rules)?;
                    encoded_operation = &bytes[start..reader.position()];
                    operation
                },
            },
            _ => return Err(DecodeError::Newer("an unknown kind of command")),
        };
        reader.reserved("an extension of a command")?;
        reader.finish()?;
        Ok((Command { rules, time_ms, action }, encoded_operation))
    }
}

/// Namespace, principal and `auth_revision`, each in one byte while it is 0.
fn check_reserved(fields: [u8; 3]) -> DecodeResult<()> {
    const NAMES: [&str; 3] = ["a namespace", "a principal", "a revision of the permissions"];
    match fields.iter().position(|field| *field != 0) {
        None => Ok(()),
        Some(place) => Err(DecodeError::Newer(NAMES[place])),
    }
}

/// A later format has `rules` in the same place.
fn newer_format(reader: &mut ByteReader<'_>) -> DecodeError {
    match reader.varint_u32() {
        Ok(rules) if rules > VERSION_MAX => DecodeError::NewerRules(rules),
        Ok(_) | Err(_) => DecodeError::Newer("an unknown format of commands"),
    }
}

fn put_session(out: &mut BytesMut, session: SessionId) {
    put_varint(out, session.index);
    out.put_u128_le(session.nonce.0);
}

fn session_bytes(session: SessionId) -> usize {
    varint_bytes(session.index) + NONCE_BYTES
}

fn read_session(reader: &mut ByteReader) -> DecodeResult<SessionId> {
    Ok(SessionId { index: reader.varint()?, nonce: Nonce(reader.u128()?) })
}

fn encode_opening(opening: &Opening, out: &mut BytesMut) {
    out.put_u128_le(opening.nonce.0);
    put_varint(out, opening.ttl_ms);
    put_varint(out, opening.window.into());
    put_varint(out, opening.session_count_max);
    put_varint(out, opening.principal_session_count_max);
    put_len(out, &opening.principal);
    out.put_slice(&opening.principal);
}

fn decode_opening(reader: &mut ByteReader) -> DecodeResult<Opening> {
    Ok(Opening {
        nonce: Nonce(reader.u128()?),
        ttl_ms: reader.varint()?,
        window: reader.varint_u32()?,
        session_count_max: reader.varint()?,
        principal_session_count_max: reader.varint()?,
        principal: {
            let size_bytes = reader.varint()?;
            reader.bytes(size_bytes)?
        },
    })
}

/// The feature that an operation needs, if version 1 does not have it.
fn operation_feature(operation: &Operation) -> Option<Feature> {
    match operation {
        Operation::Put { .. }
        | Operation::Append { .. }
        | Operation::Delete { .. }
        | Operation::CompareAndSwap { expect: Expect::Value(_) | Expect::Version(_), .. } => None,
        Operation::CompareAndSwap { expect: Expect::Revision(_), .. } => {
            Some(Feature::CompareRevision)
        }
    }
}

/// Tag, value, and the condition of a swap.
fn parts(operation: &Operation) -> (u8, Option<&Bytes>, Option<&Expect>) {
    match operation {
        Operation::Put { value, .. } => (PUT, Some(value), None),
        Operation::Append { value, .. } => (APPEND, Some(value), None),
        Operation::Delete { .. } => (DELETE, None, None),
        Operation::CompareAndSwap { expect, value, .. } => {
            let tag = match expect {
                Expect::Value(_) => SWAP_BY_VALUE,
                Expect::Version(_) => SWAP_BY_VERSION,
                Expect::Revision(_) => SWAP_BY_REVISION,
            };
            (tag, Some(value), Some(expect))
        }
    }
}

fn operation_bytes(operation: &Operation) -> usize {
    let (_, value, expect) = parts(operation);
    let counted = |bytes: &Bytes| len_bytes(bytes) + bytes.len();
    1 + counted(operation.key())
        + value.map_or(0, counted)
        + match expect {
            None => 0,
            Some(Expect::Value(expect)) => counted(expect),
            Some(Expect::Version(number) | Expect::Revision(number)) => varint_bytes(*number),
        }
}

fn encode_operation(operation: &Operation, out: &mut BytesMut) {
    let (tag, value, expect) = parts(operation);
    out.put_u8(tag);
    put_len(out, operation.key());
    if let Some(value) = value {
        put_len(out, value);
    }
    match expect {
        None => {}
        Some(Expect::Value(expect)) => put_len(out, expect),
        Some(Expect::Version(number) | Expect::Revision(number)) => put_varint(out, *number),
    }
    out.put_slice(operation.key());
    if let Some(value) = value {
        out.put_slice(value);
    }
    if let Some(Expect::Value(expect)) = expect {
        out.put_slice(expect);
    }
}

/// CRC-32C of an operation's encoding, which tells a repeated request from a different one with the
/// same sequence number. It is no secret and proves nothing; the nonce keeps other clients out of a
/// session.
pub(super) fn digest(encoded_operation: &[u8]) -> u32 {
    crc32c::crc32c(encoded_operation)
}

fn decode_operation(reader: &mut ByteReader, rules: u32) -> DecodeResult<Operation> {
    let tag = reader.u8()?;
    match tag {
        PUT | APPEND | DELETE | SWAP_BY_VALUE | SWAP_BY_VERSION => {}
        SWAP_BY_REVISION if has(rules, Feature::CompareRevision) => {}
        SWAP_BY_REVISION if has(VERSION_MAX, Feature::CompareRevision) => {
            return Err(malformed("a swap by revision before the cluster's version has it"));
        }
        _ => return Err(DecodeError::Newer("an unknown operation")),
    }
    let key_len = reader.varint()?;
    if tag == DELETE {
        return Ok(Operation::Delete { key: reader.bytes(key_len)? });
    }
    let value_len = reader.varint()?;
    // For a swap: a length, a version or a revision.
    let number = if matches!(tag, PUT | APPEND) { 0 } else { reader.varint()? };
    let (key, value) = (reader.bytes(key_len)?, reader.bytes(value_len)?);
    let swap = |key, value, expect| Operation::CompareAndSwap { key, expect, value };
    Ok(match tag {
        PUT => Operation::Put { key, value },
        APPEND => Operation::Append { key, value },
        SWAP_BY_VALUE => swap(key, value, Expect::Value(reader.bytes(number)?)),
        SWAP_BY_VERSION => swap(key, value, Expect::Version(number)),
        SWAP_BY_REVISION => swap(key, value, Expect::Revision(number)),
        _ => unreachable!("told apart above"),
    })
}
