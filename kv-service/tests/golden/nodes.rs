//! Nodes that answer a client by the script, and note every request.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::support::{
    Answer, ClusterReport, ConnectError, Connector, Expect, FRAME_BYTES_MAX, FrameBuffer, Greeting,
    Hello, NodeStatus, Nonce, Operation, Query, Record, Refusal, Rejection, Reply, Request,
    RequestKind, Response, ScanPage, SessionId, Stream, UpgradeOrder, VERSION_MAX, Welcome,
    WriteResponse, push_frame,
};

/// Three nodes, or as many as the script has; a clone is the same nodes.
#[derive(Clone, Default)]
pub(crate) struct Nodes(Arc<Mutex<NodesState>>);

#[derive(Default)]
pub(crate) struct NodesState {
    pub(crate) count: u64,
    pub(crate) window: u32,
    pub(crate) round_trip: Duration,
    /// Reactions to the next requests, and to the next requests for a session.
    pub(crate) acts: VecDeque<String>,
    pub(crate) opening_acts: VecDeque<String>,
    /// The reaction once there are no others.
    pub(crate) always: Option<String>,
    /// Nodes that are not reached: the reason, empty if nothing answers.
    pub(crate) down: BTreeMap<u64, String>,
    /// The leader that the nodes name when a client connects.
    pub(crate) leader: Option<u64>,
    /// Events since the last look.
    pub(crate) events: Vec<String>,
    session_count: u64,
    revision: u64,
}

/// The reaction of a node to a request.
enum Act {
    Say(Box<Reply>),
    /// The node takes the request, and the connection breaks.
    HangUp,
    Silence,
    /// Bytes that are no response.
    Garbage,
}

impl Nodes {
    pub(crate) fn lock(&self) -> MutexGuard<'_, NodesState> {
        self.0.lock().unwrap()
    }

    fn round_trip(&self) -> Duration {
        self.lock().round_trip
    }

    async fn serve(self, node_id: u64, mut stream: DuplexStream) {
        let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
        let Some(Greeting { .. }) = receive(&mut stream, &mut frames).await else { return };
        tokio::time::sleep(self.round_trip()).await;
        let welcome = self.lock().welcome(node_id);
        send(&mut stream, &welcome).await;
        while let Some(Request { id, kind, .. }) = receive(&mut stream, &mut frames).await {
            tokio::time::sleep(self.round_trip()).await;
            let act = self.lock().react(node_id, &kind);
            match act {
                Act::Say(reply) => send(&mut stream, &Response { id, reply: *reply }).await,
                Act::HangUp => return,
                Act::Silence => {}
                Act::Garbage => send(&mut stream, &"garbage").await,
            }
        }
    }
}

impl NodesState {
    fn welcome(&mut self, node_id: u64) -> Welcome {
        if self.down.get(&node_id).is_some_and(|why| why == "refuses") {
            self.events.push(format!("  {node_id}: refuses the greeting"));
            return Welcome::Refused("wrong cluster".to_owned());
        }
        Welcome::Hello(Hello {
            version: 2,
            cluster_version: VERSION_MAX,
            cluster_id: "script".to_owned(),
            node_id,
            leader_id: self.leader,
            key_bytes_max: 100,
            value_bytes_max: 100,
            requests_max: 100,
        })
    }

    fn react(&mut self, node_id: u64, kind: &RequestKind) -> Act {
        let acts = match kind {
            RequestKind::OpenSession => &mut self.opening_acts,
            _ => &mut self.acts,
        };
        let always = match kind {
            RequestKind::OpenSession => None,
            _ => self.always.clone(),
        };
        let act = acts.pop_front().or(always).unwrap_or_else(|| "ok".to_owned());
        self.events.push(format!("  {node_id}: {} -> {act}", request(kind)));
        self.act(&act, kind)
    }

    fn act(&mut self, act: &str, kind: &RequestKind) -> Act {
        let refuse = Reply::Refused;
        let reject = Reply::Rejected;
        let text = || "so says the script".to_owned();
        Act::Say(Box::new(match act {
            "ok" => self.success(kind),
            "lost" => return Act::HangUp,
            "silence" => return Act::Silence,
            "garbage" => return Act::Garbage,
            "not-leader" => reject(Rejection::NotLeader { leader_id: None }),
            "busy" => reject(Rejection::Busy(text())),
            "invalid" => reject(Rejection::Invalid(text())),
            "stopping" => reject(Rejection::ShuttingDown),
            "unknown" => Reply::Unknown(text()),
            "unknown-session" => refuse(Refusal::UnknownSession),
            "forgotten" => refuse(Refusal::Forgotten),
            "window-exceeded" => refuse(Refusal::WindowExceeded),
            "other-operation" => refuse(Refusal::OtherOperation),
            "too-large" => refuse(Refusal::ValueTooLarge { size_bytes: 9, limit_bytes: 8 }),
            "bad-key" => refuse(Refusal::KeyOutOfRange { size_bytes: 9, limit_bytes: 8 }),
            "misplaced" => Reply::SessionClosed,
            "unchanged" => {
                Reply::Written(WriteResponse { revision: 9, changed: false, version: 4 })
            }
            hint => match hint.strip_prefix("leader-").map(str::parse) {
                Some(Ok(leader)) => reject(Rejection::NotLeader { leader_id: Some(leader) }),
                _ => panic!("no reaction {hint}"),
            },
        }))
    }

