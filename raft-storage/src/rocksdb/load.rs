//! Opens the RocksDB instance, and reads and checks everything in it.
//!
//! Every refusal names the directory and what to do. Nothing is repaired here: the records that
//! RocksDB would cut are examined before it is opened for writing.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Entry, HardState, Index, Loaded, SnapshotMeta};
use rocksdb::{DB, Direction, ErrorKind, IteratorMode, Options, ReadOptions, WriteBatch};

use super::ADVICE_DAMAGED;
use super::background_errors::listen;
use super::batch_plan::Mirror;
use super::entry_sizes::Sizes;
use super::log::FLOOR_FILE;
use super::options::{RocksOptions, engine_error};
use super::poison::Poison;
use super::run_starts::RunStarts;
use crate::data_dir::LOG_KEY as KEY_FILE;
use crate::files::{io_error, read_if_there, write_whole};
use crate::format::draft::content_of_put;
use crate::format::keys::{
    KEY_BATCH, KEY_ENTRY_END, KEY_FORMAT, KEY_HARD_STATE, KEY_LOG_START, KEY_SNAPSHOT, entry_key,
    entry_key_index,
};
use crate::format::log_key::LogKey;
use crate::format::records::{self, BatchMark, FORMAT_VERSION, Format, NUMBER_MAX, Published, Run};
use crate::format::wal::{self, DirectoryScan, Intruder};
use crate::record::Damage;

/// Longest floor file, in bytes.
const FLOOR_BYTES_MAX: u64 = 64;

/// Opens the instance, unless RocksDB would recover less than was acknowledged. Records that this
/// log did not write are spoiled before RocksDB can replay them.
pub(crate) fn open(
    directory: &Path,
    options: &RocksOptions,
    poison: &Poison,
    key: &LogKey,
) -> StorageResult<DB> {
    std::fs::create_dir_all(directory).map_err(|e| io_error("create", directory, e))?;
    let mut engine = options.engine(directory)?;
    let (path, unattended) = (directory.to_owned(), poison.clone());
    listen(&mut engine, move |text| unattended.note_unattended(&path, text));
    let must_reach = prepare_replay(directory, &engine, key)?;
    let opened = match DB::open(&engine, directory) {
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {
            // The file system has no direct writes, as `ramfs`. Any other cause fails again now.
            engine.set_use_direct_io_for_flush_and_compaction(false);
            DB::open(&engine, directory)
        }
        opened => opened,
    };
    let db = opened.map_err(|error| engine_error("open the log in", directory, error))?;
    if is_empty(&db, directory)? {
        write_format(&db, directory, key)?;
    }
    check_format(&db, directory, key)?;
    check_reach(&db, directory, must_reach, key)?;
    Ok(db)
}

/// Reads the write-ahead files before RocksDB does. Returns the batch that replay has to reach.
fn prepare_replay(directory: &Path, engine: &Options, key: &LogKey) -> StorageResult<u64> {
    let floor = read_floor(directory)?;
    let DirectoryScan { scan, intruders, has_batches } = wal::scan(directory, key)?;
    let must_reach = floor.max(scan.claimed);
    let exists = directory.join("CURRENT").exists();
    if !exists && must_reach > 0 {
        return Err(StorageError::Corrupt(format!(
            "the log in {} has lost its file CURRENT. {ADVICE_DAMAGED}",
            directory.display()
        )));
    }
    // Opens without writing: a refused log stays as it is, so that it can be examined.
    let probe = || {
        DB::open_for_read_only(engine, directory, false)
            .map_err(|error| engine_error("open the log in", directory, error))
    };
    let is_short = exists && must_reach > scan.reached;
    if is_short && intruders.iter().any(|intruder| intruder.is_behind_hole) {
        // RocksDB would skip the batches in the hole, and report the number of the newest one
        // nevertheless.
        return Err(short_of(directory, scan.reached, must_reach));
    }
    if exists && !intruders.is_empty() && !has_batches {
        // No batch proves that this is a log of this crate: an instance of another program is left
        // alone.
        check_format(&probe()?, directory, key)?;
    }
    for intruder in &intruders {
        // The claim is stored in the floor before the files that make it are altered.
        raise_floor(directory, floor, must_reach)?;
        spoil(intruder)?;
    }
    if is_short {
        // Batch `must_reach` was moved from the write-ahead files to a table long ago, or it is out
        // of replay's reach.
        check_reach(&probe()?, directory, must_reach, key)?;
    }
    // Opening cuts the records that cannot be replayed, and with them those that prove the claim.
    // The floor is stored first, so that the claim holds at every later start as well.
    raise_floor(directory, floor, must_reach)?;
    Ok(must_reach)
}

