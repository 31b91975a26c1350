//! Writes full-size write-ahead files in idle time, for RocksDB to reuse.
//!
//! RocksDB reuses a write-ahead file once its table has been written, which without help is after
//! two or three write buffers' worth of entries, and forgets the files when it is closed. Until
//! then every synced append makes its file grow, which costs 1.5 times. So after each opening the
//! log's thread fills files with bytes that are in no table, a slice at a time, while no batch
//! waits; a batch that comes meanwhile waits for one slice at most.

use raft_core::storage::StorageResult;

use super::log::Log;

/// Written and synced at once: the longest that a batch waits, about a millisecond or two.
const SLICE_BYTES: usize = 256 * 1024;

/// How far the warming is.
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
            // A little more than a life of the file needs, so that it does not grow at its end.
            file_bytes: write_buffer_bytes + write_buffer_bytes / 16,
            filled_bytes: 0,
            slice: Vec::new(),
        }
    }

    /// Writes one slice; `false` when all is done.
    pub(crate) fn step(&mut self, log: &mut Log) -> StorageResult<bool> {
        if self.files_left == 0 {
            return Ok(false);
        }
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
