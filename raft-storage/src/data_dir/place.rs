//! Detects copies: is this the directory that its identity was made for?
//!
//! The file `place` describes the file `lock` beside it:
//!
//! * **Birth time**, where the file system keeps one (ext4, xfs, btrfs, zfs, APFS). It cannot be
//!   set, so every copy made file by file has another one, also a copy that was unpacked in place
//!   of the original and got the same inode. If there is a birth time, nothing else is compared:
//!   inodes of some file systems change with each mount.
//! * **A mark**: random bytes in an extended attribute. It is compared where there is no birth
//!   time. Copies that keep extended attributes (`cp -a`, `rsync -X`) are not detected there.
//! * **The inode** is compared where there is neither.
//!
//! The device's number is not used: it changes with the order in which disks are found.

use std::fs::File;
use std::path::Path;
use std::time::UNIX_EPOCH;

use raft_core::storage::{StorageError, StorageResult};

use super::{LOCK, SMALL_FILE_BYTES_MAX, random_bytes};
use crate::files::{io_error, read_if_there, write_whole};
use crate::record::{Damage, seal, unseal};

pub(super) const PLACE: &str = "place";

const TAG_PLACE: u8 = b'P';
const MARK_BYTES: usize = 16;
#[cfg(unix)]
const MARK_NAME: &str = "user.raft.place";

/// Properties that distinguish one file `lock` from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) inode: u64,
    /// Birth time in nanoseconds since 1970; 0 if the file system keeps none.
    pub(super) born_at: u64,
    /// Zeros if the file system keeps none.
    pub(super) mark: [u8; MARK_BYTES],
}

impl Place {
    pub(super) fn of(lock: &File) -> std::io::Result<Self> {
        let metadata = lock.metadata()?;
        let born_at = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Ok(Self {
            inode,
            born_at: born_at.and_then(|age| u64::try_from(age.as_nanos()).ok()).unwrap_or(0),
            mark: read_mark(lock),
        })
    }

    /// Returns true if this place describes the file `found`.
    pub(super) fn is_of(&self, found: &Self) -> bool {
        if self.born_at != 0 && found.born_at != 0 {
            return self.born_at == found.born_at;
        }
        if self.mark != [0; MARK_BYTES] {
            return self.mark == found.mark;
        }
        self.inode == found.inode
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        seal(TAG_PLACE, |out| {
            out.extend_from_slice(&self.inode.to_be_bytes());
            out.extend_from_slice(&self.born_at.to_be_bytes());
            out.extend_from_slice(&self.mark);
        })
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let mut fields = unseal(TAG_PLACE, bytes)?;
        let (inode, born_at) = (fields.u64()?, fields.u64()?);
        let mark = fields.bytes(MARK_BYTES)?.try_into().expect("as many as were asked for");
        fields.done()?;
        Ok(Self { inode, born_at, mark })
    }
}

/// Refuses a copy of a directory. If there is no `place`, one is written for the present `lock`: an
/// operator removes the file to vouch for a moved directory.
pub(super) fn check_place(path: &Path, lock: &File) -> StorageResult<()> {
    let place_path = path.join(PLACE);
    let inspect = |e| io_error("inspect", &path.join(LOCK), e);
    let Some(bytes) = read_if_there(&place_path, SMALL_FILE_BYTES_MAX)? else {
        write_mark(lock, &random_bytes()?);
        let here = Place::of(lock).map_err(inspect)?;
        return write_whole(path, PLACE, &here.encode(), false);
    };
    let made_for = Place::decode(&bytes).map_err(|damage| {
        StorageError::Corrupt(format!(
            "{} is damaged ({damage}): if this is the only copy of the directory, remove that file \
             and start again",
            place_path.display()
        ))
    })?;
    if made_for.is_of(&Place::of(lock).map_err(inspect)?) {
        return Ok(());
    }
    Err(StorageError::Refused(format!(
        "{} is a copy of a node's directory: two nodes of one identity would vote twice and lose \
         data. Start the original. If that is gone for good and it never ran after this copy was \
         made, remove the file {} and start again; if it did run, let the node be re-admitted with \
         an empty directory",
        path.display(),
        place_path.display()
    )))
}

#[cfg(unix)]
fn read_mark(lock: &File) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    match rustix::fs::fgetxattr(lock, MARK_NAME, &mut mark) {
        Ok(MARK_BYTES) => mark,
        // No mark, or one of another program.
        Ok(_) | Err(_) => [0; MARK_BYTES],
    }
}

/// Not all file systems keep the mark; birth time or inode are compared then.
#[cfg(unix)]
fn write_mark(lock: &File, mark: &[u8; MARK_BYTES]) {
    let _ = rustix::fs::fsetxattr(lock, MARK_NAME, mark, rustix::fs::XattrFlags::empty());
}

#[cfg(not(unix))]
fn read_mark(_lock: &File) -> [u8; MARK_BYTES] {
    [0; MARK_BYTES]
}

#[cfg(not(unix))]
fn write_mark(_lock: &File, _mark: &[u8; MARK_BYTES]) {}
