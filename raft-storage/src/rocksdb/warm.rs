//! Writes full-size write-ahead files in idle time, for RocksDB to reuse.
//!
//! RocksDB reuses a write-ahead file once its table has been written. Without help that is after
//! two or three write buffers of entries, and RocksDB forgets the files when it is closed. Until
//! then every synced append makes its file grow, which costs 1.5 times as much. So after each
//! opening the log's thread fills files with bytes that are in no table, a slice at a time, while
//! no batch is queued. A batch that arrives meanwhile waits for one slice at most.

use raft_core::storage::StorageResult;

use super::log::StoredLog;

/// Bytes written and synced at once. A batch waits for one slice at most, about a millisecond or
/// two.
const SLICE_BYTES: usize = 256 * 1024;

/// Progress of the warming.
#[derive(Debug, Default)]
pub(crate) struct Warmer {
    files_left: usize,
    file_bytes: usize,
    filled_bytes: usize,
    slice: Vec<u8>,
}

impl Warmer {
    pub(crate) fn new(file_count: usize, write_buffer_bytes: usize) -> Self {
        Self {
            files_left: file_count,
            // A little more than one use of the file needs, so that the file does not grow at its
            // end.
            file_bytes: write_buffer_bytes + write_buffer_bytes / 16,
            filled_bytes: 0,
            slice: Vec::new(),
        }
    }

    /// Writes one slice; `false` when all is done.
    pub(crate) fn step(&mut self, log: &mut StoredLog) -> StorageResult<bool> {
        if self.files_left == 0 {
            return Ok(false);
        }
        assert!(self.filled_bytes <= self.file_bytes, "a full file is flushed");
        // Not zeros: a device may make holes of them.
        self.slice.resize(SLICE_BYTES, 0x5a);
        log.write_filler(&self.slice)?;
        self.filled_bytes += SLICE_BYTES;
        if self.filled_bytes >= self.file_bytes {
            log.flush()?;
            self.filled_bytes = 0;
            self.files_left -= 1;
            if self.files_left == 0 {
                self.slice = Vec::new();
                tracing::debug!("write-ahead files are ready for reuse");
            }
        }
        Ok(self.files_left > 0)
    }
}
