//! Links between nodes that break, in one direction or both, and links that are bad.

use std::time::Duration;

use integration_tests::processes::network::Conditions;
use integration_tests::processes::node::PATIENCE;
use raft_core::types::NodeId;
use tokio::time::{sleep, timeout};

use super::Run;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Isolate,
    IsolateLeader,
    /// The leader receives from no peer, or no peer receives from it.
    LeaderDeaf,
    LeaderMute,
    OneWay,
    /// Two nodes do not reach each other, the third reaches both.
    Bridge,
    Loss,
    BadLinks,
    NarrowLinks,
}

impl Fault {
    pub(super) const ALL: [Fault; 9] = [
        Fault::Isolate,
        Fault::IsolateLeader,
        Fault::LeaderDeaf,
        Fault::LeaderMute,
        Fault::OneWay,
        Fault::Bridge,
        Fault::Loss,
        Fault::BadLinks,
        Fault::NarrowLinks,
    ];
}

impl Run {
    pub(super) async fn inflict_on_links(&mut self, fault: Fault, leader: NodeId) {
        let [follower, other] = self.cluster.peers_of(leader);
        let any = self.any_node();
        let [any_peer, _] = self.cluster.peers_of(any);
        let cut = Conditions::partition();
        let network = &self.cluster.network;
        let lost_before = network.lost_count();
        match fault {
            Fault::Isolate => network.set_around(any, &cut),
            Fault::IsolateLeader => network.set_around(leader, &cut),
            Fault::LeaderDeaf => {
                network.set(follower, leader, cut.clone());
                network.set(other, leader, cut);
            }
            Fault::LeaderMute => {
                network.set(leader, follower, cut.clone());
                network.set(leader, other, cut);
            }
            Fault::OneWay => network.set(any, any_peer, cut),
            Fault::Bridge => network.set_both(any, any_peer, &cut),
            Fault::Loss => network.set_all(&Conditions::losing(0.2)),
            Fault::BadLinks => network.set_all(&Conditions {
                loss: 0.05,
                duplication: 0.2,
                damage: 0.02,
                delay: Duration::from_millis(1)..Duration::from_millis(40),
                ..Conditions::default()
            }),
            Fault::NarrowLinks => network.set_all(&Conditions {
                delay: Duration::from_millis(5)..Duration::from_millis(6),
                ..Conditions::narrow(200_000)
            }),
        }
        self.last(500..3_000).await;
        if fault != Fault::NarrowLinks {
            // A node that had lost its connections before is dialled again within a few seconds.
            let has_hit = async {
                while self.cluster.network.lost_count() == lost_before {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            let in_time = timeout(PATIENCE, has_hit).await;
            assert!(in_time.is_ok(), "{fault:?} has hit nothing");
        }
        self.cluster.network.heal();
    }
}
