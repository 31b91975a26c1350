//! Counts, so that a test can bound what a protocol sends.

use std::ops::AddAssign;

/// What became of messages. `sent + duplicated = delivered + lost + dropped_full`, and what is still
/// under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Messages handed to `send`, and what they are charged in bytes.
    pub sent: u64,
    pub sent_bytes: u64,
    /// Copies that a link made.
    pub duplicated: u64,
    /// Handed to the receiver.
    pub delivered: u64,
    pub delivered_bytes: u64,
    /// By chance, by a cut, or because nobody was there to receive.
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
