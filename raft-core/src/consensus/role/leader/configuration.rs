//! Entries by which a leader changes what all members have agreed on. Such an entry is in force
//! when it is appended, and features wait until it is committed.

use super::Leader;
use crate::consensus::node_state::NodeState;
use crate::consensus::progress::Progress;
use crate::error::Rejected;
use crate::types::{Configuration, Entry, NodeId, Payload, Position};

pub(super) fn append(node: &mut NodeState, configuration: Configuration) -> Position {
    let position = Position::new(node.term, node.log.last_index() + 1);
    node.log.append([Entry {
        index: position.index,
        term: position.term,
        payload: Payload::Configuration(Box::new(configuration)),
    }]);
    position
}

impl Leader {
    /// Appends, as the first leader of a cluster, the entry which says that the cluster exists, and
    /// the newest version that all its members support.
    pub(super) fn found(node: &mut NodeState) {
        if node.configuration().founded {
            return;
        }
        let latest = node.configuration().clone();
        let cluster_version = node.founding_version().max(latest.cluster_version);
        append(node, Configuration { founded: true, cluster_version, ..latest });
    }

    pub(in crate::consensus) fn raise_cluster_version(
        &self,
        node: &mut NodeState,
        version: u32,
    ) -> Result<Position, Rejected> {
        let refuse = |reason: String| Err(Rejected::Refused(reason));
        if !node.log.configuration_is_committed() {
            return Err(Rejected::Busy("another change of the configuration is not committed yet"));
        }
        let latest = node.configuration().clone();
        if version <= latest.cluster_version {
            return refuse(format!("the cluster uses version {} already", latest.cluster_version));
        }
        if version > node.config.version_max {
            return refuse(format!(
                "the leader's program knows versions up to {}",
                node.config.version_max
            ));
        }
        let is_behind = |(id, progress): &(&NodeId, &Progress)| {
            node.configuration().is_member(**id) && progress.version_max < version
        };
        let behind = self.progress.iter().find(is_behind);
        if let Some((id, progress)) = behind {
            return refuse(match progress.version_max {
                0 => format!("node {id} has not said which versions its program knows: start it"),
                known => format!("the program of node {id} knows versions up to {known}"),
            });
        }
        Ok(append(node, Configuration { cluster_version: version, ..latest }))
    }
}
