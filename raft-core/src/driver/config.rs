//! The numbers that govern one node, checked once, when it starts.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::consensus::{Config, ConfigError};
use crate::types::NodeId;

/// The largest `max_raft_state_bytes`: a petabyte. Budgets that are multiples of it stay in range.
pub const MAX_RAFT_STATE_BYTES_CEILING: u64 = 1 << 50;

/// Settings of one node.
///
/// ```
/// use raft_core::driver::NodeConfig;
///
/// // Node 1 of a cluster of three. The seed is to be drawn anew at each start.
/// let mut config = NodeConfig::new(1, [1, 2, 3], 42);
/// config.max_raft_state_bytes = 64 << 20;
/// config.validate()?;
///
/// config.command_bytes_max = 0;
/// assert!(config.validate().unwrap_err().to_string().contains("command_bytes_max"));
/// # Ok::<(), raft_core::consensus::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeConfig {
    /// The core's own settings.
    pub raft: Config,
    /// The voters of a new cluster; empty for a node that joins a cluster. The first start stores
    /// them, and a later start must name the same ones, until the members are changed for the first
    /// time: from then on the log alone says who they are.
    pub voters: BTreeSet<NodeId>,
    /// The node snapshots and compacts once the persisted log exceeds this many bytes. 0: never. At
    /// most [`MAX_RAFT_STATE_BYTES_CEILING`].
    pub max_raft_state_bytes: u64,
    /// A larger command is rejected `TooLarge`.
    pub command_bytes_max: u64,
    /// Requests that are not yet answered. Beyond, a further one is rejected `Busy`; leadership
    /// transfers and requests for snapshots, which have no reply, are dropped.
    pub requests_in_flight_max: usize,
    /// A snapshot transfer that makes no progress for this long is given up and started again.
    pub snapshot_patience: Duration,
    /// A snapshot transfer slower than this, over any `snapshot_patience`, is given up and started
    /// again where it was, so that a slow sender does not keep a faster one out. 0: no limit.
    pub snapshot_bytes_per_second_min: u64,
    /// A linearizable query whose index this node has not applied for this long is rejected `Busy`:
    /// another node may be further.
    pub read_patience: Duration,
}

impl NodeConfig {
    /// Defaults: 128 MiB of log before a snapshot, commands up to 4 MiB, 65,536 requests in flight.
    /// `seed` is [`Config::seed`]: to be drawn anew at each start.
    pub fn new(id: NodeId, voters: impl IntoIterator<Item = NodeId>, seed: u64) -> Self {
        Self {
            raft: Config::new(id, seed),
            voters: voters.into_iter().collect(),
            max_raft_state_bytes: 128 << 20,
            command_bytes_max: 4 << 20,
            requests_in_flight_max: 65_536,
            snapshot_patience: Duration::from_secs(10),
            snapshot_bytes_per_second_min: 32 << 10,
            read_patience: Duration::from_secs(10),
        }
    }

    /// Checks that the settings can work.
    ///
    /// # Errors
    /// Names the first setting that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.raft.validate()?;
        let require = |holds: bool, what: &str| {
            if holds { Ok(()) } else { Err(ConfigError(what.to_owned())) }
        };
        require(!self.voters.contains(&0), "node id 0 is reserved; number voters from 1")?;
        require(
            self.max_raft_state_bytes <= MAX_RAFT_STATE_BYTES_CEILING,
            "max_raft_state_bytes must be at most 2^50; 0 means that the log is never compacted",
        )?;
        require(self.command_bytes_max > 0, "command_bytes_max must be positive")?;
        require(self.requests_in_flight_max > 0, "requests_in_flight_max must be positive")?;
        require(!self.snapshot_patience.is_zero(), "snapshot_patience must be positive")?;
        require(!self.read_patience.is_zero(), "read_patience must be positive")
    }

    /// Returns the core's settings. The log budget follows from `max_raft_state_bytes`: compaction
    /// needs room to lag, and a log that is never compacted must not have a limit.
    pub(super) fn fitted(&self) -> Config {
        assert!(self.max_raft_state_bytes <= MAX_RAFT_STATE_BYTES_CEILING, "validated");
        let mut raft = self.raft.clone();
        raft.log_bytes_max = match self.max_raft_state_bytes {
            0 => u64::MAX,
            max => raft.log_bytes_max.max(8 * max).max(raft.uncommitted_bytes_max),
        };
        assert!(raft.log_bytes_max >= raft.uncommitted_bytes_max, "the log holds what is accepted");
        raft
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C24.
    #[test]
    fn each_setting_that_cannot_work_is_named() {
        type Change = fn(&mut NodeConfig);
        const CASES: [(&str, Change); 8] = [
            ("node id 0", |config| config.raft.id = 0),
            ("number voters", |config| config.voters.extend([0])),
            ("max_raft_state_bytes", |config| {
                config.max_raft_state_bytes = MAX_RAFT_STATE_BYTES_CEILING + 1;
            }),
            ("max_raft_state_bytes", |config| config.max_raft_state_bytes = u64::MAX),
            ("command_bytes_max", |config| config.command_bytes_max = 0),
            ("requests_in_flight_max", |config| config.requests_in_flight_max = 0),
            ("snapshot_patience", |config| config.snapshot_patience = Duration::ZERO),
            ("read_patience", |config| config.read_patience = Duration::ZERO),
        ];
        for (named, change) in CASES {
            let mut config = NodeConfig::new(1, [1, 2, 3], 1);
            change(&mut config);
            let error = config.validate().expect_err(named);
            assert!(error.to_string().contains(named), "{named}: {error}");
        }
    }

    /// C24, S24. The budgets that follow from the largest settings do not wrap.
    #[test]
    fn the_largest_settings_are_fine() {
        let mut config = NodeConfig::new(1, [1], 1);
        config.max_raft_state_bytes = MAX_RAFT_STATE_BYTES_CEILING;
        config.command_bytes_max = u64::MAX;
        config.requests_in_flight_max = usize::MAX;
        config.snapshot_patience = Duration::MAX;
        config.read_patience = Duration::MAX;
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.fitted().log_bytes_max, 8 << 50);
        config.max_raft_state_bytes = 0;
        assert_eq!(config.fitted().log_bytes_max, u64::MAX);
    }
}
