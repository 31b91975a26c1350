//! One entry of the log.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Configuration, Index, Position, Term};

/// Bytes that an entry is charged beyond its payload wherever bytes are counted: its place in the
/// log in memory, the bookkeeping that shares its payload, and what a store keeps beside it. A
/// fixed number, so that every node counts alike.
pub const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// A new leader's first entry (3.6.2, 6.4). Committing it commits all entries before it, and so
    /// the leader learns the commit index. The state machine observes only its position.
    Noop,
    /// Opaque to Raft; for the state machine.
    Command(Bytes),
    /// A configuration, in force at every node from the moment it is appended (4.1). Boxed, because
    /// it is rare and large, and entries are moved all the time.
    Configuration(Box<Configuration>),
}

/// Index, term and payload. The payload is shared, so a clone is cheap.
///
/// ```
/// use raft_core::types::{ENTRY_OVERHEAD_BYTES, Entry, Payload, Position};
///
/// let entry = Entry { index: 7, term: 2, payload: Payload::Command("x = 1".into()) };
/// assert_eq!(entry.position(), Position::new(2, 7));
/// assert_eq!(entry.size_bytes(), ENTRY_OVERHEAD_BYTES + 5);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the log.
    pub index: Index,
    /// Term of the leader that appended it.
    pub term: Term,
    /// Its content.
    pub payload: Payload,
}

const _: () = assert!(size_of::<Entry>() <= 56, "entries are moved all the time");

impl Entry {
    /// Term and index.
    pub fn position(&self) -> Position {
        Position::new(self.term, self.index)
    }

    /// The bytes that this entry is charged in every budget: log size, append window, apply credit.
    pub fn size_bytes(&self) -> u64 {
        let payload_bytes = match &self.payload {
            Payload::Noop => 0,
            Payload::Command(command) => command.len() as u64,
            Payload::Configuration(configuration) => configuration.size_bytes(),
        };
        ENTRY_OVERHEAD_BYTES + payload_bytes
    }
}
