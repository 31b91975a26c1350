//! What is known of a snapshot beside its bytes.

use serde::{Deserialize, Serialize};

use super::{Configuration, Index, Position};

/// The state after applying everything through `position`, and who was a member then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMeta {
    pub position: Position,
    pub configuration: Configuration,
}

impl SnapshotMeta {
    pub fn index(&self) -> Index {
        self.position.index
    }
}

/// Names the bytes of one finished snapshot: a transfer may resume only where both are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotContent {
    pub size_bytes: u64,
    /// CRC32C over all bytes.
    pub checksum: u32,
}
