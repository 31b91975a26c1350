//! The description of a snapshot, without its bytes.

use serde::{Deserialize, Serialize};

use super::{Configuration, Index, Position};

/// Position of a snapshot, the state after applying everything through there, and the configuration
/// in force at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotMeta {
    /// The last position whose effect the snapshot contains.
    pub position: Position,
    /// The configuration in force there. Boxed, because batches, completions and messages that
    /// carry a snapshot's metadata are moved often.
    pub configuration: Box<Configuration>,
}

impl SnapshotMeta {
    /// The meta of a snapshot at `position`.
    pub fn new(position: Position, configuration: Configuration) -> Self {
        Self { position, configuration: Box::new(configuration) }
    }

    /// The index of its position.
    pub fn index(&self) -> Index {
        self.position.index
    }
}

/// Identifies the bytes of one finished snapshot: a transfer may resume only where size and
/// checksum are both equal.
///
/// A storage counts the bytes as they arrive:
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
    /// Number of bytes.
    pub size_bytes: u64,
    /// CRC32C over all bytes.
    pub checksum: u32,
}

impl SnapshotContent {
    /// Appends the next bytes. The default is the content of no bytes.
    pub fn append(&mut self, bytes: &[u8]) {
        self.size_bytes += bytes.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
    }
}
