//! Claims about the log and the hard state.

use std::sync::Arc;

use super::{Disk, Model, Operation, crash, entries, entry, meta, must, restart, start};
use crate::storage::{Storage, StorageError};
use crate::types::{
    Batch, Configuration, ENTRY_OVERHEAD_BYTES, Entry, HardState, Index, Loaded, Memory, Payload,
    PublishSnapshot, SnapshotMeta, Term,
};

/// Claim: a disk that was never written holds nothing, and opening it writes nothing that counts.
pub async fn an_empty_disk_loads_the_default(disk: &impl Disk) {
    let (storage, loaded) = start(disk).await;
    assert_eq!(loaded, Loaded::default(), "an empty disk loads the default");
    assert_eq!(storage.log_bytes(), 0, "an empty log has no bytes");
    let reader = must("snapshot_reader", storage.snapshot_reader().await);
    assert!(reader.is_none(), "an empty disk has no snapshot to read");
    let (_storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded, Loaded::default(), "a disk that was only opened loads the default");
}

/// Claim: every kind of entry and every field of the hard state come back as they were, empty and
/// large payloads included, and a truncation drops just the tail.
pub async fn what_is_persisted_is_loaded(disk: &impl Disk) {
    let configuration = Configuration {
        voters: [1, 2, u64::MAX].into(),
        outgoing: [2, 3, 4].into(),
        learners: [9].into(),
        ..Configuration::default()
    };
    let first = vec![
        Entry { index: 1, term: 1, payload: Payload::Configuration(Box::new(configuration)) },
        Entry { index: 2, term: 2, payload: Payload::Noop },
        entry(3, 2, 0),
        entry(4, 2, 1),
        entry(5, 7, 3 << 20),
    ];
    let hard_state =
        HardState { term: 7, voted_for: Some(u64::MAX), commit_index: 4, memory: Memory::Lost };
    let (storage, _) = start(disk).await;
    let batch = Batch { entries: first.clone(), hard_state: Some(hard_state), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.hard_state, hard_state, "the hard state is loaded as it was persisted");
    assert_eq!(loaded.entries, first, "entries are loaded as they were persisted");

    // A tail is replaced by one of a later term, and by one that is shorter.
    let batch = Batch {
        truncate_from: Some(3),
        entries: vec![entry(3, 8, 10)],
        hard_state: Some(HardState {
            term: 8,
            voted_for: None,
            commit_index: 2,
            memory: Memory::Intact,
        }),
        ..Batch::default()
    };
    must("truncate and append in one batch", storage.persist(batch).await);
    let expected = [&first[..2], &[entry(3, 8, 10)]].concat();
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.entries, expected, "a truncation drops the tail before the batch appends");
    assert_eq!(loaded.hard_state.voted_for, None, "a vote for nobody is loaded as such");

    // A truncation behind the end drops nothing; one of everything leaves an empty log; one between
    // them keeps the entries before it.
    let truncate = |from| Batch { truncate_from: Some(from), ..Batch::default() };
    must("truncate behind the end", storage.persist(truncate(4)).await);
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.entries, expected, "a truncation behind the end drops nothing");
    must("truncate without appending", storage.persist(truncate(2)).await);
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.entries, first[..1], "a truncation drops entries of one batch with others");
    must("truncate everything", storage.persist(truncate(1)).await);
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.entries, [], "a truncation from 1 leaves an empty log");
    assert_eq!(storage.log_bytes(), 0, "an emptied log has no bytes");
}

/// Claim: a crash while a batch is being written leaves all of it or nothing: truncation, entries
/// and hard state together.
pub async fn a_batch_is_whole_or_absent(disk: &impl Disk) {
    let (mut storage, _) = start(disk).await;
    let mut model = Model::new();
    for round in 1..=8 {
        let last = model.last_index();
        let batch = Batch {
            truncate_from: (last > 0).then_some(last),
            entries: (last.max(1)..last.max(1) + 50).map(|i| entry(i, round, 5_000)).collect(),
            hard_state: Some(HardState {
                term: round,
                voted_for: Some(round),
                ..HardState::INITIAL
            }),
            ..Batch::default()
        };
        let before = model.clone();
        let operation = Operation::Persist(batch);
        model.apply(&operation);
        // The call is dropped at a moment that depends on the backend.
        tokio::select! {
            biased;
            _ = operation.run(storage.as_ref()) => {}
            () = tokio::task::yield_now() => {}
        }
        let loaded;
        (storage, loaded) = crash(disk, storage).await;
        let all = model.check(storage.as_ref(), &loaded, true).await;
        let nothing = before.check(storage.as_ref(), &loaded, true).await;
        if let (Err(all), Err(nothing)) = (&all, &nothing) {
            panic!("a batch is there whole or not at all; not whole: {all}; not absent: {nothing}");
        }
        if nothing.is_ok() {
            model = before;
        }
        model.settle(&loaded);
    }
}

