//! The format of a snapshot file, and its name.
//!
//! ```text
//! +----------------+---------------+---------+---------+-----
//! | header len u32 | sealed header | chunk 0 | chunk 1 | ...      numbers are big-endian
//! +----------------+---------------+---------+---------+-----
//!
//!   chunk:  | len u32 | CRC32C u32 | bytes |    all full but the last; the CRC covers the
//!                                               chunk's number (u64), len, and bytes
//! ```
//!
//! The number in the checksum detects a chunk in the place of another one. Size and checksum of the
//! whole snapshot are in the record that publishes it: they are not known when the file is begun.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use raft_core::types::{Position, SnapshotContent};

use super::records::{NUMBER_MAX, SnapshotHeader, decode_snapshot_header, encode_snapshot_header};
use crate::record::Damage;

/// Longest header, in bytes: enough for a configuration of a hundred thousand members.
const HEADER_BYTES_MAX: u32 = 1 << 20;
pub(crate) const CHUNK_HEADER_BYTES: usize = 8;

pub(crate) fn file_name(position: Position, serial: u64, extension: &str) -> String {
    format!("snapshot-{}-{}-{serial}.{extension}", position.term, position.index)
}

/// The serial number in the name of a snapshot file with this extension; `None` for any other name.
pub(crate) fn serial_of(path: &Path, extension: &str) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let numbers = name.strip_prefix("snapshot-")?.strip_suffix(extension)?.strip_suffix('.')?;
    let mut numbers = numbers.splitn(3, '-').map(|number| number.parse::<u64>().ok());
    let position = Position::new(numbers.next()??, numbers.next()??);
    let serial = numbers.next()??;
    // The name must be in its only form, and after the largest serial there must be a next one.
    (serial < NUMBER_MAX && file_name(position, serial, extension) == name).then_some(serial)
}

/// Why a snapshot file cannot be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    Io(io::Error),
    Damage(Damage),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                ReadError::Damage(Damage("the file is shorter than it should be".to_owned()))
            }
            _ => ReadError::Io(error),
        }
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        ReadError::Damage(damage)
    }
}

pub(crate) fn encode_header(header: &SnapshotHeader) -> Vec<u8> {
    let sealed = encode_snapshot_header(header);
    let len = u32::try_from(sealed.len()).expect("a header is small");
    assert!(len <= HEADER_BYTES_MAX, "a header that can be read again");
    let mut out = len.to_be_bytes().to_vec();
    out.extend_from_slice(&sealed);
    out
}

/// Returns the header, and the offset at which the chunks begin.
pub(crate) fn read_header(
    file: &mut (impl Read + Seek),
) -> Result<(SnapshotHeader, u64), ReadError> {
    file.seek(SeekFrom::Start(0))?;
    let mut len = [0u8; 4];
    file.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len);
    if len > HEADER_BYTES_MAX {
        return Err(Damage(format!("a header of {len} bytes")).into());
    }
    // The buffer grows with the bytes that are there, whatever length was claimed.
    let mut sealed = Vec::new();
    file.take(u64::from(len)).read_to_end(&mut sealed)?;
    if sealed.len() < len as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok((decode_snapshot_header(&sealed)?, 4 + u64::from(len)))
}

fn chunk_checksum(number: u64, len: [u8; 4], bytes: &[u8]) -> u32 {
    let checksum = crc32c::crc32c(&number.to_be_bytes());
    let checksum = crc32c::crc32c_append(checksum, &len);
    crc32c::crc32c_append(checksum, bytes)
}

/// Fills in the header of a chunk whose bytes follow a gap of [`CHUNK_HEADER_BYTES`].
pub(crate) fn seal_chunk(number: u64, chunk: &mut [u8]) {
    assert!(chunk.len() >= CHUNK_HEADER_BYTES, "there is a gap for the header");
    let (header, bytes) = chunk.split_at_mut(CHUNK_HEADER_BYTES);
    let len = u32::try_from(bytes.len()).expect("a chunk is small").to_be_bytes();
    header[..4].copy_from_slice(&len);
    header[4..].copy_from_slice(&chunk_checksum(number, len, bytes).to_be_bytes());
}

/// Reads chunk `number`, at the present position of the file, into `bytes`, which has the chunk's
/// length.
pub(crate) fn read_chunk(
    file: &mut impl Read,
    number: u64,
    bytes: &mut [u8],
) -> Result<(), ReadError> {
    let mut header = [0u8; CHUNK_HEADER_BYTES];
    file.read_exact(&mut header)?;
    let (len, stored) = header.split_first_chunk::<4>().expect("eight bytes");
    if u32::from_be_bytes(*len) as usize != bytes.len() {
        return Err(Damage(format!(
            "chunk {number} has {} bytes where {} belong",
            u32::from_be_bytes(*len),
            bytes.len()
        ))
        .into());
    }
    file.read_exact(bytes)?;
    if chunk_checksum(number, *len, bytes).to_be_bytes() != stored {
        return Err(Damage(format!("the checksum of chunk {number} is wrong")).into());
    }
    Ok(())
}

