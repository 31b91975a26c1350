//! What the service proposes to Raft, and its bytes in the log.
//!
//! Everything that decides about a command's effect travels in it: the leader's time, the limits in
//! force, the session. So nodes of unequal configuration still reach equal states.
//!
//! ```text
//!   version u8 = 1 | tag u8 | numbers, u64 little-endian | (a write's operation)
//!
//!   1 open   time_ms  ttl_ms  session_count_max
//!   2 close  time_ms  session
//!   3 write  time_ms  session  sequence  lowest_unanswered  value_bytes_max | operation
//!
//!   operation:  1 put               key_len u32  value_len u32               key  value
//!               2 append            key_len u32  value_len u32               key  value
//!               3 delete            key_len u32                              key
//!               4 swap by value     key_len u32  value_len u32  expect_len u32  key  value  expect
//!               5 swap by version   key_len u32  value_len u32  expect u64   key  value
//! ```
//!
//! Decoding is strict: another version, an unknown tag, a cut, a leftover, an empty or too long key
//! are refused. Keys and values are slices of what was decoded.

use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{DecodeError, DecodeResult, Reader, put_len};
use crate::operation::{Expect, Operation, SessionId};

/// The longest key that a command may name, in bytes; longer ones are malformed.
pub const KEY_BYTES_LIMIT: usize = 64 << 10;

/// The longest value that the machine stores, in bytes, whatever limit a command carries.
pub const VALUE_BYTES_LIMIT: usize = 64 << 20;

const VERSION: u8 = 1;

const OPEN: u8 = 1;
const CLOSE: u8 = 2;
const WRITE: u8 = 3;

const PUT: u8 = 1;
const APPEND: u8 = 2;
const DELETE: u8 = 3;
const SWAP_BY_VALUE: u8 = 4;
const SWAP_BY_VERSION: u8 = 5;

/// One entry of the log, as the machine understands it.
///
/// `time_ms` is *replicated time*: the proposing leader stamps the machine's clock as it was when it
/// took office plus the monotonic time since. The machine's clock is the largest that it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Opens a session; its id is the index of this entry.
    OpenSession {
        time_ms: u64,
        /// The session expires once its last activity is longer ago than this.
        ttl_ms: u64,
        /// How many sessions there may be, this one included (at least 1). Those whose last activity
        /// is the longest ago give way.
        session_count_max: u64,
    },
    /// Ends a session; one that does not exist (any more) is ended already.
    CloseSession { time_ms: u64, session: SessionId },
    /// Executes an operation, exactly once for each (session, sequence).
    Write {
        time_ms: u64,
        session: SessionId,
        /// The request's number in its session, chosen by the client.
        sequence: u64,
        /// The client has heard the answers of all requests below this one.
        lowest_unanswered: u64,
        /// No value may become larger than this, in bytes; [`VALUE_BYTES_LIMIT`] holds anyway.
        value_bytes_max: u64,
        operation: Operation,
    },
}

impl Command {
    /// One allocation of the exact size. Keys are not empty and at most [`KEY_BYTES_LIMIT`] long,
    /// which whoever proposes has checked; a longer one would be refused by every decoder.
    pub fn encode(&self) -> Bytes {
        let size_bytes = self.size_bytes();
        let mut out = BytesMut::with_capacity(size_bytes);
        out.put_u8(VERSION);
        match self {
            Command::OpenSession { time_ms, ttl_ms, session_count_max } => {
                out.put_u8(OPEN);
                put_numbers(&mut out, &[*time_ms, *ttl_ms, *session_count_max]);
            }
            Command::CloseSession { time_ms, session } => {
                out.put_u8(CLOSE);
                put_numbers(&mut out, &[*time_ms, *session]);
            }
            Command::Write {
                time_ms,
                session,
                sequence,
                lowest_unanswered,
                value_bytes_max,
                operation,
            } => {
                out.put_u8(WRITE);
                put_numbers(
                    &mut out,
                    &[*time_ms, *session, *sequence, *lowest_unanswered, *value_bytes_max],
                );
                encode_operation(operation, &mut out);
            }
        }
        debug_assert_eq!(out.len(), size_bytes);
        out.freeze()
    }

    /// The bytes that [`Command::encode`] returns, counted without encoding.
    pub fn size_bytes(&self) -> usize {
        const U64: usize = 8;
        2 + match self {
            Command::OpenSession { .. } => 3 * U64,
            Command::CloseSession { .. } => 2 * U64,
            Command::Write { operation, .. } => 5 * U64 + operation_size_bytes(operation),
        }
    }

