//! Disks for the suites: a directory whose process can die, and the disk in memory.

// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raft_core::storage::{Storage, StorageResult};
use raft_core::testing::storage::Disk;
use raft_storage::memory::MemoryDisk;
use raft_storage::rocksdb::{RocksOptions, RocksStorage};
use raft_storage::{DataDir, StepHook};
use tempfile::TempDir;

pub const CLUSTER: &str = "tests";
pub const NODE: u64 = 1;

/// Opens the node's directory at `path`.
pub fn open(path: &Path) -> StorageResult<RocksStorage> {
    open_with(path, RocksOptions::small())
}

pub fn open_with(path: &Path, options: RocksOptions) -> StorageResult<RocksStorage> {
    let data_dir = DataDir::open(path, CLUSTER, NODE)?;
    RocksStorage::open(Arc::new(data_dir), options)
}

/// Options with a hook at every step.
pub fn hooked(hook: StepHook) -> RocksOptions {
    RocksOptions { step_hook: hook, ..RocksOptions::small() }
}

/// A directory on the disk of this machine. A crash continues with a copy of the directory, whose
/// content is that of a killed process; the dying process keeps the original.
pub struct RocksDisk {
    parent: TempDir,
    /// Number of crashes so far; names the directory in use.
    life: Mutex<u64>,
}

impl RocksDisk {
    pub fn empty() -> Self {
        Self { parent: TempDir::new().unwrap(), life: Mutex::new(0) }
    }

    fn path(&self, life: u64) -> PathBuf {
        self.parent.path().join(format!("life-{life}"))
    }
}

#[async_trait]
impl Disk for RocksDisk {
    async fn open(&self) -> StorageResult<Arc<dyn Storage>> {
        let life = *self.life.lock().unwrap();
        Ok(Arc::new(open(&self.path(life))?))
    }

    async fn crash(&self) {
        let mut life = self.life.lock().unwrap();
        copy_at_one_moment(&self.path(*life), &self.path(*life + 1));
        *life += 1;
    }
}

/// The disk in memory behind the interface of the suite.
#[derive(Default)]
pub struct Memory(pub MemoryDisk);

#[async_trait]
impl Disk for Memory {
    async fn open(&self) -> StorageResult<Arc<dyn Storage>> {
        Ok(Arc::new(self.0.storage()))
    }

    async fn crash(&self) {
        self.0.crash();
    }
}

/// Copies a node's directory that may be written to meanwhile. Repeats the copy until no file
/// appeared, vanished or changed its size while it was made. Leaves out `place`, so that the copy
/// may be started.
pub fn copy_at_one_moment(from: &Path, to: &Path) {
    for _ in 0..1_000 {
        let before = sizes(from);
        let copied = copy(from, to);
        if copied.is_ok() && sizes(from) == before {
            std::fs::remove_file(to.join("place")).unwrap();
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("{} never stood still", from.display());
}

pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Every file under `path`, with its length.
pub fn sizes(path: &Path) -> BTreeMap<PathBuf, u64> {
    let mut sizes = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(path) else { return sizes };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => sizes.append(&mut self::sizes(&entry.path())),
            Ok(metadata) => {
                sizes.insert(entry.path(), metadata.len());
            }
            Err(_) => {}
        }
    }
    sizes
}
