//! What is known of a snapshot beside its bytes.

use serde::{Deserialize, Serialize};

use super::{Configuration, Index, Position};

/// The state after applying everything through `position`, and who was a member then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMeta {
    pub position: Position,
    /// In a box: batches, completions and messages that carry a snapshot's metadata are moved often.
    pub configuration: Box<Configuration>,
}

impl SnapshotMeta {
    pub fn new(position: Position, configuration: Configuration) -> Self {
        Self { position, configuration: Box::new(configuration) }
    }

    pub fn index(&self) -> Index {
        self.position.index
    }
}

/// Names the bytes of one finished snapshot: a transfer may resume only where both are equal.
///
/// A storage counts it up while the bytes come:
///
/// ```
/// # use raft_core::types::SnapshotContent;
/// let mut content = SnapshotContent::default();
/// content.append(b"1234");
/// content.append(b"56789");
/// assert_eq!(content, SnapshotContent { size_bytes: 9, checksum: 0xe306_9283 });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotContent {
    pub size_bytes: u64,
    /// CRC32C over all bytes.
    pub checksum: u32,
}

impl SnapshotContent {
    /// Adds the next bytes. The default is the content of no bytes.
    pub fn append(&mut self, bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
    }
}
