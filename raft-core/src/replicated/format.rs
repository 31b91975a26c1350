//! Commands and states as bytes: the format that the module's page draws.
//!
//! An encoder decodes its own bytes once before it returns them. Bytes that only look fine, from
//! serde attributes that do not suit a format without field names, would otherwise be found when
//! they are in every log, or have replaced it.

use std::io;

use bytes::Bytes;
use rmp_serde::Deserializer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checksum::crc32c;

/// The only format that is written, and read.
pub(super) const FORMAT: u8 = 1;

/// Bytes of format and version, before a command or state.
pub(super) const HEAD_BYTES: usize = 1 + size_of::<u32>();

/// Bytes of the checksum, behind a state.
pub(super) const CHECKSUM_BYTES: usize = size_of::<u32>();

/// Longest text of serde in an error, in characters; names of unknown variants stand in it.
const REASON_CHARS_MAX: usize = 200;

/// The reason why a command or a state cannot be encoded or decoded. The text continues a sentence
/// that names the command or the state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodingError {
    /// Fewer bytes than the format has at least.
    #[error("ends after {size_bytes} bytes: it is damaged, or not of this application")]
    TooShort {
        /// Number of bytes.
        size_bytes: usize,
    },
    /// A newer raft-core wrote it, or another application.
    #[error(
        "has format {found}, and this program reads format {FORMAT}: install a newer program, or \
         use the data directory of this application"
    )]
    UnknownFormat {
        /// Format of the bytes.
        found: u8,
    },
    /// A newer program of this application wrote it.
    #[error(
        "needs version {needed}, and this program is version {version}: install version {needed}"
    )]
    NewerVersion {
        /// Version that the bytes need.
        needed: u32,
        /// Version of this program.
        version: u32,
    },
    /// Its version is known, and serde does not accept the bytes.
    #[error(
        "is of version {needed} and does not decode in this program, version {version} ({reason}): \
         install a program of version {needed}, or make the types read what that one wrote"
    )]
    Malformed {
        /// Version that the bytes need.
        needed: u32,
        /// Version of this program.
        version: u32,
        /// Reason that serde gives.
        reason: String,
    },
    /// The bytes are not those that were written.
    #[error("is damaged: its checksum is {found:08x}, and {computed:08x} was computed")]
    Checksum {
        /// Checksum in the bytes.
        found: u32,
        /// Checksum of the bytes as they are.
        computed: u32,
    },
    /// A state above [`ReplicatedState::STATE_BYTES_MAX`](super::ReplicatedState::STATE_BYTES_MAX).
    #[error(
        "has more than {limit_bytes} bytes: install a program with a larger STATE_BYTES_MAX; \
         nothing is lost"
    )]
    TooLarge {
        /// The limit of this program.
        limit_bytes: usize,
    },
    /// Serde does not encode it.
    #[error("cannot be encoded: {reason}")]
    Unencodable {
        /// Reason that serde gives.
        reason: String,
    },
    /// Serde encodes it, and does not accept its own bytes.
    #[error(
        "cannot be decoded after it was encoded ({reason}): its types must survive serde without \
         field names, so without skip_serializing_if and untagged"
    )]
    OneWay {
        /// Reason that serde gives.
        reason: String,
    },
}

/// Encodes a command that programs from version `needed` on can read.
pub(super) fn encode_command<C>(needed: u32, command: &C) -> Result<Bytes, EncodingError>
where
    C: Serialize + DeserializeOwned,
{
    let bytes = encode(needed, command, usize::MAX)?;
    read_back::<C>(&bytes[HEAD_BYTES..])?;
    Ok(bytes.into())
}

/// Decodes a command, in a program of this version.
pub(super) fn decode_command<C: DeserializeOwned>(
    version: u32,
    bytes: &[u8],
) -> Result<C, EncodingError> {
    let (needed, body) = split_head(version, bytes)?;
    parse(body).map_err(|reason| EncodingError::Malformed { needed, version, reason })
}

