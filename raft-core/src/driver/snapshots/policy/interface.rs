//! The values that pass between the policy and the event loop: a view of the core and the published
//! snapshot in, actions and verdicts out.

use crate::driver::snapshots::wire::OfferResponse;
use crate::types::{Index, NodeId};

/// The policy's view of the core and of the stored log.
pub(in crate::driver::snapshots) trait CoreView {
    /// Returns true if this node leads.
    fn leads(&self) -> bool;
    fn commit_index(&self) -> Index;
    fn last_applied(&self) -> Index;
    /// The log is covered through this index by the published snapshot, or by the durable machine.
    fn snapshot_index(&self) -> Index;
    /// Returns the index before the log's first entry.
    fn log_start_index(&self) -> Index;
    /// Returns true if at least half of the log's budget of bytes is used.
    fn log_is_half_full(&self) -> bool;
    /// Returns true while the machine has not yet restored the snapshot that replaced the log.
    fn is_restoring(&self) -> bool;
    /// Returns the smallest index such that the entries after it take at most `bytes`.
    fn index_leaving_bytes(&self, bytes: u64) -> Index;
    /// Returns the bytes of the log in storage.
    fn log_bytes(&self) -> u64;
    /// `None`: this node does not lead, or does not know the peer.
    fn peer(&self, id: NodeId) -> Option<PeerView>;
}

/// The core's view of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver::snapshots) struct PeerView {
    /// The peer's log agrees with the leader's through this index.
    pub(in crate::driver::snapshots) match_index: Index,
    /// True if the log no longer reaches back to what the peer needs next.
    pub(in crate::driver::snapshots) needs_snapshot: bool,
}

/// The snapshot that storage has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver) struct Published {
    pub(in crate::driver) index: Index,
    pub(in crate::driver) size_bytes: u64,
    /// False once the snapshot was found damaged, so that it cannot be sent to peers.
    pub(in crate::driver) is_readable: bool,
}

/// Work that the policy orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver::snapshots) enum Action {
    /// End the writing of this node's own copy at its next step.
    StopWriting,
    /// End the snapshot that is being received at its next step.
    StopReceiving,
    /// End the transfer to this peer at its next step.
    StopSending(NodeId),
    /// Drop the core's entries through the index, and report [`Policy::on_entries_dropped`].
    DropEntries(Index),
    /// Make the durable machine's state durable through what it has applied.
    Flush,
    /// Send the published snapshot to the peer.
    Send { peer: NodeId, failures_in_a_row: u32 },
    /// Withdraw the published snapshot.
    Withdraw,
    /// Ask the machine for a view.
    TakeView,
    /// Tell the operator that the peer does not catch up.
    WarnOfRounds { peer: NodeId, rounds: u32 },
}

/// The decision about a snapshot that a peer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver::snapshots) enum OfferVerdict {
    Admit,
    Refuse(OfferResponse),
    /// Refuse as busy, and stop the transfer under way, which this one is to replace.
    RefuseAndStopReceiving,
}