fn raise_floor(directory: &Path, floor: u64, must_reach: u64) -> StorageResult<()> {
    if must_reach <= floor {
        return Ok(());
    }
    assert!(must_reach <= NUMBER_MAX, "marks with larger numbers are refused");
    write_whole(directory, FLOOR_FILE, &records::encode_floor(must_reach), false)
}

/// Spoils the checksum of a record that RocksDB would replay and that this log did not write.
/// RocksDB then ends its replay there, as at a torn tail.
fn spoil(intruder: &Intruder) -> StorageResult<()> {
    let Intruder { path, at, is_behind_hole } = intruder;
    tracing::warn!(
        file = %path.display(),
        at,
        is_behind_hole,
        "the write-ahead file goes on with a record that is not the next one of this log; the log \
         ends before it"
    );
    let spoiled = || {
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
        let mut checksum = [0; 4];
        file.seek(SeekFrom::Start(*at as u64))?;
        file.read_exact(&mut checksum)?;
        file.seek(SeekFrom::Start(*at as u64))?;
        file.write_all(&checksum.map(|byte| !byte))?;
        file.sync_all()
    };
    spoiled().map_err(|e| io_error("end the log in", path, e))
}

fn read_floor(directory: &Path) -> StorageResult<u64> {
    let path = directory.join(FLOOR_FILE);
    match read_if_there(&path, FLOOR_BYTES_MAX)? {
        None => Ok(0),
        Some(bytes) => records::decode_floor(&bytes)
            .map_err(|damage| corrupt(directory, &format!("its file {FLOOR_FILE}"), damage)),
    }
}

/// Refuses a log whose format this program cannot read, and a log of another key.
fn check_format(db: &DB, directory: &Path, key: &LogKey) -> StorageResult<()> {
    match read(db, directory, KEY_FORMAT, "the format", records::decode_format)? {
        Some(Format { fingerprint: Some(found), .. }) if found == key.fingerprint() => Ok(()),
        Some(Format { version: FORMAT_VERSION, .. }) => Err(StorageError::Refused(format!(
            "the log in {} was written with another key than the one in its file {KEY_FILE:?}: \
             restore that file from a backup of the same node, or move the data directory away and \
             let the node be re-admitted with an empty one",
            directory.display()
        ))),
        Some(Format { version, .. }) => Err(StorageError::Refused(format!(
            "the log in {} has format version {version}, this program knows {FORMAT_VERSION}: {}",
            directory.display(),
            crate::data_dir::advice_on_version(version),
        ))),
        None => Err(corrupt(
            directory,
            "the format",
            Damage("it is missing, and other records are there".to_owned()),
        )),
    }
}

fn is_empty(db: &DB, directory: &Path) -> StorageResult<bool> {
    match db.iterator(IteratorMode::Start).next() {
        None => Ok(true),
        Some(Ok(_)) => Ok(false),
        Some(Err(error)) => Err(engine_error("read", directory, error)),
    }
}

/// Writes batch 0, which creates the log.
fn write_format(db: &DB, directory: &Path, key: &LogKey) -> StorageResult<()> {
    let format = records::encode_format(key);
    let mark =
        BatchMark { number: 0, durable_through: 0, content: content_of_put(KEY_FORMAT, &format) };
    let mut write = WriteBatch::default();
    write.put(KEY_BATCH, records::encode_batch_mark(mark, key));
    write.put(KEY_FORMAT, format);
    let mut sync = rocksdb::WriteOptions::default();
    sync.set_sync(true);
    db.write_opt(write, &sync)
        .map_err(|error| engine_error("write the format to", directory, error))
}

/// Checks that every batch that any record claims durable is there.
fn check_reach(db: &DB, directory: &Path, must_reach: u64, key: &LogKey) -> StorageResult<()> {
    let reached = read_batch_number(db, directory, key)?;
    if reached >= must_reach { Ok(()) } else { Err(short_of(directory, reached, must_reach)) }
}

fn short_of(directory: &Path, reached: u64, must_reach: u64) -> StorageError {
    StorageError::Corrupt(format!(
        "the log in {} is damaged in the middle: it can be read through batch {reached}, and batch \
         {must_reach} was acknowledged. {ADVICE_DAMAGED}",
        directory.display()
    ))
}

fn read_batch_number(db: &DB, directory: &Path, key: &LogKey) -> StorageResult<u64> {
    let decode = |bytes: &[u8]| records::decode_batch_mark(bytes, key);
    let mark = read(db, directory, KEY_BATCH, "the batch mark", decode)?;
    Ok(mark.map_or(0, |mark| mark.number))
}

