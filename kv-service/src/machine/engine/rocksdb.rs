//! Records in a RocksDB instance of its own, without a write-ahead log: the raft log is one already.
//!
//! Every commit is one `WriteBatch` with records, changed sessions and the head in one column family.
//! RocksDB makes memtables durable in the order in which they were filled, and a batch is never
//! split over two, so whatever a crash leaves is the state right after some commit: a lost one is
//! replayed from the raft log, on top of the very state that it was first applied to.
//!
//! What is written and not yet committed is kept aside (`pending`), where reads look first. The
//! sessions are all in memory too; the table on disk is read when it is opened.
//!
//! A restore fills a second instance; one rename makes it the current one (`directory`). A view is a
//! RocksDB snapshot (`view`), so it costs microseconds, and no disk space but for what changes.

mod directory;
mod instance;
mod recent;
mod scratch;
mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use raft_core::state_machine::{Flusher, MachineError, MachineResult};
use raft_core::types::Index;
use rocksdb::{ReadOptions, WriteBatch};

use super::{Engine, Head, Versions, View, fill_page, format};
use crate::machine::KvMachine;
use crate::machine::sessions::Sessions;
use crate::operation::{Record, ScanPage};
use directory::Directory;
use instance::Instance;
use recent::Recent;
use scratch::{Scratch, put_head};

/// What a restore gathers before it writes.
const RESTORE_BATCH_BYTES: usize = 1 << 20;

/// How much memory, and how many files and threads, the state may use.
#[derive(Clone, Debug)]
pub struct RocksStateOptions {
    /// Of blocks, indexes and filters read from disk, in bytes.
    pub block_cache_bytes: usize,
    /// Of one memtable, in bytes; there are up to three. What a crash loses, and the raft log must
    /// replay, is no more than these.
    pub write_buffer_bytes: usize,
    /// Of what is remembered of keys written lately, in bytes; 0 looks for every key anew.
    pub recent_keys_bytes: usize,
    /// For flushes and compactions together.
    pub background_jobs: i32,
    pub open_files_max: i32,
}

impl Default for RocksStateOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 128 << 20,
            write_buffer_bytes: 64 << 20,
            recent_keys_bytes: 32 << 20,
            background_jobs: 2,
            open_files_max: 512,
        }
    }
}

impl KvMachine {
    /// Opens the store in `path`, a directory for it alone, or creates it there.
    ///
    /// # Errors
    /// The directory holds something else, or was written by a newer version; it is damaged; it is
    /// in use; or the disk fails. The message says which, and what to do.
    pub fn rocksdb(path: &Path, options: RocksStateOptions) -> MachineResult<Self> {
        let recent = Recent::new(options.recent_keys_bytes);
        let (directory, instance) = Directory::open(path, options)?;
        let (head, sessions) = instance.load()?;
        let engine = RocksEngine::new(directory, instance, recent);
        Ok(Self::over(Box::new(engine), head, sessions))
    }
}

struct RocksEngine {
    directory: Directory,
    instance: Arc<Instance>,
    /// For flushers, which outlive a restore but not the engine.
    shared: Arc<Mutex<Arc<Instance>>>,
    /// Not yet committed; `None` is a deletion.
    pending: BTreeMap<Bytes, Option<Record>>,
    /// What was put and deleted last, committed or not.
    recent: Recent,
    restoring: Option<Restoring>,
}

struct Restoring {
    instance: Arc<Instance>,
    batch: WriteBatch,
}

impl Restoring {
    /// Writes what has gathered once it is worth it. The instance is not the current one, so it need
    /// not come in one piece.
    fn write_if_large(&mut self) -> MachineResult<()> {
        if self.batch.size_in_bytes() < RESTORE_BATCH_BYTES {
            return Ok(());
        }
        self.instance.write(std::mem::take(&mut self.batch))
    }
}

impl RocksEngine {
    fn new(directory: Directory, instance: Arc<Instance>, recent: Recent) -> Self {
        let shared = Arc::new(Mutex::new(Arc::clone(&instance)));
        Self { directory, instance, shared, pending: BTreeMap::new(), recent, restoring: None }
    }
}

