//! Clients that do not reach the leader, while the leader reaches its peers.

use integration_tests::processes::network::{CLIENTS, Conditions};
use integration_tests::processes::workload::Workload;
use raft_core::types::NodeId;

use super::{Run, WRITES_MIN};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    AllCutOffFromLeader,
    /// The other clients go on.
    SomeCutOffFromLeader,
    /// Requests reach the leader, its responses are lost.
    AnswersOfLeaderLost,
}

impl Fault {
    pub(super) const ALL: [Fault; 3] =
        [Fault::AllCutOffFromLeader, Fault::SomeCutOffFromLeader, Fault::AnswersOfLeaderLost];
}

impl Run {
    pub(super) async fn inflict_on_clients(
        &mut self,
        fault: Fault,
        leader: NodeId,
        load: &Workload,
    ) {
        let cut = Conditions::partition();
        let network = &self.cluster.network;
        let lost_before = network.lost_count();
        match fault {
            Fault::AllCutOffFromLeader => {
                CLIENTS.into_iter().for_each(|group| network.set_both(group, leader, &cut));
            }
            Fault::SomeCutOffFromLeader => network.set_both(CLIENTS[1], leader, &cut),
            Fault::AnswersOfLeaderLost => {
                CLIENTS.into_iter().for_each(|group| network.set(leader, group, cut.clone()));
            }
        }
        self.last(500..5_000).await;
        if fault == Fault::SomeCutOffFromLeader {
            load.advances_by(WRITES_MIN).await;
        }
        self.cluster.network.heal();
        let lost = self.cluster.network.lost_count() - lost_before;
        assert!(lost > 0, "{fault:?} has hit nothing");
    }
}
