//! The cluster's record of this node: its description and its disk. The node has it changed when it
//! differs, and looks it up when no leader reaches the node, which may then have been replaced.

use std::time::Duration;

use raft_core::driver::Members;
use raft_core::types::{Configuration, Memory};
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::Client;
use crate::config::ServerConfig;
use crate::members::{ClusterReport, MemberInfo, MemberReport, MembersChange, MembersOrder};
use crate::protocol::version::{Feature, has};
use crate::protocol::{Rejection, Reply};
use crate::server::shared::ServerShared;

/// Pause before an attempt that failed is made again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The pause doubles up to this while no leader reaches the node: it may be an old copy of a node,
/// and must not argue with the other one about the record.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Short, because the leader and its address may change while the node tries.
const DEADLINE: Duration = Duration::from_secs(3);

/// The outcome of an attempt to look at the record, or to change it.
pub(super) enum Looked {
    /// The record is as this node wants it, or will be looked at again.
    Fine,
    /// The record could not be looked at or changed.
    Failed(Failure),
    /// Another disk of this node is recorded.
    Replaced,
}

/// Why the record could not be looked at or changed.
pub(super) struct Failure {
    why: String,
    /// An operator has to act, and nothing else tells of it.
    is_news: bool,
}

/// When this node looks at its record, and what it has told the operator of it.
pub(super) struct Record {
    next_at: Instant,
    pause: Duration,
    complaint: String,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, is_news: false }
    }
}

impl Record {
    pub(super) fn new() -> Self {
        Self { next_at: Instant::now(), pause: AGAIN_AFTER, complaint: String::new() }
    }

