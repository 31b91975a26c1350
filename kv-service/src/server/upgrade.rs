//! Raising the cluster version, once all members run a program that supports a newer one.
//!
//! The leader raises it. If its file says `upgrade = "auto"`, it does so by itself after all
//! members have supported the newer version for `upgrade_delay`; otherwise when an operator runs
//! `kv upgrade finalize`. Until then every member can go back to the older program. Afterwards the
//! older program refuses to start.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_core::consensus::RoleKind;
use raft_core::driver::{Node, Status};
use tokio::time::{Instant, sleep};

use crate::config::UpgradePolicy;
use crate::protocol::Rejection;
use crate::state::KvMachine;

/// Interval at which the versions of the members are checked; a quarter of the delay if that is
/// less.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// One node's view of an upgrade.
pub(super) struct Upgrade {
    policy: UpgradePolicy,
    delay: Duration,
    version_max: u32,
    state: Mutex<UpgradeState>,
}

#[derive(Default)]
struct UpgradeState {
    /// Set while an operator holds the version: until the hold is released or this node restarts.
    held: bool,
    /// The version that all members support, and since when.
    pending: Option<(u32, Instant)>,
}

impl Upgrade {
    pub(super) fn new(policy: UpgradePolicy, delay: Duration, version_max: u32) -> Self {
        Self { policy, delay, version_max, state: Mutex::default() }
    }

    pub(super) fn hold(&self, held: bool) {
        let mut state = self.lock();
        state.held = held;
        // The delay begins anew when the hold ends.
        state.pending = None;
    }

    /// The version that all members support, if it is newer than the one in force. Known by the
    /// leader only.
    pub(super) fn supported_by_all(&self, status: &Status) -> Option<u32> {
        if status.role != RoleKind::Leader {
            return None;
        }
        let others = status.peers.iter().map(|peer| peer.version_max);
        let supported = others.chain([self.version_max]).min()?;
        assert!(supported <= self.version_max, "this program is one of those that support it");
        (supported > status.cluster_version).then_some(supported)
    }

    /// The version to raise to without an operator, if the delay is over.
    fn due(&self, status: &Status, now: Instant) -> Option<u32> {
        let supported = self.supported_by_all(status);
        let mut state = self.lock();
        let Some(version) = supported.filter(|_| !state.held && self.policy == UpgradePolicy::Auto)
        else {
            state.pending = None;
            return None;
        };
        let (pending, since) = *state.pending.get_or_insert((version, now));
        if pending != version {
            state.pending = Some((version, now));
            return None;
        }
        (now.duration_since(since) >= self.delay).then_some(version)
    }

    /// Raises the version when it is due. Runs until it is dropped.
    pub(super) async fn follow(&self, node: &Node<KvMachine>) {
        let pause = LOOK_AGAIN_AFTER.min(self.delay / 4).max(Duration::from_millis(10));
        loop {
            sleep(pause).await;
            let due = self.due(&node.status(), Instant::now());
            let Some(version) = due else { continue };
            match node.raise_cluster_version(version).await {
                Ok(_) => tracing::info!(
                    "all members support cluster version {version}: it comes into force now"
                ),
                // The next check finds the reason gone, or another leader.
                Err(rejected) => {
                    tracing::debug!("the cluster version was not raised to {version}: {rejected}");
                }
            }
        }
    }

