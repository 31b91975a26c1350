//! Counts, so that a test can bound what a protocol sends.

use std::ops::AddAssign;

/// Counts of messages. `sent + duplicated = delivered + lost + dropped_full`, plus the messages
/// still under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Messages handed to `send`.
    pub sent: u64,
    /// Bytes of these, as [`Message::size_bytes`](crate::types::Message::size_bytes) counts them.
    pub sent_bytes: u64,
    /// Copies that a link made.
    pub duplicated: u64,
    /// Messages handed to the receiver.
    pub delivered: u64,
    /// Bytes of these.
    pub delivered_bytes: u64,
    /// Lost by chance, by a partition, or because the receiver did not run.
    pub lost: u64,
    /// Did not fit into the mailbox.
    pub dropped_full: u64,
}

impl AddAssign for ChannelStats {
    fn add_assign(&mut self, other: Self) {
        let Self { sent, sent_bytes, duplicated, delivered, delivered_bytes, lost, dropped_full } =
            other;
        self.sent += sent;
        self.sent_bytes += sent_bytes;
        self.duplicated += duplicated;
        self.delivered += delivered;
        self.delivered_bytes += delivered_bytes;
        self.lost += lost;
        self.dropped_full += dropped_full;
    }
}
