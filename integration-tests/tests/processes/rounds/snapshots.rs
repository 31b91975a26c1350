//! A node that is sent a snapshot during a fault: over a bad link, or without room for it.

use integration_tests::processes::network::Conditions;
use integration_tests::processes::preload::{FileFault, Preload};
use raft_core::types::NodeId;
use rand::Rng;

use super::Run;
use super::means::Means;
use crate::disks::says_what_to_do;

/// Slow enough that a snapshot takes a second or two.
const NARROW_BYTES_PER_SECOND: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A fifth of all datagrams is lost.
    OverLoss,
    OverNarrowLink,
    ReceiverKilled,
    NoRoom,
}

impl Fault {
    pub(super) const ALL: [Fault; 4] =
        [Fault::OverLoss, Fault::OverNarrowLink, Fault::ReceiverKilled, Fault::NoRoom];

    pub(super) fn needs(self) -> Option<Means> {
        match self {
            Fault::OverLoss | Fault::OverNarrowLink | Fault::ReceiverKilled => None,
            Fault::NoRoom => Some(Means::FileFaults),
        }
    }
}

impl Run {
    pub(super) async fn inflict_on_snapshot(&mut self, fault: Fault, leader: NodeId) {
        let victim = self.follower(leader);
        self.cluster.empty(victim).await;
        let lossy = Conditions { loss: 0.2, ..Conditions::narrow(4 * NARROW_BYTES_PER_SECOND) };
        let narrow = Conditions::narrow(NARROW_BYTES_PER_SECOND);
        let network = &self.cluster.network;
        network.set_around(victim, if fault == Fault::OverLoss { &lossy } else { &narrow });
        let lost_before = network.lost_count();
        // The fault hits the first byte of the snapshot, or its middle.
        let at_once = self.chance.random_bool(0.5);
        if fault == Fault::NoRoom && at_once {
            self.cluster.node(victim).preload().set(FileFault::NoRoomOnce, ".part");
        }
        let hits = self.hits(victim);
        self.cluster.node(victim).start();
        if fault == Fault::NoRoom && at_once {
            self.cluster.writes_until("a snapshot to come", || self.hits(victim) > hits).await;
        }
        if fault != Fault::NoRoom || !at_once {
            self.cluster.receives_snapshot(victim).await;
        }
        match fault {
            Fault::OverLoss => {
                let network = &self.cluster.network;
                assert!(network.lost_count() > lost_before, "it has hit nothing");
            }
            Fault::OverNarrowLink => {}
            Fault::ReceiverKilled => {
                self.cluster.node(victim).kill().await;
                self.cluster.node(victim).start();
            }
            Fault::NoRoom => {
                let node = self.cluster.node(victim);
                if !at_once {
                    node.preload().set(FileFault::NoRoomOnce, ".part");
                }
                says_what_to_do(&node.gives_up().await, "No space left");
                assert_eq!(self.hits(victim), hits + 1);
                self.cluster.node(victim).start();
            }
        }
        self.last(200..2_000).await;
        self.cluster.network.heal();
        // Another node may lose its data only when this one is whole again.
        self.cluster.is_filled(victim).await;
        self.cluster.converges().await;
    }

    /// How often a single write or sync of a node was made to fail.
    fn hits(&self, id: NodeId) -> u64 {
        let node = &self.cluster.nodes[&id];
        node.file_faults().map_or(0, Preload::hit_count)
    }
}
