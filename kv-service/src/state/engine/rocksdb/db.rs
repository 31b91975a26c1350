//! One open RocksDB instance and its directory.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use raft_core::state_machine::{MachineError, MachineResult};
use rocksdb::compaction_filter::Decision;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, Env, ErrorKind,
    IngestExternalFileOptions, IteratorMode, Options, ReadOptions, ReadTier, SstFileWriter,
    WriteBatch, WriteOptions,
};

use super::memtable::{Change, Memtable};
use super::merge_iterator::Source;
use super::options::RocksStateOptions;
use crate::state::codec::{ByteReader, DecodeResult};
use crate::state::command::KEY_BYTES_LIMIT;
use crate::state::engine::{AppliedMeta, format};
use crate::state::session::Session;
use crate::state::sessions::Sessions;

/// Key and value, as an iterator of RocksDB yields them.
type KeyAndValue = (Box<[u8]>, Box<[u8]>);

pub(super) struct Db {
    pub(super) inner: DB,
    /// Options of the SST files of memtables, which are written outside `inner`.
    sst_options: Options,
    /// The first failure of RocksDB's background work.
    failure: Arc<OnceLock<String>>,
    /// Declared after `inner`, so that it is dropped after it.
    remains: Remains,
}

/// The directory, which outlives the open instance.
struct Remains {
    path: PathBuf,
    remove: AtomicBool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.remove.load(Ordering::Relaxed)
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            // The next start removes it.
            tracing::warn!(path = %self.path.display(), %error, "an old state was not removed");
        }
    }
}

impl Db {
    /// Opens the instance in `path`; with `create`, creates it there if there is none.
    pub(super) fn open(
        path: PathBuf,
        options: &RocksStateOptions,
        create: bool,
    ) -> MachineResult<Self> {
        let failure = Arc::new(OnceLock::new());
        let opened = engine_options(options, create).and_then(|mut engine| {
            let failure = Arc::clone(&failure);
            raft_storage::rocksdb::listen(&mut engine, move |text| {
                // Only the first failure tells the cause.
                let _ = failure.set(text.to_owned());
            });
            let inner = DB::open(&engine, &path)?;
            engine.set_block_based_table_factory(&memtable_sst_options());
            Ok((inner, engine))
        });
        let (inner, sst_options) = opened.map_err(|error| {
            MachineError(format!(
                "opening the state in {}: {error}. If it is damaged, restore the whole data \
                 directory from one backup, or wipe it and let the node join as a new one",
                path.display()
            ))
        })?;
        let remains = Remains { path, remove: AtomicBool::new(false) };
        Ok(Self { inner, sst_options, failure, remains })
    }

    pub(super) fn path(&self) -> &Path {
        &self.remains.path
    }

    pub(super) fn remove_when_closed(&self) {
        self.remains.remove.store(true, Ordering::Relaxed);
    }

    pub(super) fn keep_when_closed(&self) {
        self.remains.remove.store(false, Ordering::Relaxed);
    }

    /// Reads the applied meta and the sessions from disk.
    pub(super) fn load(&self) -> MachineResult<(AppliedMeta, Sessions)> {
        let mut sessions = Sessions::default();
        let Some(applied_meta) = self.applied_meta()? else {
            return match self.inner.iterator(IteratorMode::Start).next() {
                None => Ok((AppliedMeta::default(), sessions)),
                Some(_) => Err(self.damaged("there is data, but no position")),
            };
        };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(format::SESSIONS_START);
        options.set_iterate_upper_bound(format::SESSIONS_END);
        for item in self.inner.iterator_opt(IteratorMode::Start, options) {
            let (key, value) = item.map_err(|error| self.failed("reading", &error))?;
            let id = format::decode_session_key(&key).map_err(|error| self.damaged(error))?;
            let value = Bytes::from(value);
            let mut reader = ByteReader::new(&value);
            let session = Session::decode(&mut reader);
            let session = session.and_then(|session| reader.finish().map(|()| session));
            session
                .and_then(|session| sessions.restore(id, session, applied_meta.position.index))
                .map_err(|error| self.damaged(error))?;
        }
        sessions.assert_counts();
        Ok((applied_meta, sessions))
    }

    /// The metadata of the last commit; `None` before the first.
    pub(super) fn applied_meta(&self) -> MachineResult<Option<AppliedMeta>> {
        let value = self.inner.get(format::APPLIED_META_KEY);
        match value.map_err(|error| self.failed("reading", &error))? {
            None => Ok(None),
            Some(value) => {
                let applied_meta = format::decode_applied_meta(&Bytes::from(value));
                applied_meta.map(Some).map_err(|error| self.damaged(error))
            }
        }
    }