/// Claim: a batch is on disk when `persist` returns.
pub async fn acknowledged_batches_survive_a_crash(disk: &impl Disk) {
    let (mut storage, _) = start(disk).await;
    let mut model = Model::new();
    for round in 1..=5 {
        let last = model.last_index();
        for number in 1..=4 {
            let hard_state = HardState {
                term: round,
                voted_for: Some(number),
                commit_index: last,
                ..HardState::INITIAL
            };
            let entries = entries(last + number, last + number, round);
            let batch = Batch { entries, hard_state: Some(hard_state), ..Batch::default() };
            let operation = Operation::Persist(batch);
            must("persist", operation.run(storage.as_ref()).await);
            model.apply(&operation);
        }
        let loaded;
        (storage, loaded) = crash(disk, storage).await;
        let check = model.check(storage.as_ref(), &loaded, true).await;
        assert_eq!(check, Ok(()), "what persist acknowledged survives a crash");
        model.settle(&loaded);
    }
}

/// Claim: a commit index that was written alone may lag after a crash, but is one that was written,
/// and term and vote do not lag with it; a restart in good order keeps it.
pub async fn a_commit_index_alone_may_lag(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let hard_state = |commit_index| HardState {
        term: 3,
        voted_for: Some(2),
        commit_index,
        ..HardState::INITIAL
    };
    let write =
        |commit_index| Batch { hard_state: Some(hard_state(commit_index)), ..Batch::default() };
    let first = Batch { entries: entries(1, 10, 3), ..write(2) };
    must("persist", storage.persist(first).await);
    for commit_index in [5, 7] {
        must("persist a commit index", storage.persist(write(commit_index)).await);
    }
    let (storage, loaded) = crash(disk, storage).await;
    let commit_index = loaded.hard_state.commit_index;
    assert!(
        [2, 5, 7].contains(&commit_index),
        "after a crash the commit index is one that was written, not {commit_index}"
    );
    let found = loaded.hard_state;
    assert_eq!(found, hard_state(commit_index), "term and vote do not lag with the commit index");
    assert_eq!(loaded.entries, entries(1, 10, 3), "entries do not lag with the commit index");
    must("persist a commit index", storage.persist(write(9)).await);
    let (_storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.hard_state, hard_state(9), "a restart in good order keeps the commit index");
}

/// Claim: a compaction drops the entries through its position and remembers it as the log's start;
/// one that leads no further does nothing; the suffix stays, whatever a crash undoes.
pub async fn compaction_forgets_a_prefix(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let batch = Batch { entries: entries(1, 20, 1), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    must("compact", storage.compact(meta(1, 12)).await);
    for (term, index) in [(1, 12), (1, 5), (0, 0)] {
        must("compact backwards", storage.compact(meta(term, index)).await);
    }
    let expected = 8 * (ENTRY_OVERHEAD_BYTES + 100);
    assert_eq!(storage.log_bytes(), expected, "log_bytes counts what is behind the log's start");
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.log_start, meta(1, 12), "the log starts behind the furthest compaction");
    assert_eq!(loaded.entries, entries(13, 20, 1), "compaction keeps the suffix");

    must("compact everything", storage.compact(meta(1, 20)).await);
    let (storage, loaded) = crash(disk, storage).await;
    let start = loaded.log_start.index();
    // Closing need not have made the first compaction durable.
    let is_one_of_them = [0, 12, 20].contains(&start);
    assert!(is_one_of_them, "a crash undoes a compaction or does not, it does not invent {start}");
    assert_eq!(loaded.entries, entries(start + 1, 20, 1), "the entries are those behind the start");
    must("compact everything", storage.compact(meta(1, 20)).await);
    let batch = Batch { entries: entries(21, 22, 1), ..Batch::default() };
    must("append behind an emptied log", storage.persist(batch).await);
    let (_storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.log_start, meta(1, 20), "an emptied log remembers where it starts");
    assert_eq!(loaded.entries, entries(21, 22, 1), "an emptied log goes on behind its start");
}

/// Claim: compactions and appends may alternate for long, and run side by side.
pub async fn compaction_survives_later_writes(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let rounds: Index = 40;
    for round in 0..rounds {
        let batch =
            Batch { entries: entries(round * 50 + 1, round * 50 + 50, 1), ..Batch::default() };
        let through = meta(1, (round * 50).saturating_sub(10));
        let (persisted, compacted) = tokio::join!(storage.persist(batch), storage.compact(through));
        must("persist beside a compaction", persisted);
        must("compact beside a batch", compacted);
    }
    let (start, last) = ((rounds - 1) * 50 - 10, rounds * 50);
    let (_storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.log_start, meta(1, start), "the last compaction counts");
    assert_eq!(loaded.entries, entries(start + 1, last, 1), "the suffix is whole");
}

