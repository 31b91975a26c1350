//! Claims about messages: unchanged, in order, never waiting, bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::Net;
use super::recorder::{Heard, Host, append, heartbeat, number_of};
use crate::codec::ENTRY_BYTES_MAX;
use crate::types::{
    Class, Configuration, ENTRY_OVERHEAD_BYTES, Entry, INDEX_MAX, Message, MessageBody, NodeId,
    Payload, Position, ReadOutcome, TERM_MAX,
};

/// One message of each kind, with and without optional parts, and with extreme numbers.
fn one_of_each() -> Vec<Message> {
    let last = Position::new(TERM_MAX - 1, INDEX_MAX);
    let entries = vec![
        Entry { index: 5, term: 3, payload: Payload::Noop },
        Entry { index: 6, term: 3, payload: Payload::Command(Bytes::new()) },
        Entry { index: 7, term: 4, payload: Payload::Command(Bytes::from(vec![0xA5; 300_000])) },
        Entry {
            index: 8,
            term: 4,
            payload: Payload::Configuration(Box::new(Configuration::of_voters([1, 2, 300]))),
        },
    ];
    let previous = Position::new(2, 4);
    let bodies = [
        MessageBody::RequestPreVote { last },
        MessageBody::PreVoteResponse { granted: true },
        MessageBody::PreVoteResponse { granted: false },
        MessageBody::RequestVote { last, transfer: false },
        MessageBody::RequestVote { last: Position::ZERO, transfer: true },
        MessageBody::VoteResponse { granted: true },
        MessageBody::VoteResponse { granted: false },
        MessageBody::AppendEntries {
            previous: Position::ZERO,
            entries: Vec::new(),
            commit_index: 0,
        },
        MessageBody::AppendEntries { previous, entries, commit_index: 6 },
        MessageBody::AppendAccepted { match_index: INDEX_MAX },
        MessageBody::AppendRejected { previous_index: 9, hint: Position::new(2, 8) },
        MessageBody::Heartbeat { round: u64::MAX, commit_index: 3 },
        MessageBody::HeartbeatResponse { round: 17, version_max: 3 },
        MessageBody::ReadIndex { id: u64::MAX },
        MessageBody::ReadIndexResponse { id: 4, outcome: ReadOutcome::NotLeader },
        MessageBody::ReadIndexResponse { id: 4, outcome: ReadOutcome::Busy },
        MessageBody::ReadIndexResponse { id: 4, outcome: ReadOutcome::Confirmed(INDEX_MAX) },
        MessageBody::TimeoutNow { last: Position::new(3, 9) },
        MessageBody::Recovered { number: u64::MAX },
    ];
    let (heard, version_max) = (Some(u64::MAX), u32::MAX);
    let founding = [
        MessageBody::Founding { number: 1, heard: None, met: false, version_max: 2 },
        MessageBody::Founding { number: u64::MAX, heard, met: true, version_max },
    ];
    let messages = bodies.into_iter().map(|body| Message::new(TERM_MAX, body));
    let messages = messages.chain(founding.map(|body| Message::new(0, body)));
    let of_recovering = |message: Message| Message { recovering: Some(u64::MAX), ..message };
    messages.clone().chain(messages.map(of_recovering)).collect()
}

/// Messages arrive as they were sent.
pub async fn messages_of_all_kinds_arrive_unchanged(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    for (from, to) in [(&one, &other), (&other, &one)] {
        for message in one_of_each() {
            let send = || from.transport.send(to.id, message.clone());
            let sent = (from.id, message.clone());
            let what = format!("{sent:?} arrives");
            let arrived = |heard: &mut Heard| heard.messages.contains(&sent).then_some(());
            to.until_heard_from(&what, send, arrived).await;
            // Copies of a message sent before may come late; any other message was never sent.
            let known = one_of_each();
            for (sender, heard) in to.heard().messages.drain(..) {
                assert!(known.contains(&heard), "was never sent: {heard:?}");
                assert_eq!(sender, from.id);
            }
        }
    }
}

/// While a connection lasts, messages of a class arrive in the order in which they were sent.
pub async fn messages_of_a_class_stay_in_order(net: &impl Net) {
    const COUNT: usize = 1_000;
    let (one, other) = Host::pair(net).await;
    let next = AtomicU64::new(1);
    let send_some = || {
        for _ in 0..COUNT / 4 {
            let number = next.fetch_add(1, Ordering::Relaxed);
            one.transport.send(2, append(number, Bytes::from_static(b"in order")));
            one.transport.send(2, heartbeat(number));
        }
    };
    let count_of = |heard: &Heard, class| {
        heard.messages.iter().filter(|(_, message)| message.class() == class).count()
    };
    let enough = |heard: &mut Heard| {
        Class::ALL.iter().all(|class| count_of(heard, *class) >= COUNT).then_some(())
    };
    other.until_heard_from("a thousand messages of each class", send_some, enough).await;
    for class in Class::ALL {
        let heard = other.heard();
        let of_class = heard.messages.iter().filter(|(_, message)| message.class() == class);
        let numbers: Vec<u64> = of_class.map(|(_, message)| number_of(message)).collect();
        let overtaken = numbers.windows(2).find(|pair| pair[0] >= pair[1]);
        assert!(overtaken.is_none(), "{class:?} messages out of order: {overtaken:?}");
    }
}

