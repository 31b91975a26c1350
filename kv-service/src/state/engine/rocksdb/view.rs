//! A view: immutable memtables and, beneath them, a RocksDB snapshot on a thread of its own.
//!
//! A snapshot and its iterator borrow the database and so cannot be passed around, but a thread can
//! hold all three. It reads one page for each request, and ends when the view is dropped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use raft_core::state_machine::{MachineError, MachineResult};
use rocksdb::{IteratorMode, ReadOptions};

use super::db::Db;
use super::memtables::{Generation, Memtables};
use super::merge_iterator::{MergeIterator, Source};
use crate::protocol::operation::Record;
use crate::state::engine::{View, format, page_bytes};

type Page = Vec<(Bytes, Record)>;

/// How far RocksDB reads ahead, in bytes.
const READAHEAD_BYTES: usize = 1 << 20;

pub(super) struct RocksView {
    /// `None` once the view is being dropped. Each request is answered by one page.
    requests: Option<SyncSender<usize>>,
    pages: Receiver<MachineResult<Page>>,
    thread: Option<JoinHandle<()>>,
}

impl RocksView {
    /// Takes a view of everything that is committed now, and of nothing that comes later.
    pub(super) fn take(generation: &Generation) -> MachineResult<Self> {
        let (db, memtables) = (Arc::clone(&generation.db), Arc::clone(&generation.memtables));
        let (requests, wanted) = sync_channel(1);
        let (page_sender, pages) = sync_channel(1);
        let (taken, is_taken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("kv-view".into())
            .spawn(move || serve(&db, &memtables, &taken, &wanted, &page_sender))
            .map_err(|error| MachineError(format!("starting a thread for a view: {error}")))?;
        is_taken.recv().map_err(|_| broken())?;
        Ok(Self { requests: Some(requests), pages, thread: Some(thread) })
    }
}

impl View for RocksView {
    fn next_page(&mut self, bytes_max: usize) -> MachineResult<Page> {
        let requests = self.requests.as_ref().expect("until it is dropped");
        requests.send(bytes_max).map_err(|_| broken())?;
        self.pages.recv().map_err(|_| broken())?
    }
}

impl Drop for RocksView {
    /// Waits for the thread, which is idle, so that it no longer uses the database when the view is
    /// gone.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // It fails if the thread panicked, and the panic was printed already.
            let _ = thread.join();
        }
    }
}

fn serve(
    db: &Db,
    memtables: &Memtables,
    taken: &SyncSender<()>,
    wanted: &Receiver<usize>,
    pages: &SyncSender<MachineResult<Page>>,
) {
    // Under one lock: what is in no memtable any longer is in the snapshot.
    let mut state = memtables.lock();
    state.rotate();
    let immutable = state.immutable.clone();
    let snapshot = db.inner.snapshot();
    drop(state);
    // The writer thread has another memtable to write (S17).
    memtables.notify();
    // A caller that has given up will not request a page either.
    let _ = taken.send(());
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(format::RECORDS_START);
    options.set_iterate_upper_bound(format::RECORDS_END);
    options.set_readahead_size(READAHEAD_BYTES);
    // The view must not evict what reads have put into the cache.
    options.fill_cache(false);
    let items = snapshot.iterator_opt(IteratorMode::Start, options);
    let mut sources: Vec<Source<'_>> = Vec::new();
    for memtable in immutable.iter().rev() {
        let changes = memtable.range(&[], &[]);
        sources.push(Box::new(changes.map(Ok)));
    }
    sources.push(Box::new(items.map(|item| db.change(item))));
    let mut records = MergeIterator::new(sources).filter_map(|change| match change {
        Ok((key, Some(record))) => Some(Ok((key, record))),
        Ok((_, None)) => None,
        Err(error) => Some(Err(error)),
    });
    for bytes_max in wanted {
        if pages.send(next_page(&mut records, bytes_max)).is_err() {
            return;
        }
    }
}

fn next_page(
    records: &mut impl Iterator<Item = MachineResult<(Bytes, Record)>>,
    bytes_max: usize,
) -> MachineResult<Page> {
    let mut page = Page::new();
    let mut size_bytes = 0;
    while page.is_empty() || size_bytes < bytes_max {
        let Some(item) = records.next() else { break };
        let (key, record) = item?;
        size_bytes += page_bytes(&key, &record);
        page.push((key, record));
    }
    Ok(page)
}

fn broken() -> MachineError {
    MachineError("the thread of a view broke".into())
}