/// Claim: `log_bytes` is the sum of [`Entry::size_bytes`] behind the start, always, and after
/// opening again.
pub async fn log_bytes_count_as_entries_do(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let mut model = Model::new();
    let sized = |sizes: &[usize], from: Index, term: Term| -> Vec<Entry> {
        (from..).zip(sizes).map(|(index, size)| entry(index, term, *size)).collect()
    };
    let append = |entries| Batch { entries, ..Batch::default() };
    let truncate = |from, entries| Batch { truncate_from: Some(from), entries, ..Batch::default() };
    let operations = [
        Operation::Persist(append(sized(&[0, 1, 1_000, 50_000], 1, 1))),
        Operation::Persist(truncate(3, sized(&[7, 8, 9], 3, 2))),
        Operation::Compact(meta(1, 2)),
        Operation::Persist(truncate(5, Vec::new())),
        Operation::Compact(meta(2, 4)),
        Operation::Persist(append(sized(&[77], 5, 2))),
    ];
    for operation in &operations {
        must("write", operation.run(storage.as_ref()).await);
        model.apply(operation);
        let expected: u64 = model.entries().iter().map(Entry::size_bytes).sum();
        assert_eq!(storage.log_bytes(), expected, "log_bytes is exact after {operation:?}");
    }
    let (storage, loaded) = restart(disk, storage).await;
    assert_eq!(model.check(storage.as_ref(), &loaded, false).await, Ok(()), "also after opening");
}

/// Claim: after an error everything else that writes fails too, and the disk holds what was
/// acknowledged before it, and nothing of the batch that failed.
pub async fn a_failed_storage_writes_no_more(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let append = |index| Batch { entries: entries(index, index, 1), ..Batch::default() };
    must("persist", storage.persist(append(1)).await);
    // No writer has finished such a snapshot, so it cannot be published.
    let publish = PublishSnapshot { meta: meta(1, 9), replaces_log: true };
    let hard_state =
        HardState { term: 9, voted_for: Some(3), commit_index: 9, ..HardState::INITIAL };
    let impossible =
        Batch { publish: Some(publish), hard_state: Some(hard_state), ..Batch::default() };
    let failed = storage.persist(impossible).await;
    assert!(failed.is_err(), "a snapshot that no writer has finished cannot be published");
    expect_poisoned("persist", storage.persist(append(2)).await);
    expect_poisoned("compact", storage.compact(meta(1, 1)).await);
    expect_poisoned_writer(&storage).await;
    let (storage, loaded) = restart(disk, storage).await;
    let expected = Loaded { entries: entries(1, 1, 1), ..Loaded::default() };
    assert_eq!(loaded, expected, "nothing of a failed batch is there, and all from before it");
    must("persist after a restart", storage.persist(append(2)).await);
}

fn expect_poisoned(operation: &str, result: Result<(), StorageError>) {
    assert!(
        matches!(result, Err(StorageError::Poisoned(_))),
        "{operation} after an error fails as poisoned, not with {result:?}"
    );
}

/// A poisoned storage may refuse a writer or give one, but no snapshot can be finished with it.
async fn expect_poisoned_writer(storage: &Arc<dyn Storage>) {
    let finished = match storage.snapshot_writer(meta(1, 1), None).await {
        Ok(writer) => writer.finish().await.map(drop),
        Err(error) => Err(error),
    };
    expect_poisoned("writing a snapshot", finished);
}

/// Claim: an empty log takes the configuration of a compaction at position zero. The configuration
/// is durable at the latest with the next batch, and a log with entries takes none.
pub async fn an_empty_log_takes_its_configuration(disk: &impl Disk) {
    let (storage, _) = start(disk).await;
    let founding = meta(0, 0);
    must("compact an empty log", storage.compact(founding.clone()).await);
    let hard_state = HardState { term: 1, voted_for: Some(2), ..HardState::INITIAL };
    let batch = Batch { hard_state: Some(hard_state), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    let (storage, loaded) = crash(disk, storage).await;
    let expected = Loaded { log_start: founding.clone(), hard_state, ..Loaded::default() };
    assert_eq!(loaded, expected, "the configuration is durable with the next batch");

    let batch = Batch { entries: entries(1, 3, 1), ..Batch::default() };
    must("persist", storage.persist(batch).await);
    let other = SnapshotMeta::new(founding.position, Configuration::of_voters([9]));
    must("compact at zero", storage.compact(other).await);
    let (_storage, loaded) = restart(disk, storage).await;
    assert_eq!(loaded.log_start, founding, "a log with entries keeps its first configuration");
    assert_eq!(loaded.entries, entries(1, 3, 1), "a compaction at zero forgets nothing");
}
