//! The room for one peer's messages that wait for the event loop.

use crate::types::{Class, Message};

/// Bytes of one peer's messages that wait for the event loop, for each class. Beyond, further
/// messages are dropped.
const PEER_CONTROL_BYTES_MAX: u64 = 1 << 20;
const PEER_LOG_BYTES_MAX: u64 = 64 << 20;

/// Share of one peer in the queued inputs.
#[derive(Default)]
pub(super) struct PeerQueue {
    control_bytes: u64,
    log_bytes: u64,
    pub(super) unreachable: bool,
}

impl PeerQueue {
    /// Charges the message to its class. False: that class has no room.
    pub(super) fn charge(&mut self, message: &Message) -> bool {
        let (bytes, bytes_max) = match message.class() {
            Class::Control => (&mut self.control_bytes, PEER_CONTROL_BYTES_MAX),
            Class::Log => (&mut self.log_bytes, PEER_LOG_BYTES_MAX),
        };
        let has_room = *bytes < bytes_max;
        if has_room {
            *bytes += message.size_bytes();
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::{Entry, MessageBody, Payload, Position};

    /// C27. Queued messages of class `Log` do not keep heartbeats out.
    #[test]
    fn c27_messages_of_the_log_leave_room_for_control() {
        let message = |body| Message { term: 1, recovering: None, body };
        let payload = Payload::Command(Bytes::from(vec![0; 1 << 20]));
        let entries = vec![Entry { index: 1, term: 1, payload }];
        let append = message(MessageBody::AppendEntries {
            previous: Position::ZERO,
            entries,
            commit_index: 0,
        });
        let heartbeat = message(MessageBody::HeartbeatResponse { round: 1, version_max: 1 });
        let mut queue = PeerQueue::default();
        let appends_count = (0..1_000).take_while(|_| queue.charge(&append)).count();
        assert_eq!(appends_count as u64, PEER_LOG_BYTES_MAX >> 20);
        let controls_count = (0..100_000).take_while(|_| queue.charge(&heartbeat)).count();
        assert!((1_000..99_999).contains(&controls_count), "{controls_count}");
    }
}
