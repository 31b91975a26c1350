//! Numbers and length-prefixed bytes, of which the machine's formats consist.
//!
//! A number is a varint: seven bits a byte, the lowest first, the top bit set on all bytes but the
//! last. Only the shortest form is read, so a value has one encoding. Reading takes slices of the
//! input, never copies, and never allocates by a claimed size: a length is believed only once that
//! many bytes are there.

use bytes::{BufMut, Bytes};
use raft_core::types::INDEX_MAX;

use crate::protocol::operation::Revision;

/// Why bytes are not what the format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No version of the format has these bytes.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A newer version of the format may have these bytes; this program cannot tell what they mean.
    #[error("{0}")]
    Newer(&'static str),
    /// The bytes need a cluster version that this program does not support.
    #[error("cluster version {0}")]
    NewerRules(u32),
}

impl DecodeError {
    /// Returns true if a newer program may be able to read the bytes.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Newer(_) | Self::NewerRules(_))
    }
}

pub(crate) type DecodeResult<T> = Result<T, DecodeError>;

pub(crate) const fn malformed(what: &'static str) -> DecodeError {
    DecodeError::Malformed(what)
}

/// Bytes of a varint, at most.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// Reads bytes from front to back.
pub(crate) struct ByteReader<'a> {
    bytes: &'a Bytes,
    /// The part of `bytes` that is not read yet.
    rest: &'a [u8],
}

impl<'a> ByteReader<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Self {
        Self { bytes, rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Number of bytes read so far.
    pub(crate) fn position(&self) -> usize {
        self.bytes.len() - self.rest.len()
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        let Some((array, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(malformed("cut short"));
        };
        self.rest = rest;
        Ok(*array)
    }

    pub(crate) fn u8(&mut self) -> DecodeResult<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> DecodeResult<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> DecodeResult<u128> {
        self.array().map(u128::from_le_bytes)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> DecodeResult<u64> {
        let (number, size_bytes) = read_varint(self.rest)?;
        self.rest = &self.rest[size_bytes..];
        Ok(number)
    }

    /// A varint of at most 32 bits.
    pub(crate) fn varint_u32(&mut self) -> DecodeResult<u32> {
        u32::try_from(self.varint()?).map_err(|_| malformed("a number has more than 32 bits"))
    }

    /// Reads a field that no version up to this program's has used: it must be 0.
    pub(crate) fn reserved(&mut self, what: &'static str) -> DecodeResult<()> {
        match self.varint()? {
            0 => Ok(()),
            _ => Err(DecodeError::Newer(what)),
        }
    }

    /// The next `size_bytes` bytes, as a slice of the input.
    pub(crate) fn bytes(&mut self, size_bytes: u64) -> DecodeResult<Bytes> {
        let start = self.position();
        let rest = usize::try_from(size_bytes).ok().and_then(|size| self.rest.get(size..));
        self.rest = rest.ok_or(malformed("cut short"))?;
        Ok(self.bytes.slice(start..self.position()))
    }

    /// Checks that no bytes are left.
    pub(crate) fn finish(self) -> DecodeResult<()> {
        if self.is_empty() { Ok(()) } else { Err(malformed("something follows the end")) }
    }
}

/// Reads the varint at the start; returns it and its length in bytes.
#[inline]
pub(crate) fn read_varint(bytes: &[u8]) -> DecodeResult<(u64, usize)> {
    // Most numbers are small.
    if let [byte @ ..0x80, ..] = bytes {
        return Ok((u64::from(*byte), 1));
    }
    read_long_varint(bytes)
}

fn read_long_varint(bytes: &[u8]) -> DecodeResult<(u64, usize)> {
    let bounded = &bytes[..bytes.len().min(VARINT_BYTES_MAX)];
    let mut number = 0;
    let mut size_bytes = 0;
    for byte in bounded {
        let bits = u64::from(byte & 0x7f);
        number |= bits << (7 * size_bytes);
        size_bytes += 1;
        if byte & 0x80 == 0 {
            let is_longer_than_needed = bits == 0 && size_bytes > 1;
            let overflows = size_bytes == VARINT_BYTES_MAX && bits > 1;
            return if is_longer_than_needed || overflows {
                Err(malformed("a number is not in its shortest form"))
            } else {
                Ok((number, size_bytes))
            };
        }
    }
    if bytes.len() < VARINT_BYTES_MAX {
        Err(malformed("cut short"))
    } else {
        Err(malformed("a number has more than 64 bits"))
    }
}

pub(crate) fn put_varint(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// Bytes that [`put_varint`] writes.
pub(crate) fn varint_bytes(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

pub(crate) fn put_len(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
}

pub(crate) fn len_bytes(bytes: &[u8]) -> usize {
    varint_bytes(bytes.len() as u64)
}

/// Checks the numbers of a record: its revisions are in order, and each change since the first one
/// took a revision of its own. So the next version does not overflow.
pub(crate) fn check_versions(
    version: u64,
    create_revision: Revision,
    modify_revision: Revision,
) -> DecodeResult<()> {
    let in_range = create_revision > 0 && modify_revision <= INDEX_MAX;
    let changes = modify_revision.checked_sub(create_revision).filter(|_| in_range);
    match (version.checked_sub(1), changes) {
        (Some(later), Some(changes)) if later <= changes => Ok(()),
        _ => Err(malformed("the versions of a record contradict each other")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_has_one_form(number in any::<u64>(), shift in 0u32..64) {
            for number in [number >> shift, u64::MAX, 0, 127, 128] {
                let mut out = Vec::new();
                put_varint(&mut out, number);
                prop_assert_eq!(out.len(), varint_bytes(number));
                prop_assert_eq!(read_varint(&out), Ok((number, out.len())));
                for end in 0..out.len() {
                    prop_assert_eq!(read_varint(&out[..end]), Err(malformed("cut short")));
                }
                *out.last_mut().unwrap() |= 0x80;
                out.push(0);
                prop_assert!(read_varint(&out).is_err(), "a longer form of {}", number);
            }
        }

        #[test]
        fn any_bytes_are_the_shortest_form_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..12)
        ) {
            if let Ok((number, size_bytes)) = read_varint(&bytes) {
                let mut out = Vec::new();
                put_varint(&mut out, number);
                prop_assert_eq!(&out[..], &bytes[..size_bytes]);
            }
        }
    }
}
