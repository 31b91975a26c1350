//! Log lines about a node that is not yet a full member. An operator who started a node on an empty
//! directory, or who founds a cluster, must learn what the node waits for.

use std::time::Duration;

use raft_core::consensus::RoleKind;
use raft_core::driver::{Node, Status};
use raft_core::types::{Memory, NodeId};
use tokio::time::{Instant, sleep};

use crate::protocol::{FOUNDING, NOT_INITIALISED, RECOVERING};
use crate::state::KvMachine;

/// A node that waits repeats its log line after this time.
const REMINDED_AFTER: Duration = Duration::from_secs(60);

const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A node's stage on its way to full membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// On an empty disk of unknown past; no leader has sent it anything yet.
    NotInitialised,
    /// On a disk that was empty; the leader sends it all data, and then readmits it.
    Recovering,
    /// A new member that has not met all other new members yet.
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

    /// Returns the role that the status page shows, unless it is Raft's own role.
    pub(super) fn role(&self) -> Option<&'static str> {
        match self {
            Stage::NotInitialised => Some(NOT_INITIALISED),
            Stage::Recovering => Some(RECOVERING),
            Stage::Founding { .. } => Some(FOUNDING),
            Stage::Member => None,
        }
    }

    fn tell(&self, before: &Stage, joins: bool) {
        match (before, self) {
            (_, Stage::NotInitialised) if joins => tracing::info!(
                "joins the cluster, or its disk was lost: waits for the leader. Not added yet? Run \
                 `kv member add`"
            ),
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

/// Logs each change of the node's stage, reminds while the node waits, and reports that a majority
/// of the disks is lost. Runs until it is dropped. It polls the status, because a task that
/// followed each change of it would be woken by every write.
pub(super) async fn tell(node: &Node<KvMachine>, joins: bool) {
    let mut told = (Stage::Member, false);
    let mut told_at = Instant::now();
    loop {
        let seen = look(&node.status());
        let waits = seen != (Stage::Member, false);
        if seen != told || (waits && told_at.elapsed() >= REMINDED_AFTER) {
            seen.0.tell(&told.0, joins);
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
