//! The suite against storages that break the contract: a check that no storage fails proves
//! nothing.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use raft_core::storage::{SnapshotReader, SnapshotWriter, Storage, StorageResult};
use raft_core::testing::storage::{Disk, all};
use raft_core::types::{Batch, HardState, Loaded, SnapshotContent, SnapshotMeta};
use raft_storage::memory::{MemoryDisk, MemoryStorage};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    ForgetsVotes,
    /// Writes the entries first, then the hard state.
    SplitsBatches,
    /// Writes a batch when the next one arrives.
    AcknowledgesEarly,
    CountsOneMore,
    CompactsTooFar,
    NeverVerifies,
    ResumesAnything,
    KeepsWithdrawn,
    ForgetsFounding,
}

struct LyingDisk {
    disk: MemoryDisk,
    lie: Lie,
}

#[async_trait]
impl Disk for LyingDisk {
    async fn open(&self) -> StorageResult<Arc<dyn Storage>> {
        let storage = self.disk.storage();
        Ok(Arc::new(Liar {
            storage,
            lie: self.lie,
            held: Mutex::default(),
            seen: Mutex::default(),
        }))
    }

    async fn crash(&self) {
        self.disk.crash();
    }
}

struct Liar {
    storage: MemoryStorage,
    lie: Lie,
    held: Mutex<Option<Batch>>,
    /// Arguments of the last writer.
    seen: Mutex<Option<(SnapshotMeta, Option<SnapshotContent>)>>,
}

#[async_trait]
impl Storage for Liar {
    async fn load(&self) -> StorageResult<Loaded> {
        self.storage.load().await
    }

    async fn persist(&self, mut batch: Batch) -> StorageResult<()> {
        match self.lie {
            Lie::ForgetsVotes => {
                let forget = |state| HardState { voted_for: None, ..state };
                batch.hard_state = batch.hard_state.map(forget);
            }
            Lie::SplitsBatches => {
                let hard_state = batch.hard_state.take();
                self.storage.persist(batch).await?;
                tokio::task::yield_now().await;
                batch = Batch { hard_state, ..Batch::default() };
            }
            Lie::AcknowledgesEarly => {
                let earlier = self.held.lock().unwrap().replace(batch);
                batch = earlier.unwrap_or_default();
            }
            Lie::KeepsWithdrawn => batch.withdraw_snapshot = false,
            _ => {}
        }
        self.storage.persist(batch).await
    }

    async fn compact(&self, mut through: SnapshotMeta) -> StorageResult<()> {
        if self.lie == Lie::CompactsTooFar {
            through.position.index += 1;
        }
        if self.lie == Lie::ForgetsFounding && through.index() == 0 {
            return Ok(());
        }
        self.storage.compact(through).await
    }

    async fn snapshot_writer(
        &self,
        meta: SnapshotMeta,
        mut expected: Option<SnapshotContent>,
    ) -> StorageResult<Box<dyn SnapshotWriter>> {
        let mut asked = (meta.clone(), expected);
        match self.lie {
            Lie::NeverVerifies => expected = None,
            Lie::ResumesAnything => {
                // Resumes the earlier snapshot, whatever was asked for.
                let mut seen = self.seen.lock().unwrap();
                if let Some(earlier) = seen.take_if(|earlier| earlier.1.is_some()) {
                    asked = earlier;
                }
                *seen = Some(asked.clone());
                expected = asked.1;
            }
            _ => {}
        }
        self.storage.snapshot_writer(asked.0, expected).await
    }

    async fn snapshot_reader(&self) -> StorageResult<Option<Box<dyn SnapshotReader>>> {
        self.storage.snapshot_reader().await
    }

    fn log_bytes(&self) -> u64 {
        self.storage.log_bytes() + u64::from(self.lie == Lie::CountsOneMore)
    }
}

/// Returns true if the suite fails with this lie.
async fn is_found_out(lie: Lie) -> bool {
    let disk = move || LyingDisk { disk: MemoryDisk::new(), lie };
    let suite = tokio::spawn(async move { all(disk).await });
    suite.await.is_err()
}

#[tokio::test]
async fn every_lie_is_found_out() {
    assert!(!is_found_out(Lie::None).await, "the truth is not a lie");
    for lie in [
        Lie::ForgetsVotes,
        Lie::SplitsBatches,
        Lie::AcknowledgesEarly,
        Lie::CountsOneMore,
        Lie::CompactsTooFar,
        Lie::NeverVerifies,
        Lie::ResumesAnything,
        Lie::KeepsWithdrawn,
        Lie::ForgetsFounding,
    ] {
        assert!(is_found_out(lie).await, "{lie:?}");
    }
}
