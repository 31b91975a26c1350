//! Where the records live: a persistent map in memory, or RocksDB.
//!
//! The contract, by which the tests compare both engines with one model:
//!
//! * Reads see every write before them, committed or not. [`Engine::scan`] and [`Engine::view`] are
//!   called between commits only.
//! * [`Engine::commit`] makes records, changed sessions and [`AppliedMeta`] one unit. A crash
//!   leaves all of a commit or nothing of it, and nothing of what follows a lost commit.
//! * A view is not changed by anything that comes later, a restore included.
//! * A crash before [`Engine::finish_restore`] leaves the old state, a crash during it the old or
//!   the new one, and a crash after it the new one.

#[cfg_attr(not(feature = "rocksdb"), allow(dead_code, reason = "the engine has the keys"))]
pub(super) mod format;
pub(super) mod memory;
#[cfg(feature = "rocksdb")]
pub(super) mod rocksdb;

use bytes::Bytes;
use raft_core::state_machine::{Flusher, MachineResult};
use raft_core::types::Position;

use super::codec::{DecodeError, DecodeResult, malformed};
use super::sessions::Sessions;
use crate::protocol::operation::{Record, Revision, ScanPage};
use crate::protocol::version::VERSION_MAX;

/// The metadata of the state: everything other than records and sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AppliedMeta {
    /// The last position whose effect is in the state.
    pub(super) position: Position,
    /// Replicated time in milliseconds: the largest that a command carried.
    pub(super) clock_ms: u64,
    /// The largest revision: that of the last command that changed a record.
    pub(super) revision: Revision,
    /// Number of restores of the cluster from a backup; 0 today.
    pub(super) generation: u32,
    /// The largest cluster version that a command or a configuration carried: the state may hold
    /// what that version brought.
    pub(super) rules: u32,
}

impl AppliedMeta {
    /// Checks the numbers of metadata that was decoded.
    pub(super) fn check(self) -> DecodeResult<Self> {
        if self.rules > VERSION_MAX {
            return Err(DecodeError::NewerRules(self.rules));
        }
        if self.position.is_in_range() && self.revision <= self.position.index {
            Ok(self)
        } else {
            Err(malformed("a position or revision that no state reaches"))
        }
    }
}

/// A record without its value, which most writes need not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) version: u64,
    pub(super) create_revision: Revision,
    pub(super) modify_revision: Revision,
}

impl Versions {
    pub(super) fn of(record: &Record) -> Self {
        let Record { version, create_revision, modify_revision, .. } = *record;
        Self { version, create_revision, modify_revision }
    }
}

pub(super) trait Engine: Send {
    fn get(&self, key: &[u8]) -> MachineResult<Option<Record>>;

    fn versions(&self, key: &[u8]) -> MachineResult<Option<Versions>>;

    fn put(&mut self, key: Bytes, record: Record);

    fn delete(&mut self, key: Bytes);

    /// Ends the batch and commits it; [`Sessions::changes`] lists the sessions that changed.
    fn commit(&mut self, applied_meta: AppliedMeta, sessions: &Sessions) -> MachineResult<()>;

    /// Records in `[start, end)`, an empty `end` being the end of all keys, as many as `limits`
    /// allow. The page ends with a key to continue at unless the range is exhausted.
    fn scan(&self, start: &[u8], end: &[u8], limits: &ScanLimits) -> MachineResult<ScanPage>;

    fn view(&self) -> MachineResult<Box<dyn View>>;

    /// Starts gathering a new state beside the one that is served; drops an unfinished one.
    fn begin_restore(&mut self) -> MachineResult<()>;

    /// Adds a record to the new state. Keys come in ascending order.
    fn restore_record(&mut self, key: Bytes, record: Record) -> MachineResult<()>;

    /// Replaces the old state by the new one.
    fn finish_restore(
        &mut self,
        applied_meta: AppliedMeta,
        sessions: &Sessions,
    ) -> MachineResult<()>;

    fn flusher(&self) -> Option<Box<dyn Flusher>> {
        None
    }

    /// Returns true if calls may wait for a disk.
    fn blocks(&self) -> bool {
        false
    }

    /// Returns true if looking up this key's versions, writing it and committing that with a few
    /// others can all be done without blocking.
    fn can_write_inline(&self, key: &[u8]) -> bool;
}

/// The records at one moment, in key order.
pub(super) trait View: Send {
    /// The next records, about `bytes_max` bytes and at least one record; empty at the end.
    fn next_page(&mut self, bytes_max: usize) -> MachineResult<Vec<(Bytes, Record)>>;
}

/// Copies a record, to keep it longer than the log keeps its command. The value is a slice of the
/// command, which may be a slice of a frame with many commands: keeping the slice would keep the
/// whole frame.
fn owned(record: &Record) -> Record {
    Record { value: Bytes::copy_from_slice(&record.value), ..*record }
}

/// Bytes that a record counts in a page.
pub(super) fn page_bytes(key: &[u8], record: &Record) -> usize {
    const OVERHEAD_BYTES: usize = 32;
    OVERHEAD_BYTES + key.len() + record.value.len()
}

/// Bounds of one page of a scan.
pub(super) struct ScanLimits {
    /// Records; at least 1.
    pub(super) records_max: usize,
    /// Keys and values, by [`page_bytes`]; the last record may exceed it. At least 1.
    pub(super) bytes_max: usize,
    /// Keys that are examined, of records and deletions; at least 1.
    pub(super) keys_max: usize,
}

/// Gathers a page of a scan from records and deletions (`None`) in ascending order of keys,
/// starting at the page's first key.
pub(super) fn fill_page(
    run: impl Iterator<Item = MachineResult<(Bytes, Option<Record>)>>,
    limits: &ScanLimits,
) -> MachineResult<ScanPage> {
    let mut page = ScanPage::default();
    let (mut key_count, mut size_bytes) = (0, 0);
    for item in run {
        let (key, change) = item?;
        if page.records.len() >= limits.records_max
            || size_bytes >= limits.bytes_max
            || key_count >= limits.keys_max
        {
            page.continue_at = Some(key);
            break;
        }
        key_count += 1;
        if let Some(record) = change {
            size_bytes += page_bytes(&key, &record);
            page.records.push((key, record));
        }
    }
    assert!(page.records.len() <= limits.records_max && key_count <= limits.keys_max);
    Ok(page)
}
