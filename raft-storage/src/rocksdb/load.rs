//! Opens the instance and reads all that survived, checking everything.
//!
//! Every refusal names the directory and what to do. Nothing is repaired here: what RocksDB would
//! cut is looked at before it is opened for writing.

use std::path::Path;

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Entry, HardState, Index, Loaded, SnapshotMeta, Term};
use rocksdb::{DB, Direction, ErrorKind, IteratorMode, ReadOptions};

use super::ADVICE_DAMAGED;
use super::complaints::listen;
use super::log::FLOOR_FILE;
use super::options::{RocksOptions, engine_error};
use super::plan::Mirror;
use super::poison::Poison;
use super::sizes::Sizes;
use crate::files::{read_if_there, write_whole};
use crate::format::records::{
    self, FORMAT_VERSION, KEY_BATCH, KEY_ENTRY_END, KEY_FORMAT, KEY_HARD_STATE, KEY_LOG_START,
    KEY_SNAPSHOT, Published, entry_key, entry_key_index,
};
use crate::format::wal;
use crate::record::Damage;

/// A floor file is shorter.
const FLOOR_BYTES_MAX: u64 = 64;

/// Opens the instance, unless what RocksDB would recover is short of what was acknowledged.
pub(crate) fn open(directory: &Path, options: &RocksOptions, poison: &Poison) -> StorageResult<DB> {
    std::fs::create_dir_all(directory)
        .map_err(|e| crate::files::io_error("create", directory, e))?;
    let mut engine = options.engine(directory)?;
    let (path, unattended) = (directory.to_owned(), poison.clone());
    listen(&mut engine, move |text| unattended.note_unattended(&path, text));
    let floor = read_floor(directory)?;
    let scan = wal::scan(directory)?;
    let must_reach = floor.max(scan.claimed);
    let exists = directory.join("CURRENT").exists();
    if !exists && must_reach > 0 {
        return Err(StorageError::Corrupt(format!(
            "the log in {} has lost its file CURRENT. {ADVICE_DAMAGED}",
            directory.display()
        )));
    }
    if exists && must_reach > scan.reached {
        // Either it has left the write-ahead files for a table long ago, or it is out of replay's
        // reach. Reads without writing: what is refused stays as it is, for whoever looks into it.
        let probe = DB::open_for_read_only(&engine, directory, false)
            .map_err(|error| engine_error("open the log in", directory, error))?;
        check_reach(&probe, directory, must_reach)?;
    }
    if must_reach > floor {
        // Opening cuts what cannot be replayed, and with it the records that prove the claim. Written
        // down first, the claim stands at every later start as well.
        write_whole(directory, FLOOR_FILE, &records::encode_floor(must_reach), false)?;
    }
    let opened = match DB::open(&engine, directory) {
        Err(error) if error.kind() == ErrorKind::InvalidArgument => {
            // No direct writes there, as on `ramfs`. Any other reason is said now.
            engine.set_use_direct_io_for_flush_and_compaction(false);
            DB::open(&engine, directory)
        }
        opened => opened,
    };
    let db = opened.map_err(|error| engine_error("open the log in", directory, error))?;
    check_format(&db, directory)?;
    check_reach(&db, directory, must_reach)?;
    Ok(db)
}

fn read_floor(directory: &Path) -> StorageResult<u64> {
    let path = directory.join(FLOOR_FILE);
    match read_if_there(&path, FLOOR_BYTES_MAX)? {
        None => Ok(0),
        Some(bytes) => records::decode_floor(&bytes)
            .map_err(|damage| corrupt(directory, &format!("its file {FLOOR_FILE}"), damage)),
    }
}

