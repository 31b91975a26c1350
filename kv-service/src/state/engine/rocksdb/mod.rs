//! The LSM engine: memtables of its own over a RocksDB instance without a write-ahead log, because
//! the raft log already is one.
//!
//! ```text
//!   write:  put ──▶ pending ──commit──▶ active memtable ──full──▶ immutable memtables
//!                                                                        │ thread
//!                                          RocksDB ◀──ingest── SST file ◀┘
//!                                                                        │ versions of its keys
//!                                                     version cache ◀────┘
//!
//!   read:   pending ──▶ active memtable ──▶ immutable memtables, newest first
//!                   ──▶ version cache (versions only) ──▶ RocksDB
//! ```
//!
//! A commit consists of records, changed sessions and the [`AppliedMeta`]. It goes into the active
//! memtable (`memtables`), which a thread turns into an SST file that RocksDB ingests as one unit.
//! Memtables become durable in the order of their commits, and a commit is never split over two of
//! them. So a crash leaves the state right after some commit. The raft log replays the lost
//! commits, on top of the very state to which they were first applied.
//!
//! A deletion is a change like any other, a tombstone. Changes that are not committed yet are in
//! `pending`. All sessions are in memory too; RocksDB's copy of them is read when the state is
//! opened.
//!
//! A restore fills a second instance, the next generation; one rename makes it the current one
//! (`directory`). A view consists of the memtables at one moment and a RocksDB snapshot (`view`),
//! in one run of a merge iterator (`merge_iterator`). It costs microseconds, and disk space only
//! for what changes later.

mod db;
mod directory;
mod memtable;
mod memtables;
mod merge_iterator;
mod options;
mod scratch;
mod version_cache;
mod view;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{BufMut, Bytes, BytesMut};
use raft_core::state_machine::{Flusher, MachineError, MachineResult};
use raft_core::types::Index;
use rocksdb::{ReadOptions, WriteBatch};

use super::{
    AppliedMeta, Engine, ScanLimits, Versions, View, fill_page, format, owned, page_bytes,
};
use crate::protocol::operation::{Record, ScanPage};
use crate::state::KvMachine;
use crate::state::sessions::Sessions;
use db::Db;
use directory::Directory;
use memtable::{Change, Memtable};
use memtables::{Generation, Memtables};
use merge_iterator::{MergeIterator, Source};
pub use options::RocksStateOptions;
use scratch::{Scratch, put_applied_meta};
use version_cache::VersionCache;

/// Bytes that a restore gathers before it writes.
const RESTORE_BATCH_BYTES: usize = 1 << 20;

/// RocksDB's own deletions and superseded values that one page of a scan may skip in a row. There
/// are many only until compaction has removed them: a page that meets more ends there, and the next
/// one continues when they are gone.
const SCAN_SKIPPED_MAX: u64 = 100_000;

impl KvMachine {
    /// Opens the store in `path`, a directory for the store alone, or creates it there.
    ///
    /// # Errors
    /// The directory holds something else, or was written by a newer version; it is damaged; it is
    /// in use; or the disk fails. The message says which, and what to do.
    pub fn rocksdb(path: &Path, options: RocksStateOptions) -> MachineResult<Self> {
        let memtable_bytes_max = options.write_buffer_bytes;
        let version_cache_bytes_max = options.recent_keys_bytes;
        let (directory, db) = Directory::open(path, options)?;
        let (applied_meta, sessions) = db.load()?;
        let generation = Generation::start(
            db,
            applied_meta.position.index,
            VersionCache::new(version_cache_bytes_max),
        )?;
        let shared = Arc::new(Mutex::new(Arc::clone(&generation.memtables)));
        let (pending, restoring) = (BTreeMap::new(), None);
        let engine = RocksEngine {
            directory,
            generation,
            memtable_bytes_max,
            version_cache_bytes_max,
            shared,
            pending,
            restoring,
        };
        Ok(Self::over(Box::new(engine), applied_meta, sessions))
    }
}