    /// Reads the value of a key by `decode`; `None` if there is none, or if it is a deletion.
    pub(super) fn read<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> DecodeResult<Option<T>>,
    ) -> MachineResult<Option<T>> {
        let value = self.inner.get_pinned(format::record_key(key));
        match value.map_err(|error| self.failed("reading", &error))? {
            None => Ok(None),
            Some(value) => decode(&value).map_err(|error| self.damaged(error)),
        }
    }

    /// Like [`Db::read`], from memory alone: `None` if that would have to read a file, or if
    /// anything is wrong.
    pub(super) fn read_cached<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> DecodeResult<Option<T>>,
    ) -> Option<Option<T>> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        match self.inner.get_pinned_opt(format::record_key(key), &options).ok()? {
            None => Some(None),
            Some(value) => decode(&value).ok(),
        }
    }

    /// The records and deletions within the bounds of `options`, in key order. Calls `on_limit` and
    /// ends if RocksDB skipped as many of its own deletions as `options` allow.
    pub(super) fn records<'a>(
        &'a self,
        options: ReadOptions,
        on_limit: impl Fn() + 'a,
    ) -> Source<'a> {
        let items = self.inner.iterator_opt(IteratorMode::Start, options);
        let within = items.take_while(move |item| {
            let is_over = item.as_ref().is_err_and(|error| error.kind() == ErrorKind::Incomplete);
            if is_over {
                on_limit();
            }
            !is_over
        });
        Box::new(within.map(|item| self.change(item)))
    }

    /// Decodes a key and its record or deletion.
    pub(super) fn change(
        &self,
        item: Result<KeyAndValue, rocksdb::Error>,
    ) -> MachineResult<(Bytes, Change)> {
        let (key, value) = item.map_err(|error| self.failed("reading", &error))?;
        let change =
            format::decode_change(&Bytes::from(value)).map_err(|error| self.damaged(error))?;
        let key = Bytes::from(key).slice(format::RECORDS_START.len()..);
        if key.is_empty() || key.len() > KEY_BYTES_LIMIT {
            return Err(self.damaged("a key outside its limits"));
        }
        Ok((key, change))
    }

    /// Ingests a memtable as one SST file, durable when this returns.
    pub(super) fn ingest(&self, memtable: &Memtable) -> MachineResult<()> {
        // RocksDB links the file under a name of its own and removes this one. After a crash both
        // names may be there, for one file: a new file must not be written over it.
        let path = self.path().join("layer.table");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(self.not_written(&error));
            }
            Ok(()) | Err(_) => {}
        }
        let failed = |error| self.failed("writing a table of", &error);
        let writer = SstFileWriter::create(&self.sst_options);
        writer.open(&path).map_err(failed)?;
        let mut sst = SstFile { db: self, writer, path: &path, synced_bytes: 0 };
        memtable.write_to(|key, value| sst.put(key, value))?;
        sst.writer.finish().map_err(failed)?;
        sst.sync()?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.inner.ingest_external_file_opts(&options, vec![&path]).map_err(|error| match error.kind() {
            // The file was synced without an error a moment ago, and reads as something else.
            ErrorKind::Corruption => MachineError(format!(
                "the disk did not keep a table of the state in {} ({error}). The system's log says why; nothing \
                 of it is needed, but the disk must have room and work before this node goes on",
                self.path().display()
            )),
            _ => failed(error),
        })
    }

    /// Checks RocksDB's background work.
    ///
    /// # Errors
    /// A compaction failed, or RocksDB could not write its own files, now or at any time before. A
    /// disk that failed once is not to be trusted, and a node whose compactions fall behind makes
    /// no progress.
    pub(super) fn check_background_work(&self) -> MachineResult<()> {
        self.failure.get().map_or(Ok(()), |failure| {
            let path = self.path().display();
            Err(MachineError(format!("keeping tables of the state in {path}: {failure}")))
        })
    }

    /// Returns true if more SST files wait for compaction than a read should have to search.
    pub(super) fn is_behind(&self) -> bool {
        const TABLES_MAX: u64 = 20;
        let count = self.inner.property_int_value("rocksdb.num-files-at-level0");
        count.ok().flatten().is_some_and(|count| count >= TABLES_MAX)
    }

    pub(super) fn write(&self, batch: WriteBatch) -> MachineResult<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.inner.write_opt(batch, &options).map_err(|error| self.failed("writing", &error))
    }

    /// Makes everything written so far durable.
    pub(super) fn flush(&self) -> MachineResult<()> {
        self.inner.flush().map_err(|error| self.failed("flushing", &error))
    }

    fn not_written(&self, error: &std::io::Error) -> MachineError {
        MachineError(format!("writing a table of the state in {}: {error}", self.path().display()))
    }

    fn failed(&self, doing: &str, error: &rocksdb::Error) -> MachineError {
        if error.kind() == ErrorKind::Corruption {
            return self.damaged(error);
        }
        MachineError(format!("{doing} the state in {}: {error}", self.path().display()))
    }

    fn damaged(&self, what: impl std::fmt::Display) -> MachineError {
        MachineError(format!(
            "the state in {} cannot be read ({what}): it is damaged, or was written by a newer \
             version. Use that version, restore the whole data directory from one backup, or wipe \
             it and let the node join as a new one",
            self.path().display()
        ))
    }
}

