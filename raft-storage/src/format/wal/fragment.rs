//! One fragment of a record in a write-ahead file, as RocksDB reads it.

pub(super) const BLOCK_BYTES: usize = 32 * 1024;
const LEGACY_HEADER_BYTES: usize = 7;
/// The log reuses its files, so RocksDB writes this header and no other.
pub(super) const NUMBERED_HEADER_BYTES: usize = 11;
/// RocksDB skips records of unknown types from here on.
const TYPE_IGNORED_MIN: u8 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Full,
    First,
    Middle,
    Last,
    /// RocksDB's own notes, and records that it ignores. The log has none of them.
    Other,
}

#[derive(Debug)]
pub(super) struct Fragment<'a> {
    pub(super) place: Place,
    /// The header names the file that it was written to.
    pub(super) is_numbered: bool,
    pub(super) payload: &'a [u8],
    /// Length with the header.
    pub(super) len: usize,
}

impl<'a> Fragment<'a> {
    /// The fragment at the front of `bytes`, which end with the block; `None` unless it is whole,
    /// its checksum is right, and it does not name another file.
    pub(super) fn parse(bytes: &'a [u8], number: u32) -> Option<Self> {
        let (header, _) = bytes.split_first_chunk::<LEGACY_HEADER_BYTES>()?;
        let (place, is_numbered) = match header[6] {
            1 => (Place::Full, false),
            2 => (Place::First, false),
            3 => (Place::Middle, false),
            4 => (Place::Last, false),
            5 => (Place::Full, true),
            6 => (Place::First, true),
            7 => (Place::Middle, true),
            8 => (Place::Last, true),
            9 | 10 => (Place::Other, false),
            11 | 131 => (Place::Other, true),
            TYPE_IGNORED_MIN.. => (Place::Other, false),
            _ => return None,
        };
        let header_bytes = if is_numbered { NUMBERED_HEADER_BYTES } else { LEGACY_HEADER_BYTES };
        if is_numbered && bytes.get(7..11)? != number.to_le_bytes() {
            return None;
        }
        let len = header_bytes + usize::from(u16::from_le_bytes([header[4], header[5]]));
        // The checksum covers the bytes from the type on. In a reusable file they include the
        // file's number.
        let checked = bytes.get(6..len)?;
        let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        (mask(crc32c::crc32c(checked)) == stored).then(|| Self {
            place,
            is_numbered,
            payload: &bytes[header_bytes..len],
            len,
        })
    }

    /// The same, but only for a fragment that names this file.
    pub(super) fn parse_numbered(bytes: &'a [u8], number: u32) -> Option<Self> {
        if bytes.get(7..11)? != number.to_le_bytes() {
            return None;
        }
        Self::parse(bytes, number).filter(|fragment| fragment.is_numbered)
    }
}

/// Returns true if RocksDB skips the rest of the block: it takes a header of type and length 0,
/// whatever its checksum is, for space that was never written.
pub(super) fn skips_block(bytes: &[u8]) -> bool {
    bytes.get(4..7).is_some_and(|length_and_type| length_and_type == [0; 3])
}

/// RocksDB stores checksums masked, because a checksum over bytes with checksums in them is weak.
pub(super) fn mask(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}
