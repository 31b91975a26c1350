//! Members that come and go, and leadership that moves. Each fault ends with the same voters as
//! before, so that every other kind finds its nodes; the members come from the log from then on.

use integration_tests::processes::cluster::Cluster;
use kv_service::members::MembersChange;
use raft_core::types::NodeId;
use rustix::process::Signal;

use super::Run;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A fourth voter comes, and goes again.
    AddAndRemove,
    /// A follower becomes a learner, and a voter again.
    DemoteAndPromote,
    Transfer,
    /// The leader dies at any moment while a voter is being added, and again while it is removed.
    KillLeaderMeanwhile,
    /// A follower dies, and loses its directory, while a voter is being added.
    WipeMeanwhile,
}

impl Fault {
    pub(super) const ALL: [Fault; 5] = [
        Fault::AddAndRemove,
        Fault::DemoteAndPromote,
        Fault::Transfer,
        Fault::KillLeaderMeanwhile,
        Fault::WipeMeanwhile,
    ];
}

impl Run {
    pub(super) async fn inflict_on_members(&mut self, fault: Fault, leader: NodeId) {
        match fault {
            Fault::AddAndRemove => {
                let id = self.cluster.add_node(true).await;
                self.cluster.settles().await;
                self.last(0..500).await;
                remove(&mut self.cluster, id).await;
            }
            Fault::DemoteAndPromote => {
                let id = self.follower(leader);
                self.cluster.change(MembersChange::Demote { id }).await;
                self.last(0..500).await;
                self.cluster.settles().await;
                self.cluster.change(MembersChange::Promote { id }).await;
                self.cluster.settles().await;
            }
            Fault::Transfer => {
                let to = self.follower(leader);
                // The network may be slow just now, and another node may win.
                let _ = self.cluster.members().transfer_leadership(Some(to)).await;
            }
            Fault::KillLeaderMeanwhile => {
                let id = self.cluster.add_node(true).await;
                self.last(0..1_500).await;
                self.kill_leader().await;
                self.cluster.settles().await;
                self.cluster.change(MembersChange::Remove { id }).await;
                self.last(0..100).await;
                self.kill_leader().await;
                self.cluster.settles().await;
                self.cluster.is_gone(id).await;
            }
            Fault::WipeMeanwhile => {
                let id = self.cluster.add_node(true).await;
                self.last(0..1_000).await;
                let victim = self.follower(leader);
                self.cluster.wipe(victim).await;
                self.cluster.node(victim).start();
                self.cluster.converges().await;
                self.cluster.settles().await;
                remove(&mut self.cluster, id).await;
            }
        }
    }

    async fn kill_leader(&mut self) {
        let leader = self.cluster.leader().await;
        let node = self.cluster.node(leader);
        node.signal(Signal::KILL);
        let ended = node.ended().await;
        // A leader that was just removed may have stopped by itself.
        if ended.code() != Some(5) {
            node.start();
        }
    }
}

async fn remove(cluster: &mut Cluster, id: NodeId) {
    cluster.change(MembersChange::Remove { id }).await;
    cluster.settles().await;
    cluster.is_gone(id).await;
}
