//! The snapshots' thread: makes, resumes, finishes and removes the files.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{SnapshotContent, SnapshotMeta};

use super::super::poison::Poison;
use super::super::worker::Work;
use super::part::Part;
use super::published::{OpenSnapshot, open_published};
use super::{CHUNK_BYTES, PART, Shelf, WHOLE};
use crate::DataDir;
use crate::files::{io_error, remove_if_there, sync_directory};
use crate::format::records::{NUMBER_MAX, Published, SnapshotHeader};
use crate::format::snapshot_file::{ReadError, file_name, read_header, serial_of};
use crate::step::{Step, StepHook};

pub(crate) struct Store {
    directory: PathBuf,
    shelf: Shelf,
    poison: Poison,
    step_hook: StepHook,
    next_serial: u64,
    /// The one unfinished snapshot.
    part: Option<Part>,
    /// Holds the directory's lock as long as this thread can write.
    _data_dir: Arc<DataDir>,
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

    /// Takes over the files of an earlier process: checks the published snapshot, and removes files
    /// that can be neither read nor resumed. A damaged snapshot is logged here, and fails each
    /// attempt to open it: a state machine that is durable itself does not need the snapshot to
    /// start, and a new publication replaces it.
    pub(crate) fn recover(&mut self, published: Option<Published>) -> StorageResult<()> {
        self.part = None;
        if let Some(published) = &published {
            match open_published(&self.directory, published) {
                Err(error @ StorageError::Corrupt(_)) => {
                    tracing::warn!(%error, "the published snapshot cannot be used");
                }
                opened => drop(opened?),
            }
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

    /// Removes the snapshots that are no longer needed. Open readers keep theirs.
    pub(crate) fn remove_old(&mut self) {
        let removed = self.files().and_then(|files| {
            let mut old = files.iter().filter(|path| {
                serial_of(path, WHOLE).is_some_and(|serial| !self.shelf.needs(serial))
            });
            old.try_for_each(|path| remove_if_there(path))
        });
        match removed {
            Ok(()) => self.step_hook.pass(Step::OldRemoved),
            // The files cost space until the next start; nothing depends on them.
            Err(error) => tracing::warn!(%error, "an old snapshot could not be removed"),
        }
    }

    /// Begins or resumes a snapshot. Returns the serial number that names it from now on, and its
    /// size in bytes.
    pub(super) fn begin(
        &mut self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<(u64, u64)> {
        self.poison.check()?;
        let result = self.begin_unpoisoned(meta, expected);
        let part = self.poison.note(result)?;
        assert!(part.serial < self.next_serial, "its number is taken");
        let begun = (part.serial, part.size_bytes);
        self.part = Some(part);
        Ok(begun)
    }

    fn begin_unpoisoned(
        &mut self,
        meta: SnapshotMeta,
        expected: Option<SnapshotContent>,
    ) -> StorageResult<Part> {
        let header = SnapshotHeader { chunk_bytes: CHUNK_BYTES, meta, expected };
        if let Some(mut part) = self.part.take()
            && expected.is_some()
            && part.header == header
        {
            // Resumes the open file without reading it: to read gigabytes again would take longer
            // than the sender waits.
            let (serial, renamed) = self.take_serial(&header.meta);
            std::fs::rename(&part.path, &renamed).map_err(|e| io_error("rename", &part.path, e))?;
            (part.serial, part.path) = (serial, renamed);
            return Ok(part);
        }
        let mut resumed = None;
        let parts = self.files()?.into_iter().filter(|path| serial_of(path, PART).is_some());
        for path in parts {
            if expected.is_some() && resumed.is_none() && Part::has_header(&path, &header) {
                // Under a new serial number, so that an earlier writer, which this one replaces,
                // gets an error.
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
        assert!(serial <= NUMBER_MAX, "counting never reaches it");
        self.next_serial += 1;
        (serial, self.directory.join(file_name(meta.position, serial, PART)))
    }

    pub(super) fn write(&mut self, serial: u64, bytes: &Bytes) -> StorageResult<u64> {
        self.poison.check()?;
        let part = current(&mut self.part, serial)?;
        let end = part.size_bytes + bytes.len() as u64;
        let written = part.append(bytes);
        self.step_hook.pass(Step::SnapshotWritten);
        let size_bytes = part.size_bytes;
        if written.is_err() {
            self.drop_part();
        }
        self.poison.note(written)?;
        assert_eq!(size_bytes, end, "the offset moves by the bytes written");
        Ok(size_bytes)
    }

    pub(super) fn finish(&mut self, serial: u64) -> StorageResult<SnapshotContent> {
        self.poison.check()?;
        current(&mut self.part, serial)?;
        let mut part = self.part.take().expect("it was there just now");
        let content = SnapshotContent { size_bytes: part.size_bytes, checksum: part.checksum };
        if let Some(expected) = part.header.expected.filter(|expected| *expected != content) {
            // The peer's fault: the storage itself has not failed.
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
        if finished.is_err() {
            self.part = Some(part);
            self.drop_part();
        }
        self.shelf.add_finished(self.poison.note(finished)?);
        Ok(content)
    }

    /// Removes the unfinished snapshot after a failed write or sync. The kernel may count its pages
    /// as clean although they are not on the disk: a later process would resume it from the page
    /// cache, and its sync would write nothing.
    fn drop_part(&mut self) {
        let Some(part) = self.part.take() else { return };
        let removed = remove_if_there(&part.path).and_then(|()| sync_directory(&self.directory));
        if let Err(error) = removed {
            tracing::error!(
                %error,
                "an unfinished snapshot could not be removed after its write failed: remove the file \
                 {} before the node is started again",
                part.path.display()
            );
        }
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

#[cfg(test)]
mod tests;

/// The unfinished snapshot of this writer, unless another writer has dropped it.
fn current(part: &mut Option<Part>, serial: u64) -> StorageResult<&mut Part> {
    part.as_mut().filter(|part| part.serial == serial).ok_or_else(|| {
        StorageError::Refused(
            "this snapshot was dropped, because another one was begun after it".to_owned(),
        )
    })
}
