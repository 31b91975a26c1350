//! Where the records live: a persistent map in memory, or RocksDB.
//!
//! The contract, which the tests hold both against one model:
//!
//! * Reads see every write before them, committed or not. [`Engine::scan`] and [`Engine::view`] are
//!   called between commits only.
//! * [`Engine::commit`] makes records, changed sessions and [`Head`] one unit: a crash finds all of
//!   a commit or nothing of it, and nothing of what follows a lost one.
//! * A view is not disturbed by anything that comes later, a restore included.
//! * Until [`Engine::finish_restore`] returns, a crash finds the old state; then the new one.

#[cfg(any(test, feature = "rocksdb", feature = "fuzzing"))]
#[cfg_attr(not(feature = "rocksdb"), allow(dead_code, reason = "the engine has the keys"))]
pub(super) mod format;
pub(super) mod memory;
#[cfg(feature = "rocksdb")]
pub(super) mod rocksdb;

use bytes::Bytes;
use raft_core::state_machine::{Flusher, MachineResult};
use raft_core::types::Position;

use super::sessions::Sessions;
use crate::operation::{Record, Revision, ScanPage};

/// What the state is beside records and sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The last position whose effect is in the state.
    pub(super) position: Position,
    /// Replicated time: the largest that a command carried.
    pub(super) clock_ms: u64,
}

/// A record without its value, which most writes need not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) version: u64,
    pub(super) create_revision: Revision,
}

impl Versions {
    pub(super) fn of(record: &Record) -> Self {
        Self { version: record.version, create_revision: record.create_revision }
    }
}

pub(super) trait Engine: Send {
    fn get(&self, key: &[u8]) -> MachineResult<Option<Record>>;

    fn versions(&self, key: &[u8]) -> MachineResult<Option<Versions>>;

    fn put(&mut self, key: Bytes, record: Record);

    fn delete(&mut self, key: Bytes);

    /// The batch is complete. `sessions` says which of them changed.
    fn commit(&mut self, head: Head, sessions: &Sessions) -> MachineResult<()>;

    /// Records in `[start, end)`, an empty `end` being the end of all keys: at most `limit`, and no
    /// more once they exceed `bytes_max`, but at least one if there is any.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        limit: u32,
        bytes_max: usize,
    ) -> MachineResult<ScanPage>;

    fn view(&self) -> MachineResult<Box<dyn View>>;

    /// Starts gathering a new state beside the one that is served; drops an unfinished one.
    fn begin_restore(&mut self) -> MachineResult<()>;

    /// Keys come in ascending order.
    fn restore_record(&mut self, key: Bytes, record: Record) -> MachineResult<()>;

    /// The gathered state takes the place of the old one.
    fn finish_restore(&mut self, head: Head, sessions: &Sessions) -> MachineResult<()>;

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        None
    }

    /// Whether calls may wait for a disk.
    fn blocks(&self) -> bool {
        false
    }

    /// Whether to tell the key's versions, to write it, and a commit after that with a few others, wait for nothing.
    fn writes_at_once(&self, key: &[u8]) -> bool;
}

/// The records at one moment, in key order.
pub(super) trait View: Send {
    /// The next records, about `bytes_max` of them and at least one; empty at the end.
    fn next_page(&mut self, bytes_max: usize) -> MachineResult<Vec<(Bytes, Record)>>;
}

/// A copy for whoever keeps it longer than the log does. The value is a slice of its command, and that perhaps
/// one of a frame with many: keeping the slice would keep all of them.
fn owned(record: &Record) -> Record {
    Record { value: Bytes::copy_from_slice(&record.value), ..*record }
}

/// What a record counts in a page.
pub(super) fn page_bytes(key: &[u8], record: &Record) -> usize {
    const OVERHEAD_BYTES: usize = 32;
    OVERHEAD_BYTES + key.len() + record.value.len()
}

/// Gathers a page of a scan from an ascending run of records that starts at its first key.
pub(super) fn fill_page(
    run: impl Iterator<Item = MachineResult<(Bytes, Record)>>,
    limit: u32,
    bytes_max: usize,
) -> MachineResult<ScanPage> {
    let mut page = ScanPage::default();
    let mut size_bytes = 0;
    for item in run {
        let (key, record) = item?;
        let full = page.records.len() >= limit as usize || size_bytes >= bytes_max;
        if full && !page.records.is_empty() {
            page.continue_at = Some(key);
            break;
        }
        size_bytes += page_bytes(&key, &record);
        page.records.push((key, record));
    }
    Ok(page)
}
