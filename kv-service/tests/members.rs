//! Members that come and go while the cluster runs: whole nodes in one process, in virtual time.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use kv_service::members::{ClusterReport, MemberInfo, MemberRole, MembersChange, MembersOrder};
use kv_service::{
    Client, LocalNetwork, MemoryDisk, Network, NodeId, Outcome, Server, ServerConfig, ServerError,
    Store,
};

/// Longer than any change takes.
const PATIENCE: Duration = Duration::from_secs(120);

struct Lab {
    network: LocalNetwork,
    servers: BTreeMap<NodeId, (Server, MemoryDisk)>,
    client: Client,
}

impl Lab {
    /// A cluster of node 1.
    async fn of_one() -> Self {
        let network = LocalNetwork::new(7);
        let client = network.client_of_members([1]).with_deadline(PATIENCE);
        let mut lab = Self { network, servers: BTreeMap::new(), client };
        lab.start(1, MemoryDisk::of_new_member()).await;
        lab
    }

    async fn start(&mut self, id: NodeId, disk: MemoryDisk) {
        let mut config = ServerConfig::in_process(id, [1]);
        config.join = id != 1;
        let store = Store::Memory(disk.clone());
        let network = Network::Channel(self.network.clone());
        let server = Server::start_with(config, store, network).await.unwrap();
        self.servers.insert(id, (server, disk));
    }

    /// Adds a member and starts its node on an empty disk.
    async fn add(&mut self, wants_vote: bool) -> NodeId {
        let id = self.client.cluster().add(MemberInfo::default(), wants_vote).await.unwrap();
        self.start(id, MemoryDisk::new()).await;
        id
    }

    async fn order(&self, change: MembersChange, live: bool) -> ClusterReport {
        let mut order = MembersOrder::new(change);
        (order.live, order.less_redundancy) = (live, live);
        self.client.cluster().order(order).await.unwrap();
        self.settled().await
    }

    async fn settled(&self) -> ClusterReport {
        self.client.cluster().settled(ClusterReport::is_settled).await.unwrap()
    }

    async fn shutdown(&self) {
        for (server, _) in self.servers.values() {
            server.shutdown().await;
        }
    }
}

fn voters(report: &ClusterReport) -> Vec<NodeId> {
    let voters = report.members.iter().filter(|member| member.role == MemberRole::Voter);
    voters.map(|member| member.id).collect()
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn one_node_grows_to_three_and_each_of_them_is_replaced() {
    let mut lab = Lab::of_one().await;
    lab.client.put("key", "0").await.unwrap();
    lab.add(true).await;
    lab.settled().await;
    lab.add(true).await;
    assert_eq!(voters(&lab.settled().await), [1, 2, 3]);
    for old in 1..=3 {
        let new = lab.add(false).await;
        let report = lab.order(MembersChange::Replace { old, new }, false).await;
        assert!(report.member(old).is_none(), "{report:?}");
        // The node that was replaced learns of it, and stops for good.
        let stopped = lab.servers[&old].0.stopped().await;
        assert!(matches!(stopped, Err(ServerError::Removed(_))), "{stopped:?}");
        lab.client.put("key", old.to_string()).await.unwrap();
    }
    let report = lab.settled().await;
    assert_eq!((voters(&report), report.next_id), (vec![4, 5, 6], 7));
    // The client was told of node 1 only, and has followed the members.
    assert_eq!(lab.client.nodes(), [4, 5, 6]);
    let record = lab.client.get("key").await.unwrap().unwrap();
    assert_eq!((&record.value[..], record.version), (&b"3"[..], 4));
    lab.shutdown().await;
}

/// M-J12. The leader that is removed hands leadership over.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_leader_is_removed_or_moved_while_it_runs() {
    let mut lab = Lab::of_one().await;
    for _ in 0..3 {
        lab.add(true).await;
        lab.settled().await;
    }
    let moved = lab.client.cluster().transfer_leadership(Some(3)).await.unwrap();
    assert_eq!((moved, lab.settled().await.node_id), (3, 3));
    let refused = lab.client.cluster().transfer_leadership(Some(9)).await.unwrap_err();
    assert!(refused.to_string().contains("node 9 is no voter"), "{refused}");
    // Four voters tolerate no more failures than three.
    let mut order = MembersOrder::new(MembersChange::Remove { id: 3 });
    let refused = lab.client.cluster().order(order.clone()).await.unwrap_err();
    assert_eq!(refused.outcome, Outcome::NotExecuted);
    assert!(refused.to_string().contains("node 3 is running"), "{refused}");
    order.live = true;
    lab.client.cluster().order(order).await.unwrap();
    let report = lab.settled().await;
    assert_eq!(voters(&report), [1, 2, 4]);
    assert_ne!(report.node_id, 3);
    lab.client.put("key", "value").await.unwrap();
    lab.shutdown().await;
}

