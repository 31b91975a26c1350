//! A state machine on one engine, and what can happen to it.

#[cfg(feature = "rocksdb")]
use std::path::Path;

use bytes::Bytes;
use raft_core::state_machine::{SnapshotSource, StateMachine};
use raft_core::types::{Configuration, Entry, Position, SnapshotMeta};
#[cfg(feature = "rocksdb")]
use tempfile::TempDir;

#[cfg(feature = "rocksdb")]
use crate::support::RocksStateOptions;
use crate::support::{KvMachine, Outcome};

/// Bytes of one piece of a snapshot.
const CHUNK_BYTES: usize = 10_000;

/// A snapshot as a stream, and the position that it was announced with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) position: Position,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Subject {
    pub(crate) name: &'static str,
    machine: Option<KvMachine>,
    #[cfg(feature = "rocksdb")]
    disk: Option<Disk>,
    view: Option<Box<dyn SnapshotSource>>,
}

#[cfg(feature = "rocksdb")]
struct Disk {
    directory: TempDir,
    options: RocksStateOptions,
}

impl Subject {
    pub(crate) fn memory() -> Self {
        Self {
            name: "memory",
            machine: Some(KvMachine::memory()),
            #[cfg(feature = "rocksdb")]
            disk: None,
            view: None,
        }
    }

    /// On RocksDB, whose memtables rotate at `memtable_bytes`.
    #[cfg(feature = "rocksdb")]
    pub(crate) fn on_disk(memtable_bytes: usize) -> Outcome<Self> {
        let options = RocksStateOptions {
            block_cache_bytes: 1 << 20,
            write_buffer_bytes: memtable_bytes,
            recent_keys_bytes: 1 << 20,
            ..RocksStateOptions::default()
        };
        let disk = Disk { directory: TempDir::new()?, options };
        let machine = Some(disk.open()?);
        Ok(Self { name: "disk", machine, disk: Some(disk), view: None })
    }

    pub(crate) fn machine(&mut self) -> &mut KvMachine {
        self.machine.as_mut().expect("it is open between commands")
    }

    /// Applies what the machine lacks of the log.
    pub(crate) fn replay(&mut self, log: &[Entry]) -> Outcome<String> {
        let applied = self.machine().last_applied().index as usize;
        self.machine().apply(&log[applied..], &mut Vec::new())?;
        Ok(format!("applied through {}", log.len()))
    }

    /// Makes everything so far durable.
    pub(crate) fn flush(&mut self) -> Outcome<String> {
        Ok(match self.machine().flusher() {
            Some(mut flusher) => format!("durable through {}", flusher.flush()?),
            None => "nothing is ever durable".to_owned(),
        })
    }

    /// Stops in order and starts again; a crash leaves what was on disk at that moment.
    pub(crate) fn restart(&mut self, crash: bool) -> Outcome<String> {
        self.view = None;
        self.machine = Some(self.reopened(crash)?);
        Ok(format!("starts at {}", self.machine().last_applied().index))
    }

    #[cfg(feature = "rocksdb")]
    fn reopened(&mut self, crash: bool) -> Outcome<KvMachine> {
        let Some(disk) = &mut self.disk else { return Ok(KvMachine::memory()) };
        let image = if crash { Some(disk.image()?) } else { None };
        drop(self.machine.take());
        if let Some(image) = image {
            disk.directory = image;
        }
        disk.open()
    }

    #[cfg(not(feature = "rocksdb"))]
    fn reopened(&mut self, _crash: bool) -> Outcome<KvMachine> {
        Ok(KvMachine::memory())
    }

    /// Replaces the machine by an empty one, as after the loss of a disk.
    pub(crate) fn lose(&mut self) -> Outcome<String> {
        self.view = None;
        #[cfg(feature = "rocksdb")]
        if let Some(disk) = &mut self.disk {
            drop(self.machine.take());
            disk.directory = TempDir::new()?;
        }
        self.restart(false)
    }

    pub(crate) fn snapshot(&mut self) -> Outcome<Snapshot> {
        let source = self.machine().snapshot()?;
        drain(source)
    }

    /// Takes a view that is read later.
    pub(crate) fn take_view(&mut self) -> Outcome<String> {
        let view = self.machine().snapshot()?;
        let through = view.position().index;
        self.view = Some(view);
        Ok(format!("a view through {through}"))
    }

    pub(crate) fn read_view(&mut self) -> Outcome<Snapshot> {
        drain(self.view.take().ok_or("no view was taken")?)
    }

    /// Restores a snapshot, or only its first `chunk_count` pieces.
    pub(crate) fn restore(
        &mut self,
        snapshot: &Snapshot,
        chunk_count: Option<u64>,
    ) -> Outcome<String> {
        let meta = SnapshotMeta::new(snapshot.position, Configuration::default());
        let machine = self.machine();
        machine.begin_restore(&meta)?;
        let taken = chunk_count.map_or(usize::MAX, |count| count as usize);
        for chunk in snapshot.bytes.chunks(CHUNK_BYTES).take(taken) {
            machine.restore_chunk(Bytes::copy_from_slice(chunk))?;
        }
        if chunk_count.is_none() {
            machine.finish_restore()?;
        }
        Ok(format!("applied through {}", machine.last_applied().index))
    }

    /// Number of directories that hold a state, on disk.
    pub(crate) fn generations(&self) -> Outcome<String> {
        #[cfg(feature = "rocksdb")]
        if let Some(disk) = &self.disk {
            let entries = std::fs::read_dir(disk.directory.path())?;
            let count = entries.flatten().filter(|entry| entry.path().is_dir()).count();
            return Ok(format!("{count} on disk"));
        }
        Ok("none on disk".to_owned())
    }
}

fn drain(mut source: Box<dyn SnapshotSource>) -> Outcome<Snapshot> {
    let position = source.position();
    let mut bytes = Vec::new();
    while let Some(chunk) = source.next_chunk(CHUNK_BYTES)? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(Snapshot { position, bytes })
}

#[cfg(feature = "rocksdb")]
impl Disk {
    fn open(&self) -> Outcome<KvMachine> {
        Ok(KvMachine::rocksdb(self.directory.path(), self.options.clone())?)
    }

    /// The files that a crash at this moment would leave, without what is written on closing.
    fn image(&self) -> Outcome<TempDir> {
        loop {
            let image = TempDir::new()?;
            match copy(self.directory.path(), image.path()) {
                Ok(()) => return Ok(image),
                // RocksDB removes obsolete files in the background: this was not one moment.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Copies the manifest first: files may be added while it is copied, but none that it names may be
/// removed.
#[cfg(feature = "rocksdb")]
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(from)?.collect::<Result<_, _>>()?;
    let is_manifest = |name: std::ffi::OsString| name.to_string_lossy().starts_with("MANIFEST");
    entries.sort_by_key(|entry| !is_manifest(entry.file_name()));
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
