//! Plain data, shared by the core, the ports and the backends. Nothing here acts.

mod batch;
mod configuration;
mod entry;
mod hard_state;
mod ids;
mod message;
mod role_kind;
mod snapshot;
mod time;

pub use batch::{Batch, Loaded, PersistId, PublishSnapshot};
pub use configuration::{CONFIGURATION_BYTES_MAX, Configuration, Member};
pub use entry::{ENTRY_OVERHEAD_BYTES, Entry, Payload};
pub use hard_state::{HardState, Memory};
pub use ids::{INDEX_MAX, Index, NodeId, Position, TERM_MAX, Term};
pub use message::{Class, Message, MessageBody, ReadOutcome};
pub use role_kind::RoleKind;
pub use snapshot::{SnapshotContent, SnapshotMeta};
pub use time::Time;
