//! The directory of the state, and which instance in it is the current one.
//!
//! ```text
//!   <path>/current            "kv-state 2\ngeneration 3\n"
//!         /generation-3       the instance that is served
//!         /generation-4       one that a restore fills
//! ```
//!
//! `current` is replaced by a rename once the new instance is complete on disk: a crash before the
//! rename leaves the old state, a crash after it the new one. The next start removes all instances
//! that `current` does not name. A directory without a `current` that is not empty is left alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_core::state_machine::{MachineError, MachineResult};

use super::db::Db;
use super::options::RocksStateOptions;

const CURRENT: &str = "current";
const CURRENT_TEMPORARY: &str = "current.tmp";
const PREFIX: &str = "generation-";
const FIRST: u64 = 1;

/// Format version of the directory and of everything in it.
const FORMAT: &str = "2";

/// A longer file is certainly not a `current`.
const CURRENT_BYTES_MAX: u64 = 64;

pub(super) struct Directory {
    path: PathBuf,
    options: RocksStateOptions,
    /// Larger than any in use.
    next_generation: u64,
}

impl Directory {
    /// Opens the current instance, or creates the first one in an empty directory.
    pub(super) fn open(path: &Path, options: RocksStateOptions) -> MachineResult<(Self, Arc<Db>)> {
        std::fs::create_dir_all(path).map_err(|error| failed("creating", path, &error))?;
        let generation = match read_current(path)? {
            Some(generation) => generation,
            None => {
                let mut entries =
                    std::fs::read_dir(path).map_err(|error| failed("reading", path, &error))?;
                if entries.any(|entry| entry.is_ok_and(|e| e.file_name() != CURRENT_TEMPORARY)) {
                    return Err(MachineError(format!(
                        "{} is not empty, and has no `{CURRENT}` that says which state to open: it \
                         belongs to something else, or was restored in part. Name another \
                         directory, or empty this one",
                        path.display()
                    )));
                }
                // Written first: any later start may then create the instance.
                write_current(path, FIRST)?;
                FIRST
            }
        };
        let directory = Self { path: path.to_owned(), options, next_generation: generation + 1 };
        let name = directory.path_of(generation);
        // A later generation was complete when it became the current one.
        let create = generation == FIRST;
        if !create && !name.is_dir() {
            return Err(MachineError(format!(
                "{} is named by `{CURRENT}`, and is not there: the state was removed or restored in \
                 part. Restore the whole data directory from one backup, or wipe it and let the \
                 node join as a new one",
                name.display()
            )));
        }
        let db = Db::open(name, &directory.options, create)?;
        if create {
            // RocksDB syncs the entries of the instance's directory, but not that directory's own
            // name.
            sync(path).map_err(|error| failed("syncing", path, &error))?;
        }
        // Done last: nothing is removed unless there is a state.
        remove_others(path, generation)?;
        Ok((directory, Arc::new(db)))
    }

    fn path_of(&self, generation: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{generation}"))
    }

    /// Creates an empty instance beside the current one. It vanishes when closed, unless it becomes
    /// current.
    pub(super) fn create_next(&mut self) -> MachineResult<Arc<Db>> {
        let path = self.path_of(self.next_generation);
        self.next_generation += 1;
        let db = Db::open(path, &self.options, true)?;
        db.remove_when_closed();
        Ok(Arc::new(db))
    }

    /// Makes a start from now on open `instance`, which has been flushed.
    pub(super) fn make_current(&self, db: &Db) -> MachineResult<()> {
        let generation = generation_of(db.path()).expect("made by `create_next`");
        assert!(generation < self.next_generation, "made by this process");
        // Before the rename, because a rename that fails may have taken effect.
        db.keep_when_closed();
        write_current(&self.path, generation)
    }
}

fn generation_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

fn read_current(path: &Path) -> MachineResult<Option<u64>> {
    let file_path = path.join(CURRENT);
    let mut text = Vec::new();
    match File::open(&file_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("opening", &file_path, &error)),
        Ok(file) => file
            .take(CURRENT_BYTES_MAX)
            .read_to_end(&mut text)
            .map_err(|error| failed("reading", &file_path, &error))?,
    };
    let text = String::from_utf8_lossy(&text);
    let refused = |why: String| {
        Err(MachineError(format!(
            "{}: {why}. Use the version that wrote it, or restore the whole data directory from one \
             backup",
            file_path.display()
        )))
    };
    let Some((version, rest)) = text.strip_prefix("kv-state ").and_then(|t| t.split_once('\n'))
    else {
        return refused("not the mark of a state directory".into());
    };
    match version {
        FORMAT => {}
        "1" => {
            return refused("the state has format version 1, which no release has written".into());
        }
        _ => {
            return refused(format!("the state has format version {version:?}, known is {FORMAT}"));
        }
    }
    let generation = rest.strip_prefix("generation ").and_then(|r| r.strip_suffix('\n'));
    match generation.and_then(|number| number.parse::<u64>().ok()) {
        Some(generation) if (FIRST..u64::MAX).contains(&generation) => Ok(Some(generation)),
        _ => refused("damaged".into()),
    }
}

fn write_current(path: &Path, generation: u64) -> MachineResult<()> {
    let temporary = path.join(CURRENT_TEMPORARY);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(format!("kv-state {FORMAT}\ngeneration {generation}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path.join(CURRENT))?;
        // Makes the instance's own name durable too.
        sync(path)
    };
    write().map_err(|error| failed("writing the mark in", path, &error))
}

/// Makes the names in a directory durable.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes the instances that restores have left: interrupted ones, and those that were replaced.
fn remove_others(path: &Path, current: u64) -> MachineResult<()> {
    let entries = std::fs::read_dir(path).map_err(|error| failed("reading", path, &error))?;
    for entry in entries {
        let entry_path = entry.map_err(|error| failed("reading", path, &error))?.path();
        if generation_of(&entry_path).is_some_and(|generation| generation != current) {
            std::fs::remove_dir_all(&entry_path)
                .map_err(|error| failed("removing", &entry_path, &error))?;
        }
    }
    Ok(())
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> MachineError {
    MachineError(format!("{doing} {}: {error}", path.display()))
}