/// Writes the format of a new instance, and refuses one that this program does not know.
fn check_format(db: &DB, directory: &Path) -> StorageResult<()> {
    match read(db, directory, KEY_FORMAT, "the format", records::decode_format)? {
        Some(FORMAT_VERSION) => Ok(()),
        Some(version) => Err(StorageError::Refused(format!(
            "the log in {} has format version {version}, this program knows {FORMAT_VERSION}: start \
             the program version that wrote it, or a newer one",
            directory.display()
        ))),
        None => {
            let mut first = db.iterator(IteratorMode::Start);
            match first.next() {
                None => {}
                Some(Ok(_)) => {
                    return Err(corrupt(
                        directory,
                        "the format",
                        Damage("it is missing, and other records are there".to_owned()),
                    ));
                }
                Some(Err(error)) => return Err(engine_error("read", directory, error)),
            }
            let mut sync = rocksdb::WriteOptions::default();
            sync.set_sync(true);
            db.put_opt(KEY_FORMAT, records::encode_format(), &sync)
                .map_err(|error| engine_error("write the format to", directory, error))
        }
    }
}

/// Everything that some record says was durable has to be there.
fn check_reach(db: &DB, directory: &Path, must_reach: u64) -> StorageResult<()> {
    let reached = read_batch_number(db, directory)?;
    if reached >= must_reach {
        return Ok(());
    }
    Err(StorageError::Corrupt(format!(
        "the log in {} is damaged in the middle: it can be read through batch {reached}, and batch \
         {must_reach} was acknowledged. {ADVICE_DAMAGED}",
        directory.display()
    )))
}

fn read_batch_number(db: &DB, directory: &Path) -> StorageResult<u64> {
    let mark = read(db, directory, KEY_BATCH, "the batch mark", records::decode_batch_mark)?;
    Ok(mark.map_or(0, |mark| mark.number))
}

/// What `load` returns, and what writing has to know.
pub(crate) struct Everything {
    pub(crate) loaded: Loaded,
    pub(crate) mirror: Mirror,
    pub(crate) published: Option<Published>,
}

pub(crate) fn load(db: &DB, directory: &Path) -> StorageResult<Everything> {
    let hard_state: HardState =
        read(db, directory, KEY_HARD_STATE, "the hard state", records::decode_hard_state)?
            .unwrap_or_default();
    let log_start: SnapshotMeta =
        read(db, directory, KEY_LOG_START, "the start of the log", records::decode_log_start)?
            .unwrap_or_default();
    let published =
        read(db, directory, KEY_SNAPSHOT, "the snapshot's record", records::decode_published)?;
    let entries = entries(db, directory, &log_start)?;
    let sizes = Sizes::of(&entries);
    let batch = read_batch_number(db, directory)?;
    let snapshot = published.as_ref().map(|published| published.meta.clone());
    Ok(Everything {
        loaded: Loaded { hard_state, log_start: log_start.clone(), snapshot, entries },
        // What opening recovered it has made durable.
        mirror: Mirror { hard_state, log_start, sizes, batch, durable_batch: batch },
        published,
    })
}

fn entries(db: &DB, directory: &Path, log_start: &SnapshotMeta) -> StorageResult<Vec<Entry>> {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.set_readahead_size(2 << 20);
    options.set_iterate_upper_bound(KEY_ENTRY_END);
    let from = entry_key(0);
    let iterator = db.iterator_opt(IteratorMode::From(&from, Direction::Forward), options);
    let mut entries = Vec::new();
    let mut last: (Index, Term) = (log_start.index(), log_start.position.term);
    for item in iterator {
        let (key, value) =
            item.map_err(|error| engine_error("read the log in", directory, error))?;
        let index = entry_key_index(&key)
            .ok_or_else(|| corrupt(directory, "a key", Damage(format!("it is {key:02x?}"))))?;
        let what = format!("entry {index}");
        let entry =
            records::decode_entry(&value).map_err(|damage| corrupt(directory, &what, damage))?;
        let problem = if entry.index != index {
            Some(format!("the record there is of entry {}", entry.index))
        } else if index != last.0 + 1 {
            Some(format!("the entry before it is {}, so there is a gap", last.0))
        } else if entry.term < last.1 {
            Some(format!("its term {} is below {}, that of the one before", entry.term, last.1))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(corrupt(directory, &what, Damage(problem)));
        }
        last = (index, entry.term);
        entries.push(entry);
    }
    Ok(entries)
}

fn read<T>(
    db: &DB,
    directory: &Path,
    key: &[u8],
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
