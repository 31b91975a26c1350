//! Log lines about the memory of a node: an operator who started it on an empty directory, or who founds a
//! cluster, must learn what it waits for.

use std::time::Duration;

use raft_core::consensus::RoleKind;
use raft_core::driver::{Node, Status};
use raft_core::types::{Memory, NodeId};
use tokio::time::{Instant, sleep};

use crate::machine::KvMachine;
use crate::protocol::{FOUNDING, NOT_INITIALISED, RECOVERING};

/// A node that waits says so again after this time.
const REMINDED_AFTER: Duration = Duration::from_secs(60);

const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What a node is busy with before it is a member like any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// An empty disk of unknown past, and no leader has filled it.
    NotInitialised,
    /// A leader fills a disk that was empty.
    Recovering,
    /// A new member meets the other new members.
    Founding {
        waits_for: Vec<NodeId>,
    },
    Member,
}

impl Stage {
    pub(super) fn of(status: &Status) -> Self {
        match status.memory {
            _ if status.role == RoleKind::Leader => Stage::Member,
            Memory::Intact | Memory::Met => Stage::Member,
            Memory::New => Stage::Founding { waits_for: status.waits_for.clone() },
            Memory::Lost if status.last_index == 0 && status.snapshot_index == 0 => {
                Stage::NotInitialised
            }
            Memory::Lost => Stage::Recovering,
        }
    }

    /// The role that the status page shows, unless it is Raft's own.
    pub(super) fn role(&self) -> Option<&'static str> {
        match self {
            Stage::NotInitialised => Some(NOT_INITIALISED),
            Stage::Recovering => Some(RECOVERING),
            Stage::Founding { .. } => Some(FOUNDING),
            Stage::Member => None,
        }
    }

    fn tell(&self, before: &Stage) {
        match (before, self) {
            (_, Stage::NotInitialised) => tracing::warn!(
                "not initialised, or its disk was lost: waits for a leader. New cluster? Stop it and run \
                 `kv init --config FILE` on each node"
            ),
            (_, Stage::Recovering) => {
                tracing::info!("the leader fills this node; until then its votes are not counted");
            }
            (_, Stage::Founding { waits_for }) => {
                tracing::info!("founding a new cluster: waits for nodes {waits_for:?}");
            }
            (Stage::Member, Stage::Member) => {}
            (Stage::Founding { .. }, Stage::Member) => {
                tracing::info!("all nodes of the new cluster have met");
            }
            (Stage::NotInitialised | Stage::Recovering, Stage::Member) => {
                tracing::info!("the leader has filled this node");
            }
        }
    }
}

/// Logs each change of the node's stage, reminds while it waits, and says when a majority of the disks is
/// lost, until it is dropped. It looks at the status from time to time: a task that followed each change of
/// it would be woken by every write.
pub(super) async fn tell(node: &Node<KvMachine>) {
    let mut told = (Stage::Member, false);
    let mut told_at = Instant::now();
    loop {
        let seen = look(&node.status());
        let waits = seen != (Stage::Member, false);
        if seen != told || (waits && told_at.elapsed() >= REMINDED_AFTER) {
            seen.0.tell(&told.0);
            if seen.1 {
                tracing::error!(
                    "the cluster stands still: a majority of the nodes is on new or lost disks, so \
                     acknowledged writes could be missing from what is left. Start enough of them on \
                     their old data directories"
                );
            }
            (told, told_at) = (seen, Instant::now());
        }
        sleep(LOOK_AGAIN_AFTER).await;
    }
}

fn look(status: &Status) -> (Stage, bool) {
    (Stage::of(status), status.is_majority_lost)
}
