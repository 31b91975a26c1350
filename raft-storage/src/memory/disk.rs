//! The disk that survives crashes, and its faults.

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
#[non_exhaustive]
pub enum Operation {
    /// [`Storage::load`](raft_core::storage::Storage::load).
    Load,
    /// [`Storage::persist`](raft_core::storage::Storage::persist).
    Persist,
    /// [`Storage::compact`](raft_core::storage::Storage::compact).
    Compact,
    /// [`SnapshotWriter::write`](raft_core::storage::SnapshotWriter::write).
    SnapshotWrite,
    /// [`SnapshotWriter::finish`](raft_core::storage::SnapshotWriter::finish).
    SnapshotFinish,
    /// [`SnapshotReader::read`](raft_core::storage::SnapshotReader::read).
    SnapshotRead,
}

/// How long an operation takes on tokio's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Delay before the operation takes effect. A crash meanwhile finds nothing of it.
    pub before: Duration,
    /// Delay between the effect and its acknowledgement. A crash meanwhile finds all of it.
    pub after: Duration,
}

/// The disk, which survives the processes that use it. Clones are the same disk.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use raft_core::storage::{Storage, StorageError};
/// use raft_core::types::{Batch, HardState};
/// use raft_storage::memory::{MemoryDisk, Operation};
///
/// let disk = MemoryDisk::new();
/// let storage = disk.storage();
/// let vote = HardState { term: 1, voted_for: Some(1), ..HardState::INITIAL };
/// let batch = Batch { hard_state: Some(vote), ..Batch::default() };
/// disk.fail_at(Operation::Persist, 1);
/// assert!(storage.persist(batch.clone()).await.is_err(), "the injected fault");
/// let poisoned = storage.persist(batch.clone()).await;
/// assert!(matches!(poisoned, Err(StorageError::Poisoned(_))), "nothing is written after it");
///
/// // Another process of the same disk can write again.
/// let storage = disk.storage();
/// storage.persist(batch).await.unwrap();
/// disk.crash();
/// assert_eq!(disk.storage().load().await.unwrap().hard_state, vote);
/// # });
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    image: Image,
    /// Told apart from other disks of the same node by this number, once it was asked for.
    incarnation: Option<u64>,
    /// The newest process; earlier ones are dead.
    process: u64,
    /// Why the newest process can no longer write.
    poisoned: Option<String>,
    latencies: BTreeMap<Operation, Latency>,
    /// Countdown for each operation: the one that takes it to 0 fails.
    failures: BTreeMap<Operation, u64>,
    /// The step at which power is lost, and how often it is still to be passed, the fatal time
    /// included.
    crash_at: Option<(Step, u64)>,
    operation_count: BTreeMap<Operation, u64>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk of a member that has given no promises yet, and can be sure of it; see
    /// [`HardState::INITIAL`]. On an empty disk a node recovers first, which takes all members.
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

    /// A number that tells this disk from another one of the same node: `fresh` at the first call,
    /// and the same at each later one.
    pub fn incarnation(&self, fresh: u64) -> u64 {
        *self.state().incarnation.get_or_insert(fresh)
    }

    /// Starts a process on this disk. Earlier processes can no longer use it: a disk has one owner.
    pub fn storage(&self) -> MemoryStorage {
        let mut state = self.state();
        state.process += 1;
        state.poisoned = None;
        MemoryStorage { disk: self.clone(), process: state.process }
    }

    /// Loses power: writes that were not synced are gone, and the process that used the disk is
    /// dead.
    pub fn crash(&self) {
        self.state().crash();
    }

    /// Loses power when `step` is passed for the `nth` time from now, counted from 1.
    pub fn crash_at(&self, step: Step, nth: u64) {
        self.state().crash_at = Some((step, nth));
    }

    /// Returns true if the crash of [`MemoryDisk::crash_at`] is still to come.
    pub fn is_crash_pending(&self) -> bool {
        self.state().crash_at.is_some()
    }

    /// Makes the `nth` operation of this kind from now, counted from 1, fail with an I/O error. The
    /// same process can write nothing after it.
    pub fn fail_at(&self, operation: Operation, nth: u64) {
        self.state().failures.insert(operation, nth);
    }

    /// Sets the latency of operations of this kind from now on.
    pub fn set_latency(&self, operation: Operation, latency: Latency) {
        self.state().latencies.insert(operation, latency);
    }

    /// Number of operations of this kind that have begun.
    pub fn operation_count(&self, operation: Operation) -> u64 {
        self.state().operation_count.get(&operation).copied().unwrap_or(0)
    }

    /// Bytes of the log after its start, which are compared with `max_raft_state`.
    pub fn log_bytes(&self) -> u64 {
        self.state().image.log_bytes()
    }

    /// Bytes of the published snapshot; `None` if there is none.
    pub fn snapshot_bytes(&self) -> Option<u64> {
        self.state().image.published_snapshot().map(|snapshot| snapshot.content.size_bytes)
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        // The lock is held for single steps only, and a panic within one is a defect.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the operation, waits for its latency, and fails it if a fault is due.
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

    /// Waits for the latency between the effect and its acknowledgement.
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

    /// Reads or changes the content of the disk. A broken contract (`Engine`) poisons the process;
    /// other errors, such as a peer's fault, do not.
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

impl DiskState {
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
    // Without even a yield, so that a disk without latency alters no schedule.
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}
