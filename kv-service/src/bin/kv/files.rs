//! Files that appear whole or not at all, and settings that are changed in place.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use kv_service::config::{ByteSize, NodeAddress};

/// Makes a directory for keys and data that no other user can read. An existing one stays as it is.
pub(crate) fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the file, and the draft that an interrupted [`write_file`] has left, which may hold a
/// key.
pub(crate) fn remove_with_draft(path: &Path) -> anyhow::Result<()> {
    remove(&with_ending(path, DRAFT))?;
    remove(path)
}

/// The ending of a file that is being written.
pub(crate) const DRAFT: &str = ".tmp";

/// Writes a file whole or not at all.
pub(crate) fn write_file(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> anyhow::Result<()> {
    let written = || -> io::Result<()> {
        let draft = with_ending(path, DRAFT);
        // Always a new file, so that it has this mode and not that of an existing file.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(content.as_ref())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Changes this one setting and leaves the others as the user has them.
pub(crate) fn set_max_raft_state(path: &Path, size: ByteSize) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut settings: toml::Table =
        toml::from_str(&text).with_context(|| path.display().to_string())?;
    settings.insert("max_raft_state".to_owned(), size.to_string().into());
    write_file(path, toml::to_string(&settings)?, 0o644)
}

pub(crate) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Changes the nodes of a client's file, and leaves the other settings as the user has them.
pub(crate) fn set_nodes(path: &Path, nodes: &[NodeAddress]) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut settings: toml::Table =
        toml::from_str(&text).with_context(|| path.display().to_string())?;
    settings.insert("nodes".to_owned(), toml::Value::try_from(nodes)?);
    write_file(path, toml::to_string(&settings)?, 0o644)
}