/// An SST file that is being written.
struct SstFile<'a> {
    db: &'a Db,
    writer: SstFileWriter<'a>,
    path: &'a Path,
    synced_bytes: u64,
}

impl SstFile<'_> {
    fn put(&mut self, key: &[u8], value: Option<&[u8]>) -> MachineResult<()> {
        let put = match value {
            Some(value) => self.writer.put(key, value),
            None => self.writer.delete(key),
        };
        put.map_err(|error| self.db.failed("writing a table of", &error))?;
        let size_bytes = self.writer.file_size();
        if size_bytes - self.synced_bytes >= BYTES_PER_SYNC {
            self.synced_bytes = size_bytes;
            self.sync()?;
        }
        Ok(())
    }

    /// The kernel reports a failure once, to the next caller that syncs: it must not be lost here.
    fn sync(&self) -> MachineResult<()> {
        let synced = std::fs::File::open(self.path).and_then(|file| file.sync_all());
        synced.map_err(|error| self.db.not_written(&error))
    }
}

/// Threads of the process for flushes, and as many for compactions. The environment is shared with
/// the log's instance; with one thread of each kind, one would wait behind the other.
const BACKGROUND_THREADS: i32 = 2;

/// Bytes of an SST file that are written between syncs, so that the log's synced appends do not
/// wait behind a whole file.
const BYTES_PER_SYNC: u64 = 1 << 20;

/// Compaction is triggered for a file in which [`DELETIONS_TRIGGER`] of [`DELETIONS_WINDOW`] keys
/// in a row are deletions of RocksDB.
const DELETIONS_WINDOW: usize = 1024;
const DELETIONS_TRIGGER: usize = 512;

/// Every fourth key of a block is stored whole, and can be found by binary search. With RocksDB's
/// default, 16, a lookup decodes eight records one after the other, a sixteenth of all that a node
/// does for a get.
const RESTART_INTERVAL: i32 = 4;

const DELETIONS_FILTER: &str = "kv-deletions";

fn engine_options(options: &RocksStateOptions, create: bool) -> Result<Options, rocksdb::Error> {
    let mut environment = Env::new()?;
    environment.set_high_priority_background_threads(BACKGROUND_THREADS);
    environment.set_low_priority_background_threads(BACKGROUND_THREADS);
    let mut engine = Options::default();
    engine.set_block_based_table_factory(&compacted_sst_options(options.block_cache_bytes));
    engine.create_if_missing(create);
    engine.set_compression_type(DBCompressionType::Lz4);
    engine.set_write_buffer_size(options.write_buffer_bytes);
    engine.set_max_write_buffer_number(3);
    // Most writes look their key up first; a new key should not cost a search of RocksDB's
    // memtable.
    engine.set_memtable_prefix_bloom_ratio(0.02);
    engine.set_memtable_whole_key_filtering(true);
    // There is one writer.
    engine.set_allow_concurrent_memtable_write(false);
    engine.set_max_background_jobs(options.background_jobs);
    engine.set_max_open_files(options.open_files_max);
    engine.set_paranoid_checks(true);
    engine.set_env(&environment);
    engine.set_bytes_per_sync(BYTES_PER_SYNC);
    // Deletions of keys are values, which only this filter removes. RocksDB then keeps a deletion
    // of its own down to the lowest level, so that no older value reappears; files that hold many
    // are compacted soon.
    engine.set_compaction_filter(DELETIONS_FILTER, |_, key, value| {
        if format::is_deletion(key, value) { Decision::Remove } else { Decision::Keep }
    });
    engine.add_compact_on_deletion_collector_factory(DELETIONS_WINDOW, DELETIONS_TRIGGER, 0.0);
    Ok(engine)
}

/// How SST files are read, and how compaction writes them. The compacted files hold most of the
/// state. Their index and filter are partitioned: in one piece, either of a large file would have
/// to be read anew for a key once all of them together exceed the cache.
fn compacted_sst_options(block_cache_bytes: usize) -> BlockBasedOptions {
    let mut blocks = memtable_sst_options();
    // This cache has no locks. Its shards have 32 MiB; a block larger than a shard is never kept.
    blocks.set_block_cache(&Cache::new_hyper_clock_cache(block_cache_bytes, 0));
    // In the cache, so that its size bounds them too.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    // Large partitions, so that there are few and finding the right one costs little.
    blocks.set_metadata_block_size(64 << 10);
    blocks.set_pin_top_level_index_and_filter(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks
}

/// How the SST file of a memtable is written. Few of these files wait for compaction, so their
/// indexes and filters stay in memory, in one piece: each of them is searched for a key, and in
/// partitions that would take twice as long.
fn memtable_sst_options() -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_bloom_filter(10.0, false);
    blocks.set_block_restart_interval(RESTART_INTERVAL);
    blocks
}
