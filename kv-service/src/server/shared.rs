//! State of one node that its tasks and connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raft_core::driver::Node;
use raft_core::transport::Transport;

use super::account::Accounts;
use super::autopilot::Autopilot;
use super::clock::ReplicatedClock;
use super::damage::Damage;
use super::load::Load;
use super::membership::Membership;
use super::notices::NoticeBoard;
use super::room::Room;
use super::upgrade::Upgrade;
use crate::config::ServerConfig;
use crate::log_limit::Complaints;
use crate::members::MemberList;
use crate::protocol::{FRAME_BYTES_MAX, Hello};
use crate::rng::NodeRng;
use crate::state::KvMachine;

pub(super) struct ServerShared {
    pub(super) config: ServerConfig,
    pub(super) node: Node<KvMachine>,
    pub(super) transport: Arc<dyn Transport>,
    /// Replicated time, to stamp on commands.
    pub(super) clock: ReplicatedClock,
    /// The rng that draws the nonces of sessions.
    pub(super) rng: NodeRng,
    pub(super) load: Arc<Load>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) complaints: Complaints,
    pub(super) damage: Arc<Damage>,
    pub(super) room: Room,
    /// The oldest and the newest cluster version that this program supports.
    pub(super) versions: (u32, u32),
    pub(super) upgrade: Upgrade,
    pub(super) draining: AtomicBool,
    pub(super) membership: Membership,
    pub(super) autopilot: Autopilot,
    pub(super) notices: NoticeBoard,
}

impl ServerShared {
    pub(super) fn hello(&self, version: u32) -> Hello {
        Hello {
            version,
            cluster_version: self.cluster_version(),
            cluster_id: self.config.cluster_id.clone(),
            node_id: self.config.node_id,
            leader_id: self.node.watch().borrow().leader,
            key_bytes_max: self.config.limits.key_bytes_max.0,
            value_bytes_max: self.config.limits.value_bytes_max.0,
            requests_max: self.config.limits.connection_requests_max as u64,
        }
    }

    /// Bytes of the largest request frame.
    pub(super) fn request_bytes_max(&self) -> usize {
        usize::try_from(self.config.limits.request_bytes_max())
            .map_or(FRAME_BYTES_MAX, |bytes| bytes.min(FRAME_BYTES_MAX))
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) async fn closed(&self) {
        self.notices.subscribe().closed().await;
    }

    pub(super) fn close(&self) {
        self.notices.post(|notices| !std::mem::replace(&mut notices.is_closed, true));
    }

    /// Tells the clients who the members are.
    pub(super) fn publish_members(&self, list: MemberList) {
        self.notices.post(|notices| {
            let changed = notices.members.members != list.members;
            if changed {
                notices.members = Arc::new(list);
            }
            changed
        });
    }
}
