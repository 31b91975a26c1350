//! Room on the node's disk. Below a floor the node accepts no writes but deletes, so that reads,
//! deletes and the next start stay possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Returns true if the disk has less room than its floor. Called once a second, and may block for a
/// moment.
pub type IsLow = Arc<dyn Fn() -> bool + Send + Sync>;

const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Text for clients whose writes are rejected.
pub(super) const LOW: &str = "the disk of this node is nearly full, so it takes no writes but deletes: make room \
                              on it, or delete keys";

#[derive(Default)]
pub(super) struct Room {
    is_low: AtomicBool,
}

impl Room {
    pub(super) fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    /// Checks the disk once a second, until it is dropped. Without a disk to check it only waits.
    pub(super) async fn follow(&self, look: Option<IsLow>) {
        let Some(look) = look else { return std::future::pending().await };
        loop {
            let look = Arc::clone(&look);
            // A check that panics is a defect of its owner; the last known state stays.
            if let Ok(is_low) = spawn_blocking(move || look()).await
                && self.is_low.swap(is_low, Ordering::Relaxed) != is_low
            {
                if is_low {
                    tracing::error!("{LOW}");
                } else {
                    tracing::info!("the disk of this node has room again");
                }
            }
            sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}