/// A node that drains hands leadership over, is not handed it, and leads only if it must.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_node_that_drains_does_not_lead() {
    let mut lab = Lab::of_one().await;
    let cluster = lab.client.cluster();
    let alone = cluster.drain(1, true).await.unwrap();
    assert_eq!(alone.leader_id, Some(1), "no other voter can lead");
    for _ in 0..2 {
        lab.add(true).await;
        lab.settled().await;
    }
    // It hands over as soon as another voter can lead.
    let moved = |report: &ClusterReport| report.leader_id.is_some_and(|leader| leader != 1);
    let report = cluster.settled(moved).await.unwrap();
    assert!(report.member(1).unwrap().info.draining);
    let refused = cluster.transfer_leadership(Some(1)).await.unwrap_err();
    assert_eq!(refused.outcome, Outcome::NotExecuted);
    assert!(refused.to_string().contains("node 1 is draining"), "{refused}");
    // One of the two others drains as well: leadership goes to the third, and stays there.
    let leader = report.leader_id.unwrap();
    let report = cluster.drain(leader, true).await.unwrap();
    assert_eq!(report.leader_id, Some(5 - leader));
    assert_eq!(
        cluster.transfer_leadership(None).await.map(|to| [1, leader].contains(&to)),
        Ok(true)
    );
    let third = |report: &ClusterReport| report.leader_id == Some(5 - leader);
    cluster.settled(third).await.unwrap();
    cluster.drain(1, false).await.unwrap();
    assert_eq!(cluster.transfer_leadership(Some(1)).await, Ok(1));
    let missing = cluster.drain(9, true).await.unwrap_err();
    assert!(missing.to_string().contains("there is no member 9"), "{missing}");
    lab.client.put("key", "value").await.unwrap();
    lab.shutdown().await;
}

/// A record is changed field by field, and a node's own announcement keeps what it does not say.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn the_record_of_a_member_is_changed() {
    let mut lab = Lab::of_one().await;
    let id = lab.add(true).await;
    lab.settled().await;
    let cluster = lab.client.cluster();
    cluster.drain(id, true).await.unwrap();
    let report = cluster.describe(id, |info| info.zone = "b".to_owned()).await.unwrap();
    let info = &report.member(id).unwrap().info;
    assert_eq!((&info.zone[..], info.draining), ("b", true));
    let refused = cluster.describe(id, |info| info.zone = "b c".to_owned()).await.unwrap_err();
    assert_eq!(refused.outcome, Outcome::NotExecuted);
    lab.shutdown().await;
}