struct RocksEngine {
    directory: Directory,
    generation: Generation,
    memtable_bytes_max: usize,
    version_cache_bytes_max: usize,
    /// The memtables in use, for flushers, which outlive a restore but not the engine.
    shared: Arc<Mutex<Arc<Memtables>>>,
    /// Changes that are not committed yet; `None` is a deletion.
    pending: BTreeMap<Bytes, Change>,
    restoring: Option<Restoring>,
}

struct Restoring {
    db: Arc<Db>,
    batch: WriteBatch,
}

impl Restoring {
    /// Writes the gathered batch once it is large enough. The instance is not the current one yet,
    /// so a restore need not be written as one unit.
    fn write_if_large(&mut self) -> MachineResult<()> {
        if self.batch.size_in_bytes() < RESTORE_BATCH_BYTES {
            return Ok(());
        }
        self.db.write(std::mem::take(&mut self.batch))
    }
}

impl Engine for RocksEngine {
    fn get(&self, key: &[u8]) -> MachineResult<Option<Record>> {
        if let Some(pending) = self.pending.get(key) {
            return Ok(pending.clone());
        }
        let state = self.generation.memtables.lock();
        let known = state.newest_first().find_map(|memtable| memtable.get(key));
        if let Some(change) = known {
            return Ok(change.as_ref().map(owned));
        }
        drop(state);
        let decode = |bytes: &[u8]| format::decode_change(&Bytes::copy_from_slice(bytes));
        self.generation.db.read(key, decode)
    }

    fn versions(&self, key: &[u8]) -> MachineResult<Option<Versions>> {
        if let Some(pending) = self.pending.get(key) {
            return Ok(pending.as_ref().map(Versions::of));
        }
        let known = self.generation.memtables.lock().versions(key);
        match known {
            Some(versions) => Ok(versions),
            None => self.generation.db.read(key, format::decode_versions),
        }
    }

    fn put(&mut self, key: Bytes, record: Record) {
        self.pending.insert(key, Some(record));
    }

    fn delete(&mut self, key: Bytes) {
        self.pending.insert(key, None);
    }

    fn commit(&mut self, applied_meta: AppliedMeta, sessions: &Sessions) -> MachineResult<()> {
        self.generation.db.check_background_work()?;
        let pending = std::mem::take(&mut self.pending);
        self.generation.memtables.commit(self.memtable_bytes_max, |memtable| {
            for (key, change) in pending {
                memtable.put(&key, change);
            }
            for (id, session) in sessions.changes() {
                memtable.put_session(id, session);
            }
            memtable.set_applied_meta(applied_meta);
        })
    }

    fn scan(&self, start: &[u8], end: &[u8], limits: &ScanLimits) -> MachineResult<ScanPage> {
        assert!(self.pending.is_empty(), "scans come between commits");
        // The lock is not held while anything is read from disk. Nothing is committed meanwhile,
        // and a memtable that becomes an SST file has the same content there.
        let (active, immutable) = {
            let state = self.generation.memtables.lock();
            (active_changes(&state.active, start, end, limits), state.immutable.clone())
        };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(format::record_key(start));
        options.set_iterate_upper_bound(match end {
            [] => format::RECORDS_END.to_vec(),
            end => format::record_key(end),
        });
        options.set_max_skippable_internal_keys(SCAN_SKIPPED_MAX);
        let has_skipped = Cell::new(false);
        let mut sources: Vec<Source<'_>> = Vec::new();
        let owned_change = |(key, change): (Bytes, Change)| Ok((key, change.as_ref().map(owned)));
        sources.push(Box::new(active.into_iter().map(owned_change)));
        for memtable in immutable.iter().rev() {
            sources.push(Box::new(memtable.range(start, end).map(Ok)));
        }
        sources.push(self.generation.db.records(options, || has_skipped.set(true)));
        let mut merge_iterator = MergeIterator::new(sources);
        let mut last = None;
        // Once RocksDB has stopped, it may hold keys that come before those of the memtables.
        let run = std::iter::from_fn(|| {
            let item = merge_iterator.next().filter(|_| !has_skipped.get());
            if let Some(Ok((key, _))) = &item {
                last = Some(key.clone());
            }
            item
        });
        let mut page = fill_page(run, limits)?;
        if has_skipped.get() && page.continue_at.is_none() {
            page.continue_at = Some(last.map_or(Bytes::copy_from_slice(start), successor));
        }
        Ok(page)
    }

