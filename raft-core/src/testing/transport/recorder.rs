//! A node of the suite: a transport, and a record of what it received.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Net, PATIENCE};
use crate::transport::{BulkStream, Inbound, Transport};
use crate::types::{Entry, Message, MessageBody, NodeId, Payload, Position, Term};

/// How often a message is sent again until it arrives.
pub(super) const REPEAT_INTERVAL: Duration = Duration::from_millis(50);

/// Messages of this term only make two nodes known to each other; no claim looks at them.
const INTRODUCTION_TERM: Term = 1;

/// Everything that a node received, in order of arrival. `messages` does not hold introductions.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) messages: Vec<(NodeId, Message)>,
    pub(super) unreachable: Vec<NodeId>,
    introduced: Vec<(NodeId, u64)>,
    bulk: Vec<(NodeId, Box<dyn BulkStream>)>,
}

#[derive(Default)]
struct Recorder {
    heard: Mutex<Heard>,
    changed: Notify,
}

impl Recorder {
    fn record(&self, note: impl FnOnce(&mut Heard)) {
        note(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }
}

impl Inbound for Recorder {
    fn on_message(&self, from: NodeId, message: Message) {
        self.record(|heard| match message.body {
            MessageBody::HeartbeatResponse { round, .. } if message.term == INTRODUCTION_TERM => {
                heard.introduced.push((from, round));
            }
            _ => heard.messages.push((from, message)),
        });
    }

    fn on_bulk(&self, from: NodeId, stream: Box<dyn BulkStream>) {
        self.record(|heard| heard.bulk.push((from, stream)));
    }

    fn on_unreachable(&self, peer: NodeId) {
        self.record(|heard| heard.unreachable.push(peer));
    }
}

pub(super) struct Host {
    pub(super) id: NodeId,
    pub(super) transport: Arc<dyn Transport>,
    recorder: Arc<Recorder>,
}

impl Host {
    pub(super) async fn of(net: &impl Net, id: NodeId) -> Self {
        Self::started(id, net.transport(id).await)
    }

    pub(super) fn started(id: NodeId, transport: Arc<dyn Transport>) -> Self {
        let recorder = Arc::new(Recorder::default());
        transport.start(Arc::clone(&recorder) as Arc<dyn Inbound>);
        Self { id, transport, recorder }
    }

    /// Starts two nodes, and waits until each has received a message of the other.
    pub(super) async fn pair(net: &impl Net) -> (Host, Host) {
        let one = Host::of(net, 1).await;
        let other = Host::of(net, 2).await;
        one.meet(&other, 0).await;
        (one, other)
    }

    pub(super) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.recorder.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a condition on what was received holds. Only one task may wait at a time.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        mut condition: impl FnMut(&mut Heard) -> Option<T>,
    ) -> T {
        let wait = async {
            loop {
                if let Some(value) = condition(&mut self.heard()) {
                    return value;
                }
                self.recorder.changed.notified().await;
            }
        };
        in_time(what, wait).await
    }

    /// Waits for a condition, and sends again from time to time until it holds.
    pub(super) async fn until_heard_from<T>(
        &self,
        what: &str,
        send: impl Fn(),
        mut condition: impl FnMut(&mut Heard) -> Option<T>,
    ) -> T {
        let wait = async {
            loop {
                send();
                let once = self.until(what, &mut condition);
                if let Ok(value) = timeout(REPEAT_INTERVAL, once).await {
                    return value;
                }
            }
        };
        in_time(what, wait).await
    }

    /// Lets both nodes send to each other until both have received a message. `round` differs
    /// between meetings of the same two nodes.
    pub(super) async fn meet(&self, other: &Host, round: u64) {
        for (from, to) in [(self, other), (other, self)] {
            let hello = Message::new(
                INTRODUCTION_TERM,
                MessageBody::HeartbeatResponse { round, version_max: 0 },
            );
            let send = || from.transport.send(to.id, hello.clone());
            let greeted = |heard: &mut Heard| heard.introduced.contains(&(from.id, round));
            let what = format!("node {} hears node {}", to.id, from.id);
            to.until_heard_from(&what, send, |heard| greeted(heard).then_some(())).await;
        }
    }

    /// Opens a bulk stream to the other node. Returns both its ends.
    pub(super) async fn bulk_to(&self, other: &Host) -> (Box<dyn BulkStream>, Box<dyn BulkStream>) {
        let mut near = in_time("a bulk stream opens", self.transport.open_bulk(other.id))
            .await
            .expect("a reachable peer takes a bulk stream");
        // A transport need not offer the stream to the peer before there is something to read.
        let greeting = bytes::Bytes::from_static(b"greeting");
        near.send(greeting.clone()).await.expect("a new stream takes a frame");
        let (from, mut far) =
            other.until("the peer is offered the stream", |heard| heard.bulk.pop()).await;
        assert_eq!(from, self.id, "a stream comes from who opened it");
        let first = in_time("the first frame arrives", far.receive()).await;
        assert_eq!(first, Ok(Some(greeting)));
        (near, far)
    }
}

/// # Panics
/// If it takes longer than [`PATIENCE`].
pub(super) async fn in_time<T>(what: &str, step: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, step).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// A control message with a number.
pub(super) fn heartbeat(round: u64) -> Message {
    Message::new(7, MessageBody::Heartbeat { round, commit_index: round })
}

/// A log message with a number and one command.
pub(super) fn append(number: u64, command: bytes::Bytes) -> Message {
    let entry = Entry { index: number + 1, term: 7, payload: Payload::Command(command) };
    let previous = Position::new(7, number);
    Message::new(
        7,
        MessageBody::AppendEntries { previous, entries: vec![entry], commit_index: number },
    )
}

/// The number of an [`append`] or a [`heartbeat`].
pub(super) fn number_of(message: &Message) -> u64 {
    match &message.body {
        MessageBody::AppendEntries { commit_index, .. }
        | MessageBody::Heartbeat { commit_index, .. } => *commit_index,
        other => panic!("the suite did not send {other:?}"),
    }
}
