//! The bytes of a snapshot, in the pieces in which they were written.
//!
//! A single buffer would have to be copied whenever it grows, and every user of the disk would wait
//! while a gigabyte is copied. For the same reason the checksum is updated with each piece, and a
//! large snapshot is dropped on a thread of its own.

use bytes::Bytes;
use raft_core::types::SnapshotContent;

/// Smaller snapshots are dropped at once.
const DROP_ASIDE_BYTES: u64 = 16 << 20;

#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Each with the offset at which it starts; none is empty.
    pieces: Vec<(u64, Bytes)>,
    size_bytes: u64,
    checksum: u32,
}

impl Pieces {
    /// Adds a piece, whose memory must not be shared with a larger buffer.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &piece);
        let offset = self.size_bytes;
        self.size_bytes += piece.len() as u64;
        self.pieces.push((offset, piece));
    }

    /// Size and checksum of the whole.
    pub(super) fn content(&self) -> SnapshotContent {
        SnapshotContent { size_bytes: self.size_bytes, checksum: self.checksum }
    }

    /// At most `bytes_max` bytes from `offset`, and none beyond the piece at `offset`; empty at the
    /// end.
    pub(super) fn read(&self, offset: u64, bytes_max: usize) -> Bytes {
        let behind = self.pieces.partition_point(|(start, _)| *start <= offset);
        let Some((start, piece)) = behind.checked_sub(1).map(|place| &self.pieces[place]) else {
            return Bytes::new();
        };
        let from = usize::try_from(offset - start).unwrap_or(usize::MAX).min(piece.len());
        assert!(*start <= offset, "the piece at the offset, or the last one before it");
        piece.slice(from..from.saturating_add(bytes_max).min(piece.len()))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if self.size_bytes >= DROP_ASIDE_BYTES {
            let pieces = std::mem::take(&mut self.pieces);
            let thread = std::thread::Builder::new().name("raft-drop".into());
            // Without a thread they are dropped here, which is slow and correct.
            let _ = thread.spawn(move || drop(pieces));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_like_one() {
        let whole: Vec<u8> = (0..100).collect();
        let mut pieces = Pieces::default();
        assert!(pieces.read(0, 10).is_empty());
        for range in [0..1, 1..1, 1..40, 40..100] {
            pieces.push(Bytes::copy_from_slice(&whole[range]));
        }
        let content = SnapshotContent { size_bytes: 100, checksum: crc32c::crc32c(&whole) };
        assert_eq!(pieces.content(), content);
        for offset in 0..100 {
            for bytes_max in [0, 1, 7, 1000] {
                let read = pieces.read(offset as u64, bytes_max);
                assert!(read.len() <= bytes_max && (bytes_max == 0 || !read.is_empty()));
                assert!(whole[offset..].starts_with(&read));
            }
        }
        for offset in [100, 101, u64::MAX] {
            assert!(pieces.read(offset, 10).is_empty());
        }
    }
}
