//! The limits and times of one node, checked once.

use std::time::Duration;

use crate::types::NodeId;

/// Limits and times of the core. Each limit states what happens when it is reached.
///
/// ```
/// use std::time::Duration;
/// use raft_core::consensus::Config;
///
/// let mut config = Config::new(1, 42);
/// config.election_timeout = Duration::from_secs(1);
/// config.heartbeat_interval = Duration::from_millis(900);
/// let error = config.validate().unwrap_err();
/// assert!(error.to_string().contains("at least three times heartbeat_interval"));
/// ```
#[derive(Clone, Debug, Hash)]
#[non_exhaustive]
pub struct Config {
    /// This node; not 0.
    pub id: NodeId,
    /// The minimal election timeout `t`. A follower without a message of a leader campaigns after a
    /// time drawn from `[t, 2t)`. A leader without responses of a quorum for `t` steps down. A
    /// voter that received a message of its leader within `t` refuses candidates. A candidate that
    /// is refused a vote tries again after `heartbeat_interval` and a random part of `t` (with
    /// `pre_vote`).
    pub election_timeout: Duration,
    /// The interval between heartbeats. At most a third of `election_timeout`.
    pub heartbeat_interval: Duration,
    /// Bytes of entries in one append; a single larger entry travels alone.
    pub append_bytes_max: u64,
    /// Appends in flight to one peer; beyond, entries gather for the next one.
    pub inflight_count_max: usize,
    /// Bytes of entries in flight to one peer, exceeded by at most one append; beyond, entries
    /// gather.
    pub inflight_bytes_max: u64,
    /// Bytes of entries not yet committed; beyond, proposals are rejected `Busy`.
    pub uncommitted_bytes_max: u64,
    /// Bytes of entries kept since the last compaction; beyond, proposals are rejected `Busy`, and
    /// a follower takes no more of its leader's entries. `u64::MAX` for a log that is never
    /// compacted.
    pub log_bytes_max: u64,
    /// Bytes of entries handed out and not yet reported applied; beyond, the rest waits.
    pub apply_bytes_max: u64,
    /// Batches handed to storage and not yet reported durable; beyond, writes gather for the next
    /// one. Batches that wait while another is being written are written together.
    pub persists_in_flight_max: usize,
    /// Reads that wait for a quorum; beyond, they are rejected `Busy`.
    pub reads_waiting_max: usize,
    /// A batch outstanding for this long makes a leader step down: heartbeats must not outlive the
    /// ability to append.
    pub disk_patience: Duration,
    /// A leader whose commit index or state machine owes progress and makes none for this long
    /// steps down: heartbeats must not outlive the ability to commit and to apply.
    pub stall_patience: Duration,
    /// A leader hands over if the slowest twentieth of its writes took at least this long in the
    /// last seconds, and four times as long as on its two fastest followers: clients wait for the
    /// leader's disk. At most once a minute. `Duration::MAX`: never.
    pub slow_disk: Duration,
    /// A learner that is to become a voter does so once it has kept up with the log for this long.
    pub promotion_delay: Duration,
    /// Identifies this node's disk: drawn when the disk was initialised, and kept on it; the same
    /// that the transport tells its peers (`Raft::on_connected`). 0 if there is no such number:
    /// then a node on an empty disk that is added waits for all voters before it is counted, and a
    /// lost disk that comes back is not recognised.
    pub incarnation: u64,
    /// The oldest cluster version that this program supports. It refuses to start on the log of a
    /// founded cluster that uses an older one.
    pub version_min: u32,
    /// The newest cluster version that this program supports. It refuses to start on a log of a
    /// newer one.
    pub version_max: u32,
    /// Ask for pre-votes before campaigning, so that a node that was partitioned does not disturb
    /// the others (9.6).
    pub pre_vote: bool,
    /// Step down without a quorum, and refuse candidates while a leader is observed (6.2, 4.2.3).
    pub check_quorum: bool,
    /// The seed of all randomness. Draw it from the operating system at each start: the number
    /// under which a node recovers, and the numbers of its read attempts, must not repeat (C2).
    pub seed: u64,
}

