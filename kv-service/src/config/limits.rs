//! Limits on clients: sizes, connections, and memory that all clients share.

use serde::{Deserialize, Serialize};

use super::check::check_range;
use super::file::ConfigError;
use super::units::ByteSize;

/// Room in a command beside its key and value.
const COMMAND_OVERHEAD_BYTES: u64 = 4 << 10;

/// The largest command that a configuration allows fits into a message between nodes.
const _: () = assert!(
    2 * VALUE_BYTES_CEILING
        + crate::state::KEY_BYTES_LIMIT as u64
        + COMMAND_OVERHEAD_BYTES
        + raft_core::types::ENTRY_OVERHEAD_BYTES
        <= raft_core::codec::ENTRY_BYTES_MAX
);

/// Largest budget in bytes, and largest `max_raft_state`. Sums and small multiples of it do not
/// overflow a u64.
pub const SIZE_CEILING: ByteSize = ByteSize(1 << 40);

/// Largest `key_bytes_max`.
pub const KEY_BYTES_CEILING: ByteSize = ByteSize(64 << 10);

/// Largest `value_bytes_max`, in bytes.
pub const VALUE_BYTES_CEILING: u64 = 16 << 20;

/// Largest limit on client connections of a node.
pub const CONNECTIONS_CEILING: usize = 1 << 16;

/// Largest limit on unanswered requests of a node.
pub const REQUESTS_CEILING: usize = 1 << 20;

/// Limits on clients. A request beyond a limit is refused before it reaches the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest key, in bytes; at most [`KEY_BYTES_CEILING`].
    pub key_bytes_max: ByteSize,
    /// Longest value, in bytes; at most [`VALUE_BYTES_CEILING`].
    pub value_bytes_max: ByteSize,
    /// Client connections at once; further ones are closed with a reason.
    pub client_connections_max: usize,
    /// Client connections that one certificate may hold at once; further ones are closed with a
    /// reason.
    pub certificate_connections_max: usize,
    /// Client connections that one IPv4 address, or one IPv6 network of /64, may hold at once;
    /// further ones are closed with a reason.
    pub address_connections_max: usize,
    /// Requests of one connection that are not answered yet; the node reads no further ones
    /// meanwhile.
    pub connection_requests_max: usize,
    /// Requests of all connections that are not answered yet; further ones are answered `Busy`.
    pub requests_max: usize,
    /// Bytes of the requests larger than 32 KiB that are being received, over all connections.
    /// Further ones wait. A request that arrives at less than 32 KiB a second ends its connection.
    pub receive_bytes_max: ByteSize,
    /// Bytes of responses queued and not yet sent, over all connections, beyond 16 KiB for each.
    /// Further reads are answered `Busy`, and a client that takes less than 32 KiB a second loses
    /// its connection.
    pub answer_bytes_max: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: ByteSize(64 << 10),
            value_bytes_max: ByteSize(1 << 20),
            client_connections_max: 4096,
            certificate_connections_max: 1024,
            address_connections_max: 2048,
            connection_requests_max: 4096,
            requests_max: 65_536,
            receive_bytes_max: ByteSize(64 << 20),
            answer_bytes_max: ByteSize(128 << 20),
        }
    }
}

impl Limits {
    /// The largest command that the limits allow: a compare-and-swap carries two values.
    pub(crate) fn command_bytes_max(&self) -> u64 {
        2 * self.value_bytes_max.0 + self.key_bytes_max.0 + COMMAND_OVERHEAD_BYTES
    }

    /// The largest request that the limits allow: a scan carries two keys.
    pub(crate) fn request_bytes_max(&self) -> u64 {
        self.command_bytes_max() + self.key_bytes_max.0
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let byte = ByteSize(1);
        check_range("limits.key_bytes_max", self.key_bytes_max, byte, KEY_BYTES_CEILING)?;
        let value_ceiling = ByteSize(VALUE_BYTES_CEILING);
        check_range("limits.value_bytes_max", self.value_bytes_max, byte, value_ceiling)?;
        let response_bytes = ByteSize(2 * VALUE_BYTES_CEILING);
        check_range(
            "limits.answer_bytes_max",
            self.answer_bytes_max,
            response_bytes,
            SIZE_CEILING,
        )?;
        let request_bytes = ByteSize(self.request_bytes_max());
        check_range(
            "limits.receive_bytes_max",
            self.receive_bytes_max,
            request_bytes,
            SIZE_CEILING,
        )?;
        for (name, count, most) in [
            ("client_connections_max", self.client_connections_max, CONNECTIONS_CEILING),
            ("certificate_connections_max", self.certificate_connections_max, CONNECTIONS_CEILING),
            ("address_connections_max", self.address_connections_max, CONNECTIONS_CEILING),
            ("connection_requests_max", self.connection_requests_max, REQUESTS_CEILING),
            ("requests_max", self.requests_max, REQUESTS_CEILING),
        ] {
            check_range(&format!("limits.{name}"), count, 1, most)?;
        }
        Ok(())
    }
}
