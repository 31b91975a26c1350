//! Orders of operators: to show and to change the members, and to move leadership.

use std::sync::Arc;
use std::time::Duration;

use raft_core::consensus::{Change, Overrides};
use raft_core::driver::{Members, Status};
use raft_core::types::{Configuration, Member, NodeId, Position};
use tokio::time::sleep;

use super::avoided;
use crate::config::NODES_CEILING;
use crate::members::{
    ClusterRecord, ClusterReport, ClusterUid, MemberInfo, MemberProgress, MembersChange,
    MembersOrder,
};
use crate::protocol::version::{Feature, has};
use crate::protocol::{Rejection, Reply};
use crate::server::outbox::Outbox;
use crate::server::requests::rejection;
use crate::server::shared::ServerShared;

/// How long an order waits until its first entry is committed. Clients give up on an attempt
/// earlier, and order again.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);

impl ServerShared {
    /// The members as this node knows them.
    pub(in crate::server) fn cluster_report(&self) -> ClusterReport {
        let members = self.node.watch_members().borrow().clone();
        let mut report = ClusterReport::of(&members.configuration);
        report.index = members.position.index;
        report.is_committed = members.is_committed;
        report.plans = self.autopilot.plans();
        self.complete(report)
    }

    /// Adds what this node knows beyond the configuration.
    fn complete(&self, mut report: ClusterReport) -> ClusterReport {
        let status = self.node.status();
        (report.node_id, report.leader_id) = (status.id, status.leader_id);
        let files = self.config.addresses();
        for member in &mut report.members {
            if member.info.address.is_empty() {
                member.info.address = files.get(&member.id).cloned().unwrap_or_default();
            }
            if member.id == status.id {
                continue;
            }
            member.progress = progress_of(&status, member.id);
            let reached = self.transport.reachability(member.id);
            member.error = reached.err().map(|error| error.to_string());
        }
        report
    }

    /// Answers with the members, if this node leads.
    pub(in crate::server) fn answer_members(&self, id: u64, outbox: &Arc<Outbox>) {
        let reply = match self.leads() {
            Ok(()) => Reply::Cluster(Box::new(self.cluster_report())),
            Err(rejection) => Reply::Rejected(rejection),
        };
        outbox.push(id, reply);
    }

    /// Names the leader if it is another node, which a client then asks.
    fn leads(&self) -> Result<(), Rejection> {
        let leadership = *self.node.watch().borrow();
        if leadership.is_leader {
            return Ok(());
        }
        Err(Rejection::NotLeader { leader_id: leadership.leader })
    }

    /// Carries out an order to change the members, or checks it.
    pub(in crate::server) fn change_members(
        self: &Arc<Self>,
        order: MembersOrder,
        id: u64,
        outbox: &Arc<Outbox>,
    ) {
        let (shared, outbox) = (Arc::clone(self), Arc::clone(outbox));
        tokio::spawn(async move {
            let reply = match shared.ordered(order).await {
                Ok(report) => Reply::Cluster(Box::new(report)),
                Err(refused) => refused,
            };
            outbox.push(id, reply);
        });
    }

    /// Returns the members once the change has begun for good: its first entry is committed.
    pub(in crate::server) async fn ordered(
        &self,
        order: MembersOrder,
    ) -> Result<ClusterReport, Reply> {
        // A follower would judge by an old view of the members.
        self.leads().map_err(Reply::Rejected)?;
        let refused = |text: String| Err(Reply::Rejected(Rejection::Invalid(text)));
        let in_force = self.cluster_version();
        if !has(in_force, Feature::Members) {
            let needed = Feature::Members.since();
            return refused(format!(
                "members change from cluster version {needed} on, in force is {in_force}: see \
                 `kv upgrade status`"
            ));
        }
        let seen = self.node.watch_members().borrow().clone();
        check_description(&order.change, &seen.configuration).map_err(Reply::Rejected)?;
        // The settings stand in one record with the uid, which is to be that of the cluster.
        let is_bound =
            order.expected.is_some() || matches!(order.change, MembersChange::Configure { .. });
        let change = change_of(order.change, &seen.configuration);
        let mut overrides = Overrides::default();
        overrides.less_redundancy = order.less_redundancy;
        overrides.live = order.live;
        let rejected = |why| Reply::Rejected(rejection(why));
        let now = ClusterReport::of(&seen.configuration);
        let is_expected = order.expected.is_none_or(|digest| digest == now.digest);
        if order.dry_run || !is_expected {
            let planned = self.node.plan_members(change, overrides).await.map_err(rejected)?;
            // An order that is repeated after it was carried out has changed the members itself.
            if !is_expected && planned.is_some() {
                return refused(
                    "the members have changed since they were read; read them again".to_owned(),
                );
            }
            let planned = planned.unwrap_or_else(|| (*seen.configuration).clone());
            let mut report = ClusterReport::of(&planned);
            (report.index, report.is_committed) = (seen.position.index, true);
            return Ok(self.complete(report));
        }
        let expected = is_bound.then(|| (*seen.configuration).clone());
        let begun = self.node.change_members(change, expected, overrides).await;
        self.is_committed(begun.map_err(rejected)?).await?;
        Ok(self.cluster_report())
    }

