//! An unfinished snapshot: a file that grows chunk by chunk.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use raft_core::storage::StorageResult;

use crate::files::io_error;
use crate::format::records::SnapshotHeader;
use crate::format::snapshot_file::{
    CHUNK_HEADER_BYTES, ReadError, encode_header, read_chunk, read_header, seal_chunk,
};

/// Bytes after which written chunks are synced, so that the end of a large snapshot is not one long
/// sync during which the log's own syncs wait for the device.
const SYNC_BYTES: u64 = 8 << 20;

/// An unfinished snapshot.
pub(super) struct Part {
    pub(super) serial: u64,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) header: SnapshotHeader,
    /// A gap for the chunk's header, and the bytes that do not fill a chunk yet.
    chunk: Vec<u8>,
    chunk_count: u64,
    pub(super) size_bytes: u64,
    /// CRC32C of all bytes so far.
    pub(super) checksum: u32,
    unsynced_bytes: u64,
}

impl Part {
    pub(super) fn create(
        serial: u64,
        path: PathBuf,
        header: SnapshotHeader,
    ) -> StorageResult<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| io_error("create", &path, e))?;
        file.write_all(&encode_header(&header)).map_err(|e| io_error("write", &path, e))?;
        Ok(Self {
            serial,
            path,
            file,
            header,
            chunk: vec![0; CHUNK_HEADER_BYTES],
            chunk_count: 0,
            size_bytes: 0,
            checksum: 0,
            unsynced_bytes: 0,
        })
    }

    pub(super) fn has_header(path: &Path, header: &SnapshotHeader) -> bool {
        let found = File::open(path).map_err(ReadError::Io).and_then(|mut f| read_header(&mut f));
        found.is_ok_and(|(found, _)| found == *header)
    }

    /// Keeps the valid full chunks from the front, and cuts the rest, which was not synced. Returns
    /// `None` if the header is damaged.
    pub(super) fn resume(
        serial: u64,
        path: PathBuf,
        header: &SnapshotHeader,
    ) -> StorageResult<Option<Self>> {
        let io = |e| io_error("resume", &path, e);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(io)?;
        let chunks_at = match read_header(&mut file) {
            Ok((_, chunks_at)) => chunks_at,
            Err(ReadError::Io(e)) => return Err(io(e)),
            Err(ReadError::Damage(_)) => return Ok(None),
        };
        let mut bytes = vec![0u8; header.chunk_bytes as usize];
        let (mut chunk_count, mut checksum) = (0u64, 0u32);
        let size_max = header.expected.map_or(0, |expected| expected.size_bytes);
        while (chunk_count + 1) * u64::from(header.chunk_bytes) <= size_max {
            match read_chunk(&mut file, chunk_count, &mut bytes) {
                Ok(()) => {
                    checksum = crc32c::crc32c_append(checksum, &bytes);
                    chunk_count += 1;
                }
                Err(ReadError::Damage(_)) => break,
                Err(ReadError::Io(e)) => return Err(io(e)),
            }
        }
        let size_bytes = chunk_count * u64::from(header.chunk_bytes);
        assert!(size_bytes <= size_max, "no more is kept than was announced");
        let end = chunks_at + chunk_count * (CHUNK_HEADER_BYTES + bytes.len()) as u64;
        file.set_len(end).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        Ok(Some(Self {
            serial,
            path,
            file,
            header: header.clone(),
            chunk: vec![0; CHUNK_HEADER_BYTES],
            chunk_count,
            size_bytes,
            checksum,
            unsynced_bytes: 0,
        }))
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> StorageResult<()> {
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.size_bytes += bytes.len() as u64;
        let full = CHUNK_HEADER_BYTES + self.header.chunk_bytes as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            assert!(self.chunk.len() < full, "a full chunk is written at once");
            let (now, later) = rest.split_at(rest.len().min(full - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            rest = later;
            if self.chunk.len() == full {
                self.write_chunk()?;
            }
        }
        let buffered_bytes = (self.chunk.len() - CHUNK_HEADER_BYTES) as u64;
        let written_bytes = self.chunk_count * u64::from(self.header.chunk_bytes);
        assert_eq!(self.size_bytes, written_bytes + buffered_bytes, "each byte is in one chunk");
        if self.unsynced_bytes >= SYNC_BYTES {
            self.file.sync_data().map_err(|e| io_error("sync", &self.path, e))?;
            self.unsynced_bytes = 0;
        }
        Ok(())
    }

    pub(super) fn write_chunk(&mut self) -> StorageResult<()> {
        if self.chunk.len() == CHUNK_HEADER_BYTES {
            return Ok(());
        }
        seal_chunk(self.chunk_count, &mut self.chunk);
        self.file.write_all(&self.chunk).map_err(|e| io_error("write", &self.path, e))?;
        self.unsynced_bytes += self.chunk.len() as u64;
        self.chunk_count += 1;
        self.chunk.truncate(CHUNK_HEADER_BYTES);
        Ok(())
    }
}
