//! Entries by which a leader changes what all members have agreed on. They do not change the
//! members; such an entry is in force when it is appended, and features wait until it is committed.

use super::Leader;
use crate::consensus::common::Common;
use crate::error::Rejected;
use crate::types::{Configuration, Entry, Payload, Position};

fn append(common: &mut Common, configuration: Configuration) -> Position {
    let position = Position::new(common.term, common.log.last_index() + 1);
    common.log.append([Entry {
        index: position.index,
        term: position.term,
        payload: Payload::Configuration(Box::new(configuration)),
    }]);
    position
}

impl Leader {
    /// Appends, as the first leader of a cluster, the entry which says that the cluster exists, and the
    /// newest version that all its members support.
    pub(super) fn found(common: &mut Common) {
        if common.configuration().founded {
            return;
        }
        let latest = common.configuration().clone();
        let cluster_version = common.founding_version().max(latest.cluster_version);
        append(common, Configuration { founded: true, cluster_version, ..latest });
    }

    pub(in crate::consensus) fn raise_cluster_version(
        &self,
        common: &mut Common,
        version: u32,
    ) -> Result<Position, Rejected> {
        let refuse = |reason: String| Err(Rejected::Refused(reason));
        if !common.log.configuration_is_committed() {
            return Err(Rejected::Busy("another change of the configuration is not committed yet"));
        }
        let latest = common.configuration().clone();
        if version <= latest.cluster_version {
            return refuse(format!("the cluster uses version {} already", latest.cluster_version));
        }
        if version > common.config.version_max {
            return refuse(format!(
                "the leader's program knows versions up to {}",
                common.config.version_max
            ));
        }
        let behind = self.progress.iter().find(|(_, progress)| progress.version_max < version);
        if let Some((id, progress)) = behind {
            return refuse(match progress.version_max {
                0 => format!("node {id} has not said which versions its program knows: start it"),
                known => format!("the program of node {id} knows versions up to {known}"),
            });
        }
        Ok(append(common, Configuration { cluster_version: version, ..latest }))
    }
}
