//! Orders of operators: to show and to change the members, and to move leadership.

use std::sync::Arc;

use raft_core::consensus::{Change, Overrides};
use raft_core::driver::Status;
use raft_core::types::{Configuration, Index, Member, NodeId};
use tokio::time::timeout;

use super::peers::FAREWELL;
use crate::members::{ClusterReport, MemberInfo, MemberProgress, MembersChange, MembersOrder};
use crate::protocol::version::{Feature, has};
use crate::protocol::{Rejection, Reply};
use crate::server::outbox::Outbox;
use crate::server::requests::rejection;
use crate::server::shared::ServerShared;

impl ServerShared {
    /// The members as this node knows them.
    pub(in crate::server) fn cluster_report(&self) -> ClusterReport {
        let members = self.node.watch_members().borrow().clone();
        let mut report = ClusterReport::of(&members.configuration);
        report.index = members.position.index;
        report.is_committed = members.is_committed;
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
        let leadership = *self.node.watch().borrow();
        outbox.push(
            id,
            match leadership.is_leader {
                true => Reply::Cluster(Box::new(self.cluster_report())),
                false => Reply::Rejected(Rejection::NotLeader { leader_id: leadership.leader }),
            },
        );
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
                Err(rejection) => Reply::Rejected(rejection),
            };
            outbox.push(id, reply);
        });
    }

    pub(super) async fn ordered(&self, order: MembersOrder) -> Result<ClusterReport, Rejection> {
        let in_force = self.cluster_version();
        if !has(in_force, Feature::Members) {
            let needed = Feature::Members.since();
            return Err(Rejection::Invalid(format!(
                "members change from cluster version {needed} on, in force is {in_force}: see \
                 `kv upgrade status`"
            )));
        }
        let seen = self.node.watch_members().borrow().clone();
        check_description(&order.change, &seen.configuration)?;
        check_expected(order.expected, seen.position.index)?;
        let change = change_of(order.change);
        let mut overrides = Overrides::default();
        overrides.less_redundancy = order.less_redundancy;
        overrides.live = order.live;
        if order.dry_run {
            let planned = self.node.plan_members(change, overrides).await.map_err(rejection)?;
            let planned = planned.unwrap_or_else(|| (*seen.configuration).clone());
            let mut report = ClusterReport::of(&planned);
            (report.index, report.is_committed) = (seen.position.index, true);
            return Ok(self.complete(report));
        }
        let expected = order.expected.map(|_| (*seen.configuration).clone());
        let position =
            self.node.change_members(change, expected, overrides).await.map_err(rejection)?;
        // The configuration is appended, and shows within the same turn of the node's loop.
        let mut members = self.node.watch_members();
        let shows = members.wait_for(|members| members.position.index >= position.index);
        let _ = timeout(FAREWELL, shows).await;
        Ok(self.cluster_report())
    }

    /// Orders this node to hand leadership over, if it leads and the other is a voter.
    pub(in crate::server) fn hand_over(&self, to: Option<NodeId>, id: u64, outbox: &Arc<Outbox>) {
        let leadership = *self.node.watch().borrow();
        let members = self.node.watch_members().borrow().clone();
        let reply = match to {
            _ if !leadership.is_leader => {
                Reply::Rejected(Rejection::NotLeader { leader_id: leadership.leader })
            }
            Some(to) if !members.configuration.voters.contains(&to) => {
                Reply::Rejected(Rejection::Invalid(format!(
                    "node {to} is no voter; the voters are {:?}",
                    members.configuration.voters
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

/// Refuses a description that no node could use, or that another member has.
fn check_description(
    change: &MembersChange,
    configuration: &Configuration,
) -> Result<(), Rejection> {
    let (MembersChange::Add { id, info, .. } | MembersChange::Describe { id, info }) = change
    else {
        return Ok(());
    };
    let refused = |text: String| Err(Rejection::Invalid(text));
    if let Err(invalid) = info.check() {
        return refused(invalid.to_string());
    }
    for (other, member) in configuration.members.iter().filter(|(other, _)| *other != id) {
        let theirs = MemberInfo::decode(&member.context);
        if !info.name.is_empty() && theirs.name == info.name {
            return refused(format!("node {other} has the name {:?} already", info.name));
        }
        let same = theirs.address.eq_ignore_ascii_case(&info.address);
        if !info.address.is_empty() && same {
            return refused(format!("node {other} has the address {:?} already", info.address));
        }
    }
    Ok(())
}

fn check_expected(expected: Option<Index>, index: Index) -> Result<(), Rejection> {
    match expected {
        Some(expected) if expected != index => Err(Rejection::Invalid(
            "the members have changed since they were read; read them again".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn change_of(change: MembersChange) -> Change {
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
    }
}
