//! Faults of single writes and syncs of a running node, made by a library that is loaded before the
//! C library: `preload.c`, compiled when it is first wanted. It needs a compiler, and no privilege.
//!
//! `strace` (see [`super::inject`]) counts calls per thread, and cannot make a write shorter than
//! requested. This library can, and a fault that is to happen once happens once in the whole
//! process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use super::means::run;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/processes/preload.c");

/// A fault of files whose path has a certain part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// Writes write only some of their bytes, and report that, until the fault is cleared.
    ShortWrites,
    /// One write finds no room; later ones find some.
    NoRoomOnce,
    /// One sync fails; later ones succeed, whatever became of the bytes.
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

/// The library, and the file that tells one process which fault to make.
#[derive(Clone, Debug)]
pub struct Preload {
    library: &'static Path,
    control: PathBuf,
}

impl Preload {
    /// Prepares faults of one process, controlled by `control`, a file that does not exist yet.
    ///
    /// # Errors
    /// The reason, if this machine cannot compile the library.
    pub fn new(control: PathBuf) -> Result<Self, String> {
        Ok(Self { library: library()?, control })
    }

    /// The environment variables that the process needs.
    pub fn environment(&self) -> [(&'static str, &Path); 2] {
        [("LD_PRELOAD", self.library), ("KV_FAULT", &self.control)]
    }

    /// Sets the fault, in place of the one that was set before.
    ///
    /// # Panics
    /// If the control file cannot be written.
    pub fn set(&self, fault: FileFault, part: &str) {
        // Renamed into place, so that no process reads half of it.
        let written = self.control.with_extension("new");
        std::fs::write(&written, format!("{} {part}\n", fault.name())).expect("it can be written");
        std::fs::rename(&written, &self.control).expect("it can be renamed");
    }

    pub fn clear(&self) {
        // A fault that happens once has removed the file.
        let _ = std::fs::remove_file(&self.control);
    }

    /// How often a fault has happened so far.
    pub fn hit_count(&self) -> u64 {
        let hits = format!("{}.hits", self.control.display());
        std::fs::metadata(hits).map_or(0, |file| file.len())
    }
}

/// Compiles the library once per test process.
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

    /// Checks the tool itself: if it does not do what it says, the tests that use it prove nothing.
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
