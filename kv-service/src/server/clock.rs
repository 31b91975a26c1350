//! The time that a leader stamps on commands.
//!
//! Sessions expire by the state machine's clock, which every node advances by the stamps in the
//! log. A leader stamps the machine's clock as it was when the leader took office, plus the time
//! that it has led since. So replicated time never runs faster than a leader's clock, stands still
//! while there is no leader, and a wall clock that jumps cannot expire a session.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use raft_core::driver::Node;
use raft_core::error::Rejected;
use tokio::time::{Instant, sleep};

use crate::state::{KvMachine, MachineQuery, QueryOutput};

/// Pause before a busy node is asked for its clock again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct ReplicatedClock {
    /// The machine's clock in milliseconds when this node took office, and when that was. `None`
    /// unless this node leads and has learned the clock.
    office: Mutex<Option<(u64, Instant)>>,
}

impl ReplicatedClock {
    /// Milliseconds to stamp on a command. 0 advances no clock: this node does not lead, or has not
    /// led long enough to know the machine's clock.
    pub(super) fn now_ms(&self) -> u64 {
        let office = self.office.lock().unwrap_or_else(PoisonError::into_inner);
        office.map_or(0, |(clock_ms, since)| clock_ms + since.elapsed().as_millis() as u64)
    }

    fn set(&self, office: Option<(u64, Instant)>) {
        *self.office.lock().unwrap_or_else(PoisonError::into_inner) = office;
    }

    /// Follows the node's leadership until the node has stopped.
    pub(super) async fn follow(&self, node: &Node<KvMachine>) {
        let mut watch = node.watch();
        loop {
            let leads = watch.borrow_and_update().is_leader;
            self.set(None);
            if leads {
                let since = Instant::now();
                match node.query_and_wait(MachineQuery::ClockMs, true).await {
                    Ok(Ok(QueryOutput::ClockMs(clock_ms))) => self.set(Some((clock_ms, since))),
                    Err(Rejected::Busy(_)) => {
                        sleep(RETRY_PAUSE).await;
                        continue;
                    }
                    // The node was deposed before the watch showed it, or is stopping: the next
                    // change of the watch tells which.
                    Ok(Ok(QueryOutput::Read(_)) | Err(_)) | Err(_) => {}
                }
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }
}
