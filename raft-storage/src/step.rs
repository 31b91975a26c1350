//! The points at which a crash makes a difference.
//!
//! A backend passes these steps in the order in which they are listed here. Tests end the process,
//! copy the disk or cut the power at each of them, and check the state that recovery finds.

use std::fmt;
use std::sync::Arc;

/// A point in a write, a compaction or the making of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// A batch is about to be written.
    PersistBefore,
    /// A batch is durable and not yet acknowledged.
    PersistAfter,
    /// A compaction is about to be written.
    CompactBefore,
    /// A compaction is written and not yet acknowledged.
    CompactAfter,
    /// The file of a new snapshot exists and has no content yet.
    SnapshotCreated,
    /// A part of a snapshot has been handed to the disk.
    SnapshotWritten,
    /// All bytes of a snapshot are durable under a temporary name.
    SnapshotSynced,
    /// A snapshot has its final name; no batch has published it.
    SnapshotRenamed,
    /// A batch that publishes a snapshot is about to be written.
    PublishBefore,
    /// A batch that publishes a snapshot is durable; the older one is still there.
    PublishAfter,
    /// The older snapshots are gone.
    OldRemoved,
}

impl Step {
    /// All steps.
    pub const ALL: [Step; 11] = [
        Step::PersistBefore,
        Step::PersistAfter,
        Step::CompactBefore,
        Step::CompactAfter,
        Step::SnapshotCreated,
        Step::SnapshotWritten,
        Step::SnapshotSynced,
        Step::SnapshotRenamed,
        Step::PublishBefore,
        Step::PublishAfter,
        Step::OldRemoved,
    ];

    /// The name of the step, for [`Step::of_name`].
    pub const fn name(self) -> &'static str {
        match self {
            Step::PersistBefore => "persist-before",
            Step::PersistAfter => "persist-after",
            Step::CompactBefore => "compact-before",
            Step::CompactAfter => "compact-after",
            Step::SnapshotCreated => "snapshot-created",
            Step::SnapshotWritten => "snapshot-written",
            Step::SnapshotSynced => "snapshot-synced",
            Step::SnapshotRenamed => "snapshot-renamed",
            Step::PublishBefore => "publish-before",
            Step::PublishAfter => "publish-after",
            Step::OldRemoved => "old-removed",
        }
    }

    /// The step of this name.
    pub fn of_name(name: &str) -> Option<Step> {
        Step::ALL.into_iter().find(|step| step.name() == name)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Called at each [`Step`] on the thread that does the work, which waits for it. Only for tests.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use raft_storage::{Step, StepHook};
///
/// let passed = Arc::new(Mutex::new(Vec::new()));
/// let seen = Arc::clone(&passed);
/// let hook = StepHook::new(move |step| seen.lock().unwrap().push(step));
/// hook.pass(Step::PersistBefore);
/// assert_eq!(*passed.lock().unwrap(), [Step::PersistBefore]);
/// assert_eq!(Step::of_name("persist-before"), Some(Step::PersistBefore));
/// ```
#[derive(Clone, Default)]
pub struct StepHook(Option<Arc<dyn Fn(Step) + Send + Sync>>);

impl StepHook {
    /// A hook that calls `hook` at each step.
    pub fn new(hook: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// Calls the hook, if there is one.
    pub fn pass(&self, step: Step) {
        if let Some(hook) = &self.0 {
            hook(step);
        }
    }
}

impl fmt::Debug for StepHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "StepHook(set)" } else { "StepHook(none)" })
    }
}
