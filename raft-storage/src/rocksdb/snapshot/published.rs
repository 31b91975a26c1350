//! The published snapshot, opened for reading: every chunk is checked when it is read.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{SnapshotContent, SnapshotMeta};

use super::WHOLE;
use crate::files::io_error;
use crate::format::records::Published;
use crate::format::snapshot_file::{
    CHUNK_HEADER_BYTES, ReadError, file_bytes, file_name, read_chunk, read_header,
};
use crate::record::Damage;

/// A snapshot that is being read.
pub(super) struct OpenSnapshot {
    pub(super) meta: SnapshotMeta,
    pub(super) content: SnapshotContent,
    path: PathBuf,
    file: File,
    chunks_at: u64,
    chunk_bytes: u32,
}

pub(super) fn open_published(
    directory: &Path,
    published: &Published,
) -> StorageResult<OpenSnapshot> {
    let path = directory.join(file_name(published.meta.position, published.serial, WHOLE));
    let opened = || -> Result<_, ReadError> {
        let mut file = File::open(&path)?;
        let (header, chunks_at) = read_header(&mut file)?;
        if header.meta != published.meta {
            let damage = format!("it is of {}", header.meta.position);
            return Err(Damage(damage).into());
        }
        let expected = file_bytes(chunks_at, header.chunk_bytes, &published.content);
        let found = file.metadata()?.len();
        if found != expected {
            let damage = format!("it has {found} bytes, {expected} belong there");
            return Err(Damage(damage).into());
        }
        Ok((file, header, chunks_at))
    };
    let (file, header, chunks_at) = opened().map_err(|error| read_error(&path, error))?;
    Ok(OpenSnapshot {
        meta: published.meta.clone(),
        content: published.content,
        path,
        file,
        chunks_at,
        chunk_bytes: header.chunk_bytes,
    })
}

fn read_error(path: &Path, error: ReadError) -> StorageError {
    let damage = match error {
        ReadError::Io(e) if e.kind() == std::io::ErrorKind::NotFound => "it is missing".to_owned(),
        ReadError::Io(e) => return io_error("read", path, e),
        ReadError::Damage(damage) => damage.to_string(),
    };
    StorageError::Corrupt(format!(
        "the snapshot {} is damaged: {damage}. {}",
        path.display(),
        super::super::ADVICE_DAMAGED
    ))
}

impl OpenSnapshot {
    /// Reads and checks whole chunks, and returns the bytes of them that were asked for.
    pub(super) fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        let end = offset.saturating_add(bytes_max as u64).min(self.content.size_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let chunk_bytes = u64::from(self.chunk_bytes);
        let first = offset / chunk_bytes;
        let chunks_end = end.div_ceil(chunk_bytes);
        let covered = (chunks_end * chunk_bytes).min(self.content.size_bytes) - first * chunk_bytes;
        assert!(covered >= end - offset, "the chunks cover what was asked for");
        let mut out = vec![0u8; usize::try_from(covered).expect("bytes_max is a usize")];
        let at = self.chunks_at + first * (CHUNK_HEADER_BYTES as u64 + chunk_bytes);
        let mut read = || -> Result<(), ReadError> {
            self.file.seek(SeekFrom::Start(at))?;
            for (number, bytes) in (first..).zip(out.chunks_mut(self.chunk_bytes as usize)) {
                read_chunk(&mut self.file, number, bytes)?;
            }
            Ok(())
        };
        read().map_err(|error| read_error(&self.path, error))?;
        let skip = (offset - first * chunk_bytes) as usize;
        let len = (end - offset) as usize;
        assert!(len <= bytes_max, "no more than was asked for");
        Ok(Bytes::from(out).slice(skip..skip + len))
    }
}