/// Settings that cannot work, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl Config {
    /// Defaults for a local network: a dead leader is replaced in about half a second.
    pub fn new(id: NodeId, seed: u64) -> Self {
        let election_timeout = Duration::from_millis(300);
        Self {
            id,
            election_timeout,
            heartbeat_interval: Duration::from_millis(60),
            append_bytes_max: 1 << 20,
            inflight_count_max: 256,
            inflight_bytes_max: 16 << 20,
            uncommitted_bytes_max: 64 << 20,
            log_bytes_max: 1 << 30,
            apply_bytes_max: 4 << 20,
            persists_in_flight_max: 8,
            reads_waiting_max: 65_536,
            disk_patience: 4 * election_timeout,
            stall_patience: 16 * election_timeout,
            slow_disk: Duration::from_millis(20),
            promotion_delay: Duration::from_secs(10),
            incarnation: 0,
            version_min: 0,
            version_max: 1,
            pre_vote: true,
            check_quorum: true,
            seed,
        }
    }

    /// Checks that the settings do not contradict each other.
    ///
    /// # Errors
    /// Names the first setting that contradicts itself or another one.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let require = |holds: bool, what: &str| match holds {
            true => Ok(()),
            false => Err(ConfigError(what.to_owned())),
        };
        require(self.id != 0, "node id 0 is reserved; number nodes from 1")?;
        require(
            self.heartbeat_interval >= Duration::from_millis(1),
            "heartbeat_interval must be at least 1 ms",
        )?;
        require(
            self.election_timeout >= 3 * self.heartbeat_interval,
            "election_timeout must be at least three times heartbeat_interval",
        )?;
        require(
            self.disk_patience >= self.election_timeout,
            "disk_patience must be at least election_timeout",
        )?;
        require(
            self.stall_patience >= self.disk_patience,
            "stall_patience must be at least disk_patience",
        )?;
        require(
            self.version_min <= self.version_max && self.version_max > 0,
            "version_min must not exceed version_max, which is at least 1",
        )?;
        require(self.uncommitted_bytes_max > 0, "uncommitted_bytes_max must be positive")?;
        require(self.append_bytes_max > 0, "append_bytes_max must be positive")?;
        require(self.inflight_count_max > 0, "inflight_count_max must be positive")?;
        require(
            self.inflight_bytes_max >= self.append_bytes_max,
            "inflight_bytes_max must be at least append_bytes_max",
        )?;
        require(
            self.log_bytes_max >= self.uncommitted_bytes_max,
            "log_bytes_max must be at least uncommitted_bytes_max",
        )?;
        require(self.apply_bytes_max > 0, "apply_bytes_max must be positive")?;
        require(self.persists_in_flight_max > 0, "persists_in_flight_max must be positive")?;
        require(self.reads_waiting_max > 0, "reads_waiting_max must be positive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contradiction_is_named() {
        type Change = fn(&mut Config);
        const CASES: [(&str, Change); 14] = [
            ("node id 0", |config| config.id = 0),
            ("at least 1 ms", |config| config.heartbeat_interval = Duration::from_micros(999)),
            ("three times", |config| {
                config.election_timeout = 3 * config.heartbeat_interval - Duration::from_nanos(1);
            }),
            ("disk_patience", |config| {
                config.disk_patience = config.election_timeout - Duration::from_nanos(1);
            }),
            ("stall_patience", |config| {
                config.stall_patience = config.disk_patience - Duration::from_nanos(1);
            }),
            ("version_min", |config| config.version_min = config.version_max + 1),
            // C24. Every proposal would be rejected as busy.
            ("uncommitted_bytes_max", |config| config.uncommitted_bytes_max = 0),
            ("append_bytes_max", |config| config.append_bytes_max = 0),
            ("inflight_count_max", |config| config.inflight_count_max = 0),
            ("inflight_bytes_max", |config| {
                config.inflight_bytes_max = config.append_bytes_max - 1
            }),
            ("log_bytes_max", |config| config.log_bytes_max = config.uncommitted_bytes_max - 1),
            ("apply_bytes_max", |config| config.apply_bytes_max = 0),
            ("persists_in_flight_max", |config| config.persists_in_flight_max = 0),
            ("reads_waiting_max", |config| config.reads_waiting_max = 0),
        ];
        for (named, change) in CASES {
            let mut config = Config::new(1, 1);
            change(&mut config);
            let error = config.validate().expect_err(named);
            assert!(error.to_string().contains(named), "{named}: {error}");
        }
    }

    /// The smallest values that are allowed.
    #[test]
    fn the_least_of_everything_is_fine() {
        let heartbeat_interval = Duration::from_millis(1);
        let config = Config {
            heartbeat_interval,
            election_timeout: 3 * heartbeat_interval,
            disk_patience: 3 * heartbeat_interval,
            stall_patience: 3 * heartbeat_interval,
            append_bytes_max: 1,
            inflight_count_max: 1,
            inflight_bytes_max: 1,
            uncommitted_bytes_max: 1,
            log_bytes_max: 1,
            apply_bytes_max: 1,
            persists_in_flight_max: 1,
            reads_waiting_max: 1,
            ..Config::new(1, 1)
        };
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(Config::new(7, 7).validate(), Ok(()));
    }
}
