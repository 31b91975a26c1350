//! The disk that survives, and its faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_core::storage::{StorageError, StorageResult};
use raft_core::types::{Batch, HardState};

use super::MemoryStorage;
use super::image::Image;
use crate::step::Step;

/// An operation that a fault or a latency is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    Load,
    Persist,
    Compact,
    SnapshotWrite,
    SnapshotFinish,
    SnapshotRead,
}

/// How long an operation takes on tokio's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Before it takes effect. A crash meanwhile finds nothing of it.
    pub before: Duration,
    /// Between taking effect and being acknowledged. A crash meanwhile finds all of it.
    pub after: Duration,
}

/// The disk, which survives the processes that use it. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    image: Image,
    /// The newest process; earlier ones are dead.
    process: u64,
    /// Why the newest process can write no more.
    poisoned: Option<String>,
    latencies: BTreeMap<Operation, Latency>,
    /// How many more of an operation go well before one fails.
    failures: BTreeMap<Operation, u64>,
    /// How often a step is passed before power is lost at it.
    crash_at: Option<(Step, u64)>,
    operation_count: BTreeMap<Operation, u64>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk of a member that has promised nothing yet and knows it; see [`HardState::INITIAL`].
    /// On an empty disk a node recovers first, which takes all members.
    pub fn of_member() -> Self {
        Self::with(HardState::INITIAL)
    }

    /// The disk of a new member of a cluster that is being founded; see [`HardState::FOUNDING`].
    pub fn of_new_member() -> Self {
        Self::with(HardState::FOUNDING)
    }

    fn with(hard_state: HardState) -> Self {
        let disk = Self::new();
        let batch = Batch { hard_state: Some(hard_state), ..Batch::default() };
        disk.state().image.persist(batch).expect("an empty disk takes a hard state");
        disk
    }

    /// Starts a process on it. Earlier ones cannot use it from then on: a disk has one owner.
    pub fn storage(&self) -> MemoryStorage {
        let mut state = self.state();
        state.process += 1;
        state.poisoned = None;
        MemoryStorage { disk: self.clone(), process: state.process }
    }

    /// Power is lost: what was not synced is gone, and the process that used the disk is dead.
    pub fn crash(&self) {
        self.state().crash();
    }

    /// Power is lost when `step` is passed for the `nth` time from now, counted from 1.
    pub fn crash_at(&self, step: Step, nth: u64) {
        self.state().crash_at = Some((step, nth));
    }

    /// Is the crash of [`MemoryDisk::crash_at`] still to come?
    pub fn is_crash_pending(&self) -> bool {
        self.state().crash_at.is_some()
    }

    /// The `nth` operation of this kind from now, counted from 1, fails with an I/O error, and
    /// nothing can be written after it by the same process.
    pub fn fail_at(&self, operation: Operation, nth: u64) {
        self.state().failures.insert(operation, nth);
    }

    /// Operations of this kind take so long from now on.
    pub fn set_latency(&self, operation: Operation, latency: Latency) {
        self.state().latencies.insert(operation, latency);
    }

    /// How many operations of this kind have been begun.
    pub fn operation_count(&self, operation: Operation) -> u64 {
        self.state().operation_count.get(&operation).copied().unwrap_or(0)
    }

    /// Bytes of the log behind its start: `max_raft_state` is compared with them.
    pub fn log_bytes(&self) -> u64 {
        self.state().image.log_bytes()
    }

    /// Bytes of the published snapshot; `None` if there is none.
    pub fn snapshot_bytes(&self) -> Option<u64> {
        self.state().image.published_snapshot().map(|snapshot| snapshot.content.size_bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Held for single steps only, none of which stops halfway but by a defect.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the operation, waits for its latency, and fails it if that was asked for.
    pub(super) async fn begin(&self, process: u64, operation: Operation) -> StorageResult<()> {
        let latency = {
            let mut state = self.state();
            state.check(process, operation)?;
            *state.operation_count.entry(operation).or_default() += 1;
            state.latencies.get(&operation).copied().unwrap_or_default()
        };
        wait(latency.before).await;
        let mut state = self.state();
        state.check(process, operation)?;
        state.fail_if_due(operation)
    }

    /// Waits until the effect is acknowledged.
    pub(super) async fn end(&self, process: u64, operation: Operation) -> StorageResult<()> {
        let latency = self.state().latencies.get(&operation).copied().unwrap_or_default();
        wait(latency.after).await;
        self.state().check(process, operation)
    }

    /// Passes a step, at which power may be lost.
    pub(super) fn pass(&self, process: u64, step: Step) -> StorageResult<()> {
        let mut state = self.state();
        state.check_process(process)?;
        match &mut state.crash_at {
            Some((at, nth)) if *at == step => {
                *nth = nth.saturating_sub(1);
                if *nth > 0 {
                    return Ok(());
                }
            }
            _ => return Ok(()),
        }
        state.crash();
        Err(StorageError::Poisoned(format!("power was lost at {step}")))
    }

    /// Looks at or changes what is on the disk. An error other than a peer's fault poisons.
    pub(super) fn with_image<T>(
        &self,
        process: u64,
        work: impl FnOnce(&mut Image) -> StorageResult<T>,
    ) -> StorageResult<T> {
        let mut state = self.state();
        state.check_process(process)?;
        let result = work(&mut state.image);
        if let Err(error @ StorageError::Engine { .. }) = &result {
            state.poisoned = Some(error.to_string());
        }
        result
    }
}

impl State {
    fn crash(&mut self) {
        self.image.lose_power();
        self.process += 1;
        self.poisoned = None;
        self.crash_at = None;
    }

    fn check_process(&self, process: u64) -> StorageResult<()> {
        if process == self.process {
            return Ok(());
        }
        Err(StorageError::Poisoned("this process has crashed or was replaced".to_owned()))
    }

    fn check(&self, process: u64, operation: Operation) -> StorageResult<()> {
        self.check_process(process)?;
        let writes = !matches!(operation, Operation::Load | Operation::SnapshotRead);
        match &self.poisoned {
            Some(reason) if writes => Err(StorageError::Poisoned(reason.clone())),
            _ => Ok(()),
        }
    }

    fn fail_if_due(&mut self, operation: Operation) -> StorageResult<()> {
        let Some(nth) = self.failures.get_mut(&operation) else { return Ok(()) };
        *nth = nth.saturating_sub(1);
        if *nth > 0 {
            return Ok(());
        }
        self.failures.remove(&operation);
        let error = StorageError::Io {
            operation: format!("{operation:?}"),
            source: std::io::Error::other("injected failure"),
        };
        self.poisoned = Some(error.to_string());
        Err(error)
    }
}

async fn wait(duration: Duration) {
    // Not even a yield, so that an undelayed disk alters no schedule.
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}
