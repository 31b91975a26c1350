//! Plain values that the event loop and the tasks of a transfer exchange: stops, progress, results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::wire::OfferResponse;
use crate::types::Index;

/// Keeps a task running. Once this is dropped, the task ends by itself at its next step. The task
/// is not aborted, because storage may be busy with its file.
pub(super) struct StopOnDrop {
    _sender: watch::Sender<()>,
}

/// The task's end of a [`StopOnDrop`].
#[derive(Clone)]
pub(in crate::driver) struct Stop(watch::Receiver<()>);

pub(super) fn stop() -> (StopOnDrop, Stop) {
    let (sender, receiver) = watch::channel(());
    (StopOnDrop { _sender: sender }, Stop(receiver))
}

impl Stop {
    pub(super) fn is_set(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Waits until the stop is set.
    pub(super) async fn set(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Progress of a transfer: the task writes it, the status reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    sent_bytes: Arc<AtomicU64>,
    size_bytes: Arc<AtomicU64>,
}

impl Meter {
    pub(super) fn set(&self, sent_bytes: u64, size_bytes: u64) {
        self.sent_bytes.store(sent_bytes, Ordering::Relaxed);
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }
}

/// The event loop's decision about a snapshot that a peer offers.
pub(in crate::driver) enum Admission {
    /// The peer may send it until the stop is set.
    Granted(Stop),
    Refused(OfferResponse),
}

/// How sending a snapshot to a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver) enum Sent {
    /// The peer has the entries through this index, or does not need them.
    Through(Index),
    /// The peer or the link to it failed; the same snapshot may be sent again.
    Interrupted,
    /// This node cannot read its own snapshot.
    Unreadable,
}
