//! Members of the cluster: changes that a caller asks for, and the configuration in force.

use super::Raft;
use crate::consensus::membership::{Change, Overrides};
use crate::consensus::role::Role;
use crate::error::Rejected;
use crate::types::{Configuration, Position, Time};

/// The place of a configuration in the log, and whether it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigurationStage {
    /// The position of its entry, or the log's start if it came before. An entry that replaces
    /// another one at the same index has another term.
    pub position: Position,
    /// It is known committed.
    pub is_committed: bool,
}

impl Raft {
    /// Begins a change of the members; the leader carries it through, also a later leader. Returns
    /// the position of the configuration that begins it. If there is nothing left to do, as for a
    /// request that is repeated, that is the present one. `expected`: the configuration that the
    /// caller has seen; another one in force refuses the change.
    ///
    /// # Errors
    /// Nothing was appended: this node does not lead, another change is not committed yet, or the
    /// change is refused; the text says why, and what to do.
    pub fn change_members(
        &mut self,
        now: Time,
        change: &Change,
        expected: Option<&Configuration>,
        overrides: Overrides,
    ) -> Result<Position, Rejected> {
        match &mut self.role {
            Role::Leader(leader) => {
                leader.change_members(&mut self.node, now, change, expected, overrides)
            }
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Checks a change of the members as [`Raft::change_members`] would, and appends nothing.
    /// Returns the configuration that would begin the change; `None` if nothing is left to do.
    ///
    /// # Errors
    /// The errors of [`Raft::change_members`].
    pub fn plan_members(
        &self,
        now: Time,
        change: &Change,
        overrides: Overrides,
    ) -> Result<Option<Configuration>, Rejected> {
        match &self.role {
            Role::Leader(leader) => leader.plan_members(&self.node, now, change, overrides),
            Role::Follower(_) | Role::PreCandidate(_) | Role::Candidate(_) => {
                Err(Rejected::NotLeader { leader: self.leader() })
            }
        }
    }

    /// Returns the configuration in force: the latest one in the log, committed or not.
    pub fn configuration(&self) -> &Configuration {
        self.node.configuration()
    }

    /// Returns the place of the configuration in force. Another configuration has another place.
    pub fn configuration_stage(&self) -> ConfigurationStage {
        let log = &self.node.log;
        ConfigurationStage {
            position: log.configuration_position(),
            is_committed: log.configuration_is_committed(),
        }
    }

    /// Returns the latest configuration that is known committed.
    pub fn committed_configuration(&self) -> &Configuration {
        let log = &self.node.log;
        log.configuration_at(log.commit_index())
    }
}
