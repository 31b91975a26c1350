//! The snapshots' thread: makes, resumes, finishes and removes the files.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{SnapshotContent, SnapshotMeta};

use super::super::codec::{Published, SnapshotHeader};
use super::super::poison::Poison;
use super::super::worker::Work;
use super::file::{
    CHUNK_HEADER_BYTES, ReadError, encode_header, file_bytes, read_chunk, read_header, seal_chunk,
};
use super::{CHUNK_BYTES, PART, Shelf, WHOLE, file_name, serial_of};
use crate::DataDir;
use crate::files::{io_error, remove_if_there, sync_directory};
use crate::step::{Step, StepHook};

/// Bytes after which written chunks are synced, so that the end of a large snapshot is not one long
/// sync during which the log's own syncs wait for the device.
const SYNC_BYTES: u64 = 8 << 20;

pub(crate) struct Store {
    directory: PathBuf,
    shelf: Shelf,
    poison: Poison,
    step_hook: StepHook,
    next_serial: u64,
    /// The one unfinished snapshot.
    part: Option<Part>,
    /// The lock, held as long as anything can write here.
    _data_dir: Arc<DataDir>,
}

/// An unfinished snapshot.
struct Part {
    serial: u64,
    path: PathBuf,
    file: File,
    header: SnapshotHeader,
    /// A gap for the chunk's header, and the bytes that do not fill a chunk yet.
    chunk: Vec<u8>,
    chunk_count: u64,
    size_bytes: u64,
    /// Over all bytes so far.
    checksum: u32,
    unsynced_bytes: u64,
}

impl Store {
    pub(crate) fn new(
        data_dir: Arc<DataDir>,
        shelf: Shelf,
        poison: Poison,
        step_hook: StepHook,
    ) -> Self {
        let directory = data_dir.snapshot_dir();
        Self {
            directory,
            shelf,
            poison,
            step_hook,
            next_serial: 1,
            part: None,
            _data_dir: data_dir,
        }
    }

    /// Looks at what an earlier process left: checks the published snapshot, removes what can be
    /// neither read nor resumed.
    pub(crate) fn recover(&mut self, published: Option<Published>) -> StorageResult<()> {
        self.part = None;
        if let Some(published) = &published {
            open_published(&self.directory, published)?;
            self.next_serial = published.serial + 1;
        }
        self.shelf.set_published(published);
        for path in self.files()? {
            if let Some(serial) = serial_of(&path, WHOLE) {
                self.next_serial = self.next_serial.max(serial + 1);
                if !self.shelf.needs(serial) {
                    remove_if_there(&path)?;
                }
            } else if let Some(serial) = serial_of(&path, PART) {
                self.next_serial = self.next_serial.max(serial + 1);
                let header =
                    File::open(&path).map_err(ReadError::Io).and_then(|mut f| read_header(&mut f));
                if !matches!(header, Ok((SnapshotHeader { expected: Some(_), .. }, _))) {
                    remove_if_there(&path)?;
                }
            }
        }
        Ok(())
    }

    fn files(&self) -> StorageResult<Vec<PathBuf>> {
        let list = |e| io_error("list", &self.directory, e);
        std::fs::read_dir(&self.directory)
            .map_err(list)?
            .map(|entry| entry.map(|entry| entry.path()).map_err(list))
            .collect()
    }

    /// Removes the snapshots that no one can ask for any more. Those that are being read stay readable.
    pub(crate) fn remove_old(&mut self) {
        let removed = self.files().and_then(|files| {
            let mut old = files.iter().filter(|path| {
                serial_of(path, WHOLE).is_some_and(|serial| !self.shelf.needs(serial))
            });
            old.try_for_each(|path| remove_if_there(path))
        });
        match removed {
            Ok(()) => self.step_hook.pass(Step::OldRemoved),
            // They cost space until the next start; nothing rests on them.
            Err(error) => tracing::warn!(%error, "an old snapshot could not be removed"),
        }
    }