    /// `auto`, `manual` or `held`.
    pub(super) fn policy_text(&self) -> &'static str {
        match (self.lock().held, self.policy) {
            (true, _) => "held",
            (false, UpgradePolicy::Auto) => "auto",
            (false, UpgradePolicy::Manual) => "manual",
        }
    }

    /// The version that `Finalize` raises to.
    ///
    /// # Errors
    /// The reason why there is none.
    pub(super) fn to_finalize(&self, status: &Status, above: u32) -> Result<u32, Rejection> {
        if status.role != RoleKind::Leader {
            return Err(Rejection::NotLeader { leader_id: status.leader_id });
        }
        let refused = |text| Err(Rejection::Invalid(text));
        let in_force = status.cluster_version;
        if in_force != above {
            return refused(format!("cluster version {in_force} is in force already"));
        }
        match self.supported_by_all(status) {
            Some(version) => Ok(version),
            None => refused(format!(
                "not every member supports a version above {in_force}, as far as this leader knows; \
                 `kv upgrade status` shows them"
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, UpgradeState> {
        // Held for single steps only; none of them panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use raft_core::consensus::{PeerStatus, ProgressState};
    use raft_core::types::Memory;

    use super::*;

    fn leader(peer_versions: &[u32]) -> Status {
        let peer = |(place, version_max): (usize, &u32)| PeerStatus {
            id: place as u64 + 2,
            match_index: 1,
            next_index: 2,
            state: ProgressState::Replicate,
            inflight_count: 0,
            is_recovering: false,
            version_max: *version_max,
        };
        Status {
            id: 1,
            role: RoleKind::Leader,
            term: 1,
            leader_id: Some(1),
            is_recovering: false,
            memory: Memory::Intact,
            waits_for: Vec::new(),
            is_majority_lost: false,
            founded: true,
            cluster_version: 1,
            commit_index: 1,
            last_applied: 1,
            last_index: 1,
            log_bytes: 0,
            snapshot_index: 0,
            reply_panics_count: 0,
            transfers: Vec::new(),
            peers: peer_versions.iter().enumerate().map(peer).collect(),
        }
    }

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// S15. The version rises after the delay, which starts anew when a member goes back. It never
    /// rises while an operator holds it, or with the policy that leaves it to the operator.
    #[test]
    fn the_delay_counts_from_the_last_member() {
        let upgrade = Upgrade::new(UpgradePolicy::Auto, DAY, 3);
        let start = Instant::now();
        assert_eq!(upgrade.due(&leader(&[3, 1]), start), None);
        assert_eq!(upgrade.due(&leader(&[3, 0]), start), None, "a member is not known yet");
        assert_eq!(upgrade.due(&leader(&[3, 2]), start), None, "the delay begins");
        assert_eq!(upgrade.due(&leader(&[3, 2]), start + DAY / 2), None);
        assert_eq!(upgrade.due(&leader(&[3, 1]), start + DAY / 2), None, "one goes back");
        assert_eq!(upgrade.due(&leader(&[3, 2]), start + DAY), None, "it begins anew");
        assert_eq!(upgrade.due(&leader(&[3, 2]), start + 2 * DAY), Some(2));
        upgrade.hold(true);
        assert_eq!(upgrade.due(&leader(&[3, 2]), start + 9 * DAY), None);
        assert_eq!(upgrade.policy_text(), "held");
        upgrade.hold(false);
        assert_eq!(upgrade.due(&leader(&[3, 2]), start + 9 * DAY), None);
        assert_eq!(upgrade.due(&leader(&[3, 2]), start + 10 * DAY), Some(2));
        let follower = Status { role: RoleKind::Follower, ..leader(&[]) };
        assert_eq!(upgrade.due(&follower, start + 20 * DAY), None);
        let manual = Upgrade::new(UpgradePolicy::Manual, Duration::ZERO, 2);
        assert_eq!(manual.due(&leader(&[2]), start), None);
        assert_eq!(manual.due(&leader(&[2]), start + DAY), None);
    }

    #[test]
    fn finalize_tells_why_not() {
        let upgrade = Upgrade::new(UpgradePolicy::Manual, DAY, 2);
        assert_eq!(upgrade.to_finalize(&leader(&[2, 2]), 1), Ok(2));
        let told = |status: &Status, above| match upgrade.to_finalize(status, above) {
            Err(rejection) => rejection.to_string(),
            Ok(version) => panic!("raised to {version}"),
        };
        assert!(told(&leader(&[2, 1]), 1).contains("not every member"));
        assert!(told(&leader(&[2, 2]), 0).contains("in force already"));
        let follower = Status { role: RoleKind::Follower, ..leader(&[]) };
        assert!(told(&follower, 1).contains("does not lead"));
    }
}
