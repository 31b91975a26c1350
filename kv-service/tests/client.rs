//! The client against nodes that follow a script: the requests that are sent again, and the outcome
//! that is known at the end.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use kv_service::protocol::operation::{Nonce, Refusal, SessionId};
use kv_service::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, Greeting, Hello, Rejection, Reply, Request, RequestKind,
    Response, Welcome, Write, push_frame,
};
use kv_service::{
    Client, ClientError, ConnectError, Connector, Outcome, Reason, Stream, WriteResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const DEADLINE: Duration = Duration::from_secs(5);
/// Narrower than any server makes it.
const WINDOW: u32 = 5;

const ANSWER: WriteResponse = WriteResponse { revision: 9, changed: true, version: 1 };

/// The reaction of a node to one write.
#[derive(Clone, Debug)]
enum Act {
    Say(Reply),
    /// The node takes the request, and the connection breaks.
    HangUp,
    Silence,
}

use Act::{HangUp, Say, Silence};

fn refuse(refusal: Refusal) -> Act {
    Say(Reply::Refused(refusal))
}

fn reject() -> Act {
    Say(Reply::Rejected(Rejection::NotLeader { leader_id: None }))
}

/// Three nodes that follow one script. They open a session whenever a client asks for one.
#[derive(Clone, Default)]
struct Nodes(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    acts: VecDeque<Act>,
    /// Connecting takes two round trips until the greeting can be sent, a response takes one.
    round_trip: Duration,
    /// The last act is repeated.
    last: Option<Act>,
    session_count: u64,
    /// Session, sequence and lowest unanswered of each write.
    writes: Vec<(u64, u64, u64)>,
}

impl Nodes {
    fn new(acts: impl IntoIterator<Item = Act>) -> Self {
        let nodes = Self::default();
        nodes.0.lock().unwrap().acts = acts.into_iter().collect();
        nodes
    }

    fn client(&self) -> Client {
        Client::with_seed(Arc::new(self.clone()), DEADLINE, 1)
    }

    fn round_trip(&self) -> Duration {
        self.0.lock().unwrap().round_trip
    }

    fn writes(&self) -> Vec<(u64, u64, u64)> {
        self.0.lock().unwrap().writes.clone()
    }

    fn session_count(&self) -> u64 {
        self.0.lock().unwrap().session_count
    }

    fn act(&self, kind: &RequestKind) -> Act {
        let mut state = self.0.lock().unwrap();
        match kind {
            RequestKind::OpenSession => {
                state.session_count += 1;
                let index = 100 * state.session_count;
                let session = SessionId { index, nonce: Nonce(index.into()) };
                Say(Reply::SessionOpened { session, window: WINDOW })
            }
            RequestKind::Write(write) => {
                let Write { session, sequence, lowest_unanswered, .. } = &**write;
                assert_eq!(session.nonce, Nonce(session.index.into()), "as it was opened");
                state.writes.push((session.index, *sequence, *lowest_unanswered));
                if let Some(act) = state.acts.pop_front() {
                    state.last = Some(act);
                }
                state.last.clone().expect("a script has an act")
            }
            other => panic!("not in the script: {other:?}"),
        }
    }

    async fn serve(self, node_id: u64, mut stream: DuplexStream) {
        let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
        let Some(Greeting { .. }) = hear(&mut stream, &mut frames).await else { return };
        let hello = Hello {
            version: 2,
            cluster_version: 2,
            cluster_id: "script".to_owned(),
            node_id,
            leader_id: None,
            key_bytes_max: 100,
            value_bytes_max: 100,
            requests_max: 100,
        };
        let round_trip = self.round_trip();
        tokio::time::sleep(round_trip).await;
        say(&mut stream, &Welcome::Hello(hello)).await;
        while let Some(Request { id, kind, .. }) = hear(&mut stream, &mut frames).await {
            tokio::time::sleep(round_trip).await;
            match self.act(&kind) {
                Say(reply) => say(&mut stream, &Response { id, reply }).await,
                HangUp => return,
                Silence => {}
            }
        }
    }
}

async fn say(stream: &mut DuplexStream, message: &impl serde::Serialize) {
    let mut bytes = BytesMut::new();
    push_frame(&mut bytes, message);
    // A client that has left receives nothing.
    let _ = stream.write_all(&bytes).await;
}

/// Receives a message; `None` when the client has left.
async fn hear<T: serde::de::DeserializeOwned>(
    stream: &mut DuplexStream,
    frames: &mut FrameBuffer,
) -> Option<T> {
    loop {
        if let Some(message) = frames.next_message().expect("the client makes sense") {
            return Some(message);
        }
        frames.reserve();
        if stream.read_buf(frames.input()).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

#[async_trait]
impl Connector for Nodes {
    fn nodes(&self) -> Vec<u64> {
        vec![1, 2, 3]
    }

    async fn connect(&self, node: u64) -> Result<Stream, ConnectError> {
        tokio::time::sleep(2 * self.round_trip()).await;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(self.clone().serve(node, theirs));
        let (reader, writer) = tokio::io::split(ours);
        Ok(Stream::new(reader, writer, ()))
    }

    async fn close(&self) {}
}

/// Makes one write; the nodes answer it by the script.
async fn write(acts: impl IntoIterator<Item = Act>) -> (Result<WriteResponse, ClientError>, Nodes) {
    let nodes = Nodes::new(acts);
    (nodes.client().put("k", "v").await, nodes)
}

async fn outcome(acts: impl IntoIterator<Item = Act>) -> Outcome {
    write(acts).await.0.expect_err("not written").outcome
}

#[tokio::test(start_paused = true)]
async fn every_attempt_has_the_same_number_and_the_next_write_the_next_one() {
    let unknown = Say(Reply::Unknown("who knows".to_owned()));
    let busy = Say(Reply::Rejected(Rejection::Busy("later".to_owned())));
    let acts = [HangUp, unknown, Silence, reject(), busy, Say(Reply::Written(ANSWER))];
    let attempt_count = acts.len();
    let nodes = Nodes::new(acts);
    let client = nodes.client();
    assert_eq!(client.put("k", "v").await, Ok(ANSWER));
    assert_eq!(nodes.writes(), vec![(100, 1, 1); attempt_count]);
    assert_eq!(client.put("k", "w").await, Ok(ANSWER));
    assert_eq!(nodes.writes().last(), Some(&(100, 2, 2)));
}

/// The write keeps one sequence number for as long as it is tried.
#[tokio::test(start_paused = true)]
async fn what_is_never_answered_is_never_sent_as_another_write() {
    let (result, nodes) = write([Silence]).await;
    assert_eq!(result.unwrap_err().outcome, Outcome::Unknown);
    let writes = nodes.writes();
    assert!(writes.len() > 1 && writes.iter().all(|write| *write == (100, 1, 1)), "{writes:?}");
}

#[tokio::test(start_paused = true)]
async fn only_what_every_attempt_denies_is_not_executed() {
    assert_eq!(outcome([reject()]).await, Outcome::NotExecuted);
    assert_eq!(outcome([HangUp]).await, Outcome::Unknown);
    // One attempt of unknown outcome is enough, whatever later attempts return.
    assert_eq!(outcome([HangUp, reject()]).await, Outcome::Unknown);
    assert_eq!(outcome([Silence, reject()]).await, Outcome::Unknown);
    assert_eq!(outcome([reject(), HangUp, reject()]).await, Outcome::Unknown);
    let unknown = Say(Reply::Unknown("who knows".to_owned()));
    assert_eq!(outcome([unknown, reject()]).await, Outcome::Unknown);
    let invalid = || Say(Reply::Rejected(Rejection::Invalid("no".to_owned())));
    assert_eq!(outcome([invalid()]).await, Outcome::NotExecuted);
    assert_eq!(outcome([HangUp, invalid()]).await, Outcome::Unknown);
}

/// The session is gone. An attempt whose response was lost may or may not have been executed in it,
/// and a new session would execute the write again.
#[tokio::test(start_paused = true)]
async fn a_doubtful_write_is_not_sent_in_a_new_session() {
    for doubtful in [HangUp, Silence, Say(Reply::Unknown("who knows".to_owned()))] {
        let acts = [doubtful, refuse(Refusal::UnknownSession), Say(Reply::Written(ANSWER))];
        let (result, nodes) = write(acts).await;
        let error = result.unwrap_err();
        assert_eq!((error.outcome, error.reason), (Outcome::Unknown, Reason::SessionExpired));
        assert_eq!((nodes.session_count(), nodes.writes().len()), (1, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_without_a_doubt_is_sent_in_a_new_session() {
    let acts = [reject(), refuse(Refusal::UnknownSession), Say(Reply::Written(ANSWER))];
    let (result, nodes) = write(acts).await;
    assert_eq!(result, Ok(ANSWER));
    assert_eq!(nodes.writes(), [(100, 1, 1), (100, 1, 1), (200, 1, 1)]);
}

/// A refusal that the session keeps is the response to all attempts. Any other refusal says only
/// that this copy was refused.
#[tokio::test(start_paused = true)]
async fn a_refusal_speaks_for_earlier_attempts_only_if_it_is_kept() {
    let too_large = || refuse(Refusal::ValueTooLarge { size_bytes: 2, limit_bytes: 1 });
    assert_eq!(outcome([too_large()]).await, Outcome::NotExecuted);
    assert_eq!(outcome([HangUp, too_large()]).await, Outcome::NotExecuted);
    for refusal in [Refusal::Forgotten, Refusal::WindowExceeded] {
        assert_eq!(outcome([HangUp, refuse(refusal)]).await, Outcome::Unknown);
    }
}

/// S7. Nodes that are far away are reached, and a request whose response takes a round trip is not
/// sent twice.
#[tokio::test(start_paused = true)]
async fn nodes_far_away_are_reached() {
    for round_trip_ms in [0, 200, 600, 1500] {
        let nodes = Nodes::new([Say(Reply::Written(ANSWER))]);
        nodes.0.lock().unwrap().round_trip = Duration::from_millis(round_trip_ms);
        let client = nodes.client().with_deadline(Duration::from_secs(20));
        for sequence in 1..=3 {
            let written = client.put("k", "v").await;
            assert_eq!(written, Ok(ANSWER), "{round_trip_ms} ms");
            assert_eq!(nodes.writes().len(), sequence, "{round_trip_ms} ms: each is sent once");
        }
    }
}

/// S7. The first call already fits the default deadline.
#[tokio::test(start_paused = true)]
async fn six_hundred_milliseconds_fit_the_default_deadline() {
    let nodes = Nodes::new([Say(Reply::Written(ANSWER))]);
    nodes.0.lock().unwrap().round_trip = Duration::from_millis(600);
    let deadline = kv_service::config::default_deadline();
    assert_eq!(nodes.client().with_deadline(deadline).put("k", "v").await, Ok(ANSWER));
}

/// S9. A session that another client has made useless, or that turns out to belong to another
/// client, is dropped. The write goes on in a new session if no attempt of it can have been
/// executed; the next write does so in any case.
#[tokio::test(start_paused = true)]
async fn a_session_that_refuses_is_dropped() {
    let ends = [
        Refusal::Forgotten,
        Refusal::WindowExceeded,
        Refusal::UnknownSession,
        Refusal::OtherOperation,
    ];
    for refusal in ends {
        let (result, nodes) = write([refuse(refusal), Say(Reply::Written(ANSWER))]).await;
        assert_eq!(result, Ok(ANSWER), "{refusal:?}");
        assert_eq!(nodes.writes(), [(100, 1, 1), (200, 1, 1)]);

        let nodes = Nodes::new([HangUp, refuse(refusal), Say(Reply::Written(ANSWER))]);
        let client = nodes.client();
        let doubtful = client.put("k", "v").await;
        // Another operation was executed under the number, so this one was not.
        let is_settled = refusal == Refusal::OtherOperation;
        assert_eq!(doubtful.is_ok(), is_settled, "{refusal:?}: {doubtful:?}");
        assert_eq!(client.put("k", "w").await, Ok(ANSWER));
        let next = if is_settled { (200, 2, 2) } else { (200, 1, 1) };
        assert_eq!(nodes.writes().last(), Some(&next), "{refusal:?}");
    }
}

/// The node announces how many writes may be unanswered; a further one waits.
#[tokio::test(start_paused = true)]
async fn the_window_is_the_one_that_was_agreed() {
    let nodes = Nodes::new([Silence]);
    let client = nodes.client();
    let write = |number: u32| {
        let client = client.clone();
        async move { client.put("k", number.to_string()).await }
    };
    let writes: Vec<_> = (0..2 * WINDOW).map(|number| tokio::spawn(write(number))).collect();
    for write in writes {
        assert!(write.await.unwrap().is_err());
    }
    let highest = nodes.writes().iter().map(|(_, sequence, _)| *sequence).max();
    assert_eq!(highest, Some(WINDOW.into()));
}
