//! Faults of single writes and syncs of a running node, made by a library that is put before the C library:
//! `preload.c`, compiled when it is first wanted. It needs a compiler, and no right.
//!
//! `strace` (see [`super::inject`]) counts for each thread, and cannot make a write shorter than it was
//! asked to be. This can, and what is to happen once happens once in the whole process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::means::run;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/processes/preload.c");

/// A fault of a file whose path has a certain part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// Writes write only some of their bytes, and say so, until it is taken back.
    ShortWrites,
    /// One write finds no room; the ones after it would.
    NoRoomOnce,
    /// One sync fails; the ones after it succeed, whatever became of the bytes.
    SyncFailsOnce,
}

impl FileFault {
    fn name(self) -> &'static str {
        match self {
            FileFault::ShortWrites => "short",
            FileFault::NoRoomOnce => "full",
            FileFault::SyncFailsOnce => "sync",
        }
    }
}

/// The library, and the file by which one process is told what is to happen.
#[derive(Clone, Debug)]
pub struct Preload {
    library: &'static Path,
    control: PathBuf,
}

impl Preload {
    /// For a process of which `control`, a file that is not there yet, is told.
    ///
    /// # Errors
    /// This machine cannot compile it; why.
    pub fn new(control: PathBuf) -> Result<Self, String> {
        Ok(Self { library: library()?, control })
    }

    /// The environment that the process needs.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", self.library), ("KV_FAULT", &self.control)]
    }

    /// From now on, in place of what was to happen before.
    ///
    /// # Panics
    /// If the file that says so cannot be written.
    pub fn set(&self, fault: FileFault, part: &str) {
        // By a rename, so that no process sees half of it.
        let written = self.control.with_extension("new");
        std::fs::write(&written, format!("{} {part}\n", fault.name())).expect("it can be written");
        std::fs::rename(&written, &self.control).expect("it can be renamed");
    }

    pub fn clear(&self) {
        // A fault that happens once has removed it.
        let _ = std::fs::remove_file(&self.control);
    }

    /// How often a fault has happened so far.
    pub fn hit_count(&self) -> u64 {
        let hits = format!("{}.hits", self.control.display());
        std::fs::metadata(hits).map_or(0, |file| file.len())
    }
}

/// Compiled once for all of this process.
fn library() -> Result<&'static Path, String> {
    static COMPILED: OnceLock<Result<(TempDir, PathBuf), String>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(|| {
        if !cfg!(target_os = "linux") {
            return Err("it is written for Linux".to_owned());
        }
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let library = dir.path().join("faults.so");
        run("cc", &["-shared", "-fPIC", "-O2", "-o", &library.display().to_string(), SOURCE])?;
        Ok((dir, library))
    });
    compiled.as_ref().map(|(_, library)| library.as_path()).map_err(Clone::clone)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;
    use crate::processes::means::not_run;

    /// Writes 100,000 bytes in one piece and syncs them.
    fn copy(preload: &Preload, to: &Path) -> Output {
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=100000", "count=1", "conv=fsync"]);
        dd.arg(format!("of={}", to.display())).env("LC_ALL", "C");
        dd.envs(preload.environment()).output().expect("dd is everywhere")
    }

    /// If the tool does not do what it says, the tests that use it prove nothing.
    #[test]
    fn the_library_does_what_it_is_told_and_once_is_once() {
        let dir = tempfile::tempdir().unwrap();
        let preload = match Preload::new(dir.path().join("fault")) {
            Ok(preload) => preload,
            Err(why) => return not_run("faults of single writes and syncs", &why),
        };
        let file = dir.path().join("file.log");
        let whole = || std::fs::metadata(&file).unwrap().len() == 100_000;
        assert!(copy(&preload, &file).status.success() && whole());
        assert_eq!(preload.hit_count(), 0);

        preload.set(FileFault::ShortWrites, ".log");
        assert!(copy(&preload, &file).status.success() && whole(), "the writer goes on");
        assert!(preload.hit_count() > 1, "only {} were short", preload.hit_count());

        for (fault, text) in [
            (FileFault::NoRoomOnce, "No space left on device"),
            (FileFault::SyncFailsOnce, "Input/output error"),
        ] {
            let before = preload.hit_count();
            preload.set(fault, "file.lo");
            assert!(copy(&preload, &dir.path().join("other")).status.success());
            let failed = copy(&preload, &file);
            assert!(!failed.status.success());
            let said = String::from_utf8_lossy(&failed.stderr);
            assert!(said.contains(text), "{said}");
            assert!(copy(&preload, &file).status.success() && whole());
            assert_eq!(preload.hit_count(), before + 1);
        }
    }
}
