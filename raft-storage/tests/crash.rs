//! A crash at every step: recovery finds everything acknowledged, and the operation in progress
//! whole or not at all.
//!
//! In memory, power is lost at the step. On the disk, a child process of its own stops at the step
//! and is killed there with SIGKILL: nothing is flushed or closed, as in a crash of the process.
//! (`damage` tests the further effects of a loss of power on bytes that were not synced.)

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::{Memory, copy_at_one_moment, hooked, open, open_with};
use raft_core::storage::Storage;
use raft_core::testing::storage::{Disk, Model, Operation};
use raft_core::types::{
    Batch, Configuration, Entry, HardState, Payload, Position, PublishSnapshot, SnapshotMeta,
};
use raft_storage::{Step, StepHook};
use tempfile::TempDir;

/// Passes every step, most of them several times.
fn workload() -> Vec<Operation> {
    let append = |from: u64, through: u64, term: u64| Batch {
        entries: (from..=through)
            .map(|index| Entry {
                index,
                term,
                payload: Payload::Command(Bytes::from(vec![index as u8; 3_000])),
            })
            .collect(),
        hard_state: Some(HardState {
            term,
            voted_for: Some(term % 3 + 1),
            commit_index: from - 1,
            ..HardState::INITIAL
        }),
        ..Batch::default()
    };
    let meta = |term, index| SnapshotMeta {
        position: Position::new(term, index),
        configuration: Box::new(Configuration::of_voters([1, 2, 3])),
    };
    let write = |term, index, fill: u8| Operation::WriteSnapshot {
        meta: meta(term, index),
        bytes: Bytes::from(vec![fill; 130_000]),
    };
    let publish = |term, index, replaces_log, batch| {
        let publish = Some(PublishSnapshot { meta: meta(term, index), replaces_log });
        Operation::Persist(Batch { publish, ..batch })
    };
    vec![
        Operation::Persist(append(1, 20, 1)),
        Operation::Persist(Batch { truncate_from: Some(15), ..append(15, 30, 2) }),
        write(1, 10, b'a'),
        publish(1, 10, false, Batch::default()),
        Operation::Compact(meta(1, 8)),
        Operation::Persist(append(31, 40, 2)),
        write(2, 20, b'b'),
        publish(2, 20, false, append(41, 42, 2)),
        Operation::Compact(meta(2, 20)),
        Operation::Compact(meta(2, 42)),
        write(3, 90, b'c'),
        publish(3, 90, true, append(91, 95, 3)),
        Operation::Persist(Batch { truncate_from: Some(92), ..append(92, 93, 4) }),
    ]
}

/// Checks the state after `acknowledged` operations of the workload, with the next one perhaps in
/// progress, and that the storage still works.
async fn check(storage: &dyn Storage, acknowledged: usize, at: &str) {
    let operations = workload();
    let mut model = Model::new();
    operations[..acknowledged].iter().for_each(|operation| model.apply(operation));
    let mut later = model.clone();
    operations[acknowledged..].iter().take(1).for_each(|operation| later.apply(operation));
    let loaded = storage.load().await.unwrap_or_else(|error| panic!("load after {at}: {error}"));
    let without = model.check(storage, &loaded, true).await;
    let with = later.check(storage, &loaded, true).await;
    if let (Err(without), Err(with)) = (&without, &with) {
        panic!(
            "{at}, {acknowledged} operations acknowledged: recovery is neither of the state without \
             the next one ({without}) nor with it ({with})"
        );
    }
    let mut model = if with.is_ok() { later } else { model };
    model.settle(&loaded);
    let next = model.last_index() + 1;
    let entry = Entry { index: next, term: 9, payload: Payload::Noop };
    let operation = Operation::Persist(Batch { entries: vec![entry], ..Batch::default() });
    operation.run(storage).await.unwrap_or_else(|error| panic!("write after {at}: {error}"));
    model.apply(&operation);
    let loaded = storage.load().await.unwrap();
    let goes_on = model.check(storage, &loaded, false).await;
    assert_eq!(goes_on, Ok(()), "the storage works on after {at}");
}

