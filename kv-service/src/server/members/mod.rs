//! Keeps the node in step with the members of its cluster, and carries out orders to change them.
//!
//! A task follows the replicated configuration. It tells the transport and the clients who the
//! members are, and the core which of them are rather not to lead. It announces this node's own
//! description when the recorded one differs, records the disk of a node that joins, and stops the
//! node for good once it was removed, or once another disk of it is recorded.

mod orders;
mod peers;
mod steering;

use std::collections::BTreeSet;
use std::time::Duration;

use raft_core::driver::Members;
use raft_core::types::{Configuration, Memory, NodeId};
use tokio::time::{Instant, sleep_until};

use self::peers::{Peers, list};
pub(in crate::server) use self::steering::steer;
use super::shared::ServerShared;
use crate::client::Client;
use crate::config::ServerConfig;
use crate::members::{ClusterReport, MemberInfo, MembersChange, MembersOrder};
use crate::protocol::version::{Feature, has};
use crate::protocol::{Rejection, Reply};

/// Pause before an announcement that failed is made again.
const ANNOUNCE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The pause doubles up to this while no leader reaches the node: it may be an old copy of a node,
/// and must not argue with the other one about the record.
const ANNOUNCE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Short, because the leader and its address may change while the node tries.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(3);

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

/// Returns true if the configuration shows that the node was removed.
fn removes(configuration: &Configuration, id: NodeId) -> bool {
    id < configuration.next_id && !configuration.is_empty() && !configuration.is_member(id)
}

/// The members that lead only if no other voter can: they are about to be stopped, or were given
/// priority 0.
fn avoided(configuration: &Configuration) -> BTreeSet<NodeId> {
    let infos = configuration.members.iter();
    let infos = infos.map(|(id, member)| (*id, MemberInfo::decode(&member.context)));
    let avoided = infos.filter(|(_, info)| info.avoids_leadership());
    avoided.map(|(id, _)| id).collect()
}

/// Returns true if the configuration records another data directory of this node.
fn replaces(configuration: &Configuration, id: NodeId, incarnation: u64) -> bool {
    let recorded = configuration.incarnation(id);
    recorded != 0 && incarnation != 0 && recorded != incarnation
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

/// Follows the members until the node must stop for good, which [`Membership::ended`] tells.
pub(in crate::server) async fn follow(shared: &ServerShared, client: &Client) {
    let (own_id, incarnation) = (shared.config.node_id, shared.membership.incarnation);
    let mut members = shared.node.watch_members();
    let mut peers = Peers::default();
    // Nodes within one process find each other by id, and need no description.
    let describes_itself = shared.membership.book.is_some() && !shared.config.fixed_addresses;
    let (mut announce_at, mut pause) = (Instant::now(), ANNOUNCE_AGAIN_AFTER);
    let mut complaint = String::new();
    loop {
        // Read first: a node that recovers remembers again only once its new disk is recorded.
        let memory = shared.node.status().memory;
        let seen = members.borrow_and_update().clone();
        let now = Instant::now();
        if let Some(book) = &shared.membership.book
            && let Some((peers, next_id)) = peers.update(&seen, &shared.config, now)
        {
            book.set_peers(&peers, next_id);
        }
        if seen.is_committed {
            shared.publish_members(list(&seen, &shared.config));
            shared.node.avoid_as_leaders(avoided(&seen.configuration));
            if removes(&seen.configuration, own_id) {
                return shared.membership.note_removal().await;
            }
            if memory == Memory::Intact && replaces(&seen.configuration, own_id, incarnation) {
                return shared.membership.note_replacement();
            }
        }
        let due = announcement(&seen.configuration, &shared.config, describes_itself, incarnation);
        let announced = async {
            let Some(change) = due else { return std::future::pending().await };
            sleep_until(announce_at).await;
            if !may_announce(shared, &seen) {
                return None;
            }
            announce(shared, client, MembersOrder::new(change)).await.err()
        };
        let farewell = async {
            match peers.next_farewell() {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = members.changed() => if changed.is_err() { return },
            failure = announced => {
                pause = if is_led(shared) { ANNOUNCE_AGAIN_AFTER } else { longer(pause) };
                announce_at = Instant::now() + pause;
                if let Some(why) = failure.filter(|why| *why != complaint) {
                    complain(shared, &seen, &why);
                    complaint = why;
                }
            }
            () = farewell => {}
            () = told_removed(shared) => {
                tracing::info!("the other members say that node {own_id} was removed");
                return shared.membership.note_removal().await;
            }
        }
    }
}

/// Returns true if an announcement makes sense now. A node that no leader reaches announces itself
/// whatever it believes, because the leader may not know where it is; the leader decides.
fn may_announce(shared: &ServerShared, seen: &Members) -> bool {
    !is_led(shared) || (seen.is_committed && has(shared.cluster_version(), Feature::Members))
}

fn is_led(shared: &ServerShared) -> bool {
    shared.node.watch().borrow().leader.is_some()
}

/// Tells the operator why the record is not changed. Without a leader that is no news, except for a
/// node that joins: it may not have been added.
fn complain(shared: &ServerShared, seen: &Members, why: &str) {
    if is_led(shared) || seen.configuration.is_empty() {
        tracing::warn!("the cluster's record of this node is not changed yet: {why}");
    } else {
        tracing::debug!("the cluster's record of this node is not changed yet: {why}");
    }
}

fn longer(pause: Duration) -> Duration {
    (2 * pause).min(ANNOUNCE_PAUSE_MAX)
}

/// Orders a change of this node's own record: here if this node leads, otherwise over the network.
async fn announce(
    shared: &ServerShared,
    client: &Client,
    order: MembersOrder,
) -> Result<(), String> {
    if shared.node.watch().borrow().is_leader {
        return match shared.ordered(order).await {
            // Another node's record is being changed; the next attempt comes soon.
            Ok(_) | Err(Reply::Rejected(Rejection::Busy(_))) => Ok(()),
            Err(Reply::Rejected(rejection)) => Err(rejection.to_string()),
            Err(Reply::Unknown(why)) => Err(why),
            Err(other) => Err(format!("answered out of place: {other:?}")),
        };
    }
    let cluster = client.with_deadline(ANNOUNCE_DEADLINE).cluster();
    if !is_led(shared) {
        let members = cluster.members().await.map_err(|error| error.to_string())?;
        is_no_second_one(&shared.config, &members)?;
    }
    cluster.order(order).await.map(drop).map_err(|error| error.to_string())
}

/// Refuses to announce a node that the leader does not reach, if the leader reaches one with its id
/// at another address: a copy, or a second machine with the same invitation.
fn is_no_second_one(config: &ServerConfig, members: &ClusterReport) -> Result<(), String> {
    let own_id = config.node_id;
    match members.member(own_id) {
        Some(other)
            if other.error.is_none()
                && Some(&other.info.address) != config.advertised_address().as_ref() =>
        {
            Err(format!(
                "a node {own_id} runs already, at {}. Stop that one, or add this one as another \
                 member",
                other.info.address
            ))
        }
        _ => Ok(()),
    }
}

/// Waits until the members refuse this node because it was removed while it was away.
async fn told_removed(shared: &ServerShared) {
    match &shared.membership.book {
        Some(book) => book.removed().await,
        None => std::future::pending().await,
    }
}