/// A control message does not wait until the log messages sent before it have arrived: most of
/// those still outstanding arrive after it. The claim must hold in most rounds only, because on a
/// network with delays the control message may be slow itself.
pub async fn control_is_not_held_up_by_log(net: &impl Net) {
    const COMMAND_BYTES: usize = 64 << 10;
    /// Log messages that may be in buffers of an operating system, and so may arrive first.
    const FEW: u64 = 16;
    const ROUNDS: u64 = 5;
    let (one, other) = Host::pair(net).await;
    let budget_bytes = net.mailbox_bytes_max(Class::Log).min(16 << 20);
    let flood_count = budget_bytes / (COMMAND_BYTES as u64 + 128);
    let command = Bytes::from(vec![7; COMMAND_BYTES]);
    let count_logs = |messages: &[(NodeId, Message)]| {
        messages.iter().filter(|(_, message)| message.class() == Class::Log).count() as u64
    };
    let logs_heard = |heard: &Heard| count_logs(&heard.messages);
    let mut held_up = Vec::new();
    for round in 1..=ROUNDS {
        other.heard().messages.clear();
        for number in 1..=flood_count {
            one.transport.send(2, append(number, command.clone()));
        }
        let before = logs_heard(&other.heard());
        let send = || one.transport.send(2, heartbeat(round));
        // Judged by the order of arrival, so that it does not matter when this task runs.
        let arrived = |heard: &mut Heard| {
            let place = heard.messages.iter().position(|(_, said)| *said == heartbeat(round))?;
            Some(count_logs(&heard.messages[..place]))
        };
        let ahead = other.until_heard_from("control behind a flood", send, arrived).await - before;
        // Messages of a class arrive in order, so once this one has arrived, all others have
        // arrived or are lost.
        let send_last = || one.transport.send(2, append(flood_count + round, Bytes::new()));
        let is_last = |message: &Message| match &message.body {
            MessageBody::AppendEntries { commit_index, .. } => *commit_index == flood_count + round,
            _ => false,
        };
        let all = |heard: &mut Heard| {
            let last = heard.messages.iter().any(|(_, message)| is_last(message));
            last.then(|| logs_heard(heard))
        };
        let outstanding = other.until_heard_from("the flood ends", send_last, all).await - before;
        if ahead > FEW && ahead > outstanding / 2 {
            held_up.push((ahead, outstanding));
        }
    }
    assert!(
        held_up.len() as u64 <= ROUNDS / 2,
        "control waited for log messages (how many, of how many): {held_up:?}"
    );
}

/// A command whose bytes are counted for as long as they are held.
struct Held {
    bytes: Vec<u8>,
    held_bytes: Arc<AtomicU64>,
}

impl Held {
    fn command(size: usize, held_bytes: &Arc<AtomicU64>) -> Bytes {
        held_bytes.fetch_add(size as u64, Ordering::SeqCst);
        Bytes::from_owner(Held { bytes: vec![1; size], held_bytes: Arc::clone(held_bytes) })
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held_bytes.fetch_sub(self.bytes.len() as u64, Ordering::SeqCst);
    }
}

/// `send` to a node that does not run returns at once, and the bytes that are kept for it stay
/// within the mailbox. Once the node runs, messages pass in both directions.
pub async fn a_flood_to_nobody_neither_waits_nor_grows(net: &impl Net) {
    const COMMAND_BYTES: usize = 256 << 10;
    let one = Host::of(net, 1).await;
    let limit_bytes = net.mailbox_bytes_max(Class::Log);
    let held_bytes = Arc::new(AtomicU64::new(0));
    // One message may be on its way out of the mailbox, and one is just being sent.
    let most_bytes = limit_bytes + 2 * COMMAND_BYTES as u64;
    for number in 1..=(4 * limit_bytes / COMMAND_BYTES as u64 + 100) {
        one.transport.send(2, append(number, Held::command(COMMAND_BYTES, &held_bytes)));
        let held_bytes = held_bytes.load(Ordering::SeqCst);
        assert!(held_bytes <= most_bytes, "{held_bytes} bytes are held, {limit_bytes} allowed");
    }
    for round in 0..2 * net.mailbox_bytes_max(Class::Control) / heartbeat(0).size_bytes() {
        one.transport.send(2, heartbeat(round));
    }
    let other = Host::of(net, 2).await;
    one.meet(&other, 1).await;
}

/// S5. The largest entry that the transport names arrives (at most [`ENTRY_BYTES_MAX`]). A leader
/// sends an entry again and again until it is acknowledged; an entry that the transport always
/// drops would hold up all later ones.
pub async fn the_largest_entry_arrives(net: &impl Net) {
    let (one, other) = Host::pair(net).await;
    let size_bytes = one.transport.entry_bytes_max().min(ENTRY_BYTES_MAX);
    let command_bytes = usize::try_from(size_bytes - ENTRY_OVERHEAD_BYTES).expect("it fits memory");
    let message = append(1, Bytes::from(vec![0x5A; command_bytes]));
    let MessageBody::AppendEntries { entries, .. } = &message.body else {
        unreachable!("an append was made")
    };
    assert_eq!(entries[0].size_bytes(), size_bytes);
    let send = || one.transport.send(2, message.clone());
    let arrived = |heard: &mut Heard| {
        heard.messages.drain(..).any(|(_, heard)| heard == message).then_some(())
    };
    other.until_heard_from("the largest entry", send, arrived).await;
}
