//! What is newer than the tables of RocksDB: layers in memory, which a thread turns into tables.
//!
//! ```text
//!   commit ──▶ active ──freeze──▶ frozen, frozen ──thread──▶ a table, ingested whole
//! ```
//!
//! A layer holds whole commits, and becomes one table, which RocksDB takes over as one unit; layers are
//! written in the order of their commits. So a crash leaves the state right after some commit. A
//! RocksDB memtable would do the same, and take each change by itself into a skip list, which costs
//! more than all else about a write: here a key that is written again costs a look into a hash table.
//!
//! Whoever looks for a key looks into the layers from the newest on, and then into the instance. A layer
//! leaves the list after its table is there, so nothing is ever in neither. The versions of its keys are
//! remembered for a while (`recent`): noted before the layer leaves, and one layer after the other, they
//! are right for every key that no layer speaks of any more.
//!
//! Bounded: the active layer is frozen when it is full, and a commit waits while too many are frozen.
//! What a crash loses, and the raft log must replay, is no more than these.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use raft_core::state_machine::{MachineError, MachineResult};
use raft_core::types::Index;

use super::instance::Instance;
use super::layer::Layer;
use super::recent::Recent;
use crate::machine::engine::Versions;

/// Frozen layers that may wait while another one fills.
const FROZEN_MAX: usize = 2;

/// How often it is looked whether compactions have caught up.
const COMPACTION_POLL: Duration = Duration::from_millis(20);

/// How many keys are noted as recent while others wait for the lock.
const NOTED_AT_ONCE: usize = 64;

pub(super) struct Layers {
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    pub(super) active: Layer,
    /// The oldest first; the thread is busy with it.
    pub(super) frozen: VecDeque<Arc<Layer>>,
    /// Of layers that have become tables.
    recent: Recent,
    /// Everything through here is in tables.
    durable_index: Index,
    /// Why the thread gave up.
    failure: Option<MachineError>,
    /// The thread is to end: once everything is written, or at once.
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Written,
    Forgotten,
}