/// 1.3. The checks before a change: each refusal changes nothing and says what to do.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_change_that_makes_no_sense_is_refused() {
    let mut lab = Lab::of_one().await;
    let cluster = lab.client.cluster();
    lab.add(true).await;
    let before = lab.settled().await;
    let named = |name: &str| MemberInfo { name: name.to_owned(), ..MemberInfo::default() };
    let third = cluster.add(named("third"), false).await.unwrap();
    assert_eq!(third, 3);
    for (change, complaint) in [
        (MembersChange::Promote { id: 9 }, "there is no member 9"),
        (MembersChange::Remove { id: 1 }, "running"),
        (MembersChange::Replace { old: 1, new: 2 }, "no learner"),
        (MembersChange::Add { id: 9, info: named("x"), wants_vote: true }, "ids are given out"),
        (MembersChange::Add { id: 4, info: named("third"), wants_vote: true }, "has the name"),
        (MembersChange::Add { id: 4, info: named("a b"), wants_vote: true }, "the name \"a b\""),
    ] {
        let error = cluster.order(MembersOrder::new(change.clone())).await.unwrap_err();
        assert_eq!(error.outcome, Outcome::NotExecuted, "{change:?}");
        assert!(error.to_string().contains(complaint), "{change:?}: {error}");
    }
    // M-J2. Compare-and-set: the operator has seen other members.
    let mut stale = MembersOrder::new(MembersChange::Remove { id: 3 });
    stale.expected = Some(before.digest);
    let error = cluster.order(stale).await.unwrap_err();
    assert!(error.to_string().contains("have changed since"), "{error}");
    assert_eq!(cluster.members().await.unwrap().members.len(), 3);
    lab.shutdown().await;
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_dry_run_shows_the_change_and_changes_nothing() {
    let mut lab = Lab::of_one().await;
    lab.add(true).await;
    let before = lab.settled().await;
    let mut order = MembersOrder::new(MembersChange::Demote { id: 2 });
    order.dry_run = true;
    let planned = lab.client.cluster().order(order.clone()).await.unwrap();
    assert!(planned.is_joint);
    assert_eq!(planned.member(2).unwrap().role, MemberRole::Leaving);
    assert_eq!(lab.client.cluster().members().await.unwrap().index, before.index);
    order.change = MembersChange::Remove { id: 7 };
    assert!(lab.client.cluster().order(order).await.is_err());
    lab.shutdown().await;
}

/// M-L5. A member whose node never starts stays a learner, disturbs no other one, and can be
/// removed.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_member_that_never_starts_changes_nothing() {
    let mut lab = Lab::of_one().await;
    lab.add(true).await;
    lab.settled().await;
    let ghost = lab.client.cluster().add(MemberInfo::default(), true).await.unwrap();
    tokio::time::sleep(PATIENCE).await;
    let report = lab.client.cluster().members().await.unwrap();
    assert_eq!(report.member(ghost).unwrap().role, MemberRole::Learner);
    assert_eq!(report.failures_tolerated_now(), Some(0));
    lab.client.put("key", "value").await.unwrap();
    let report = lab.order(MembersChange::Remove { id: ghost }, false).await;
    assert_eq!(voters(&report), [1, 2]);
    assert_eq!(report.next_id, 4, "its id is not used again");
    lab.shutdown().await;
}

/// A voter loses its disk, and is whole again without an operator's command.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_wiped_voter_comes_back_under_its_own_id() {
    let mut lab = Lab::of_one().await;
    for _ in 0..2 {
        lab.add(true).await;
        lab.settled().await;
    }
    lab.client.put("key", "value").await.unwrap();
    lab.servers[&3].0.shutdown().await;
    lab.start(3, MemoryDisk::new()).await;
    let whole = |report: &ClusterReport| {
        let recovers = |progress: kv_service::members::MemberProgress| progress.is_recovering;
        report.members.iter().all(|member| !member.progress.is_some_and(recovers))
            && report.failures_tolerated_now() == Some(1)
    };
    let report = lab.client.cluster().settled(whole).await.unwrap();
    assert_eq!(voters(&report), [1, 2, 3]);
    lab.shutdown().await;
}