    /// Begins or resumes; returns what names the unfinished snapshot from now on, and its size.
    pub(super) fn begin(
        &mut self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<(u64, u64)> {
        self.poison.check()?;
        let result = self.begin_unpoisoned(meta, expected);
        let part = self.poison.note(result)?;
        let begun = (part.serial, part.size_bytes);
        self.part = Some(part);
        Ok(begun)
    }

    fn begin_unpoisoned(
        &mut self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Part> {
        self.part = None;
        let header = SnapshotHeader { chunk_bytes: CHUNK_BYTES, meta, expected };
        let mut resumed = None;
        let parts = self.files()?.into_iter().filter(|path| serial_of(path, PART).is_some());
        for path in parts {
            if expected.is_some() && resumed.is_none() && Part::has_header(&path, &header) {
                // Under a new serial number, so that the writer that is dropped by this is noticed.
                let (serial, renamed) = self.take_serial(&header.meta);
                std::fs::rename(&path, &renamed).map_err(|e| io_error("rename", &path, e))?;
                resumed = Part::resume(serial, renamed, &header)?;
            } else {
                remove_if_there(&path)?;
            }
        }
        match resumed {
            Some(part) => Ok(part),
            None => {
                let (serial, path) = self.take_serial(&header.meta);
                let part = Part::create(serial, path, header)?;
                self.step_hook.pass(Step::SnapshotCreated);
                Ok(part)
            }
        }
    }

    fn take_serial(&mut self, meta: &SnapshotMeta) -> (u64, PathBuf) {
        let serial = self.next_serial;
        self.next_serial += 1;
        (serial, self.directory.join(file_name(meta.position, serial, PART)))
    }

    pub(super) fn write(&mut self, serial: u64, bytes: &Bytes) -> StorageResult<u64> {
        self.poison.check()?;
        let part = current(&mut self.part, serial)?;
        let written = part.append(bytes);
        self.step_hook.pass(Step::SnapshotWritten);
        self.poison.note(written)?;
        Ok(part.size_bytes)
    }

    pub(super) fn finish(&mut self, serial: u64) -> StorageResult<SnapshotContent> {
        self.poison.check()?;
        current(&mut self.part, serial)?;
        let mut part = self.part.take().expect("it was there just now");
        let content = SnapshotContent { size_bytes: part.size_bytes, checksum: part.checksum };
        if let Some(expected) = part.header.expected.filter(|expected| *expected != content) {
            // The peer's fault: the storage is as sound as before.
            self.poison.note(remove_if_there(&part.path))?;
            return Err(StorageError::Corrupt(format!(
                "the snapshot received for {} has {} bytes with checksum {:08x}, announced were {} \
                 with {:08x}; it was dropped, and will be asked for again",
                part.header.meta.position,
                content.size_bytes,
                content.checksum,
                expected.size_bytes,
                expected.checksum,
            )));
        }
        let finished = self.make_durable(&mut part, content);
        self.shelf.add_finished(self.poison.note(finished)?);
        Ok(content)
    }

    fn make_durable(&self, part: &mut Part, content: SnapshotContent) -> StorageResult<Published> {
        part.write_chunk()?;
        part.file.sync_all().map_err(|e| io_error("sync", &part.path, e))?;
        self.step_hook.pass(Step::SnapshotSynced);
        let meta = part.header.meta.clone();
        let target = self.directory.join(file_name(meta.position, part.serial, WHOLE));
        std::fs::rename(&part.path, &target).map_err(|e| io_error("rename", &part.path, e))?;
        sync_directory(&self.directory)?;
        self.step_hook.pass(Step::SnapshotRenamed);
        Ok(Published { meta, content, serial: part.serial })
    }

    /// Opens the published snapshot; it stays readable when it is replaced.
    pub(super) fn open_published(&self) -> StorageResult<Option<OpenSnapshot>> {
        self.shelf
            .published()
            .map(|published| open_published(&self.directory, &published))
            .transpose()
    }
}

impl Work for Store {
    fn close(self) {}
}

/// The unfinished snapshot of this writer, unless another writer has dropped it.
fn current(part: &mut Option<Part>, serial: u64) -> StorageResult<&mut Part> {
    part.as_mut().filter(|part| part.serial == serial).ok_or_else(|| {
        StorageError::Refused(
            "this snapshot was dropped, because another one was begun after it".to_owned(),
        )
    })
}

impl Part {
    fn create(serial: u64, path: PathBuf, header: SnapshotHeader) -> StorageResult<Self> {
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

    fn has_header(path: &Path, header: &SnapshotHeader) -> bool {
        let found = File::open(path).map_err(ReadError::Io).and_then(|mut f| read_header(&mut f));
        found.is_ok_and(|(found, _)| found == *header)
    }

    /// Keeps the full chunks from the front that are whole, and cuts the rest: it was not synced.
    fn resume(serial: u64, path: PathBuf, header: &SnapshotHeader) -> StorageResult<Option<Self>> {
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
            size_bytes: chunk_count * u64::from(header.chunk_bytes),
            checksum,
            unsynced_bytes: 0,
        }))
    }

    fn append(&mut self, bytes: &[u8]) -> StorageResult<()> {
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.size_bytes += bytes.len() as u64;
        let full = CHUNK_HEADER_BYTES + self.header.chunk_bytes as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(full - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            rest = later;
            if self.chunk.len() == full {
                self.write_chunk()?;
            }
        }
        if self.unsynced_bytes >= SYNC_BYTES {
            self.file.sync_data().map_err(|e| io_error("sync", &self.path, e))?;
            self.unsynced_bytes = 0;
        }
        Ok(())
    }

    fn write_chunk(&mut self) -> StorageResult<()> {
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

/// A snapshot that is being read.
pub(super) struct OpenSnapshot {
    pub(super) meta: SnapshotMeta,
    pub(super) content: SnapshotContent,
    path: PathBuf,
    file: File,
    chunks_at: u64,
    chunk_bytes: u32,
}

fn open_published(directory: &Path, published: &Published) -> StorageResult<OpenSnapshot> {
    let path = directory.join(file_name(published.meta.position, published.serial, WHOLE));
    let opened = || -> Result<_, ReadError> {
        let mut file = File::open(&path)?;
        let (header, chunks_at) = read_header(&mut file)?;
        if header.meta != published.meta {
            let damage = format!("it is of {}", header.meta.position);
            return Err(crate::record::Damage(damage).into());
        }
        let expected = file_bytes(chunks_at, header.chunk_bytes, &published.content);
        let found = file.metadata()?.len();
        if found != expected {
            let damage = format!("it has {found} bytes, {expected} belong there");
            return Err(crate::record::Damage(damage).into());
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
    /// Whole chunks are read and checked, and of them what was asked for is returned.
    pub(super) fn read(&mut self, offset: u64, bytes_max: usize) -> StorageResult<Bytes> {
        let end = offset.saturating_add(bytes_max as u64).min(self.content.size_bytes);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let chunk_bytes = u64::from(self.chunk_bytes);
        let first = offset / chunk_bytes;
        let chunks_end = end.div_ceil(chunk_bytes);
        let covered = (chunks_end * chunk_bytes).min(self.content.size_bytes) - first * chunk_bytes;
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
        Ok(Bytes::from(out).slice(skip..skip + len))
    }
}