/// The result of `load`, and the state that writing needs.
pub(crate) struct Everything {
    pub(crate) loaded: Loaded,
    pub(crate) mirror: Mirror,
    pub(crate) published: Option<Published>,
}

/// `initial`: the hard state of a log in which none was written yet.
pub(crate) fn load(
    db: &DB,
    directory: &Path,
    key: &LogKey,
    initial: HardState,
) -> StorageResult<Everything> {
    let hard_state = read(db, directory, KEY_HARD_STATE, "the hard state", |bytes| {
        records::decode_hard_state(bytes, key)
    })?
    .unwrap_or(initial);
    let log_start = read(db, directory, KEY_LOG_START, "the start of the log", |bytes| {
        records::decode_log_start(bytes, key)
    })?
    .unwrap_or_default();
    let published = read(db, directory, KEY_SNAPSHOT, "the snapshot's record", |bytes| {
        records::decode_published(bytes, key)
    })?;
    let (entries, run_starts) = entries(db, directory, &log_start, key)?;
    let sizes = Sizes::of(&entries);
    assert_eq!(sizes.len(), entries.len() as u64, "one size for each entry");
    let batch = read_batch_number(db, directory, key)?;
    let snapshot = published.as_ref().map(|published| published.meta.clone());
    Ok(Everything {
        loaded: Loaded { hard_state, log_start: log_start.clone(), snapshot, entries },
        // Opening has made durable what it recovered.
        mirror: Mirror { hard_state, log_start, sizes, run_starts, batch, durable_batch: batch },
        published,
    })
}

/// The entries after `log_start`, and where the runs begin that hold them.
fn entries(
    db: &DB,
    directory: &Path,
    log_start: &SnapshotMeta,
    log_key: &LogKey,
) -> StorageResult<(Vec<Entry>, RunStarts)> {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.set_readahead_size(2 << 20);
    options.set_iterate_upper_bound(KEY_ENTRY_END.as_ref());
    let from = entry_key(0);
    let iterator = db.iterator_opt(IteratorMode::From(from.as_ref(), Direction::Forward), options);
    let (mut entries, mut run_starts) = (Vec::new(), RunStarts::default());
    for item in iterator {
        let (key, value) =
            item.map_err(|error| engine_error("read the log in", directory, error))?;
        let first = entry_key_index(&key)
            .ok_or_else(|| corrupt(directory, "a key", Damage(format!("it is {key:02x?}"))))?;
        records::decode_run(&value, log_key)
            .and_then(|run| add_run(run, first, log_start, &mut entries))
            .map_err(|damage| corrupt(directory, &format!("entry {first}"), damage))?;
        run_starts.push(first);
    }
    Ok((entries, run_starts))
}

/// Adds the entries of the run whose key has the index `first`.
fn add_run(
    run: Run,
    first: Index,
    log_start: &SnapshotMeta,
    entries: &mut Vec<Entry>,
) -> Result<(), Damage> {
    if run.first != first {
        return Err(Damage(format!("the record there is of entry {}", run.first)));
    }
    // The run before ends where this one begins.
    while entries.last().is_some_and(|entry| entry.index >= first) {
        entries.pop();
    }
    let mut last = entries.last().map_or(log_start.position, Entry::position);
    if first > last.index + 1 {
        let last = last.index;
        return Err(Damage(format!("the entry before it is {last}, so there is a gap")));
    }
    for entry in run.entries {
        // A run is there until none of its entries is needed.
        if entry.index <= log_start.index() {
            continue;
        }
        let Entry { index, term, .. } = entry;
        assert_eq!(
            index,
            last.index + 1,
            "the run has no gap, and begins at the end of the last one"
        );
        if term < last.term {
            return Err(Damage(format!(
                "the term {term} of entry {index} is below {}, that of the one before",
                last.term
            )));
        }
        last = entry.position();
        entries.push(entry);
    }
    Ok(())
}

fn read<T>(
    db: &DB,
    directory: &Path,
    key: impl AsRef<[u8]>,
    what: &str,
    decode: impl FnOnce(&[u8]) -> Result<T, Damage>,
) -> StorageResult<Option<T>> {
    let value = db.get(key).map_err(|error| engine_error("read the log in", directory, error))?;
    value.map(|bytes| decode(&bytes).map_err(|damage| corrupt(directory, what, damage))).transpose()
}

fn corrupt(directory: &Path, what: &str, damage: Damage) -> StorageError {
    StorageError::Corrupt(format!(
        "the log in {} is damaged at {what}: {damage}. {ADVICE_DAMAGED}",
        directory.display()
    ))
}