/// M-D8. A spare takes the place of a voter that dies, without an operator; the settings are the
/// same on every node, also after the log was compacted and another node leads.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn m_d8_a_dead_voter_is_replaced_by_a_spare() {
    let mut lab = Lab::of_one().await;
    for _ in 0..2 {
        lab.add(true).await;
        lab.settled().await;
    }
    let cluster = lab.client.cluster();
    let refused = cluster.configure(|settings| settings.voters = 2).await.unwrap_err();
    assert_eq!(refused.outcome, Outcome::NotExecuted);
    assert!(refused.to_string().contains("odd"), "{refused}");
    let dead_after = Duration::from_secs(60);
    cluster.configure(|settings| settings.replace_dead_after = Some(dead_after)).await.unwrap();
    let spare = MemberInfo { spare: true, ..MemberInfo::default() };
    let spare = cluster.add(spare, false).await.unwrap();
    lab.start(spare, MemoryDisk::new()).await;
    lab.settled().await;
    let leader = lab.settled().await.node_id;
    let dead = (1..=3).find(|id| *id != leader).unwrap();
    lab.servers.remove(&dead).unwrap().0.shutdown().await;
    let began = tokio::time::Instant::now();
    let gone = |report: &ClusterReport| report.member(dead).is_none() && report.is_settled();
    let report = cluster.settled(gone).await.unwrap();
    let took = began.elapsed();
    assert!((dead_after..dead_after + Duration::from_secs(15)).contains(&took), "{took:?}");
    assert_eq!(voters(&report).len(), 3);
    assert_eq!(report.member(spare).unwrap().role, MemberRole::Voter);
    let leader = cluster.transfer_leadership(None).await.unwrap();
    let report = lab.settled().await;
    assert_eq!((report.node_id, report.settings.replace_dead_after), (leader, Some(dead_after)));
    lab.client.put("key", "value").await.unwrap();
    lab.shutdown().await;
}

/// Leadership goes to the voter with the larger priority, and back when that changes; a member of
/// priority 0 is not handed it.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn leadership_follows_priorities_and_zones() {
    let mut lab = Lab::of_one().await;
    for _ in 0..2 {
        lab.add(true).await;
        lab.settled().await;
    }
    let cluster = lab.client.cluster().clone();
    let led_by = |id| move |report: &ClusterReport| report.node_id == id && report.is_settled();
    cluster.describe(3, |info| info.priority = Some(80)).await.unwrap();
    cluster.settled(led_by(3)).await.unwrap();
    cluster.describe(2, |info| info.zone = "b".to_owned()).await.unwrap();
    cluster.configure(|settings| settings.leader_zone = "b".to_owned()).await.unwrap();
    let report = cluster.settled(led_by(2)).await.unwrap();
    assert_eq!(report.settings.leader_zone, "b");
    cluster.describe(2, |info| info.priority = Some(0)).await.unwrap();
    cluster.settled(led_by(3)).await.unwrap();
    let refused = cluster.transfer_leadership(Some(2)).await.unwrap_err();
    assert!(refused.to_string().contains("priority 0"), "{refused}");
    lab.shutdown().await;
}

/// In one process, too, a newcomer is counted while a voter is down (M-R9).
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn m_r9_a_dead_voter_is_replaced_by_a_newcomer() {
    let mut lab = Lab::of_one().await;
    for _ in 0..2 {
        lab.add(true).await;
        lab.settled().await;
    }
    let leader = lab.settled().await.node_id;
    let old = (1..=3).find(|id| *id != leader).unwrap();
    lab.servers.remove(&old).unwrap().0.shutdown().await;
    let new = lab.add(false).await;
    let report = lab.order(MembersChange::Replace { old, new }, false).await;
    assert_eq!(voters(&report).len(), 3);
    assert!(report.member(new).unwrap().progress.is_some_and(|progress| !progress.is_recovering));
    lab.client.put("key", "value").await.unwrap();
    lab.shutdown().await;
}
