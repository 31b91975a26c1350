//! Processes that are killed, stopped and paused.

use integration_tests::processes::cluster::NODES;
use raft_core::types::NodeId;
use rustix::process::Signal;

use super::Run;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    KillOne,
    KillLeader,
    KillAll,
    /// All nodes at once, and again before they are up.
    KillAllTwice,
    StopAndStartAll,
    /// SIGSTOP, for up to ten seconds.
    PauseLeader,
    PauseFollowers,
}

impl Fault {
    pub(super) const ALL: [Fault; 7] = [
        Fault::KillOne,
        Fault::KillLeader,
        Fault::KillAll,
        Fault::KillAllTwice,
        Fault::StopAndStartAll,
        Fault::PauseLeader,
        Fault::PauseFollowers,
    ];
}

impl Run {
    pub(super) async fn inflict_on_processes(&mut self, fault: Fault, leader: NodeId) {
        match fault {
            Fault::KillOne => {
                let any = self.any_node();
                self.kill(&[any]).await;
            }
            Fault::KillLeader => self.kill(&[leader]).await,
            Fault::KillAll => self.kill(&NODES).await,
            Fault::KillAllTwice => {
                self.kill(&NODES).await;
                self.kill(&NODES).await;
            }
            Fault::StopAndStartAll => self.stop_and_start_all().await,
            Fault::PauseLeader => self.pause(&[leader], 1_000..10_000).await,
            Fault::PauseFollowers => {
                let followers = self.cluster.peers_of(leader);
                self.pause(&followers, 1_000..4_000).await;
            }
        }
    }

    async fn kill(&mut self, victims: &[NodeId]) {
        for id in victims {
            self.cluster.node(*id).signal(Signal::KILL);
        }
        for id in victims {
            self.cluster.node(*id).ended().await;
        }
        self.last(0..1_000).await;
        self.cluster.start_all();
        // The second kill may hit the nodes while they recover.
        self.last(0..300).await;
    }

    async fn stop_and_start_all(&mut self) {
        for id in NODES {
            let status = self.cluster.node(id).stop().await;
            assert!(status.success(), "{}", self.cluster.node(id).said());
            self.cluster.node(id).start();
        }
    }

    async fn pause(&mut self, victims: &[NodeId], ms: std::ops::Range<u64>) {
        for id in victims {
            self.cluster.node(*id).pause();
        }
        self.last(ms).await;
        for id in victims {
            self.cluster.node(*id).resume();
        }
    }
}
