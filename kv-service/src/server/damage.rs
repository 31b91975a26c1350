//! Damage that a query finds: the node stops, so that another node takes over and answers.
//!
//! A block of the state that cannot be read is not needed to apply writes, so nothing else would
//! notice it. A leader that went on would answer the same read with an error again and again.

use std::sync::{Arc, OnceLock};

use raft_core::error::Fatal;
use raft_core::state_machine::MachineError;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Damage {
    found: OnceLock<Arc<Fatal>>,
    report: Notify,
}

impl Damage {
    /// Records that a query could not read the state. Only the first report is kept.
    pub(super) fn report(&self, error: &MachineError) {
        let text = format!("a query found damage in the state of this node: {}", error.0);
        let _ = self.found.set(Arc::new(Fatal::Machine(MachineError(text))));
        self.report.notify_one();
    }

    /// Waits for the first report.
    pub(super) async fn found(&self) -> Arc<Fatal> {
        loop {
            if let Some(fatal) = self.known() {
                return fatal;
            }
            self.report.notified().await;
        }
    }

    pub(super) fn known(&self) -> Option<Arc<Fatal>> {
        self.found.get().cloned()
    }
}
