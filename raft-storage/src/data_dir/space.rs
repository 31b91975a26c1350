//! Free space of the disk, and a ballast file that is removed when the disk is full.
//!
//! The disks of all nodes of a cluster become full at about the same time, and a node whose disk is
//! full cannot even start again, because replay writes a table. So a file of
//! [`Space::ballast_bytes`] is kept while there is room, and removed at an opening that finds the
//! disk full. Below [`Space::low_bytes`] a service should refuse writes and go on with reads and
//! deletes; this crate only reports it.

use std::path::Path;

use raft_core::storage::StorageResult;

use super::DataDir;
use crate::files::{io_error, remove_if_there, sync_directory};

const BALLAST: &str = "ballast";
const MIB: u64 = 1 << 20;

/// Largest ballast: a write buffer of the log and one of the state, written as tables.
const BALLAST_BYTES_MAX: u64 = 64 * MIB;
/// Largest floor: four write buffers of the log, as many of the state, and merges of both.
const LOW_BYTES_MAX: u64 = 256 * MIB;
/// On a small disk the ballast is at most one part in [`BALLAST_DIVISOR`] of it, and the floor one
/// part in [`LOW_DIVISOR`].
const BALLAST_DIVISOR: u64 = 64;
const LOW_DIVISOR: u64 = 20;

/// Space on the file system of a directory, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free_bytes: u64,
    /// Bytes of the whole file system.
    pub total_bytes: u64,
}

impl Space {
    /// Free bytes below which a service should refuse writes: 256 MiB, or a twentieth of a small
    /// disk.
    pub fn low_bytes(&self) -> u64 {
        LOW_BYTES_MAX.min(self.total_bytes / LOW_DIVISOR)
    }

    /// Returns true if a service should refuse writes, so that there is room for those that it has
    /// accepted.
    pub fn is_low(&self) -> bool {
        self.free_bytes < self.low_bytes()
    }

    /// Bytes of the ballast: 64 MiB, or a 64th of a small disk.
    pub fn ballast_bytes(&self) -> u64 {
        BALLAST_BYTES_MAX.min(self.total_bytes / BALLAST_DIVISOR)
    }

    /// Returns true if there is room for the ballast without making the disk low.
    fn has_room_for_ballast(&self) -> bool {
        self.free_bytes >= self.low_bytes() + self.ballast_bytes()
    }

    /// Returns true if so little is free that a restart may need the ballast.
    fn is_full(&self) -> bool {
        self.free_bytes < self.ballast_bytes()
    }

    pub(super) fn of(path: &Path) -> StorageResult<Self> {
        #[cfg(unix)]
        {
            let found =
                rustix::fs::statvfs(path).map_err(|e| io_error("inspect", path, e.into()))?;
            Ok(Self {
                free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
                total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            })
        }
        // On other systems there is always room, until a write fails.
        #[cfg(not(unix))]
        {
            let _ = path;
            Ok(Self { free_bytes: u64::MAX, total_bytes: u64::MAX })
        }
    }
}

impl DataDir {
    /// Space on the file system of the directory.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`](raft_core::storage::StorageError::Io) if the file system cannot be
    /// queried.
    pub fn space(&self) -> StorageResult<Space> {
        Space::of(&self.path)
    }

    /// Free bytes on the file system of the directory; errors as [`DataDir::space`].
    pub fn free_bytes(&self) -> StorageResult<u64> {
        Ok(self.space()?.free_bytes)
    }

    /// Returns true if the free bytes are below the floor: a service should reject writes as
    /// `Busy`. Cheap enough for each second, not for each write. Errors as [`DataDir::space`].
    pub fn is_low(&self) -> StorageResult<bool> {
        Ok(self.space()?.is_low())
    }

    /// Makes the ballast if it is missing and there is room for it; returns true if it exists.
    /// Blocks for a moment: a service calls it once it runs, and again when there is room again.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`](raft_core::storage::StorageError::Io) if the file system cannot be
    /// queried or changed; the node can run without a ballast.
    pub fn keep_ballast(&self) -> StorageResult<bool> {
        let path = self.path.join(BALLAST);
        let space = self.space()?;
        let bytes = space.ballast_bytes();
        let found = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if found >= bytes {
            return Ok(true);
        }
        if !space.has_room_for_ballast() {
            return Ok(false);
        }
        if reserve(&path, bytes) {
            sync_directory(&self.path)?;
            return Ok(true);
        }
        // A file with holes would free no space when it is removed.
        remove_if_there(&path)?;
        Ok(false)
    }
}

/// Allocates the file; false if that is not possible here.
fn reserve(path: &Path, bytes: u64) -> bool {
    #[cfg(unix)]
    {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let allocated = options.open(path).and_then(|file| {
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
            file.sync_all()
        });
        if let Err(error) = &allocated {
            tracing::debug!(%error, file = %path.display(), "no ballast here");
        }
        allocated.is_ok()
    }
    #[cfg(not(unix))]
    {
        let _ = (path, bytes);
        false
    }
}

/// Removes the ballast if the disk is full.
pub(super) fn release_ballast_if_full(directory: &Path) -> StorageResult<()> {
    let path = directory.join(BALLAST);
    let space = Space::of(directory)?;
    if !space.is_full() || !path.exists() {
        return Ok(());
    }
    tracing::warn!(
        free_bytes = space.free_bytes,
        file = %path.display(),
        "the disk is full: the ballast is given back so that the node can start; make room"
    );
    remove_if_there(&path)?;
    sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn space(free_bytes: u64, total_bytes: u64) -> Space {
        Space { free_bytes, total_bytes }
    }

    /// S21. Floor and ballast suit a large disk and a small one.
    #[test]
    fn floor_and_ballast_are_bounded_and_part_of_a_small_disk() {
        let large = space(100 * GIB, 1_000 * GIB);
        assert_eq!((large.low_bytes(), large.ballast_bytes()), (256 * MIB, 64 * MIB));
        assert!(!large.is_low() && large.has_room_for_ballast() && !large.is_full());
        let small = space(GIB / 4, GIB);
        assert_eq!((small.low_bytes(), small.ballast_bytes()), (GIB / 20, 16 * MIB));
        assert!(space(256 * MIB - 1, 1_000 * GIB).is_low());
        assert!(!space(256 * MIB, 1_000 * GIB).has_room_for_ballast());
        assert!(space(63 * MIB, 1_000 * GIB).is_full());
    }

    /// S21. The ballast takes real room, is made once, and is given back only if the disk is full.
    #[test]
    fn the_ballast_takes_room() {
        let path = TempDir::new().unwrap();
        let data_dir = DataDir::open(path.path(), "ours", 3).unwrap();
        let ballast = path.path().join(BALLAST);
        assert!(!ballast.exists(), "made only where it is asked for");
        if !data_dir.keep_ballast().unwrap() {
            return; // No room, or no reservations, on this file system.
        }
        let metadata = std::fs::metadata(&ballast).unwrap();
        assert_eq!(metadata.len(), data_dir.space().unwrap().ballast_bytes());
        let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(allocated >= metadata.len(), "{allocated} bytes are allocated");
        assert!(data_dir.keep_ballast().unwrap());
        drop(data_dir);
        drop(DataDir::open(path.path(), "ours", 3).unwrap());
        assert!(ballast.exists(), "the disk is not full");
    }
}
