//! Each fault does what it says, and nothing else.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::types::{Entry, MessageBody, Payload, Position};

const MS: Duration = Duration::from_millis(1);

/// Records the messages of one node, with the time since the start of the test.
struct Ear {
    node: NodeId,
    started: Instant,
    heard: Mutex<Vec<(Duration, NodeId, u64)>>,
    unreachable: Mutex<Vec<NodeId>>,
    streams: Mutex<Vec<Box<dyn BulkStream>>>,
    changed: Notify,
    /// Responds to each message at once, with its number plus one, up to this number.
    echo_through: u64,
    transport: std::sync::Weak<ChannelTransport>,
}

impl Inbound for Ear {
    fn on_message(&self, from: NodeId, message: Message) {
        let number = number_of(&message);
        self.heard.lock().unwrap().push((self.started.elapsed(), from, number));
        if number < self.echo_through {
            self.transport.upgrade().unwrap().send(from, numbered(number + 1));
        }
        self.changed.notify_one();
    }

    fn on_bulk(&self, _from: NodeId, stream: Box<dyn BulkStream>) {
        self.streams.lock().unwrap().push(stream);
    }

    fn on_unreachable(&self, peer: NodeId) {
        self.unreachable.lock().unwrap().push(peer);
    }
}

impl Ear {
    fn numbers(&self) -> Vec<u64> {
        self.heard.lock().unwrap().iter().map(|(_, _, number)| *number).collect()
    }

    fn is_silent(&self) -> bool {
        self.heard.lock().unwrap().is_empty()
    }

    async fn until_heard(&self, number: u64) {
        while !self.numbers().contains(&number) {
            self.changed.notified().await;
        }
    }
}

fn numbered(round: u64) -> Message {
    Message::new(1, MessageBody::Heartbeat { round, commit_index: 0 })
}

fn logged(number: u64, size_bytes: usize) -> Message {
    let payload = Payload::Command(Bytes::from(vec![0; size_bytes]));
    let entries = vec![Entry { index: number, term: 1, payload }];
    Message::new(
        1,
        MessageBody::AppendEntries { previous: Position::ZERO, entries, commit_index: number },
    )
}

fn number_of(message: &Message) -> u64 {
    match &message.body {
        MessageBody::Heartbeat { round, .. } => *round,
        MessageBody::AppendEntries { commit_index, .. } => *commit_index,
        MessageBody::HeartbeatResponse { round, .. } => *round,
        other => panic!("not sent: {other:?}"),
    }
}

fn join(network: &ChannelNetwork, node: NodeId, echo_through: u64) -> Host {
    let transport = network.transport(node);
    let ear = Arc::new(Ear {
        node,
        started: Instant::now(),
        heard: Mutex::default(),
        unreachable: Mutex::default(),
        streams: Mutex::default(),
        changed: Notify::new(),
        echo_through,
        transport: Arc::downgrade(&transport),
    });
    transport.start(Arc::clone(&ear) as Arc<dyn Inbound>);
    Host { transport, ear }
}

struct Host {
    transport: Arc<ChannelTransport>,
    ear: Arc<Ear>,
}

impl Host {
    fn send(&self, to: &Host, number: u64) {
        self.transport.send(to.ear.node, numbered(number));
    }
}

fn hosts<const N: usize>(network: &ChannelNetwork) -> [Host; N] {
    std::array::from_fn(|place| join(network, 1 + place as NodeId, 0))
}

/// Waits until all messages under way have arrived: longer than any delay in these tests.
async fn settle() {
    tokio::time::sleep(10_000 * MS).await;
}

#[tokio::test(start_paused = true)]
async fn without_faults_a_message_is_there_when_send_returns() {
    let network = ChannelNetwork::new(1);
    let [one, two] = hosts(&network);
    for number in 0..100 {
        one.send(&two, number);
    }
    assert_eq!(two.ear.numbers(), (0..100).collect::<Vec<_>>());
    let stats = network.link_stats(1, 2, Class::Control);
    assert_eq!((stats.sent, stats.delivered, stats.sent_bytes), (100, 100, 6_400));
    assert_eq!(network.stats(), stats);
}

