//! The members of the cluster as a caller of the node sees them, and asks to change them.

use std::sync::Arc;

use crate::consensus::{Change, ConfigurationStage, Overrides, Raft};
use crate::types::{Configuration, Position};

/// The members of the cluster, as one node knows them.
///
/// ```
/// use raft_core::driver::Members;
///
/// // A node that joins a cluster knows no members until it has received some.
/// let members = Members::default();
/// assert!(members.configuration.is_empty() && !members.is_committed);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Members {
    /// The configuration in force: the latest one in the node's log.
    pub configuration: Arc<Configuration>,
    /// Place of its entry in the log, or the log's start if its entry was compacted. A later
    /// configuration never has an earlier place.
    pub position: Position,
    /// True once that configuration is known to be committed. One that is not may yet be replaced
    /// by the one before it.
    pub is_committed: bool,
}

impl Members {
    pub(super) fn of(raft: &Raft) -> Self {
        let ConfigurationStage { position, is_committed } = raft.configuration_stage();
        let configuration = Arc::new(raft.configuration().clone());
        Self { configuration, position, is_committed }
    }
}

/// A change of the members, and the conditions under which a caller wants it.
pub(super) struct MembersOrder {
    pub(super) change: Change,
    pub(super) expected: Option<Configuration>,
    pub(super) overrides: Overrides,
}

impl MembersOrder {
    /// Bytes that the order is charged while it waits for the event loop.
    pub(super) fn size_bytes(&self) -> u64 {
        let context_bytes = match &self.change {
            Change::Add { member, .. } => member.context.len(),
            Change::SetContext { context, .. } | Change::SetClusterContext { context } => {
                context.len()
            }
            _ => 0,
        };
        let expected_bytes = self.expected.as_ref().map_or(0, Configuration::size_bytes);
        context_bytes as u64 + expected_bytes
    }
}
