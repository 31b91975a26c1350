//! The file formats of the durable backend: records, snapshot files, and the part of RocksDB's
//! write-ahead files that is needed to tell a torn tail from damage.
//!
//! Nothing here needs RocksDB. Every length and number is checked before it is used: the bytes may
//! be damaged, or nonsense with a right checksum. `docs/format.md` draws all of it.

mod configuration;
pub(crate) mod draft;
pub(crate) mod keys;
pub(crate) mod log_key;
pub(crate) mod records;
pub(crate) mod snapshot_file;
pub(crate) mod wal;
