//! Timeouts between nodes and clients, and the limits on sessions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{check_range, require};
use super::file::ConfigError;
use super::units::duration_text;

/// Largest `sessions.count_max`.
pub const SESSIONS_CEILING: u64 = 10_000_000;

/// Largest timeout of an idle connection.
pub(super) const IDLE_CEILING: Duration = Duration::from_secs(600);

pub(super) const ELECTION_CEILING: Duration = Duration::from_secs(24 * 3600);
const TTL_CEILING: Duration = Duration::from_secs(365 * 24 * 3600);

/// Timeouts between nodes, and between nodes and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// A leader sends a message to each peer at least this often.
    #[serde(with = "duration_text")]
    pub heartbeat: Duration,
    /// A node that receives nothing from a leader for this long, up to twice as long, campaigns.
    #[serde(with = "duration_text")]
    pub election: Duration,
    /// A connection between nodes without a sign of life for this long is given up.
    #[serde(with = "duration_text")]
    pub peer_idle: Duration,
    /// A node has this long to introduce itself on a new connection. The time doubles with each
    /// failure, up to 8 times as long.
    #[serde(with = "duration_text")]
    pub peer_hello: Duration,
    /// A client's connection without a sign of life for this long is given up. Clients show one
    /// every second.
    #[serde(with = "duration_text")]
    pub client_idle: Duration,
    /// A learner that wants to be a voter becomes one when it has been connected, and has kept up,
    /// for this long.
    #[serde(with = "duration_text")]
    pub stabilization: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(60),
            election: Duration::from_millis(300),
            peer_idle: Duration::from_secs(1),
            peer_hello: Duration::from_secs(1),
            client_idle: Duration::from_secs(5),
            stabilization: Duration::from_secs(10),
        }
    }
}

impl Timeouts {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Self { heartbeat, election, peer_idle, peer_hello, client_idle, stabilization } = *self;
        let least = Duration::from_millis(100);
        for (name, value, least) in [
            ("timeouts.peer_idle", peer_idle, 3 * least),
            ("timeouts.peer_hello", peer_hello, least),
            ("timeouts.client_idle", client_idle, 30 * least),
        ] {
            require((least..=IDLE_CEILING).contains(&value), || {
                format!("{name} is {value:?}: {least:?} to {IDLE_CEILING:?}")
            })?;
        }
        require(stabilization <= ELECTION_CEILING, || {
            format!("timeouts.stabilization is {stabilization:?}: at most a day")
        })?;
        require(election <= ELECTION_CEILING, || {
            format!("timeouts.election is {election:?}: at most a day")
        })?;
        require(!heartbeat.is_zero() && heartbeat <= election / 3, || {
            format!(
                "timeouts.election ({election:?}) must be at least three times timeouts.heartbeat \
                 ({heartbeat:?}), or one lost packet deposes a leader"
            )
        })
    }
}

/// Limits on sessions, by which the cluster remembers clients for exactly-once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionLimits {
    /// A session that writes nothing for this long expires.
    #[serde(with = "duration_text")]
    pub ttl: Duration,
    /// Sessions at once; beyond, the session that has been idle for the longest is evicted.
    pub count_max: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(3600), count_max: 100_000 }
    }
}

impl SessionLimits {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let ttl = self.ttl;
        require((Duration::from_secs(1)..=TTL_CEILING).contains(&ttl), || {
            format!("sessions.ttl is {ttl:?}: 1s to 365 days")
        })?;
        check_range("sessions.count_max", self.count_max, 1, SESSIONS_CEILING)
    }
}
