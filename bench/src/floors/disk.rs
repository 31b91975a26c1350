//! The disk: a record written and synced, again and again, into a file that has its full size
//! already.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use hdrhistogram::Histogram;

use super::{Args, record};
use crate::cluster::scratch;
use crate::figures::latencies;

const FILE_BYTES: u64 = 16 << 20;

/// Measures this many writers at once, each with a file of its own.
pub(super) fn synced_writes(args: &Args, writers: usize) -> anyhow::Result<Histogram<u64>> {
    let dir = scratch(&args.kv.dir)?;
    let writer = |number: usize| {
        let file = preallocated(&dir.path().join(number.to_string()))?;
        let args = args.clone();
        Ok(thread::spawn(move || write(&file, &args)))
    };
    let threads = (0..writers).map(writer).collect::<anyhow::Result<Vec<_>>>()?;
    let mut all = latencies();
    for thread in threads {
        let measured = thread.join().ok().context("a writer panicked")??;
        all.add(&measured)?;
    }
    Ok(all)
}

/// Creates a file filled with zeros and synced, so that later syncs have no blocks to allocate.
fn preallocated(path: &Path) -> anyhow::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(file)
}

#[allow(clippy::disallowed_methods, reason = "a floor is measured in real time")]
fn write(file: &File, args: &Args) -> anyhow::Result<Histogram<u64>> {
    let record_bytes = args.value_bytes as u64 + 64;
    let value = vec![0x6b; usize::try_from(record_bytes)?];
    let mut all = latencies();
    let mut offset = 0;
    let until = Instant::now() + args.duration;
    while Instant::now() < until {
        let start = Instant::now();
        file.write_all_at(&value, offset)?;
        file.sync_data()?;
        record(&mut all, start.elapsed());
        offset = (offset + record_bytes) % (FILE_BYTES - record_bytes);
    }
    Ok(all)
}