    /// Draws the uid of a cluster that has none. If that fails, the leader tries again.
    pub(in crate::server) async fn draw_uid(&self) {
        let seen = self.node.watch_members().borrow().clone();
        let mut record = ClusterRecord::decode(&seen.configuration.context);
        if record.uid.is_some() || !seen.configuration.founded {
            return;
        }
        // One that this node's file requires is taken.
        let known = self.membership.uid();
        record.uid = known.or_else(|| ClusterUid::new(self.rng.nonce()));
        let change = Change::SetClusterContext { context: record.encode() };
        let expected = Some((*seen.configuration).clone());
        match self.node.change_members(change, expected, Overrides::default()).await {
            Ok(_) => tracing::debug!("the uid of the cluster was drawn"),
            Err(why) => tracing::debug!("the cluster has no uid yet: {why}"),
        }
    }

    /// Waits until the configuration at this place is committed. Until then a later leader may drop
    /// it.
    async fn is_committed(&self, position: Position) -> Result<(), Reply> {
        let mut members = self.node.watch_members();
        let is_there =
            |members: &Members| members.is_committed && members.position.index >= position.index;
        let mut leadership = self.node.watch();
        let known = tokio::select! {
            biased;
            known = members.wait_for(is_there) => known.map(|members| members.position).ok(),
            _ = leadership.wait_for(|now| now.term != position.term) => None,
            () = sleep(COMMIT_PATIENCE) => None,
        };
        match known {
            Some(known) if known.index > position.index || known.term == position.term => Ok(()),
            _ => Err(Reply::Unknown(
                "the change was begun, and is not known to be committed: order it again".to_owned(),
            )),
        }
    }

    /// Orders this node to hand leadership over, if it leads and the other is a voter.
    pub(in crate::server) fn hand_over(&self, to: Option<NodeId>, id: u64, outbox: &Arc<Outbox>) {
        if let Err(rejection) = self.leads() {
            return outbox.push(id, Reply::Rejected(rejection));
        }
        let members = self.node.watch_members().borrow().clone();
        let reply = match to {
            None if members.configuration.voters.len() == 1 => {
                let text = "there is no other voter to lead".to_owned();
                Reply::Rejected(Rejection::Invalid(text))
            }
            Some(to) if !members.configuration.voters.contains(&to) => {
                Reply::Rejected(Rejection::Invalid(format!(
                    "node {to} is no voter; the voters are {:?}",
                    members.configuration.voters
                )))
            }
            Some(to) if avoided(&members.configuration).contains(&to) => {
                Reply::Rejected(Rejection::Invalid(format!(
                    "node {to} is draining, or has priority 0: end that first (`kv drain {to} --off`, \
                     `kv member set {to} --priority 50`)"
                )))
            }
            _ => {
                self.node.transfer_leadership(to);
                Reply::Done("leadership is being handed over".to_owned())
            }
        };
        outbox.push(id, reply);
    }
}

fn progress_of(status: &Status, id: NodeId) -> Option<MemberProgress> {
    let peer = status.peers.iter().find(|peer| peer.id == id)?;
    Some(MemberProgress {
        match_index: peer.match_index,
        behind: status.last_index.saturating_sub(peer.match_index),
        is_recovering: peer.is_recovering,
    })
}

/// Refuses a description that no node could use, or the name of another member. Two members may
/// have one address for a while, as when they exchange theirs.
fn check_description(
    change: &MembersChange,
    configuration: &Configuration,
) -> Result<(), Rejection> {
    let refused = |text: String| Err(Rejection::Invalid(text));
    let (id, info) = match change {
        MembersChange::Add { id, info, .. } | MembersChange::Describe { id, info } => (id, info),
        MembersChange::Configure { settings } => {
            return settings.check().or_else(|invalid| refused(invalid.to_string()));
        }
        _ => return Ok(()),
    };
    if let Err(invalid) = info.check() {
        return refused(invalid.to_string());
    }
    let is_full = configuration.member_count() >= NODES_CEILING;
    if is_full && matches!(change, MembersChange::Add { .. }) && !configuration.is_member(*id) {
        return refused(format!("the cluster has {NODES_CEILING} members, and takes no more"));
    }
    for (other, member) in configuration.members.iter().filter(|(other, _)| *other != id) {
        let theirs = MemberInfo::decode(&member.context);
        if !info.name.is_empty() && theirs.name == info.name {
            return refused(format!("node {other} has the name {:?} already", info.name));
        }
    }
    Ok(())
}

fn change_of(change: MembersChange, configuration: &Configuration) -> Change {
    match change {
        MembersChange::Add { id, info, wants_vote } => {
            let member = Member { incarnation: 0, wants_vote, context: info.encode() };
            Change::Add { id, member }
        }
        MembersChange::Promote { id } => Change::Promote { id },
        MembersChange::Demote { id } => Change::Demote { id },
        MembersChange::Remove { id } => Change::Remove { id },
        MembersChange::Replace { old, new } => Change::Replace { old, new },
        MembersChange::Bind { id, incarnation } => Change::Bind { id, incarnation },
        MembersChange::Describe { id, info } => Change::SetContext { id, context: info.encode() },
        MembersChange::Configure { settings } => {
            let record = ClusterRecord::decode(&configuration.context);
            Change::SetClusterContext { context: ClusterRecord { settings, ..record }.encode() }
        }
    }
}
