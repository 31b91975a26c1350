//! The `kv` binary under test: the one that was built together with the tests, and no other.
//!
//! `cargo test --workspace` puts it beside the test's own binary. Cargo does not know that these
//! tests need it, so a run of this package alone could find an old one; the files that it was built
//! from are therefore compared with the present ones. The environment variable `KV_BIN` names
//! another binary, which is used unchecked.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// The program that a node runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Program {
    /// `kv` as it was built together with the tests.
    #[default]
    Current,
    /// The same sources, built to support cluster version 1 and no later one: `kv-version-1` beside
    /// `kv`.
    Previous,
}

impl Program {
    /// # Panics
    /// If it was not built, or not from these sources.
    pub fn path(self) -> PathBuf {
        match self {
            Program::Current => kv().to_owned(),
            Program::Previous => {
                let path = profile().join(PREVIOUS);
                let built = modified(&path);
                let built = built.unwrap_or_else(|| panic!("no {PREVIOUS}: {ADVICE_PREVIOUS}"));
                for source in sources_in(workspace()) {
                    let newer = modified(&source).is_none_or(|changed| changed > built);
                    let source = source.display();
                    assert!(!newer, "{PREVIOUS} is older than {source}: {ADVICE_PREVIOUS}");
                }
                path
            }
        }
    }
}

/// The program to start nodes with.
///
/// # Panics
/// If there is none, or if it was not built from these sources.
fn kv() -> &'static Path {
    static FOUND: OnceLock<(PathBuf, File)> = OnceLock::new();
    let (path, _open) = FOUND.get_or_init(|| {
        let path = std::env::var_os("KV_BIN").map_or_else(built_with_us, PathBuf::from);
        let file = File::open(&path).unwrap_or_else(|error| {
            panic!("{} cannot be opened ({error}): {ADVICE}", path.display())
        });
        // Another build may replace the file meanwhile; the open file stays the same program.
        let held = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        (if held.exists() { held } else { path }, file)
    });
    path
}

const ADVICE: &str = "run `cargo test --workspace`, or first `cargo build -p kv-service --features cli --bin kv` \
                      with the same profile";

/// Built by `scripts/previous`, from the same sources.
const PREVIOUS: &str = "kv-version-1";
const ADVICE_PREVIOUS: &str = "run `scripts/previous`, with --release for tests in that profile";

/// The directory for programs of the profile that the tests are built with.
fn profile() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows where it is");
    // target/PROFILE/deps/THIS
    own.ancestors().nth(2).expect("a test lies two folders deep in `target`").to_owned()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member has a workspace")
}

fn built_with_us() -> PathBuf {
    let profile = profile();
    let kv = profile.join("kv");
    let built = modified(&kv).unwrap_or_else(|| panic!("there is no {}: {ADVICE}", kv.display()));
    let workspace = workspace();
    // Cargo writes this file for the targets that it was asked to build, and not always for those
    // that tests need: it may be missing, or describe an earlier build.
    let rule = profile.join("kv.d");
    let rule_is_of_this_build = modified(&rule).is_some_and(|written| written >= built);
    let sources = match std::fs::read_to_string(rule) {
        Ok(rule) if rule_is_of_this_build => prerequisites(&rule),
        _ => sources_in(workspace),
    };
    assert!(
        sources.iter().any(|source| source.starts_with(workspace)),
        "{} was built of another clone: {ADVICE}",
        kv.display()
    );
    for source in sources {
        let newer = modified(&source).is_none_or(|changed| changed > built);
        assert!(!newer, "{} is older than {}: {ADVICE}", kv.display(), source.display());
    }
    kv
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|file| file.modified()).ok()
}

/// All files that `kv` can be built from.
fn sources_in(workspace: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["raft-core", "raft-storage", "raft-transport-quic", "kv-service"]
            .iter()
            .map(|member| workspace.join(member).join("src"))
            .collect();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).expect("the workspace is whole");
        for path in entries.map(|entry| entry.expect("it can be read").path()) {
            if path.is_dir() { folders.push(path) } else { sources.push(path) }
        }
    }
    sources
}

/// The files after the colon of a make rule; blanks in names are escaped.
fn prerequisites(rule: &str) -> Vec<PathBuf> {
    let names =
        rule.lines().next().and_then(|line| line.split_once(": ")).map_or("", |both| both.1);
    let names = names.replace("\\ ", "\0");
    names.split(' ').filter(|name| !name.is_empty()).map(|n| n.replace('\0', " ").into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_its_sources() {
        let rule = "/t/kv: /w/a.rs /w/my\\ file.rs\n/w/a.rs:\n";
        assert_eq!(prerequisites(rule), [Path::new("/w/a.rs"), Path::new("/w/my file.rs")]);
    }
}
