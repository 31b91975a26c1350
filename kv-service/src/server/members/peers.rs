//! The peers and their addresses, for the transport and for clients.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use raft_core::driver::Members;
use raft_core::types::{Configuration, NodeId};
use tokio::time::Instant;

use crate::config::ServerConfig;
use crate::members::{MemberAddress, MemberInfo, MemberList};

/// A peer that is no longer a member stays connected for so long, so that it learns of its removal.
const FAREWELL: Duration = Duration::from_secs(2);

/// The node's view of its peers, from which the transport's book is made.
#[derive(Default)]
pub(super) struct Peers {
    /// The latest configuration that is known committed.
    committed: Option<Arc<Configuration>>,
    /// Peers that are no longer members, and when they are let go.
    leaving: BTreeMap<NodeId, Instant>,
    /// The peers as they were last returned.
    told: BTreeMap<NodeId, Vec<String>>,
}

impl Peers {
    /// The addresses of each peer, and the id below which a node that is missing was removed.
    /// `None` while the operators' files say who the members are.
    pub(super) fn update(
        &mut self,
        members: &Members,
        config: &ServerConfig,
        now: Instant,
    ) -> Option<(BTreeMap<NodeId, Vec<String>>, NodeId)> {
        if members.is_committed {
            self.committed = Some(Arc::clone(&members.configuration));
        }
        let latest = &members.configuration;
        let has_records = |of: &Configuration| of.next_id != 0 || !of.members.is_empty();
        if !has_records(latest) && !self.committed.as_deref().is_some_and(has_records) {
            return None;
        }
        let files = config.addresses();
        let mut peers = BTreeMap::new();
        // After a restart it is not known what is committed, until a leader says so: then the nodes
        // of the file may still be members.
        let founders = Configuration::of_voters(files.keys().copied());
        let committed = self.committed.as_deref().unwrap_or(&founders);
        let next_id = self.committed.as_ref().map_or(0, |committed| committed.next_id);
        for configuration in [&**latest, committed] {
            for id in configuration.members() {
                if id == config.node_id {
                    continue;
                }
                let of_file = files.get(&id).cloned();
                let is_fixed = config.fixed_addresses && of_file.is_some();
                let recorded = (!is_fixed).then(|| address_of(configuration, id)).flatten();
                let addresses: &mut Vec<String> = peers.entry(id).or_default();
                for address in [recorded, of_file].into_iter().flatten() {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
            }
        }
        let (told, leaving) = (std::mem::take(&mut self.told), &mut self.leaving);
        leaving.retain(|id, _| told.contains_key(id) && !peers.contains_key(id));
        for (id, addresses) in told {
            if let Entry::Vacant(place) = peers.entry(id)
                && *leaving.entry(id).or_insert(now + FAREWELL) > now
            {
                place.insert(addresses);
            }
        }
        self.told.clone_from(&peers);
        Some((peers, next_id))
    }

    pub(super) fn next_farewell(&self) -> Option<Instant> {
        self.leaving.values().min().copied()
    }
}

fn address_of(configuration: &Configuration, id: NodeId) -> Option<String> {
    let member = configuration.members.get(&id)?;
    Some(MemberInfo::decode(&member.context).address).filter(|address| !address.is_empty())
}

/// The list for clients. A member without a recorded address has the one of the node's file, unless
/// that one is for this node alone.
pub(super) fn list(members: &Members, config: &ServerConfig) -> MemberList {
    let files = if config.fixed_addresses { BTreeMap::new() } else { config.addresses() };
    let configuration = &members.configuration;
    let address = |id: NodeId| {
        let recorded = address_of(configuration, id);
        recorded.or_else(|| files.get(&id).cloned()).unwrap_or_default()
    };
    MemberList {
        index: members.position.index,
        members: configuration
            .members()
            .into_iter()
            .map(|id| MemberAddress { id, address: address(id) })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use raft_core::types::{Member, Position};

    use super::*;

    fn committed(voters: &[NodeId], next_id: NodeId) -> Members {
        let mut configuration = Configuration::of_voters(voters.iter().copied());
        configuration.next_id = next_id;
        let mut members = Members::default();
        members.configuration = Arc::new(configuration);
        members.is_committed = true;
        members.position = Position { term: 1, index: next_id };
        members
    }

    fn at(members: &mut Members, id: NodeId, address: &str) {
        let info = MemberInfo { address: address.to_owned(), ..MemberInfo::default() };
        let member = Member { context: info.encode(), ..Member::default() };
        Arc::make_mut(&mut members.configuration).members.insert(id, member);
    }

    fn config() -> ServerConfig {
        ServerConfig::in_process(1, 1..=3)
    }

    #[test]
    fn the_files_decide_until_the_cluster_has_recorded_something() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let members = committed(&[1, 2, 3], 0);
        assert_eq!(peers.update(&members, &config(), now), None);
        assert_eq!(list(&members, &config()).members[1].address, "node-2:1");
    }

    /// A founder that restarts may have a configuration at the end of its log that is not known to
    /// be committed. It follows the log at once, and refuses no node.
    #[test]
    fn after_a_restart_the_log_and_the_file_both_count() {
        let mut members = committed(&[1, 4, 5], 6);
        members.is_committed = false;
        at(&mut members, 4, "four:1");
        let updated = Peers::default().update(&members, &config(), Instant::now());
        let (told, next_id) = updated.unwrap();
        assert_eq!(told.keys().copied().collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!((&told[&4][..], next_id), (&["four:1".to_owned()][..], 0));
    }

    #[test]
    fn recorded_addresses_come_before_those_of_the_file() {
        let mut members = committed(&[1, 2, 3], 0);
        at(&mut members, 2, "moved:1");
        let mut config = config();
        let told = |config: &ServerConfig| {
            let updated = Peers::default().update(&members, config, Instant::now());
            updated.unwrap().0
        };
        assert_eq!(told(&config)[&2], ["moved:1", "node-2:1"]);
        assert_eq!(told(&config)[&3], ["node-3:1"]);
        config.fixed_addresses = true;
        assert_eq!(told(&config)[&2], ["node-2:1"]);
        let told = list(&members, &config).members;
        assert_eq!((&told[1].address[..], &told[2].address[..]), ("moved:1", ""));
    }

    /// M-D6. A peer that was removed is let go, but not before it can have learned of it.
    #[test]
    fn a_removed_peer_is_let_go_after_a_while() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        let has = |told: Option<(BTreeMap<NodeId, Vec<String>>, NodeId)>, id| {
            told.unwrap().0.contains_key(&id)
        };
        peers.update(&committed(&[1, 2, 3], 4), &config(), start);
        let without = committed(&[1, 2], 5);
        assert!(has(peers.update(&without, &config(), start), 3));
        assert_eq!(peers.next_farewell(), Some(start + FAREWELL));
        assert!(has(peers.update(&without, &config(), start + FAREWELL / 2), 3));
        assert!(!has(peers.update(&without, &config(), start + FAREWELL), 3));
        assert!(!has(peers.update(&without, &config(), start + 2 * FAREWELL), 3));
        peers.update(&without, &config(), start + 3 * FAREWELL);
        assert_eq!(peers.next_farewell(), None);
    }

    /// M-D4. A removal that is not committed may still be undone, so it bans no node.
    #[test]
    fn a_removal_that_is_not_committed_changes_nothing() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        peers.update(&committed(&[1, 2, 3], 4), &config(), now);
        let mut removal = committed(&[1, 2], 5);
        removal.is_committed = false;
        let (told, next_id) = peers.update(&removal, &config(), now).unwrap();
        assert!(told.contains_key(&3) && next_id == 4);
        assert_eq!(peers.next_farewell(), None);
    }
}