    /// Reads a command back; its keys and values share `bytes`.
    ///
    /// # Errors
    /// Anything that `encode` would not have written, but for a key that is too long or empty.
    pub fn decode(bytes: Bytes) -> Result<Command, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(DecodeError("another version of the command format"));
        }
        let command = match reader.u8()? {
            OPEN => Command::OpenSession {
                time_ms: reader.u64()?,
                ttl_ms: reader.u64()?,
                session_count_max: reader.u64()?,
            },
            CLOSE => Command::CloseSession { time_ms: reader.u64()?, session: reader.u64()? },
            WRITE => Command::Write {
                time_ms: reader.u64()?,
                session: reader.u64()?,
                sequence: reader.u64()?,
                lowest_unanswered: reader.u64()?,
                value_bytes_max: reader.u64()?,
                operation: decode_operation(&mut reader)?,
            },
            _ => return Err(DecodeError("unknown command")),
        };
        reader.finish()?;
        Ok(command)
    }
}

fn put_numbers(out: &mut BytesMut, numbers: &[u64]) {
    for number in numbers {
        out.put_u64_le(*number);
    }
}

fn operation_size_bytes(operation: &Operation) -> usize {
    1 + match operation {
        Operation::Put { key, value } | Operation::Append { key, value } => {
            8 + key.len() + value.len()
        }
        Operation::Delete { key } => 4 + key.len(),
        Operation::CompareAndSwap { key, expect: Expect::Value(expect), value } => {
            12 + key.len() + value.len() + expect.len()
        }
        Operation::CompareAndSwap { key, expect: Expect::Version(_), value } => {
            16 + key.len() + value.len()
        }
    }
}

fn encode_operation(operation: &Operation, out: &mut BytesMut) {
    let (tag, key, value) = match operation {
        Operation::Put { key, value } => (PUT, key, Some(value)),
        Operation::Append { key, value } => (APPEND, key, Some(value)),
        Operation::Delete { key } => (DELETE, key, None),
        Operation::CompareAndSwap { key, expect: Expect::Value(_), value } => {
            (SWAP_BY_VALUE, key, Some(value))
        }
        Operation::CompareAndSwap { key, expect: Expect::Version(_), value } => {
            (SWAP_BY_VERSION, key, Some(value))
        }
    };
    out.put_u8(tag);
    put_len(out, key);
    if let Some(value) = value {
        put_len(out, value);
    }
    match operation {
        Operation::CompareAndSwap { expect: Expect::Value(expect), .. } => put_len(out, expect),
        Operation::CompareAndSwap { expect: Expect::Version(version), .. } => {
            out.put_u64_le(*version);
        }
        Operation::Put { .. } | Operation::Append { .. } | Operation::Delete { .. } => {}
    }
    out.put_slice(key);
    if let Some(value) = value {
        out.put_slice(value);
    }
    if let Operation::CompareAndSwap { expect: Expect::Value(expect), .. } = operation {
        out.put_slice(expect);
    }
}

fn decode_operation(reader: &mut Reader) -> DecodeResult<Operation> {
    let tag = reader.u8()?;
    let key_len = reader.u32()?;
    if key_len == 0 || key_len as usize > KEY_BYTES_LIMIT {
        return Err(DecodeError("a key is empty or too long"));
    }
    Ok(match tag {
        PUT => {
            let value_len = reader.u32()?;
            Operation::Put { key: reader.bytes(key_len)?, value: reader.bytes(value_len)? }
        }
        APPEND => {
            let value_len = reader.u32()?;
            Operation::Append { key: reader.bytes(key_len)?, value: reader.bytes(value_len)? }
        }
        DELETE => Operation::Delete { key: reader.bytes(key_len)? },
        SWAP_BY_VALUE => {
            let (value_len, expect_len) = (reader.u32()?, reader.u32()?);
            let (key, value) = (reader.bytes(key_len)?, reader.bytes(value_len)?);
            let expect = Expect::Value(reader.bytes(expect_len)?);
            Operation::CompareAndSwap { key, expect, value }
        }
        SWAP_BY_VERSION => {
            let (value_len, expect) = (reader.u32()?, Expect::Version(reader.u64()?));
            let (key, value) = (reader.bytes(key_len)?, reader.bytes(value_len)?);
            Operation::CompareAndSwap { key, expect, value }
        }
        _ => return Err(DecodeError("unknown operation")),
    })
}
