//! Bounds of the state engine over RocksDB.

/// Memory, files and threads that the state may use.
#[derive(Clone, Debug)]
pub struct RocksStateOptions {
    /// Bytes of the cache for blocks, indexes and filters read from disk.
    pub block_cache_bytes: usize,
    /// Bytes of one memtable; there are up to four. A crash loses no more than these, and the raft
    /// log replays them.
    pub write_buffer_bytes: usize,
    /// Bytes of the cache of versions of recently written keys; with 0, each write looks its key
    /// up.
    pub recent_keys_bytes: usize,
    /// Background threads for flushes and compactions together.
    pub background_jobs: i32,
    /// Files that RocksDB keeps open at once.
    pub open_files_max: i32,
}

impl Default for RocksStateOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 256 << 20,
            write_buffer_bytes: 64 << 20,
            recent_keys_bytes: 64 << 20,
            background_jobs: 2,
            open_files_max: 512,
        }
    }
}
