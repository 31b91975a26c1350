//! Files that appear whole or not at all.
//!
//! Assumed of the file system: a rename within a directory is atomic, and what was synced stays.
//! Not assumed: that a new name survives before its directory was synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use raft_core::storage::StorageError;

/// Names the operation and the path in an error of the operating system.
pub(crate) fn io_error(operation: &str, path: &Path, source: io::Error) -> StorageError {
    StorageError::Io { operation: format!("{operation} {}", path.display()), source }
}

/// Makes the names in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StorageError> {
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(|source| io_error("sync the directory", directory, source))
}

/// Writes `directory/name` through a temporary file; durable when this returns. A `private`
/// file can be read by its owner alone.
pub(crate) fn write_whole(
    directory: &Path,
    name: &str,
    content: &[u8],
    private: bool,
) -> Result<(), StorageError> {
    assert!(Path::new(name).components().count() == 1, "a name in the directory");
    let temporary = directory.join(format!("{name}.tmp"));
    // An interrupted attempt may have left one, with other permissions.
    remove_if_there(&temporary)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    options
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .map_err(|source| io_error("write", &temporary, source))?;
    let target = directory.join(name);
    std::fs::rename(&temporary, &target)
        .map_err(|source| io_error("rename to", &target, source))?;
    sync_directory(directory)
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), StorageError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// Reads a small file; `None` if there is none. Of a longer file than `bytes_max`, only one byte
/// more than that is read.
pub(crate) fn read_if_there(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, StorageError> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("open", path, source)),
    };
    let mut content = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|source| io_error("read", path, source))?;
    assert!(content.len() as u64 <= bytes_max.saturating_add(1), "one byte more at most");
    Ok(Some(content))
}
