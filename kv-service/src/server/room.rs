//! Room on the node's disk: below a floor the node takes no writes that need more, so that reads, deletes and
//! the next start stay possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Returns true if the disk has less room than its floor. Called once a second, and may block for a moment.
pub type IsLow = Arc<dyn Fn() -> bool + Send + Sync>;

const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Told to clients whose writes are refused.
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

    /// Looks at the disk again and again. Without a disk to look at it never ends.
    pub(super) async fn follow(&self, look: Option<IsLow>) {
        let Some(look) = look else { return std::future::pending().await };
        loop {
            let look = Arc::clone(&look);
            // A look that panics is a defect of its owner; the last known state stays.
            if let Ok(is_low) = spawn_blocking(move || look()).await
                && self.is_low.swap(is_low, Ordering::Relaxed) != is_low
            {
                match is_low {
                    true => tracing::error!("{LOW}"),
                    false => tracing::info!("the disk of this node has room again"),
                }
            }
            sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}