#[tokio::test]
async fn memory_recovers_from_a_crash_at_every_step() {
    for step in Step::ALL {
        let mut crash_count = 0;
        for nth in 1.. {
            let disk = Memory::default();
            let storage = disk.open().await.unwrap();
            disk.0.crash_at(step, nth);
            let mut acknowledged = 0;
            for operation in workload() {
                if operation.run(storage.as_ref()).await.is_err() {
                    break;
                }
                acknowledged += 1;
            }
            if disk.0.is_crash_pending() {
                break;
            }
            crash_count += 1;
            let storage = disk.open().await.unwrap();
            check(storage.as_ref(), acknowledged, &format!("{step} the {nth}. time")).await;
        }
        // In memory, the publication itself removes the older snapshot.
        assert!(crash_count > 0 || step == Step::OldRemoved, "the workload passes {step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rocksdb_recovers_from_a_kill_at_every_step() {
    for step in Step::ALL {
        let mut kill_count = 0;
        for nth in 1.. {
            let directory = TempDir::new().unwrap();
            let Some(acknowledged) = run_child_until(directory.path(), step, nth) else { break };
            kill_count += 1;
            let storage = open(directory.path()).unwrap();
            check(&storage, acknowledged, &format!("{step} the {nth}. time")).await;
        }
        assert!(kill_count > 0, "the workload passes {step}");
    }
}

/// Bytes of a full write-ahead file: the write buffer of `hooked`.
const FULL_BYTES: u64 = 1 << 20;

/// Warmed and reused write-ahead files hold the bytes of an earlier use after the newest record.
#[tokio::test]
async fn rocksdb_recovers_from_files_that_are_reused() {
    let directory = TempDir::new().unwrap();
    let images = TempDir::new().unwrap();
    let mut options = hooked(StepHook::default());
    options.warm_file_count = 2;
    let storage = open_with(directory.path(), options.clone()).unwrap();
    storage.load().await.unwrap();
    let mut model = Model::new();
    let (mut unchanged_count, mut regrown_count) = (0, 0);
    let mut files = BTreeSet::new();
    // 8 MB through files of 1 MiB, with a compaction now and then.
    for round in 0..400u64 {
        let before = wal_sizes(directory.path());
        let entries = (round * 2 + 1..=round * 2 + 2)
            .map(|index| Entry {
                index,
                term: 1 + round / 100,
                payload: Payload::Command(Bytes::from(vec![round as u8; 10_000])),
            })
            .collect();
        let operation = Operation::Persist(Batch { entries, ..Batch::default() });
        operation.run(&storage).await.unwrap();
        model.apply(&operation);
        let after = wal_sizes(directory.path());
        unchanged_count += u64::from(after == before);
        files.extend(after.keys().copied());
        let is_regrown = |(file, size): (&u64, &u64)| {
            before.get(file).is_some_and(|before| before < size && *before >= FULL_BYTES)
        };
        regrown_count += u64::from(after.iter().any(is_regrown));
        if round % 25 == 24 {
            let position = model.entries()[model.entries().len() / 2].position();
            let through = SnapshotMeta { position, ..SnapshotMeta::default() };
            let operation = Operation::Compact(through);
            operation.run(&storage).await.unwrap();
            model.apply(&operation);
            let image = images.path().join(round.to_string());
            copy_at_one_moment(directory.path(), &image);
            let recovered = open_with(&image, options.clone()).unwrap();
            let loaded = recovered.load().await.unwrap();
            let check = model.check(&recovered, &loaded, true).await;
            assert_eq!(check, Ok(()), "after round {round}");
        }
    }
    // The files grow while they are warmed; afterwards a file grows at most at its very end. If a
    // table is not written when its file is needed, there is one file more, which grows in its
    // first use.
    let late_count = files.len().saturating_sub(2) as u64;
    assert!(late_count <= 2, "{} files for two lives at a time", files.len());
    let life = FULL_BYTES / 20_000 + 1;
    assert!(
        unchanged_count + late_count * life > 350,
        "{unchanged_count} of 400 appends made no file grow, with {late_count} files too many"
    );
    assert!(
        regrown_count < 25,
        "{regrown_count} of 400 appends made a file grow that had been full"
    );
}

/// Sizes of the write-ahead files by inode, which stays when a file is reused under another name.
fn wal_sizes(path: &Path) -> BTreeMap<u64, u64> {
    let files = std::fs::read_dir(path.join("log")).unwrap().map(Result::unwrap);
    files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "log"))
        // The file may be renamed at this moment.
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| (metadata.ino(), metadata.len()))
        .collect()
}

const DIRECTORY: &str = "RAFT_STORAGE_CRASH_DIRECTORY";
const STEP: &str = "RAFT_STORAGE_CRASH_STEP";
const NTH: &str = "RAFT_STORAGE_CRASH_NTH";
const ACKNOWLEDGED: &str = "acknowledged";
const AT_STEP: &str = "at the step";
const FINISHED: &str = "finished";

/// Runs the workload in a child that is killed at the step; returns how many operations it
/// acknowledged, or `None` if the workload ended before the step was passed `nth` times.
fn run_child_until(directory: &Path, step: Step, nth: u64) -> Option<usize> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(STEP, step.name())
        .env(NTH, nth.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = KillOnDrop(child);
    let mut acknowledged = 0;
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines() {
        match line.unwrap().as_str() {
            ACKNOWLEDGED => acknowledged += 1,
            AT_STEP => return Some(acknowledged),
            FINISHED => return None,
            _ => {}
        }
    }
    panic!("the child ended at {step} before it was killed");
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // On Unix this is SIGKILL; the lock is released when the process is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: the process that [`run_child_until`] starts and kills.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let step = Step::of_name(&std::env::var(STEP).unwrap()).unwrap();
    let nth: u64 = std::env::var(NTH).unwrap().parse().unwrap();
    let passed_count = Arc::new(AtomicU64::new(0));
    let seen_count = Arc::clone(&passed_count);
    let hook = StepHook::new(move |at| {
        if at == step && passed_count.fetch_add(1, Ordering::SeqCst) + 1 == nth {
            say(AT_STEP);
            stop_here();
        }
    });
    let storage = open_with(Path::new(&directory), hooked(hook)).unwrap();
    storage.load().await.unwrap();
    for operation in workload() {
        // Another thread has reached the step: the operation in progress may end, but no other may
        // begin.
        if seen_count.load(Ordering::SeqCst) >= nth {
            stop_here();
        }
        operation.run(&storage).await.unwrap();
        say(ACKNOWLEDGED);
    }
    // Removing old files is left to a thread that ends with the storage.
    drop(storage);
    say(FINISHED);
}

/// Waits until the process is killed.
fn stop_here() -> ! {
    loop {
        std::thread::park();
    }
}

/// Prints a line of its own: the test harness writes to the same output.
fn say(word: &str) {
    println!("\n{word}");
}
