//! The settings of the log's RocksDB instance, and their reasons. The figures are those of
//! `examples/append_latency.rs`.

use std::path::Path;

use raft_core::storage::{StorageError, StorageResult};
use rocksdb::{DBCompressionType, DBRecoveryMode, Env, Options};

use crate::step::StepHook;

const MIB: usize = 1 << 20;

/// Threads of the process for flushes, and as many for compactions.
const BACKGROUND_THREADS: i32 = 2;

/// Options of the log. The default suits a server.
///
/// ```
/// use raft_storage::rocksdb::RocksOptions;
///
/// let defaults = RocksOptions::default();
/// // A slow disk: fewer and larger write-ahead files.
/// let options = RocksOptions { write_buffer_bytes: 64 << 20, ..defaults };
/// assert_eq!(options.warm_file_count, 2);
/// ```
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Bytes of the log that are gathered in memory before RocksDB writes a table, and so the size
    /// of one write-ahead file. Memory: one to three times this.
    pub write_buffer_bytes: usize,
    /// Full-size write-ahead files that are written in idle time after each opening, to be reused:
    /// a synced append that extends a file costs 1.5 times one that overwrites. Disk: this many
    /// times `write_buffer_bytes`. One is in use and one waits, so 2 suffice; 0 turns it off
    /// (tests).
    pub warm_file_count: usize,
    /// Writes tables past the page cache: they are not read before they are merged or dropped, so
    /// this saves the copy and the memory. On a file system without direct writes the log uses the
    /// page cache.
    pub direct_tables: bool,
    /// Called at every step of a write, on the thread that writes. For tests.
    pub step_hook: StepHook,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            write_buffer_bytes: 32 * MIB,
            warm_file_count: 2,
            direct_tables: true,
            step_hook: StepHook::default(),
        }
    }
}

impl RocksOptions {
    /// Small files and no warming: opens in milliseconds.
    pub fn small() -> Self {
        Self { write_buffer_bytes: MIB, warm_file_count: 0, ..Self::default() }
    }

    /// # Errors
    /// Fails if RocksDB's environment cannot be created; the error names `path`.
    pub(crate) fn engine(&self, path: &Path) -> StorageResult<Options> {
        let mut options = Options::default();
        // One environment serves all instances of a process. With one thread of each kind, the
        // log's tables would wait behind those of the state machine.
        let mut environment =
            Env::new().map_err(|error| engine_error("prepare to open", path, error))?;
        environment.set_high_priority_background_threads(BACKGROUND_THREADS);
        environment.set_low_priority_background_threads(BACKGROUND_THREADS);
        options.set_env(&environment);
        options.create_if_missing(true);
        // Obsolete write-ahead files are overwritten, so that a synced append does not change the
        // file's size: no journal commit. One waits while one is in use; a third may be waiting for
        // its table to be written.
        options.set_recycle_log_file_num(2);
        // The only mode that goes with reuse: the bytes after the newest record in a reused file
        // *are* garbage, so replay has to stop at the first invalid record. By itself this mode
        // would also take damage in the middle for the end; `format/wal` reads on after it before
        // RocksDB does.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        // The log flushes when the write-ahead file is full. RocksDB would flush earlier, because a
        // memtable takes more memory than the file takes bytes; twice the size prevents that.
        options.set_write_buffer_size(2 * self.write_buffer_bytes);
        options.set_max_write_buffer_number(3);
        // Entries are written once and soon compacted away: compressing them costs more than it
        // saves.
        options.set_compression_type(DBCompressionType::None);
        // Entries that are compacted away mostly never reach a table. Those that do are merged away
        // rarely.
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_level_zero_slowdown_writes_trigger(64);
        options.set_level_zero_stop_writes_trigger(128);
        options.set_max_background_jobs(2);
        // One thread writes, so nothing is gained by preparing for several.
        options.set_allow_concurrent_memtable_write(false);
        options.set_max_open_files(64);
        options.set_paranoid_checks(true);
        // A write-ahead file that is closed and still needed is noted in the MANIFEST. Without
        // this, replay would begin with a later file if that one were missing.
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_stats_dump_period_sec(0);
        // A table is synced while it is written, and not in one go at its end, which would delay a
        // synced append.
        options.set_bytes_per_sync(MIB as u64);
        options.set_use_direct_io_for_flush_and_compaction(self.direct_tables);
        Ok(options)
    }
}

/// Translates an error of RocksDB.
pub(crate) fn engine_error(operation: &str, path: &Path, error: rocksdb::Error) -> StorageError {
    let operation = format!("{operation} {}", path.display());
    let message = error.into_string();
    if message.starts_with("Corruption") {
        return StorageError::Corrupt(format!("{operation}: {message}. {}", super::ADVICE_DAMAGED));
    }
    if !message.starts_with("IO error") {
        return StorageError::Engine { operation, message };
    }
    if message.contains("lock hold by current process") || message.contains("While lock file") {
        return StorageError::Refused(format!(
            "{operation}: {message}: the log is in use; stop the process that uses it first"
        ));
    }
    let kind = if message.contains("No space left") {
        std::io::ErrorKind::StorageFull
    } else if message.contains("ermission denied") {
        std::io::ErrorKind::PermissionDenied
    } else {
        std::io::ErrorKind::Other
    };
    StorageError::Io { operation, source: std::io::Error::new(kind, message) }
}
