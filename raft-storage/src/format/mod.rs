//! The files of the durable backend as bytes: records, snapshot files, and as much of RocksDB's
//! write-ahead files as tells a torn tail from damage.
//!
//! Nothing here needs RocksDB, and nothing believes a length or a number before it has checked it:
//! the bytes may be damaged, or well sealed nonsense. `docs/format.md` draws all of it.

pub(crate) mod draft;
pub(crate) mod keys;
pub(crate) mod log_key;
pub(crate) mod records;
pub(crate) mod snapshot_file;
pub(crate) mod wal;