impl Engine for RocksEngine {
    fn get(&self, key: &[u8]) -> MachineResult<Option<Record>> {
        match self.pending.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => self
                .instance
                .read(key, |bytes| format::decode_record(Bytes::copy_from_slice(bytes))),
        }
    }

    fn versions(&self, key: &[u8]) -> MachineResult<Option<Versions>> {
        match self.recent.versions(key) {
            Some(known) => Ok(known),
            None => match self.pending.get(key) {
                Some(pending) => Ok(pending.as_ref().map(Versions::of)),
                None => self.instance.read(key, format::decode_versions),
            },
        }
    }

    fn put(&mut self, key: Bytes, record: Record) {
        self.recent.note(&key, Some(Versions::of(&record)));
        self.pending.insert(key, Some(record));
    }

    fn delete(&mut self, key: Bytes) {
        self.recent.note(&key, None);
        self.pending.insert(key, None);
    }

    fn commit(&mut self, head: Head, sessions: &Sessions) -> MachineResult<()> {
        let mut batch = WriteBatch::default();
        let mut scratch = Scratch::default();
        for (key, record) in std::mem::take(&mut self.pending) {
            match record {
                Some(record) => scratch.put_record(&mut batch, &key, &record),
                None => batch.delete(format::record_key(&key)),
            }
        }
        for (id, session) in sessions.changes() {
            match session {
                Some(session) => scratch.put_session(&mut batch, id, session),
                None => batch.delete(format::session_key(id)),
            }
        }
        put_head(&mut batch, head);
        self.instance.write(batch)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        limit: u32,
        bytes_max: usize,
    ) -> MachineResult<ScanPage> {
        assert!(self.pending.is_empty(), "scans come between commits");
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(format::record_key(start));
        options.set_iterate_upper_bound(match end {
            [] => format::RECORDS_END.to_vec(),
            end => format::record_key(end),
        });
        fill_page(self.instance.records(options), limit, bytes_max)
    }

    fn view(&self) -> MachineResult<Box<dyn View>> {
        assert!(self.pending.is_empty(), "views come between commits");
        Ok(Box::new(view::RocksView::take(Arc::clone(&self.instance))?))
    }

    fn begin_restore(&mut self) -> MachineResult<()> {
        // Its directory goes with it.
        drop(self.restoring.take());
        let instance = self.directory.create_next()?;
        self.restoring = Some(Restoring { instance, batch: WriteBatch::default() });
        Ok(())
    }

    fn restore_record(&mut self, key: Bytes, record: Record) -> MachineResult<()> {
        let restoring = self.restoring.as_mut().ok_or_else(no_restore)?;
        Scratch::default().put_record(&mut restoring.batch, &key, &record);
        restoring.write_if_large()
    }

    fn finish_restore(&mut self, head: Head, sessions: &Sessions) -> MachineResult<()> {
        let mut restoring = self.restoring.take().ok_or_else(no_restore)?;
        let mut scratch = Scratch::default();
        for (id, session) in &sessions.view() {
            scratch.put_session(&mut restoring.batch, *id, session);
            restoring.write_if_large()?;
        }
        let Restoring { instance, mut batch } = restoring;
        put_head(&mut batch, head);
        instance.write(batch)?;
        instance.flush()?;
        self.directory.make_current(&instance)?;
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&instance);
        self.recent.forget_all();
        // Views and a flush under way may still use the old one; its directory goes with the last.
        std::mem::replace(&mut self.instance, instance).remove_when_closed();
        Ok(())
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        Some(Box::new(RocksFlusher { shared: Arc::downgrade(&self.shared) }))
    }

    fn blocks(&self) -> bool {
        true
    }
}

fn no_restore() -> MachineError {
    MachineError("no restore is under way".into())
}

struct RocksFlusher {
    shared: Weak<Mutex<Arc<Instance>>>,
}

impl Flusher for RocksFlusher {
    fn flush(&mut self) -> MachineResult<Index> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(MachineError("the state machine is closed".into()));
        };
        let instance = Arc::clone(&shared.lock().unwrap_or_else(PoisonError::into_inner));
        drop(shared);
        // The head first: whatever it covers is in a memtable by now, or on disk.
        let head = instance.head()?;
        instance.flush()?;
        Ok(head.map_or(0, |head| head.position.index))
    }
}
