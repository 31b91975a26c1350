//! Writes batches in order, one at a time, and reports when they are on disk. Batches that only
//! append and that arrive while another is being written are written together: the slower the disk,
//! the larger the batches.
//!
//! After an error nothing more is written: the node stops, and what rests on the failed batch is
//! never sent (a failed sync must not be retried).

use std::sync::Arc;

use tokio::sync::mpsc;

use super::inbox::{Completion, Inbox, Watchdog};
use crate::consensus::Persist;
use crate::state_machine::StateMachine;
use crate::storage::Storage;
use crate::types::Batch;

pub(super) async fn run<M: StateMachine>(
    storage: Arc<dyn Storage>,
    mut batches: mpsc::Receiver<Persist>,
    inbox: Arc<Inbox<M>>,
) {
    let watchdog = Watchdog::new(&inbox, "writing to storage");
    let mut kept = None;
    let mut last_id = 0;
    loop {
        let next = match kept.take() {
            Some(kept) => Some(kept),
            None => batches.recv().await,
        };
        let Some(Persist { mut id, mut batch }) = next else { break };
        while let Ok(next) = batches.try_recv() {
            if !next.batch.only_appends() {
                kept = Some(next);
                break;
            }
            assert_eq!(next.id, id + 1, "batches are numbered in a row");
            id = next.id;
            batch.absorb(next.batch);
        }
        check(&batch);
        assert!(id > last_id, "a batch is written once, in order");
        last_id = id;
        match storage.persist(batch).await {
            Ok(()) => inbox.push_completion(Completion::Persisted(id)),
            Err(error) => {
                inbox.push_completion(Completion::Failed(error.into()));
                break;
            }
        }
    }
    watchdog.ended_well();
}

/// Checks a batch before storage gets it: storage takes it as it is.
fn check(batch: &Batch) {
    let Batch { publish, withdraw_snapshot, truncate_from, entries, hard_state: _ } = batch;
    assert!(publish.is_none() || !withdraw_snapshot, "a batch publishes or withdraws");
    if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
        assert_eq!(last.index - first.index + 1, entries.len() as u64, "without a gap");
        assert!(first.term <= last.term, "terms do not go back");
        assert!(truncate_from.is_none_or(|from| first.index <= from), "no gap after what stays");
    }
}
