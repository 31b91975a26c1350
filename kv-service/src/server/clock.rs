//! Where replicated time comes from.
//!
//! Sessions expire by the machine's clock, which every node moves by the stamps in the log. A leader
//! stamps what the machine's clock showed when it took office, plus the time that it has led since. So
//! replicated time never runs faster than a leader's clock, stands still while nobody leads, and no
//! wall clock that jumps can expire a session.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raft_core::driver::Node;
use raft_core::error::Rejected;
use tokio::time::{Instant, sleep};

use crate::machine::{KvMachine, Question, Reply};

/// Before a busy node is asked for its clock again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct ReplicatedClock {
    /// The machine's clock when this node took office, and when that was.
    office: Mutex<Option<(u64, Instant)>>,
}

impl ReplicatedClock {
    /// What a command is stamped with. 0 moves no clock: this node has not led long enough to know
    /// better.
    pub(super) fn now_ms(&self) -> u64 {
        let office = self.office.lock().unwrap_or_else(PoisonError::into_inner);
        office.map_or(0, |(clock_ms, since)| clock_ms + since.elapsed().as_millis() as u64)
    }

    fn set(&self, office: Option<(u64, Instant)>) {
        *self.office.lock().unwrap_or_else(PoisonError::into_inner) = office;
    }

    /// Follows the node's leadership until the node is gone.
    pub(super) async fn follow(&self, node: &Node<KvMachine>) {
        let mut watch = node.watch();
        loop {
            let leads = watch.borrow_and_update().is_leader;
            self.set(None);
            if leads {
                let since = Instant::now();
                match node.query_and_wait(Question::ClockMs, true).await {
                    Ok(Ok(Reply::ClockMs(clock_ms))) => self.set(Some((clock_ms, since))),
                    Err(Rejected::Busy(_)) => {
                        sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    // Deposed before it knew, or stopping: the next change tells.
                    Ok(Ok(Reply::Read(_)) | Err(_)) | Err(_) => {}
                }
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }
}
