//! One connection to one node: many calls in flight at once, answered in any order.
//!
//! A reader task hands each response to the call that waits for it. A writer task sends all queued
//! requests in one piece. When the stream breaks, every waiting call fails, so none waits forever.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use crate::members::MemberList;
use crate::net::stream::Stream;
use crate::protocol::{
    FRAME_BYTES_MAX, FrameBuffer, Greeting, Hello, Reply, Request, RequestKind, Response, Welcome,
    push_frame,
};

/// Bytes of requests queued and not yet sent; a further call waits for room.
const OUTBOX_BYTES_MAX: usize = 4 << 20;

/// Capacity in bytes that an empty buffer may keep.
const KEPT_BYTES: usize = 1 << 20;

/// Called with each list of members that the node sends unasked.
pub(super) type OnMembers = Box<dyn Fn(&MemberList) + Send>;

/// Why a call has no response.
#[derive(Debug)]
pub(super) enum CallError {
    /// The request was never sent.
    NotSent(String),
    /// The request may have arrived.
    Lost(String),
}

pub(super) struct Connection {
    shared: Arc<ConnectionShared>,
    hello: Hello,
    tasks: [AbortHandle; 2],
    _guard: Box<dyn Any + Send + Sync>,
}

struct ConnectionShared {
    state: Mutex<ConnectionState>,
    /// Notified when the outbox has something to send, or the connection broke.
    filled: Notify,
    /// Notified when the outbox has room, or the connection broke.
    room: Notify,
}

struct ConnectionState {
    next_id: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Reply>>,
    outbox: BytesMut,
    broken: Option<String>,
}

impl Connection {
    /// Greets the node and waits for its [`Welcome`].
    pub(super) async fn open(
        stream: Stream,
        client: &str,
        on_members: OnMembers,
    ) -> Result<Self, String> {
        let Stream { mut reader, mut writer, guard, .. } = stream;
        let mut greeting = BytesMut::new();
        push_frame(&mut greeting, &Greeting::new(client));
        writer.write_all(&greeting).await.map_err(|error| error.to_string())?;
        let mut frames = FrameBuffer::with_limit(FRAME_BYTES_MAX);
        let hello = loop {
            match frames.next_message().map_err(|error| error.to_string())? {
                Some(Welcome::Hello(hello)) => break hello,
                Some(Welcome::Refused(why)) => return Err(format!("the node refused: {why}")),
                None => {}
            }
            frames.reserve();
            match reader.read_buf(frames.input()).await {
                Ok(0) => return Err("the node closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        };
        let state = ConnectionState {
            next_id: 1,
            waiting: BTreeMap::new(),
            outbox: BytesMut::new(),
            broken: None,
        };
        let shared = Arc::new(ConnectionShared {
            state: Mutex::new(state),
            filled: Notify::new(),
            room: Notify::new(),
        });
        let reading = tokio::spawn(read(Arc::clone(&shared), reader, frames, on_members));
        let writing = tokio::spawn(write(Arc::clone(&shared), writer));
        let tasks = [reading.abort_handle(), writing.abort_handle()];
        Ok(Self { shared, hello, tasks, _guard: guard })
    }

    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    pub(super) fn is_broken(&self) -> bool {
        self.shared.lock().broken.is_some()
    }

    /// Sends one request and waits for its response. Dropping the future discards the response, but
    /// does not recall the request.
    pub(super) async fn call(&self, kind: RequestKind) -> Result<Reply, CallError> {
        let (needed, agreed) = (kind.since(), self.hello.version);
        if needed > agreed {
            return Err(CallError::NotSent(format!(
                "the node speaks version {agreed} of the protocol, and this needs version {needed}: \
                 upgrade the node"
            )));
        }
        let answer = loop {
            let room = self.shared.room.notified();
            {
                let mut state = self.shared.lock();
                if let Some(why) = &state.broken {
                    return Err(CallError::NotSent(why.clone()));
                }
                if state.outbox.len() < OUTBOX_BYTES_MAX {
                    let id = state.next_id;
                    state.next_id += 1;
                    let (sender, receiver) = oneshot::channel();
                    let replaced = state.waiting.insert(id, sender);
                    assert!(replaced.is_none(), "a request id is used once on its connection");
                    push_frame(&mut state.outbox, &Request::new(id, kind));
                    break Waiting { shared: &self.shared, id, receiver };
                }
            }
            room.await;
        };
        self.shared.filled.notify_one();
        answer.await_reply().await
    }

    /// Breaks the connection; waiting calls fail.
    pub(super) fn close(&self) {
        self.shared.break_off("the client closed the connection");
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// A call in flight. Dropping it removes it from the calls that wait for a response.
struct Waiting<'a> {
    shared: &'a ConnectionShared,
    id: u64,
    receiver: oneshot::Receiver<Reply>,
}

impl Waiting<'_> {
    async fn await_reply(mut self) -> Result<Reply, CallError> {
        match (&mut self.receiver).await {
            Ok(reply) => Ok(reply),
            Err(_) => {
                let why = self.shared.lock().broken.clone();
                Err(CallError::Lost(why.unwrap_or_else(|| "the connection broke".to_owned())))
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.id);
    }
}

impl ConnectionShared {
    fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        // Held for single steps only; none of them panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self, why: &str) {
        let waiting = {
            let mut state = self.lock();
            state.broken.get_or_insert_with(|| why.to_owned());
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.filled.notify_one();
        self.room.notify_waiters();
    }
}

async fn read(
    shared: Arc<ConnectionShared>,
    mut reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
    mut frames: FrameBuffer,
    on_members: OnMembers,
) {
    let why = loop {
        loop {
            match frames.next_message::<Response>() {
                Ok(Some(Response { id: 0, reply: Reply::Members(list) })) => on_members(&list),
                Ok(Some(Response { id, reply })) => {
                    let waiting = shared.lock().waiting.remove(&id);
                    if let Some(waiting) = waiting {
                        // The caller may have given up just now.
                        let _ = waiting.send(reply);
                    }
                }
                Ok(None) => break,
                Err(error) => return shared.break_off(&error.to_string()),
            }
        }
        frames.reserve();
        match reader.read_buf(frames.input()).await {
            Ok(0) => break "the node closed the connection".to_owned(),
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    shared.break_off(&why);
}

async fn write(
    shared: Arc<ConnectionShared>,
    mut writer: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
) {
    let mut sending = BytesMut::new();
    loop {
        {
            let mut state = shared.lock();
            if state.broken.is_some() {
                return;
            }
            assert!(sending.is_empty(), "requests that were taken were sent");
            std::mem::swap(&mut state.outbox, &mut sending);
        }
        if sending.is_empty() {
            shared.filled.notified().await;
            continue;
        }
        shared.room.notify_waiters();
        if let Err(error) = writer.write_all(&sending).await {
            return shared.break_off(&error.to_string());
        }
        sending.clear();
        // One huge request must not keep its buffer for good.
        if sending.capacity() > KEPT_BYTES {
            sending = BytesMut::new();
        }
    }
}