#[tokio::test(start_paused = true)]
async fn nodes_that_answer_at_once_do_not_recurse() {
    let network = ChannelNetwork::new(1);
    let one = join(&network, 1, 200_000);
    let two = join(&network, 2, 200_000);
    one.send(&two, 1);
    two.ear.until_heard(199_999).await;
    one.ear.until_heard(200_000).await;
    assert_eq!(one.ear.numbers(), (1..=100_000).map(|n| 2 * n).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn shows_what_is_sent_and_what_arrives() {
    let network = ChannelNetwork::new(1);
    let [one, two, three] = hosts(&network);
    network.set_faults(1, 2, LinkFaults::none().delaying(MS, MS).duplicating(1.0));
    network.partition_link(1, 3);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let shown = Arc::clone(&seen);
    network.listen(move |from, to, traffic| {
        let what = match traffic {
            Traffic::Sent(message) => format!("sent {}", number_of(message)),
            Traffic::Delivered(message) => format!("delivered {}", number_of(message)),
            Traffic::Frame(frame) => format!("{} bytes", frame.len()),
        };
        shown.lock().unwrap().push(format!("{from} to {to}: {what}"));
    });
    two.send(&one, 1);
    one.send(&two, 2);
    one.send(&three, 3);
    settle().await;
    let mut stream = one.transport.open_bulk(2).await.unwrap();
    stream.send(Bytes::from_static(b"frame")).await.unwrap();
    let expected = [
        "2 to 1: sent 1",
        "2 to 1: delivered 1",
        "1 to 2: sent 2",
        "1 to 3: sent 3",
        "1 to 2: delivered 2",
        "1 to 2: delivered 2",
        "1 to 2: 5 bytes",
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn loses_and_repeats_about_as_often_as_asked() {
    let network = ChannelNetwork::new(7);
    let [one, two] = hosts(&network);
    network.set_faults(1, 2, LinkFaults::none().losing(0.2).duplicating(0.1));
    for number in 0..10_000 {
        one.send(&two, number);
        two.send(&one, number);
    }
    settle().await;
    let stats = network.link_stats(1, 2, Class::Control);
    assert!((1_800..2_200).contains(&stats.lost), "{stats:?}");
    assert!((700..900).contains(&stats.duplicated), "{stats:?}");
    assert_eq!(stats.sent + stats.duplicated, stats.delivered + stats.lost, "{stats:?}");
    assert_eq!(two.ear.numbers().len() as u64, stats.delivered);
    assert_eq!(one.ear.numbers(), (0..10_000).collect::<Vec<_>>(), "the way back is clean");
}

#[tokio::test(start_paused = true)]
async fn delays_exactly_and_in_order() {
    let network = ChannelNetwork::new(7);
    let [one, two] = hosts(&network);
    network.set_faults(1, 2, LinkFaults::none().delaying(7 * MS, 7 * MS));
    one.send(&two, 1);
    tokio::time::sleep(2 * MS).await;
    one.send(&two, 2);
    two.ear.until_heard(2).await;
    assert_eq!(*two.ear.heard.lock().unwrap(), [(7 * MS, 1, 1), (9 * MS, 1, 2)]);

    network.set_faults(1, 2, LinkFaults::none().delaying(MS, 20 * MS));
    for number in 3..500 {
        one.send(&two, number);
    }
    // A message sent after the fault is gone does not overtake those under way.
    network.unset_faults(1, 2);
    one.send(&two, 500);
    assert_eq!(two.ear.numbers().len(), 2);
    two.ear.until_heard(500).await;
    assert_eq!(two.ear.numbers(), (1..=500).collect::<Vec<_>>());
    assert!(two.ear.started.elapsed() <= 29 * MS);
    one.send(&two, 501);
    assert_eq!(two.ear.numbers().last(), Some(&501), "at once again");
}

#[tokio::test(start_paused = true)]
async fn reorders_only_what_is_held_up() {
    let network = ChannelNetwork::new(3);
    let [one, two] = hosts(&network);
    network.set_default_faults(LinkFaults::none().reordering(0.1, 50 * MS));
    for number in 0..1_000 {
        one.send(&two, number);
        tokio::time::sleep(MS).await;
    }
    settle().await;
    let numbers = two.ear.numbers();
    let late = numbers.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!((40..150).contains(&late), "{late} messages were overtaken");
    let mut sorted = numbers;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..1_000).collect::<Vec<_>>(), "each once");
}

/// Messages that are no responses are not held up, and no response is held up for less or more than
/// asked.
#[tokio::test(start_paused = true)]
async fn late_answers_are_late_and_nothing_else_is() {
    let network = ChannelNetwork::new(1);
    let [one, two] = hosts(&network);
    let faults = LinkFaults::none().answering_late(0.5, 200 * MS, 2_000 * MS);
    network.set_default_faults(faults);
    let answered = Arc::new(Mutex::new(Vec::new()));
    let shown = Arc::clone(&answered);
    network.listen(move |_, _, traffic| {
        if let Traffic::Delivered(Message {
            term,
            body: MessageBody::HeartbeatResponse { .. },
            ..
        }) = traffic
        {
            shown.lock().unwrap().push((*term, Instant::now()));
        }
    });
    let sent = Instant::now();
    for number in 0..400 {
        one.send(&two, number);
        two.transport.send(
            1,
            Message::new(number, MessageBody::HeartbeatResponse { round: 0, version_max: 0 }),
        );
    }
    assert_eq!(two.ear.numbers(), (0..400).collect::<Vec<_>>(), "at once, in order");
    settle().await;
    let answered = std::mem::take(&mut *answered.lock().unwrap());
    let late: Vec<_> = answered.iter().map(|(_, at)| *at - sent).filter(|d| !d.is_zero()).collect();
    assert!((160..240).contains(&late.len()), "{} of 400 were late", late.len());
    assert!(late.iter().all(|delay| (200 * MS..2_001 * MS).contains(delay)), "{late:?}");
    let half = late.iter().filter(|delay| **delay < 1_100 * MS).count();
    assert!(half * 10 > late.len() * 6, "{half} of {} take less than the mean", late.len());
    assert!(!answered.is_sorted_by_key(|(number, _)| *number), "old ones after newer ones");
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_one_way_silent_and_takes_what_is_under_way() {
    let network = ChannelNetwork::new(1);
    let [one, two] = hosts(&network);
    network.set_default_faults(LinkFaults::none().delaying(5 * MS, 5 * MS));
    one.send(&two, 1);
    two.send(&one, 1);
    network.partition_link(1, 2);
    one.send(&two, 2);
    two.send(&one, 2);
    settle().await;
    assert!(two.ear.is_silent());
    assert_eq!(one.ear.numbers(), [1, 2]);
    assert_eq!(network.link_stats(1, 2, Class::Control).lost, 2);
    assert!(one.transport.reachability(2).is_err() && two.transport.reachability(1).is_err());
    assert!(one.transport.open_bulk(2).await.is_err());
    assert!(one.ear.unreachable.lock().unwrap().is_empty());
    network.heal_link(1, 2);
    one.send(&two, 3);
    two.ear.until_heard(3).await;
    assert_eq!(one.transport.reachability(2), Ok(()));
}

/// Sends a message between all pairs of nodes. Returns the pairs, sender first, whose message
/// arrived.
async fn heard_pairs(hosts: &[Host]) -> Vec<(NodeId, NodeId)> {
    for host in hosts {
        host.ear.heard.lock().unwrap().clear();
    }
    for from in hosts {
        for to in hosts.iter().filter(|to| to.ear.node != from.ear.node) {
            from.send(to, 0);
        }
    }
    settle().await;
    let mut pairs = Vec::new();
    for to in hosts {
        pairs.extend(to.ear.heard.lock().unwrap().iter().map(|(_, from, _)| (*from, to.ear.node)));
    }
    pairs.sort_unstable();
    pairs
}

#[tokio::test(start_paused = true)]
async fn partitions_isolates_and_heals() {
    let network = ChannelNetwork::new(1);
    let hosts: [Host; 5] = hosts(&network);
    let all = heard_pairs(&hosts).await;
    assert_eq!(all.len(), 20);

    network.partition(&[&[1, 2], &[3, 4, 5]]);
    let inside = |(a, b): &(NodeId, NodeId)| (*a <= 2) == (*b <= 2);
    let expected: Vec<_> = all.iter().copied().filter(inside).collect();
    assert_eq!(heard_pairs(&hosts).await, expected);

    network.heal();
    assert_eq!(heard_pairs(&hosts).await, all);

    network.partition(&[&[1, 2], &[4, 5]]);
    let bridged = |(a, b): &(NodeId, NodeId)| *a == 3 || *b == 3 || (*a < 3) == (*b < 3);
    let expected: Vec<_> = all.iter().copied().filter(bridged).collect();
    assert_eq!(heard_pairs(&hosts).await, expected, "node 3 is a bridge");

    network.heal();
    network.isolate(4);
    let without = |(a, b): &(NodeId, NodeId)| *a != 4 && *b != 4;
    let expected: Vec<_> = all.iter().copied().filter(without).collect();
    assert_eq!(heard_pairs(&hosts).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_drops_and_counts() {
    const SIZE_BYTES: u64 = 1 << 20;
    let network = ChannelNetwork::new(1);
    let [one, two] = hosts(&network);
    network.set_default_faults(LinkFaults::none().delaying(5 * MS, 5 * MS));
    for number in 0..100 {
        one.transport.send(2, logged(number, SIZE_BYTES as usize));
    }
    one.send(&two, 1_000);
    settle().await;
    let stats = network.link_stats(1, 2, Class::Log);
    assert_eq!(stats.delivered, LOG_MAILBOX_BYTES_MAX / (SIZE_BYTES + 96));
    assert_eq!(stats.dropped_full, 100 - stats.delivered);
    assert_eq!(network.link_stats(1, 2, Class::Control).delivered, 1, "a mailbox of its own");
    assert_eq!(two.ear.numbers()[0], 1_000, "control is delivered before log");

    let larger = usize::try_from(LOG_MAILBOX_BYTES_MAX).unwrap() + 1;
    one.transport.send(2, logged(2_000, larger));
    two.ear.until_heard(2_000).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_transport_replaces_the_old_one() {
    let network = ChannelNetwork::new(1);
    let [one, two, three] = hosts(&network);
    network.partition_link(2, 3);
    network.set_default_faults(LinkFaults::none().delaying(5 * MS, 5 * MS));
    one.send(&two, 1);
    let (mut near, kept) = (one.transport.open_bulk(2).await.unwrap(), one.transport.clone());
    near.send(Bytes::from_static(b"frame")).await.unwrap();
    let again = join(&network, 2, 0);
    assert_eq!(*one.ear.unreachable.lock().unwrap(), [2]);
    assert!(three.ear.unreachable.lock().unwrap().is_empty(), "cut off, so it cannot know");
    assert!(near.receive().await.is_err());
    two.send(&one, 2);
    two.transport.close().await;
    drop(two);
    kept.send(2, numbered(3));
    again.ear.until_heard(3).await;
    assert_eq!(again.ear.numbers(), [3], "1 was under way to the old one");
    again.send(&one, 4);
    one.ear.until_heard(4).await;
    assert_eq!(one.ear.numbers(), [4], "the old one does not speak any more");
    assert_eq!(one.ear.unreachable.lock().unwrap().len(), 1, "heard once");
}

/// The node may have come back with another disk, for which the messages of its earlier incarnation
/// do not speak.
#[tokio::test(start_paused = true)]
async fn nothing_of_an_earlier_life_arrives_in_a_later_one() {
    let network = ChannelNetwork::new(7);
    let [one, two] = hosts(&network);
    network.set_default_faults(LinkFaults::none().delaying(10 * MS, 10 * MS));
    two.send(&one, 1);
    two.transport.close().await;
    tokio::time::sleep(5 * MS).await;
    let again = join(&network, 2, 0);
    one.send(&again, 2);
    again.send(&one, 3);
    one.ear.until_heard(3).await;
    again.ear.until_heard(2).await;
    assert_eq!((one.ear.numbers(), again.ear.numbers()), (vec![3], vec![2]));
}

#[tokio::test(start_paused = true)]
async fn bulk_frames_take_their_delay_and_break_by_a_cut() {
    let network = ChannelNetwork::new(1);
    let [one, two] = hosts(&network);
    network.set_default_faults(LinkFaults::none().losing(0.9).delaying(9 * MS, 9 * MS));
    let mut near = one.transport.open_bulk(2).await.unwrap();
    let mut far = two.ear.streams.lock().unwrap().pop().unwrap();
    near.send(Bytes::from_static(b"frame")).await.unwrap();
    assert_eq!(far.receive().await.unwrap().unwrap(), "frame");
    assert_eq!(two.ear.started.elapsed(), 9 * MS);
    network.partition_link(2, 1);
    assert!(far.receive().await.is_err());
    assert!(near.send(Bytes::from_static(b"frame")).await.is_err());
    assert!(near.finish().await.is_err());
    network.heal();
    assert!(far.receive().await.is_err(), "a stream that broke stays broken");
    assert!(one.transport.open_bulk(2).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn sending_waits_for_room_in_the_buffer() {
    let network = ChannelNetwork::new(1);
    let [one, two] = hosts(&network);
    let mut near = one.transport.open_bulk(2).await.unwrap();
    let mut far = two.ear.streams.lock().unwrap().pop().unwrap();
    let frame = Bytes::from(vec![1; bulk::BULK_BUFFER_BYTES_MAX / 2]);
    near.send(frame.clone()).await.unwrap();
    near.send(frame.clone()).await.unwrap();
    let third = tokio::time::timeout(1_000 * MS, near.send(frame.clone())).await;
    assert!(third.is_err(), "no room");
    let (sent, received) = tokio::join!(near.send(frame.clone()), far.receive());
    assert_eq!((sent, received), (Ok(()), Ok(Some(frame))));
}

/// Returns all messages that three nodes receive on a bad network, with the times.
async fn trace(seed: u64) -> Vec<Vec<(Duration, NodeId, u64)>> {
    let network = ChannelNetwork::new(seed);
    let hosts: [Host; 3] = hosts(&network);
    let faults = LinkFaults::none().losing(0.1).duplicating(0.1).delaying(MS, 9 * MS);
    network.set_default_faults(faults.reordering(0.1, 30 * MS));
    for number in 0..300 {
        for from in &hosts {
            for to in &hosts {
                from.send(to, number);
            }
        }
        if number % 10 == 0 {
            tokio::time::sleep(3 * MS).await;
        }
        if number == 150 {
            network.partition_link(1, 2);
        }
    }
    settle().await;
    hosts.iter().map(|host| host.ear.heard.lock().unwrap().clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn equal_seeds_give_equal_traces() {
    let mut traces = Vec::new();
    for seed in 0..4 {
        let first = trace(seed).await;
        assert!(first == trace(seed).await, "seed {seed} gave two traces");
        assert!(!traces.contains(&first), "seed {seed} gave another seed's trace");
        traces.push(first);
    }
}