impl State {
    /// From the newest on.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.active).chain(self.frozen.iter().rev().map(|layer| &**layer))
    }

    /// The versions of a key, if layers or memory know them; otherwise the instance has to be asked.
    pub(super) fn versions(&self, key: &[u8]) -> Option<Option<Versions>> {
        match self.newest_first().find_map(|layer| layer.get(key)) {
            Some(word) => Some(word.as_ref().map(Versions::of)),
            None => self.recent.versions(key),
        }
    }

    /// The instance holds this of a key that no layer speaks of.
    pub(super) fn note(&mut self, key: &[u8], versions: Option<Versions>) {
        self.recent.note(key, versions);
    }

    /// A commit will not wait.
    pub(super) fn has_room(&self) -> bool {
        self.frozen.len() < FROZEN_MAX
    }

    /// What is committed now will not change any more.
    pub(super) fn freeze(&mut self) {
        if !self.active.is_empty() {
            let next = self.active.next();
            self.frozen.push_back(Arc::new(std::mem::replace(&mut self.active, next)));
        }
    }

    fn check(&self) -> MachineResult<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Layers {
    /// `durable_index`: of what the instance holds.
    pub(super) fn new(durable_index: Index, recent: Recent) -> Self {
        let state = State {
            active: Layer::default(),
            frozen: VecDeque::new(),
            recent,
            durable_index,
            failure: None,
            end: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the writer thread after a [`State::freeze`].
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Makes one commit of what `change` does to the active layer. Waits while too many layers are frozen.
    ///
    /// # Errors
    /// The thread has given up: nothing will be durable any more.
    pub(super) fn commit(
        &self,
        layer_bytes_max: usize,
        change: impl FnOnce(&mut Layer),
    ) -> MachineResult<()> {
        let mut state = self.lock();
        change(&mut state.active);
        if state.active.size_bytes() >= layer_bytes_max {
            state.freeze();
            self.changed.notify_all();
        }
        while state.frozen.len() > FROZEN_MAX && state.failure.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()
    }

    /// Makes durable what is committed; returns through which index. That is less if another state takes the
    /// place of this one meanwhile.
    ///
    /// # Errors
    /// It could not be written.
    pub(super) fn flush(&self) -> MachineResult<Index> {
        let mut state = self.lock();
        state.freeze();
        self.changed.notify_all();
        let index = state.frozen.back().map_or(0, |layer| layer.head().position.index);
        let is_pending = |state: &State| {
            state.durable_index < index
                && state.failure.is_none()
                && state.end != Some(End::Forgotten)
        };
        while is_pending(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()?;
        Ok(state.durable_index)
    }

    /// Turns layers into tables, until it is told to end or cannot.
    fn write_all(&self, instance: &Instance) {
        while let Some(layer) = self.next() {
            let caught_up = self.wait_for_compactions(instance);
            let written = caught_up.and_then(|()| instance.ingest(&layer));
            if written.is_ok() {
                self.note_recent(&layer);
            }
            let mut state = self.lock();
            match written {
                Ok(()) => {
                    state.durable_index = layer.head().position.index;
                    state.frozen.pop_front();
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

    fn note_recent(&self, layer: &Layer) {
        let mut records = layer.records().peekable();
        while records.peek().is_some() {
            let mut state = self.lock();
            for (key, word) in records.by_ref().take(NOTED_AT_ONCE) {
                state.recent.note(key, word.as_ref().map(Versions::of));
            }
            drop(state);
            // Whoever waits should find the lock free.
            std::thread::yield_now();
        }
    }

    /// Tables come faster than RocksDB merges them: commits wait, too, once enough layers are frozen.
    ///
    /// # Errors
    /// They failed.
    fn wait_for_compactions(&self, instance: &Instance) -> MachineResult<()> {
        loop {
            instance.check_tables()?;
            let state = self.lock();
            if !instance.is_behind() || state.end == Some(End::Forgotten) {
                return Ok(());
            }
            // RocksDB tells nobody when it has merged some.
            let waited = self.changed.wait_timeout(state, COMPACTION_POLL);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The oldest frozen layer; `None` if there is nothing more to do.
    fn next(&self) -> Option<Arc<Layer>> {
        let mut state = self.lock();
        loop {
            match (state.frozen.front(), state.end) {
                (_, Some(End::Forgotten)) | (None, Some(End::Written)) => return None,
                (Some(layer), _) => return Some(Arc::clone(layer)),
                (None, None) => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if end == End::Written {
            state.freeze();
        }
        state.end = Some(end);
        drop(state);
        self.changed.notify_all();
    }
}

/// Whoever waits for the thread hears that it panicked.
struct TellIfBroken<'a>(&'a Layers);

impl Drop for TellIfBroken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let failure = MachineError("the thread that writes the state broke".into());
            self.0.lock().failure.get_or_insert(failure);
            self.0.changed.notify_all();
        }
    }
}

/// An instance, what is newer than it, and the thread that brings the one into the other.
pub(super) struct Current {
    pub(super) instance: Arc<Instance>,
    pub(super) layers: Arc<Layers>,
    thread: Option<JoinHandle<()>>,
}

impl Current {
    pub(super) fn start(
        instance: Arc<Instance>,
        durable_index: Index,
        recent: Recent,
    ) -> MachineResult<Self> {
        let layers = Arc::new(Layers::new(durable_index, recent));
        let thread = std::thread::Builder::new()
            .name("kv-state".into())
            .spawn({
                let (instance, layers) = (Arc::clone(&instance), Arc::clone(&layers));
                move || {
                    let _broken = TellIfBroken(&layers);
                    layers.write_all(&instance);
                }
            })
            .map_err(|error| MachineError(format!("starting a thread for the state: {error}")))?;
        Ok(Self { instance, layers, thread: Some(thread) })
    }

    /// Another state takes its place: what is not written need not be.
    pub(super) fn forget(mut self) {
        self.end(End::Forgotten);
        self.instance.remove_when_closed();
    }

    fn end(&mut self, end: End) {
        self.layers.end(end);
        if let Some(thread) = self.thread.take() {
            // It panicked, and said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Current {
    /// A start that finds everything in tables need not replay the log.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(End::Written);
        }
    }
}
