//! Disks that fail, are slow, freeze, lose power, and do less than requested.

use std::time::Duration;

use integration_tests::processes::cluster::NODES;
use integration_tests::processes::inject::Injection;
use integration_tests::processes::preload::FileFault;
use raft_core::types::NodeId;
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::time::sleep;

use super::Run;
use super::means::Means;
use crate::disks::says_what_to_do;
use crate::files::KINDS_OF_FILES;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    SyncsFail,
    /// The sync after it would succeed.
    SyncFailsOnce,
    SyncsAreSlow,
    NoRoomOnce,
    ShortWrites,
    LeaderLosesPower,
    AllLosePower,
    LeaderFreezes,
}

impl Fault {
    pub(super) const ALL: [Fault; 8] = [
        Fault::SyncsFail,
        Fault::SyncFailsOnce,
        Fault::SyncsAreSlow,
        Fault::NoRoomOnce,
        Fault::ShortWrites,
        Fault::LeaderLosesPower,
        Fault::AllLosePower,
        Fault::LeaderFreezes,
    ];

    pub(super) fn needs(self) -> Means {
        match self {
            Fault::SyncsFail | Fault::SyncsAreSlow => Means::Strace,
            Fault::SyncFailsOnce | Fault::NoRoomOnce | Fault::ShortWrites => Means::FileFaults,
            Fault::LeaderLosesPower | Fault::AllLosePower | Fault::LeaderFreezes => Means::Disks,
        }
    }
}

impl Run {
    pub(super) async fn inflict_on_disks(&mut self, fault: Fault, leader: NodeId) {
        match fault {
            Fault::SyncsFail => self.syncs_fail(leader).await,
            Fault::SyncFailsOnce => {
                self.file_fails_once(FileFault::SyncFailsOnce, "Input/output error").await;
            }
            Fault::SyncsAreSlow => self.syncs_are_slow(leader).await,
            Fault::NoRoomOnce => self.file_fails_once(FileFault::NoRoomOnce, "No space left").await,
            Fault::ShortWrites => self.writes_are_short(leader).await,
            Fault::LeaderLosesPower => self.lose_power(&[leader]).await,
            Fault::AllLosePower => self.lose_power(&NODES).await,
            Fault::LeaderFreezes => self.freeze(leader).await,
        }
    }

    async fn syncs_fail(&mut self, victim: NodeId) {
        let node = self.cluster.node(victim);
        let injection = Injection::into_node(node, &["fdatasync:error=EIO", "fsync:error=EIO"]);
        let injection = injection.expect("it could be done before");
        let said = node.gives_up().await;
        drop(injection);
        says_what_to_do(&said, "error");
        self.last(0..500).await;
        self.cluster.start_all();
    }

    async fn syncs_are_slow(&mut self, victim: NodeId) {
        let slow = ["fdatasync:delay_exit=200000", "fsync:delay_exit=200000"];
        let injection = Injection::into_node(self.cluster.node(victim), &slow);
        let injection = injection.expect("it could be done before");
        self.last(1_000..3_000).await;
        drop(injection);
    }

    async fn file_fails_once(&mut self, fault: FileFault, cause: &str) {
        let victim = self.any_node();
        let file = *KINDS_OF_FILES.choose(&mut self.chance).unwrap();
        let preload = self.cluster.node(victim).preload().clone();
        let before = preload.hit_count();
        preload.set(fault, file);
        self.cluster.writes_until("a fault to happen", || preload.hit_count() > before).await;
        let said = self.cluster.node(victim).gives_up().await;
        says_what_to_do(&said, cause);
        self.last(0..500).await;
        self.cluster.start_all();
    }

    async fn writes_are_short(&mut self, leader: NodeId) {
        for node in self.cluster.nodes.values() {
            node.preload().set(FileFault::ShortWrites, &node.data.display().to_string());
        }
        self.last(500..2_000).await;
        // The node recovers under the same conditions.
        self.cluster.node(leader).kill().await;
        self.cluster.start_all();
        self.last(200..1_000).await;
        for node in self.cluster.nodes.values() {
            node.preload().clear();
            assert!(node.preload().hit_count() > 0, "node {} was not hit", node.id);
        }
    }

    async fn lose_power(&mut self, victims: &[NodeId]) {
        for id in victims {
            self.disks[id].lose_power().unwrap();
        }
        for id in victims {
            self.cluster.node(*id).kill_if_running().await;
        }
        for id in victims {
            self.disks.get_mut(id).unwrap().regain_power();
        }
        self.last(0..500).await;
        self.cluster.start_all();
    }

    async fn freeze(&mut self, victim: NodeId) {
        let frozen = self.disks[&victim].freeze().unwrap();
        let ms = self.chance.random_range(500..4_000);
        sleep(Duration::from_millis(ms)).await;
        drop(frozen);
    }
}
