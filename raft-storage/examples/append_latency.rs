//! Measures a durable append, and beside it the least that one can cost on this disk.
//!
//! `cargo run --release -p raft-storage --example append_latency [DIRECTORY] [ROUNDS]`
//!
//! Each round appends first with [`RocksStorage`], whose write-ahead files are warmed, and then to
//! the floor: a bare file that was filled with zeros and is overwritten in place with `fdatasync`.
//! Both take turns in one run, so that other load on the disk affects both.

#![allow(clippy::disallowed_methods)] // Measures real time.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_core::storage::Storage;
use raft_core::types::{Batch, Entry, Index, Payload, Position, SnapshotMeta};
use raft_storage::DataDir;
use raft_storage::rocksdb::{RocksOptions, RocksStorage};

const ENTRY_BYTES: usize = 256;
const ENTRY_COUNTS: [usize; 2] = [1, 256];
/// Appends of one kind in a row.
const TURN_APPENDS: usize = 200;
const FLOOR_FILE_BYTES: u64 = 32 << 20;
/// Entries that are kept before the log's end, as a node does.
const KEPT_ENTRIES: Index = 20_000;

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let directory = match arguments.next() {
        Some(path) => tempfile::TempDir::new_in(path)?,
        None => tempfile::TempDir::new()?,
    };
    let rounds: usize = arguments.next().map_or(Ok(10), |rounds| rounds.parse())?;
    println!("in {}, {rounds} rounds of {TURN_APPENDS} appends", directory.path().display());
    let path = directory.path().join("node");
    let mut log = Log::open(&path).await?;
    let mut floor = Floor::open(&directory.path().join("floor"))?;
    println!("entries of {ENTRY_BYTES} B   storage p50     p99   floor p50     p99   ratio p50");
    for entry_count in ENTRY_COUNTS {
        let (mut of_log, mut of_floor) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for _ in 0..TURN_APPENDS {
                of_log.push(log.append(entry_count).await?);
            }
            for _ in 0..TURN_APPENDS {
                of_floor.push(floor.append(entry_count)?);
            }
        }
        let [log_p50, log_p99] = percentiles(&mut of_log);
        let [floor_p50, floor_p99] = percentiles(&mut of_floor);
        let ratio = log_p50.as_secs_f64() / floor_p50.as_secs_f64();
        println!(
            "{entry_count:>16} {:>11} us {:>4} us {:>8} us {:>4} us {ratio:>11.2}",
            log_p50.as_micros(),
            log_p99.as_micros(),
            floor_p50.as_micros(),
            floor_p99.as_micros(),
        );
    }
    drop(log);
    let began = Instant::now();
    let storage = open(&path)?;
    let entry_count = storage.load().await?.entries.len();
    println!("opened again, with {entry_count} entries, in {:.1?}", began.elapsed());
    Ok(())
}

fn open(path: &Path) -> Result<RocksStorage, Error> {
    let data_dir = Arc::new(DataDir::open(path, "append-latency", 1)?);
    Ok(RocksStorage::open(data_dir, RocksOptions::default())?)
}

fn percentiles(samples: &mut [Duration]) -> [Duration; 2] {
    samples.sort();
    [50, 99].map(|percent| samples[(samples.len() - 1) * percent / 100])
}

struct Log {
    storage: RocksStorage,
    last_index: Index,
    start_index: Index,
    command: Bytes,
}

impl Log {
    async fn open(path: &Path) -> Result<Self, Error> {
        let began = Instant::now();
        let storage = open(path)?;
        storage.load().await?;
        println!("opened an empty log in {:.1?}", began.elapsed());
        wait_until_quiet(&path.join("log")).await?;
        println!("its write-ahead files are warm after {:.1?}", began.elapsed());
        let command = Bytes::from(vec![0x37; ENTRY_BYTES]);
        Ok(Self { storage, last_index: 0, start_index: 0, command })
    }

    async fn append(&mut self, entry_count: usize) -> Result<Duration, Error> {
        let payload = Payload::Command(self.command.clone());
        let next = self.last_index + 1;
        let entries: Vec<Entry> = (next..next + entry_count as u64)
            .map(|index| Entry { index, term: 1, payload: payload.clone() })
            .collect();
        self.last_index += entry_count as u64;
        let began = Instant::now();
        self.storage.persist(Batch { entries, ..Batch::default() }).await?;
        let elapsed = began.elapsed();
        if self.last_index - self.start_index > 2 * KEPT_ENTRIES {
            self.start_index = self.last_index - KEPT_ENTRIES;
            let position = Position::new(1, self.start_index);
            self.storage.compact(SnapshotMeta { position, ..SnapshotMeta::default() }).await?;
        }
        Ok(elapsed)
    }
}

/// Waits until nothing in the directory has changed for half a second.
async fn wait_until_quiet(log: &Path) -> Result<(), Error> {
    let modified = || -> Result<_, Error> {
        let files: Result<Vec<_>, std::io::Error> = std::fs::read_dir(log)?.collect();
        let files = files?.into_iter().map(|file| file.metadata()?.modified());
        Ok(files.collect::<Result<Vec<_>, _>>()?.into_iter().max())
    };
    let mut last = modified().ok();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // A file may vanish meanwhile.
        let now = modified().ok();
        if now.is_some() && now == last {
            return Ok(());
        }
        last = now;
    }
}

/// A file that never grows.
struct Floor {
    file: File,
    at: u64,
}

impl Floor {
    fn open(path: &Path) -> Result<Self, Error> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..FLOOR_FILE_BYTES / zeros.len() as u64 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    fn append(&mut self, entry_count: usize) -> Result<Duration, Error> {
        let bytes = vec![0x37; ENTRY_BYTES * entry_count];
        if self.at + bytes.len() as u64 > FLOOR_FILE_BYTES {
            self.at = 0;
        }
        let began = Instant::now();
        self.file.seek(SeekFrom::Start(self.at))?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.at += bytes.len() as u64;
        Ok(began.elapsed())
    }
}