    /// Waits until the record is to be looked at or changed, and does so.
    pub(super) async fn look(
        &self,
        shared: &ServerShared,
        client: &Client,
        seen: &Members,
    ) -> Looked {
        let has_addresses = shared.membership.book.is_some();
        // Nodes within one process find each other by id, and need no description.
        let describes_itself = has_addresses && !shared.config.fixed_addresses;
        let incarnation = shared.membership.incarnation;
        let configuration = &*seen.configuration;
        match announcement(configuration, &shared.config, describes_itself, incarnation) {
            Some(change) => {
                sleep_until(self.next_at).await;
                if !may_announce(shared, seen) {
                    return Looked::Fine;
                }
                announce(shared, client, seen, MembersOrder::new(change)).await
            }
            None if has_addresses && configuration.founded => {
                sleep_until(self.next_at).await;
                if not_led(shared).await.is_err() {
                    return Looked::Fine;
                }
                match ask(shared, client).await {
                    Ok(report) if names_another_disk(&report, seen, shared) => Looked::Replaced,
                    // Nothing was to be changed, and the node is without a leader, which it says.
                    _ => Looked::Fine,
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Plans the next look after one that ended. Tells the operator why the record could not be
    /// changed, once for each reason.
    pub(super) fn looked(
        &mut self,
        shared: &ServerShared,
        seen: &Members,
        failure: Option<Failure>,
    ) {
        let is_led = is_led(shared);
        self.pause = if is_led { AGAIN_AFTER } else { (2 * self.pause).min(PAUSE_MAX) };
        self.next_at = Instant::now() + self.pause;
        let Some(Failure { why, is_news }) = failure else { return };
        if why == self.complaint {
            return;
        }
        // Without a leader that is no news, except for a node that joins: it may not have been
        // added.
        if is_led || is_news || seen.configuration.is_empty() {
            tracing::warn!("the cluster's record of this node is not changed yet: {why}");
        } else {
            tracing::debug!("the cluster's record of this node is not changed yet: {why}");
        }
        self.complaint = why;
    }
}

/// This node's description: what its file says, and what is recorded where the file says nothing.
fn described(config: &ServerConfig, recorded: &MemberInfo) -> MemberInfo {
    let MemberInfo { name, address, zone, .. } = recorded.clone();
    let name = Some(name).filter(|name| !name.is_empty());
    MemberInfo {
        name: config.name.clone().or(name).unwrap_or_else(|| format!("node{}", config.node_id)),
        address: config.advertised_address().unwrap_or(address),
        zone: config.zone.clone().unwrap_or(zone),
        ..recorded.clone()
    }
}

/// The change that this node orders about itself: its disk, or its description, is to be recorded.
fn announcement(
    configuration: &Configuration,
    config: &ServerConfig,
    describes_itself: bool,
    incarnation: u64,
) -> Option<MembersChange> {
    let id = config.node_id;
    if configuration.is_empty() && config.join {
        // The leader may not know where this node is, and this node does not know who leads.
        let info = described(config, &MemberInfo::default());
        return describes_itself.then_some(MembersChange::Describe { id, info });
    }
    // Before the cluster exists, there is no leader to record anything.
    if !configuration.founded || !configuration.is_member(id) {
        return None;
    }
    let record = configuration.members.get(&id);
    let recorded = record.map_or(0, |member| member.incarnation);
    if configuration.learners.contains(&id) && recorded == 0 && incarnation != 0 {
        return Some(MembersChange::Bind { id, incarnation });
    }
    let recorded = record.map(|member| MemberInfo::decode(&member.context)).unwrap_or_default();
    let info = described(config, &recorded);
    (describes_itself && info != recorded).then_some(MembersChange::Describe { id, info })
}

/// Returns true if an announcement makes sense now. A node that no leader reaches announces itself
/// whatever it believes, because the leader may not know where it is; the leader decides.
fn may_announce(shared: &ServerShared, seen: &Members) -> bool {
    !is_led(shared) || (seen.is_committed && has(shared.cluster_version(), Feature::Members))
}

fn is_led(shared: &ServerShared) -> bool {
    shared.node.watch().borrow().leader.is_some()
}

/// Waits until no leader reaches this node.
///
/// # Errors
/// The node is stopping.
async fn not_led(shared: &ServerShared) -> Result<(), ()> {
    let mut leadership = shared.node.watch();
    leadership.wait_for(|now| now.leader.is_none()).await.map(drop).map_err(drop)
}

/// Orders a change of this node's own record: here if this node leads, otherwise over the network.
async fn announce(
    shared: &ServerShared,
    client: &Client,
    seen: &Members,
    order: MembersOrder,
) -> Looked {
    if shared.node.watch().borrow().is_leader {
        return match shared.ordered(order).await {
            // Another node's record is being changed; the next attempt comes soon.
            Ok(_) | Err(Reply::Rejected(Rejection::Busy(_))) => Looked::Fine,
            Err(Reply::Rejected(rejection)) => Looked::Failed(rejection.to_string().into()),
            Err(Reply::Unknown(why)) => Looked::Failed(why.into()),
            Err(other) => Looked::Failed(format!("answered out of place: {other:?}").into()),
        };
    }
    if !is_led(shared) {
        let report = match ask(shared, client).await {
            Ok(report) if names_another_disk(&report, seen, shared) => return Looked::Replaced,
            Ok(report) => report,
            Err(failure) => return Looked::Failed(failure),
        };
        if let Some(address) = second_one(shared, client, seen, &report).await {
            let own_id = shared.config.node_id;
            let why = format!(
                "a node {own_id} runs already, at {address}. Stop that one, or add this one as \
                 another member"
            );
            return Looked::Failed(Failure { why, is_news: true });
        }
    }
    match client.with_deadline(DEADLINE).cluster().order(order).await {
        Ok(_) => Looked::Fine,
        Err(error) => Looked::Failed(error.to_string().into()),
    }
}

/// Asks the leader for the members, and makes sure that it is of this node's cluster.
async fn ask(shared: &ServerShared, client: &Client) -> Result<ClusterReport, Failure> {
    let asked = client.with_deadline(DEADLINE).cluster().members().await;
    let report = asked.map_err(|error| Failure::from(error.to_string()))?;
    match (report.uid, shared.membership.uid()) {
        (Some(theirs), Some(own)) if theirs != own => {
            let why = format!(
                "the nodes at the addresses of this node's file are of another cluster {}: its uid \
                 is {theirs}, and that of this node's cluster {own}. Correct the addresses, or \
                 invite the node anew",
                shared.config.cluster_id
            );
            Err(Failure { why, is_news: true })
        }
        _ => Ok(report),
    }
}

/// Returns true if the members, later than this node has seen them, have another disk of it on
/// record: the one that runs there has taken its place. A node that recovers is not on record yet.
fn names_another_disk(report: &ClusterReport, seen: &Members, shared: &ServerShared) -> bool {
    let is_later = report.is_committed && report.index > seen.position.index;
    let is_whole = shared.node.status().memory == Memory::Intact;
    let own = shared.membership.incarnation;
    let recorded = report.member(shared.config.node_id).map_or(0, |member| member.incarnation);
    is_later && is_whole && own != 0 && recorded != 0 && recorded != own
}

/// The address of a process that runs with this node's id elsewhere: a copy of it, or a second
/// machine with the same invitation. The leader reaches it, or it proves itself to a node that is
/// new here: the leader may not have found one again that has just been restarted.
async fn second_one(
    shared: &ServerShared,
    client: &Client,
    seen: &Members,
    report: &ClusterReport,
) -> Option<String> {
    let own_id = shared.config.node_id;
    let MemberReport { info, error, .. } = report.member(own_id)?;
    let address = Some(&info.address).filter(|address| !address.is_empty())?;
    if Some(address) == shared.config.advertised_address().as_ref() {
        return None;
    }
    let runs = match error {
        None => true,
        Some(_) if seen.configuration.is_empty() => {
            timeout(DEADLINE, client.finds(own_id, address)).await.unwrap_or(false)
        }
        Some(_) => false,
    };
    runs.then(|| address.clone())
}
