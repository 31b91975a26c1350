//! The memtables: state that is newer than RocksDB's SST files. A thread turns them into SST files.
//!
//! ```text
//!   commit ──▶ active ──rotate──▶ immutable, immutable ──thread──▶ SST file, ingested whole
//! ```
//!
//! A memtable holds whole commits and becomes one SST file, which RocksDB ingests as one unit.
//! Memtables are written in the order of their commits, so a crash leaves the state right after
//! some commit. A memtable of RocksDB would ensure the same, but it inserts each change into a skip
//! list, which costs more than everything else about a write. Here, a key that is written again
//! costs a lookup in a hash table.
//!
//! A read searches the memtables from the newest on, and then RocksDB. A memtable leaves the list
//! after its SST file is ingested, so its changes are always in at least one of them. The versions
//! of its keys are kept for a while in the version cache (`version_cache`). They are noted before
//! the memtable leaves, one memtable after the other, so the cache is right for every key that is
//! in no memtable.
//!
//! Bounded: the active memtable is immutable when it is full, and a commit waits while too many are
//! immutable. A crash loses no more than these, and the raft log replays them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use raft_core::state_machine::{MachineError, MachineResult};
use raft_core::types::Index;

use super::db::Db;
use super::memtable::Memtable;
use super::version_cache::VersionCache;
use crate::state::engine::Versions;

/// Immutable memtables that may wait while another one fills.
const IMMUTABLE_MAX: usize = 2;

/// Interval at which the thread checks if compactions have caught up.
const COMPACTION_POLL: Duration = Duration::from_millis(20);

/// Keys that are noted in the version cache before the lock is released to other callers.
const NOTED_AT_ONCE: usize = 64;

pub(super) struct Memtables {
    state: Mutex<MemtablesState>,
    changed: Condvar,
}

pub(super) struct MemtablesState {
    pub(super) active: Memtable,
    /// The immutable memtables, oldest first; the thread is writing that one.
    pub(super) immutable: VecDeque<Arc<Memtable>>,
    /// The version cache: versions of keys whose memtables have become SST files.
    version_cache: VersionCache,
    /// Everything through this index is in SST files.
    durable_index: Index,
    /// Why the thread gave up.
    failure: Option<MachineError>,
    /// Set when the thread must end: once everything is written, or at once.
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Written,
    Forgotten,
}

