//! What a node has taken on for all of its clients together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

pub(super) struct Load {
    /// Requests handed to the node and not answered.
    pending_count: AtomicUsize,
    /// Of answers that wait to be sent.
    answer_bytes: AtomicU64,
    answer_bytes_max: u64,
    less: Notify,
}

/// One request in the node's hands.
pub(super) struct Pending(Arc<Load>);

impl Load {
    pub(super) fn new(answer_bytes_max: u64) -> Arc<Self> {
        let (pending_count, answer_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { pending_count, answer_bytes, answer_bytes_max, less: Notify::new() })
    }

    pub(super) fn begin(self: &Arc<Self>) -> Pending {
        self.pending_count.fetch_add(1, Ordering::Relaxed);
        Pending(Arc::clone(self))
    }

    pub(super) fn answer_bytes_max(&self) -> u64 {
        self.answer_bytes_max
    }

    /// False, and nothing is added, if `bounded` and the budget is used up.
    pub(super) fn add_answer(&self, bytes: usize, bounded: bool) -> bool {
        let used = self.answer_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if bounded && used > self.answer_bytes_max {
            self.remove_answers(bytes);
            return false;
        }
        true
    }

    pub(super) fn remove_answers(&self, bytes: usize) {
        self.answer_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.less.notify_waiters();
    }

    /// Another answer of a read would hardly fit.
    pub(super) fn is_full(&self) -> bool {
        self.answer_bytes.load(Ordering::Relaxed) >= self.answer_bytes_max
    }

    /// Nothing is in the node's hands or waits to be sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.pending_count.load(Ordering::Relaxed) == 0
            && self.answer_bytes.load(Ordering::Relaxed) == 0
    }

    /// Waits for [`Load::is_quiet`].
    pub(super) async fn quiet(&self) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            // Listens before it looks, so that no change in between is missed.
            less.as_mut().enable();
            if self.is_quiet() {
                return;
            }
            less.await;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending_count.fetch_sub(1, Ordering::Relaxed);
        self.0.less.notify_waiters();
    }
}
