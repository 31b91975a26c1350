//! One entry of the log.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Configuration, Index, Position, Term};

/// What an entry is charged beyond its payload wherever bytes are counted: its place in the log in memory, what
/// shares its payload, and what a store keeps beside it. A fixed number, so that every node counts alike.
pub const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// A new leader's first entry (3.6.2, 6.4): it lets the leader commit, and so learn, what is
    /// committed. The state machine sees only its position.
    Noop,
    /// Opaque to Raft; for the state machine.
    Command(Bytes),
    /// In force at every node from the moment it is appended (4.1). In a box: it is rare and large, and
    /// entries are moved all the time.
    Configuration(Box<Configuration>),
}

/// Index, term and payload. The payload is shared, so a clone is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    pub index: Index,
    pub term: Term,
    pub payload: Payload,
}

const _: () = assert!(size_of::<Entry>() <= 56, "entries are moved all the time");

impl Entry {
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
