//! This node's own membership: the identity of its disk, and the end that comes with its removal.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use crate::net::peers::PeerBook;

/// Writes down that this node was removed, durably.
pub(crate) type MarkRemoved = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The parts of a node that follow the members.
pub(super) struct Membership {
    pub(super) book: Option<Arc<dyn PeerBook>>,
    pub(super) mark_removed: Option<MarkRemoved>,
    /// Identity of the node's disk; 0 if it has none.
    pub(super) incarnation: u64,
    removal: OnceLock<String>,
    was_removed: Notify,
}

impl Membership {
    pub(super) fn new(
        book: Option<Arc<dyn PeerBook>>,
        mark_removed: Option<MarkRemoved>,
        incarnation: u64,
    ) -> Self {
        let (removal, was_removed) = (OnceLock::new(), Notify::new());
        Self { book, mark_removed, incarnation, removal, was_removed }
    }

    /// Why the node was removed, if it was.
    pub(super) fn removal(&self) -> Option<&str> {
        self.removal.get().map(String::as_str)
    }

    /// Waits until this node is known to be removed.
    pub(super) async fn removed(&self) {
        while self.removal.get().is_none() {
            self.was_removed.notified().await;
        }
    }

    /// Notes that the node was removed, on its disk first.
    pub(super) async fn note_removal(&self, why: String) {
        if let Some(mark) = self.mark_removed.clone() {
            // A slow disk must not stop the node's other tasks: a leader is handing over.
            let marked = tokio::task::spawn_blocking(move || mark()).await;
            if let Err(error) = marked.map_err(io::Error::other).and_then(|marked| marked) {
                tracing::error!("that this node was removed cannot be written down: {error}");
            }
        }
        let _ = self.removal.set(why);
        self.was_removed.notify_one();
    }
}
