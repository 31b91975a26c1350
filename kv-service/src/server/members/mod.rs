//! Keeps the node in step with the members of its cluster, and carries out orders to change them.
//!
//! A task follows the replicated configuration. It tells the transport and the clients who the
//! members are, and the core which of them are rather not to lead. It announces this node's own
//! description when the recorded one differs, records the disk of a node that joins, and stops the
//! node for good once it was removed, or once another disk of it is recorded.

mod orders;
mod peers;
mod record;
mod steering;

use std::collections::BTreeSet;

use raft_core::types::{Configuration, Memory, NodeId};
use tokio::time::{Instant, sleep_until};

use self::peers::{Peers, list};
use self::record::{Looked, Record};
pub(in crate::server) use self::steering::steer;
use super::shared::ServerShared;
use crate::client::Client;
use crate::members::{ClusterRecord, MemberInfo};

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

/// Follows the members until the node must stop for good, which [`Membership::ended`] tells.
pub(in crate::server) async fn follow(shared: &ServerShared, client: &Client) {
    let (own_id, incarnation) = (shared.config.node_id, shared.membership.incarnation);
    let mut members = shared.node.watch_members();
    let mut peers = Peers::default();
    let mut record = Record::new();
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
            if let Some(uid) = ClusterRecord::decode(&seen.configuration.context).uid {
                shared.membership.note_uid(uid);
            }
            if removes(&seen.configuration, own_id) {
                return shared.membership.note_removal().await;
            }
            if memory == Memory::Intact && replaces(&seen.configuration, own_id, incarnation) {
                return shared.membership.note_replacement();
            }
        }
        let farewell = async {
            match peers.next_farewell() {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = members.changed() => if changed.is_err() { return },
            looked = record.look(shared, client, &seen) => match looked {
                Looked::Fine => record.looked(shared, &seen, None),
                Looked::Failed(failure) => record.looked(shared, &seen, Some(failure)),
                Looked::Replaced => return shared.membership.note_replacement(),
            },
            () = farewell => {}
            () = told_removed(shared) => {
                tracing::info!("the other members say that node {own_id} was removed");
                return shared.membership.note_removal().await;
            }
        }
    }
}

/// Waits until the members refuse this node because it was removed while it was away.
async fn told_removed(shared: &ServerShared) {
    match &shared.membership.book {
        Some(book) => book.removed().await,
        None => std::future::pending().await,
    }
}