impl MemtablesState {
    /// All memtables, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(self.immutable.iter().rev().map(|memtable| &**memtable))
    }

    /// The versions of a key, if a memtable or the version cache knows them; otherwise the caller
    /// must read RocksDB.
    pub(super) fn versions(&self, key: &[u8]) -> Option<Option<Versions>> {
        match self.newest_first().find_map(|memtable| memtable.get(key)) {
            Some(change) => Some(change.as_ref().map(Versions::of)),
            None => self.version_cache.versions(key),
        }
    }

    /// Caches the versions that RocksDB holds of a key which is in no memtable.
    pub(super) fn note(&mut self, key: &[u8], versions: Option<Versions>) {
        self.version_cache.note(key, versions);
    }

    /// Returns true if a commit will not wait.
    pub(super) fn has_room(&self) -> bool {
        self.immutable.len() < IMMUTABLE_MAX
    }

    /// Makes the active memtable immutable and begins a new one.
    pub(super) fn rotate(&mut self) {
        if !self.active.is_empty() {
            let older = self
                .immutable
                .back()
                .map_or(self.durable_index, |memtable| memtable.applied_meta().position.index);
            let newest = self.active.applied_meta().position.index;
            assert!(older < newest, "memtables follow each other");
            let next = self.active.next();
            self.immutable.push_back(Arc::new(std::mem::replace(&mut self.active, next)));
        }
    }

    fn check(&self) -> MachineResult<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Memtables {
    /// `durable_index` is the index of the state that RocksDB holds.
    pub(super) fn new(durable_index: Index, version_cache: VersionCache) -> Self {
        let state = MemtablesState {
            active: Memtable::default(),
            immutable: VecDeque::new(),
            version_cache,
            durable_index,
            failure: None,
            end: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, MemtablesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the writer thread after a [`MemtablesState::rotate`].
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Makes one commit of the changes that `change` makes to the active memtable. Waits while too
    /// many memtables are immutable.
    ///
    /// # Errors
    /// The thread has given up: nothing more will become durable.
    pub(super) fn commit(
        &self,
        memtable_bytes_max: usize,
        change: impl FnOnce(&mut Memtable),
    ) -> MachineResult<()> {
        let mut state = self.lock();
        change(&mut state.active);
        if state.active.size_bytes() >= memtable_bytes_max {
            state.rotate();
            self.changed.notify_all();
        }
        while state.immutable.len() > IMMUTABLE_MAX && state.failure.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()
    }

    /// Makes the committed changes durable; returns the index through which they are. The index is
    /// smaller if another state replaces this one meanwhile.
    ///
    /// # Errors
    /// The changes could not be written.
    pub(super) fn flush(&self) -> MachineResult<Index> {
        let mut state = self.lock();
        state.rotate();
        self.changed.notify_all();
        let index =
            state.immutable.back().map_or(0, |memtable| memtable.applied_meta().position.index);
        let is_pending = |state: &MemtablesState| {
            state.durable_index < index
                && state.failure.is_none()
                && state.end != Some(End::Forgotten)
        };
        while is_pending(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()?;
        let is_forgotten = state.end == Some(End::Forgotten);
        assert!(is_forgotten || state.durable_index >= index, "as much as was promised");
        Ok(state.durable_index)
    }

    /// Turns immutable memtables into SST files, until the thread must end or writing fails.
    fn write_all(&self, db: &Db) {
        while let Some(memtable) = self.next() {
            let caught_up = self.wait_for_compactions(db);
            let written = caught_up.and_then(|()| db.ingest(&memtable));
            if written.is_ok() {
                self.note_versions(&memtable);
            }
            let mut state = self.lock();
            match written {
                Ok(()) => {
                    let index = memtable.applied_meta().position.index;
                    assert!(state.durable_index < index, "what is durable stays so");
                    state.durable_index = index;
                    let written = state.immutable.pop_front();
                    assert!(written.is_some_and(|written| Arc::ptr_eq(&written, &memtable)));
                }
                Err(error) => state.failure = Some(error),
            }
            let is_over = state.failure.is_some();
            drop(state);
            self.changed.notify_all();
            if is_over {
                return;
            }
        }
    }

    fn note_versions(&self, memtable: &Memtable) {
        let mut records = memtable.records().peekable();
        while records.peek().is_some() {
            let mut state = self.lock();
            for (key, change) in records.by_ref().take(NOTED_AT_ONCE) {
                state.version_cache.note(key, change.as_ref().map(Versions::of));
            }
            drop(state);
            // Yield, so that a waiting caller finds the lock free.
            std::thread::yield_now();
        }
    }

    /// Waits while SST files come faster than RocksDB compacts them. Commits wait, too, once enough
    /// memtables are immutable.
    ///
    /// # Errors
    /// A compaction failed.
    fn wait_for_compactions(&self, db: &Db) -> MachineResult<()> {
        loop {
            db.check_background_work()?;
            let state = self.lock();
            if !db.is_behind() || state.end == Some(End::Forgotten) {
                return Ok(());
            }
            // RocksDB gives no notice when it has compacted some, so poll.
            let waited = self.changed.wait_timeout(state, COMPACTION_POLL);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Waits for the oldest immutable memtable; `None` if there is nothing more to do.
    fn next(&self) -> Option<Arc<Memtable>> {
        let mut state = self.lock();
        loop {
            match (state.immutable.front(), state.end) {
                (_, Some(End::Forgotten)) | (None, Some(End::Written)) => return None,
                (Some(memtable), _) => return Some(Arc::clone(memtable)),
                (None, None) => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if end == End::Written {
            state.rotate();
        }
        state.end = Some(end);
        drop(state);
        self.changed.notify_all();
    }
}

/// Reports a panic of the thread to all callers that wait for it.
struct TellIfBroken<'a>(&'a Memtables);

impl Drop for TellIfBroken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failure = MachineError("the thread that writes the state broke".into());
            self.0.lock().failure.get_or_insert(failure);
            self.0.changed.notify_all();
        }
    }
}

/// One generation of the state: a RocksDB instance, the memtables newer than it, and the thread
/// that writes them into it.
pub(super) struct Generation {
    pub(super) db: Arc<Db>,
    pub(super) memtables: Arc<Memtables>,
    thread: Option<JoinHandle<()>>,
}

impl Generation {
    pub(super) fn start(
        db: Arc<Db>,
        durable_index: Index,
        version_cache: VersionCache,
    ) -> MachineResult<Self> {
        let memtables = Arc::new(Memtables::new(durable_index, version_cache));
        let thread = std::thread::Builder::new()
            .name("kv-state".into())
            .spawn({
                let (db, memtables) = (Arc::clone(&db), Arc::clone(&memtables));
                move || {
                    let _broken = TellIfBroken(&memtables);
                    memtables.write_all(&db);
                }
            })
            .map_err(|error| MachineError(format!("starting a thread for the state: {error}")))?;
        Ok(Self { db, memtables, thread: Some(thread) })
    }

    /// Ends a generation that another one has replaced: unwritten changes need not be written.
    pub(super) fn forget(mut self) {
        self.end(End::Forgotten);
        self.db.remove_when_closed();
    }

    fn end(&mut self, end: End) {
        self.memtables.end(end);
        if let Some(thread) = self.thread.take() {
            // It fails if the thread panicked, which was reported already.
            let _ = thread.join();
        }
    }
}

impl Drop for Generation {
    /// Writes all memtables: a start that finds everything in SST files need not replay the log.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(End::Written);
        }
    }
}
