//! The plan of a batch: its writes, decided before anything is changed.

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, Entry, HardState, Index, SnapshotMeta};

use super::entry_sizes::Sizes;
use super::run_starts::RunStarts;
use super::snapshot::Shelf;
use crate::format::draft::Draft;
use crate::format::keys::{KEY_ENTRY_END, KEY_SNAPSHOT, entry_key};
use crate::format::records::{self, Published};

/// Most bytes of a run, if it has more than one entry. Compaction keeps a run until none of its
/// entries is needed, so this much of the log may stay on disk for longer.
const RUN_BYTES_MAX: u64 = 64 << 10;

/// The part of the instance's content that writing needs.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    /// Decides if a new hard state needs a sync.
    pub(crate) hard_state: HardState,
    pub(crate) log_start: SnapshotMeta,
    /// Sizes of the entries after `log_start`, so that they are counted without being read.
    pub(crate) sizes: Sizes,
    /// Where the records of these entries begin.
    pub(crate) run_starts: RunStarts,
    /// Number of the last batch written, synced or not.
    pub(crate) batch: u64,
    /// Number of the last batch that is durable.
    pub(crate) durable_batch: u64,
}

impl Mirror {
    pub(crate) fn last_index(&self) -> Index {
        self.log_start.index() + self.sizes.len()
    }
}

/// Changes that take effect once the batch is written.
pub(crate) struct Plan {
    pub(crate) needs_sync: bool,
    pub(crate) published: Option<Published>,
    /// True if the published snapshot is withdrawn.
    pub(crate) withdraws: bool,
    /// The log is emptied and starts here.
    replaced_by: Option<SnapshotMeta>,
    /// The last entry that is neither replaced nor truncated.
    kept_through: Index,
    appended_sizes: Vec<u64>,
    /// The runs of the batch. They replace everything from the first of them on.
    new_runs: Vec<Index>,
    hard_state: HardState,
}

/// Adds the batch to `draft`. An error means that the caller broke the contract.
pub(crate) fn plan(
    batch: Batch,
    mirror: &Mirror,
    shelf: &Shelf,
    draft: &mut Draft,
) -> StorageResult<Plan> {
    assert!(mirror.durable_batch <= mirror.batch, "a durable batch was written");
    // Names every part, so that a new one cannot be forgotten.
    let Batch { publish, withdraw_snapshot: withdraws, truncate_from, entries, hard_state } = batch;
    // A withdrawal is synced, because the file is removed after it: a crash must not bring the
    // record back.
    let needs_sync = publish.is_some()
        || withdraws
        || truncate_from.is_some()
        || !entries.is_empty()
        || hard_state.is_some_and(|new| new.promises_other_than(&mirror.hard_state));

    let (mut published, mut replaced_by) = (None, None);
    let (mut start, mut end) = (mirror.log_start.index(), mirror.last_index());
    if withdraws {
        if publish.is_some() {
            return Err(misuse("a snapshot is published and withdrawn at once".to_owned()));
        }
        draft.delete(KEY_SNAPSHOT);
    }
    if let Some(publish) = publish {
        let finished = shelf
            .finished(&publish.meta)
            .ok_or_else(|| misuse(format!("no finished snapshot at {}", publish.meta.position)))?;
        records::put_published(draft, &finished);
        published = Some(finished);
        if publish.replaces_log {
            draft.delete_range(entry_key(0), KEY_ENTRY_END);
            records::put_log_start(draft, &publish.meta);
            (start, end) = (publish.meta.index(), publish.meta.index());
            replaced_by = Some(publish.meta);
        }
    }
    let (kept_through, new_runs) = put_tail(truncate_from, &entries, (start, end), draft)?;
    if let Some(hard_state) = &hard_state {
        records::put_hard_state(draft, hard_state);
    }
    let appended_sizes = entries.iter().map(|entry| entry.size_bytes()).collect();
    let hard_state = hard_state.unwrap_or(mirror.hard_state);
    Ok(Plan {
        needs_sync,
        published,
        withdraws,
        replaced_by,
        kept_through,
        appended_sizes,
        new_runs,
        hard_state,
    })
}

/// Adds the truncation, and then the entries, to a log from behind `start` through `end`. Returns
/// the last entry that is kept, and where the new runs begin.
fn put_tail(
    truncate_from: Option<Index>,
    entries: &[Entry],
    (start, end): (Index, Index),
    draft: &mut Draft,
) -> StorageResult<(Index, Vec<Index>)> {
    let mut new_runs = Vec::new();
    let mut kept_through = end;
    if let Some(from) = truncate_from {
        if from <= start {
            return Err(misuse(format!("truncation from {from}, the log starts behind {start}")));
        }
        if from <= end {
            draft.delete_range(entry_key(from), KEY_ENTRY_END);
            kept_through = from - 1;
            if entries.is_empty() {
                // The run that holds entry `from` may begin before it. It ends where this one
                // begins.
                records::put_run(draft, from, &[]);
                new_runs.push(from);
            }
        }
    }
    let mut rest = entries;
    let mut next = kept_through + 1;
    while !rest.is_empty() {
        let count = run_length(rest);
        let (run, others) = rest.split_at(count);
        if let Some((_, entry)) = (next..).zip(run).find(|(index, entry)| entry.index != *index) {
            return Err(misuse(format!("entry {} in a log through {kept_through}", entry.index)));
        }
        records::put_run(draft, next, run);
        new_runs.push(next);
        next += count as u64;
        rest = others;
    }
    assert!(start <= kept_through && kept_through <= end, "what is kept is within the log");
    assert_eq!(next - 1 - kept_through, entries.len() as u64, "entries follow the last index");
    Ok((kept_through, new_runs))
}

/// How many of the entries, which are not none, become one run.
fn run_length(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fitting = entries.iter().take_while(|entry| {
        bytes += entry.size_bytes();
        bytes <= RUN_BYTES_MAX
    });
    fitting.count().max(1)
}

impl Plan {
    /// Applies the plan to the mirror after its batch was written. Returns the snapshot that was
    /// published with it.
    pub(crate) fn apply_to(self, mirror: &mut Mirror) -> Option<Published> {
        let last_index = self.kept_through + self.appended_sizes.len() as u64;
        if let Some(log_start) = self.replaced_by {
            assert_eq!(self.kept_through, log_start.index(), "a replaced log keeps nothing");
            mirror.sizes.clear();
            mirror.run_starts.clear();
            mirror.log_start = log_start;
        }
        assert!(self.kept_through >= mirror.log_start.index(), "the start is never truncated");
        assert!(self.kept_through <= mirror.last_index(), "only what is there can be kept");
        mirror.sizes.truncate(self.kept_through - mirror.log_start.index());
        self.appended_sizes.into_iter().for_each(|size| mirror.sizes.push(size));
        assert_eq!(mirror.last_index(), last_index, "the mirror ends where the batch ends");
        mirror.run_starts.replace_from_first(self.new_runs);
        mirror.hard_state = self.hard_state;
        self.published
    }
}

/// The error for a caller that broke the contract, which is a defect of this program. Nothing was
/// written, and nothing will be.
pub(crate) fn misuse(message: String) -> StorageError {
    StorageError::Engine { operation: "persist".to_owned(), message }
}
