//! Fixed-width numbers and counted bytes, little-endian: the alphabet of the machine's formats.
//!
//! Reading takes slices of the input, never copies, and never allocates by a claimed size: a length
//! is believed only once that many bytes are there.

use bytes::{BufMut, Bytes};
use raft_core::types::INDEX_MAX;

use crate::operation::Revision;

/// These bytes are not what the format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed: {0}")]
pub struct DecodeError(pub(crate) &'static str);

pub(crate) type DecodeResult<T> = Result<T, DecodeError>;

/// Reads front to back.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn array<const N: usize>(&mut self) -> DecodeResult<[u8; N]> {
        let (array, _) = self.rest.split_first_chunk::<N>().ok_or(DecodeError("cut short"))?;
        let array = *array;
        bytes::Buf::advance(&mut self.rest, N);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> DecodeResult<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> DecodeResult<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> DecodeResult<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `size_bytes` bytes, as a slice of the input.
    pub(crate) fn bytes(&mut self, size_bytes: u32) -> DecodeResult<Bytes> {
        let size_bytes = size_bytes as usize;
        if size_bytes > self.rest.len() {
            return Err(DecodeError("cut short"));
        }
        Ok(self.rest.split_to(size_bytes))
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> DecodeResult<()> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(DecodeError("something follows the end")),
        }
    }
}

/// The numbers of a record: its revisions are in order, and each change since the first one took a
/// revision of its own. So there is always a next version.
pub(crate) fn check_versions(
    version: u64,
    create_revision: Revision,
    modify_revision: Revision,
) -> DecodeResult<()> {
    let in_range = create_revision > 0 && modify_revision <= INDEX_MAX;
    let changes = modify_revision.checked_sub(create_revision).filter(|_| in_range);
    match (version.checked_sub(1), changes) {
        (Some(later), Some(changes)) if later <= changes => Ok(()),
        _ => Err(DecodeError("the versions of a record contradict each other")),
    }
}

/// The length of something whose limit is far below 4 GiB.
pub(crate) fn put_len(out: &mut impl BufMut, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("keys and values are limited to far less");
    out.put_u32_le(len);
}