/// Length of a whole file.
pub(crate) fn file_bytes(chunks_at: u64, chunk_bytes: u32, content: &SnapshotContent) -> u64 {
    assert!(chunk_bytes > 0, "a header with such chunks is refused");
    let chunk_count = content.size_bytes.div_ceil(u64::from(chunk_bytes));
    chunk_count
        .saturating_mul(CHUNK_HEADER_BYTES as u64)
        .saturating_add(content.size_bytes)
        .saturating_add(chunks_at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft_core::types::{Configuration, SnapshotMeta};

    use super::*;

    #[test]
    fn a_name_of_ours_is_known_and_no_other() {
        let serial = |name: &str| serial_of(Path::new(name), "snap");
        assert_eq!(serial("dir/snapshot-3-12-7.snap"), Some(7));
        assert_eq!(
            serial(&file_name(Position::new(1, 2), NUMBER_MAX - 1, "snap")),
            Some(NUMBER_MAX - 1)
        );
        assert_eq!(serial(&file_name(Position::new(1, 2), NUMBER_MAX, "snap")), None);
        for other in [
            "snapshot-3-12-7.part",
            "snapshot-3-12-7-1.snap",
            "snapshot-3-12.snap",
            "snapshot-3-12-07.snap",
            "snapshot-3-12-+7.snap",
            "snapshot-3-12-18446744073709551615.snap",
            "snapshot-3-12-7snap",
        ] {
            assert_eq!(serial(other), None, "{other}");
        }
    }

    #[test]
    fn a_header_is_believed_as_far_as_the_file_goes() {
        let mut file = io::Cursor::new(HEADER_BYTES_MAX.to_be_bytes().to_vec());
        assert!(matches!(read_header(&mut file), Err(ReadError::Damage(_))));
        let mut file = io::Cursor::new((HEADER_BYTES_MAX + 1).to_be_bytes().to_vec());
        assert!(matches!(read_header(&mut file), Err(ReadError::Damage(_))));
    }

    /// Header and content, if the file is whole.
    fn read(
        file: &[u8],
        content: &SnapshotContent,
    ) -> Result<(SnapshotHeader, Vec<u8>), ReadError> {
        let mut file = io::Cursor::new(file);
        let (header, _) = read_header(&mut file)?;
        let mut data = vec![0; content.size_bytes as usize];
        for (number, chunk) in (0..).zip(data.chunks_mut(header.chunk_bytes as usize)) {
            read_chunk(&mut file, number, chunk)?;
        }
        Ok((header, data))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_else(
            chunk_bytes in 1u32..40,
            position in any::<(u32, u32)>(),
            members in proptest::collection::btree_set(1u64.., 0..4),
            data in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let position = Position::new(position.0.into(), position.1.into());
            let configuration = Configuration::of_voters(members);
            let content = SnapshotContent { size_bytes: data.len() as u64, checksum: 7 };
            let meta = SnapshotMeta::new(position, configuration);
            let header = SnapshotHeader { chunk_bytes, meta, expected: Some(content) };
            let mut file = encode_header(&header);
            let chunks_at = file.len() as u64;
            for (number, data) in (0..).zip(data.chunks(chunk_bytes as usize)) {
                let mut chunk = [&[0; CHUNK_HEADER_BYTES], data].concat();
                seal_chunk(number, &mut chunk);
                file.extend_from_slice(&chunk);
            }
            prop_assert_eq!(file_bytes(chunks_at, chunk_bytes, &content), file.len() as u64);
            prop_assert_eq!(read(&file, &content).unwrap(), (header, data));
            for end in 0..file.len() {
                prop_assert!(read(&file[..end], &content).is_err(), "cut at {}", end);
            }
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            prop_assert!(read(&file, &content).is_err(), "bit {} of byte {} flipped", bit, at);
        }

        #[test]
        fn the_serial_is_read_from_the_name(
            numbers in any::<[u64; 2]>(), serial in 0..NUMBER_MAX, extension in "snap|part",
        ) {
            let name = file_name(Position::new(numbers[0], numbers[1]), serial, &extension);
            prop_assert_eq!(serial_of(Path::new(&name), &extension), Some(serial));
        }
    }
}