    fn view(&self) -> MachineResult<Box<dyn View>> {
        assert!(self.pending.is_empty(), "views come between commits");
        Ok(Box::new(view::RocksView::take(&self.generation)?))
    }

    fn begin_restore(&mut self) -> MachineResult<()> {
        // The directory of an unfinished restore is removed with it.
        drop(self.restoring.take());
        let db = self.directory.create_next()?;
        self.restoring = Some(Restoring { db, batch: WriteBatch::default() });
        Ok(())
    }

    fn restore_record(&mut self, key: Bytes, record: Record) -> MachineResult<()> {
        let restoring = self.restoring.as_mut().ok_or_else(no_restore)?;
        Scratch::default().put_record(&mut restoring.batch, &key, &record);
        restoring.write_if_large()
    }

    fn finish_restore(
        &mut self,
        applied_meta: AppliedMeta,
        sessions: &Sessions,
    ) -> MachineResult<()> {
        assert!(self.pending.is_empty(), "restores come between commits");
        let mut restoring = self.restoring.take().ok_or_else(no_restore)?;
        let mut scratch = Scratch::default();
        for (id, session) in &sessions.view() {
            scratch.put_session(&mut restoring.batch, *id, session);
            restoring.write_if_large()?;
        }
        let Restoring { db, mut batch } = restoring;
        put_applied_meta(&mut batch, applied_meta);
        db.write(batch)?;
        db.flush()?;
        let version_cache = VersionCache::new(self.version_cache_bytes_max);
        let next = Generation::start(Arc::clone(&db), applied_meta.position.index, version_cache)?;
        self.directory.make_current(&db)?;
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next.memtables);
        // Views and a running flush may still use the old instance; the last of them removes its
        // directory.
        std::mem::replace(&mut self.generation, next).forget();
        Ok(())
    }

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        Some(Box::new(RocksFlusher { shared: Arc::downgrade(&self.shared) }))
    }

    fn blocks(&self) -> bool {
        true
    }

    fn can_write_inline(&self, key: &[u8]) -> bool {
        let state = self.generation.memtables.lock();
        if !state.has_room() {
            return false;
        }
        if state.versions(key).is_some() {
            return true;
        }
        drop(state);
        let found = self.generation.db.read_cached(key, format::decode_versions);
        // No memtable holds the key and the engine is the only writer, so this is still true. The
        // write that follows will ask for it.
        if let Some(versions) = found {
            self.generation.memtables.lock().note(key, versions);
        }
        found.is_some()
    }
}

/// As many changes of the active memtable as a page can use: the page takes them over any older
/// ones.
fn active_changes(
    memtable: &Memtable,
    start: &[u8],
    end: &[u8],
    limits: &ScanLimits,
) -> Vec<(Bytes, Change)> {
    let (mut changes, mut size_bytes) = (Vec::new(), 0);
    for (key, change) in memtable.shared_range(start, end) {
        // One more than the page takes: the next page starts there.
        let is_enough = size_bytes >= limits.bytes_max || changes.len() >= limits.keys_max;
        size_bytes += change.as_ref().map_or(0, |record| page_bytes(&key, record));
        changes.push((key, change));
        if is_enough {
            break;
        }
    }
    changes
}

/// The key that directly follows `key`.
fn successor(key: Bytes) -> Bytes {
    let mut next = BytesMut::from(&key[..]);
    next.put_u8(0);
    next.freeze()
}

fn no_restore() -> MachineError {
    MachineError("no restore is under way".into())
}

struct RocksFlusher {
    shared: Weak<Mutex<Arc<Memtables>>>,
}

impl Flusher for RocksFlusher {
    fn flush(&mut self) -> MachineResult<Index> {
        let Some(shared) = self.shared.upgrade() else {
            return Err(MachineError("the state machine is closed".into()));
        };
        let memtables = Arc::clone(&shared.lock().unwrap_or_else(PoisonError::into_inner));
        drop(shared);
        memtables.flush()
    }
}