/// Encodes the state, which is dropped before its bytes are decoded for the check: two states and
/// the bytes at a time would be one too many.
pub(super) fn encode_state<S>(
    version: u32,
    state: Box<S>,
    limit_bytes: usize,
) -> Result<Bytes, EncodingError>
where
    S: Serialize + DeserializeOwned,
{
    let mut bytes = encode(version, &*state, limit_bytes)?;
    drop(state);
    read_back::<S>(&bytes[HEAD_BYTES..])?;
    bytes.extend_from_slice(&crc32c(&bytes).to_be_bytes());
    Ok(bytes.into())
}

/// Decodes a state, in a program of this version.
pub(super) fn decode_state<S: DeserializeOwned>(
    version: u32,
    bytes: &[u8],
) -> Result<S, EncodingError> {
    let too_short = EncodingError::TooShort { size_bytes: bytes.len() };
    let (covered, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(too_short)?;
    // Format and version first: what a newer program writes may end in another way.
    let (needed, body) = split_head(version, covered)?;
    let (found, computed) = (u32::from_be_bytes(*checksum), crc32c(covered));
    if found != computed {
        return Err(EncodingError::Checksum { found, computed });
    }
    parse(body).map_err(|reason| EncodingError::Malformed { needed, version, reason })
}

fn encode<T: Serialize>(
    version: u32,
    value: &T,
    limit_bytes: usize,
) -> Result<Vec<u8>, EncodingError> {
    let mut out = Limited { bytes: vec![FORMAT], limit_bytes, is_full: false };
    out.bytes.extend_from_slice(&version.to_be_bytes());
    match rmp_serde::encode::write(&mut out, value) {
        Ok(()) => Ok(out.bytes),
        Err(_) if out.is_full => Err(EncodingError::TooLarge { limit_bytes }),
        Err(error) => Err(EncodingError::Unencodable { reason: reason(&error) }),
    }
}

/// Decodes a value again and counts the bytes of its encoding. Another length means another value:
/// a field was skipped, and those after it took its place. The bytes themselves may differ, because
/// a `HashMap` has no order.
fn read_back<T: Serialize + DeserializeOwned>(body: &[u8]) -> Result<(), EncodingError> {
    let value: T = parse(body).map_err(|reason| EncodingError::OneWay { reason })?;
    let mut again = Count(0);
    rmp_serde::encode::write(&mut again, &value)
        .map_err(|error| EncodingError::Unencodable { reason: reason(&error) })?;
    if again.0 == body.len() {
        return Ok(());
    }
    Err(EncodingError::OneWay { reason: "it decodes to another value".to_owned() })
}

/// Counts the bytes of one value.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        self.0 += more.len();
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn split_head(version: u32, bytes: &[u8]) -> Result<(u32, &[u8]), EncodingError> {
    let too_short = EncodingError::TooShort { size_bytes: bytes.len() };
    let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(too_short)?;
    let [found, needed @ ..] = *head;
    if found != FORMAT {
        return Err(EncodingError::UnknownFormat { found });
    }
    let needed = u32::from_be_bytes(needed);
    if needed > version {
        return Err(EncodingError::NewerVersion { needed, version });
    }
    Ok((needed, body))
}

/// Decodes the whole of `body`; bytes that are left over are an error.
fn parse<T: DeserializeOwned>(mut body: &[u8]) -> Result<T, String> {
    let value =
        T::deserialize(&mut Deserializer::new(&mut body)).map_err(|error| reason(&error))?;
    match body.len() {
        0 => Ok(value),
        left => Err(format!("{left} bytes are left over")),
    }
}

/// Returns the text of the error, escaped and bounded: it ends up in the log of the node.
fn reason(error: &dyn std::error::Error) -> String {
    error.to_string().escape_debug().take(REASON_CHARS_MAX).collect()
}

/// Memory for the bytes of one value, up to a limit.
struct Limited {
    bytes: Vec<u8>,
    limit_bytes: usize,
    is_full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        if more.len() > self.limit_bytes - self.bytes.len().min(self.limit_bytes) {
            self.is_full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