    fn success(&mut self, kind: &RequestKind) -> Reply {
        match kind {
            RequestKind::OpenSession => {
                self.session_count += 1;
                let index = 100 * self.session_count;
                let session = SessionId { index, nonce: Nonce(index.into()) };
                Reply::SessionOpened { session, window: self.window }
            }
            RequestKind::CloseSession { .. } => Reply::SessionClosed,
            RequestKind::Write(_) => {
                self.revision += 1;
                let revision = self.revision;
                Reply::Written(WriteResponse { revision, changed: true, version: 1 })
            }
            RequestKind::Read { query: Query::Get { .. }, .. } => {
                let value = Bytes::from_static(b"v");
                Reply::Answered(Answer::Get(Some(Record {
                    value,
                    version: 1,
                    create_revision: 7,
                    modify_revision: 7,
                })))
            }
            RequestKind::Read { query: Query::Scan { .. }, .. } => {
                Reply::Answered(Answer::Scan(ScanPage::default()))
            }
            RequestKind::Status => {
                let role = "leader".to_owned();
                Reply::Status(Box::new(NodeStatus { role, ..NodeStatus::default() }))
            }
            RequestKind::Upgrade(_) | RequestKind::TransferLeadership { .. } => {
                Reply::Done("done".to_owned())
            }
            RequestKind::Cluster | RequestKind::ChangeMembers(_) => {
                let report = ClusterReport { leader_id: Some(1), ..ClusterReport::default() };
                Reply::Cluster(Box::new(report))
            }
        }
    }
}

fn request(kind: &RequestKind) -> String {
    match kind {
        RequestKind::OpenSession => "open a session".to_owned(),
        RequestKind::CloseSession { session } => format!("close session {}", session.index),
        RequestKind::Write(write) => format!(
            "{} in session {} number {}, lowest unanswered {}",
            operation(&write.operation),
            write.session.index,
            write.sequence,
            write.lowest_unanswered,
        ),
        RequestKind::Read { query: Query::Get { .. }, consistency } => {
            format!("get, {consistency:?}")
        }
        RequestKind::Read { query: Query::Scan { .. }, consistency } => {
            format!("scan, {consistency:?}")
        }
        RequestKind::Status => "status".to_owned(),
        RequestKind::Upgrade(UpgradeOrder::Hold) => "upgrade hold".to_owned(),
        RequestKind::Upgrade(order) => format!("upgrade {order:?}"),
        RequestKind::Cluster => "members".to_owned(),
        RequestKind::ChangeMembers(order) => format!("members {:?}", order.change),
        RequestKind::TransferLeadership { to } => format!("transfer to {to:?}"),
    }
}

fn operation(operation: &Operation) -> String {
    let key = String::from_utf8_lossy(operation.key());
    match operation {
        Operation::Put { .. } => format!("put {key}"),
        Operation::Append { .. } => format!("append {key}"),
        Operation::Delete { .. } => format!("delete {key}"),
        Operation::CompareAndSwap { expect: Expect::Revision(revision), .. } => {
            format!("cas {key} at revision {revision}")
        }
        Operation::CompareAndSwap { .. } => format!("cas {key}"),
    }
}

async fn send(stream: &mut DuplexStream, message: &impl serde::Serialize) {
    let mut bytes = BytesMut::new();
    push_frame(&mut bytes, message);
    // A client that has left receives nothing.
    let _ = stream.write_all(&bytes).await;
}

/// Receives a message; `None` when the client has left.
async fn receive<T: serde::de::DeserializeOwned>(
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
        (1..=self.lock().count).collect()
    }

    async fn connect(&self, node: u64) -> Result<Stream, ConnectError> {
        let down = self.lock().down.get(&node).cloned();
        match down.as_deref() {
            Some("silent") => {
                self.lock().events.push(format!("  {node}: does not answer"));
                std::future::pending::<()>().await;
            }
            Some("refused") => {
                self.lock().events.push(format!("  {node}: connection refused"));
                return Err(ConnectError::network("connection refused"));
            }
            _ => {}
        }
        tokio::time::sleep(2 * self.round_trip()).await;
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(self.clone().serve(node, theirs));
        let (reader, writer) = tokio::io::split(ours);
        Ok(Stream::new(reader, writer, ()))
    }

    async fn close(&self) {
        self.lock().events.push("  connections closed".to_owned());
    }
}
