//! Serves one client: reads its requests, hands them to the node, sends the responses as they come.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::notices::{NoticeReader, Notices};
use super::outbox::{Outbox, Sending};
use super::pace::Pace;
use super::receiving::{Ended, Receiving};
use super::shared::ServerShared;
use super::width::Width;
use crate::log_limit::Subject;
use crate::net::stream::Stream;
use crate::protocol::{
    Greeting, MEMBERS_SINCE, Rejection, Reply, Request, Response, Welcome, no_greeting, push_frame,
};

/// Time and bytes that a client has for its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
const GREETING_BYTES_MAX: usize = 1 << 10;

/// A client is told of changed members at most this often.
const NOTICE_PAUSE: Duration = Duration::from_secs(1);

/// A client takes its responses at 32 KiB a second at least, with 10 s of slack. Otherwise the node
/// ends the connection, because unsent responses are memory of the node.
const RESPONSE_RATE: Pace = Pace::new(32 << 10, Duration::from_secs(10));

/// A fault of the client, for which the node ends its connection.
type Fault = (Subject, String);

/// Runs until the client leaves, misbehaves, or the server has shut down.
pub(super) async fn serve(shared: Arc<ServerShared>, mut stream: Stream) {
    let (from, slow_down_source) = (stream.from, stream.slow_down_source.take());
    if let Err((subject, text)) = converse(&shared, stream).await {
        if let Some(slow_down_source) = slow_down_source {
            slow_down_source();
        }
        shared.complaints.note(from, subject, &text);
    }
}

/// Serves the client until one of the two ends the connection.
///
/// # Errors
/// The fault of the client for which the node ends it.
async fn converse(shared: &Arc<ServerShared>, stream: Stream) -> Result<(), Fault> {
    let Stream { mut reader, mut writer, guard: _guard, principal, widen, .. } = stream;
    let account = shared.accounts.of(&principal);
    let width = Width::new(Arc::clone(&account), widen);
    let outbox = Outbox::new(Arc::clone(&account), Arc::clone(&shared.damage), width);
    let mut receiving = Receiving::new(&mut *reader, &account, outbox.width(), GREETING_BYTES_MAX);
    let accepted = match timeout(GREETING_TIMEOUT, receiving.next::<Greeting>()).await {
        Ok(Ok(greeting)) => greeting.common_version(),
        Ok(Err(Ended::Protocol(_))) => Err(no_greeting()),
        Ok(Err(Ended::Left)) => return Ok(()),
        // A client that never greets gets no response.
        Ok(Err(Ended::TooSlow)) | Err(_) => {
            return Err((Subject::TooSlow, "it did not greet the node in time".to_owned()));
        }
    };
    let version = match accepted {
        Ok(version) => version,
        Err(why) => {
            refuse(why, &mut *writer).await;
            return Ok(());
        }
    };
    receiving.set_limit(shared.request_bytes_max());
    outbox.push_unasked(&Welcome::Hello(shared.hello(version)));
    let notices = shared.notices.subscribe();
    let reading = read(shared, &outbox, &principal, &mut receiving);
    let writing = write(&outbox, &mut *writer);
    let ended = tokio::select! {
        biased;
        ended = reading => match ended {
            Ended::Left => Ok(()),
            Ended::Protocol(error) => Err((Subject::Protocol, error.to_string())),
            Ended::TooSlow => Err((Subject::TooSlow, Ended::TooSlow.to_string())),
        },
        is_broken = writing => if is_broken { Ok(()) } else {
            Err((Subject::TooSlow, "it takes its responses at less than 32 KiB a second".to_owned()))
        },
        () = pass_on(notices, &outbox, version >= MEMBERS_SINCE) => Ok(()),
    };
    outbox.close();
    ended
}

/// Tells the client the members, and each change of them, until the server is closed.
async fn pass_on(mut notices: NoticeReader, outbox: &Outbox, understands_members: bool) {
    loop {
        notices.changed().await;
        let Notices { is_closed, members } = notices.read();
        if is_closed {
            return;
        }
        if understands_members && !members.members.is_empty() {
            let reply = Reply::Members((*members).clone());
            outbox.push_unasked(&Response { id: 0, reply });
            // Members that keep changing must not fill the outbox of a client that reads slowly.
            let _ = timeout(NOTICE_PAUSE, notices.closed()).await;
        }
    }
}

/// Tells a client why it is not served. Errors are ignored, because the client may have left.
async fn refuse(why: String, writer: &mut (dyn AsyncWrite + Send + Unpin)) {
    let mut frame = BytesMut::new();
    push_frame(&mut frame, &Welcome::Refused(why));
    let told = async {
        let _ = writer.write_all(&frame).await;
        let _ = writer.shutdown().await;
    };
    let _ = timeout(GREETING_TIMEOUT, told).await;
}

/// Reads requests until there are no more, and returns the reason.
async fn read(
    shared: &Arc<ServerShared>,
    outbox: &Arc<Outbox>,
    principal: &Bytes,
    receiving: &mut Receiving<'_>,
) -> Ended {
    let open_max = shared.config.limits.connection_requests_max;
    let mut has_room = true;
    loop {
        // Wait before the request is received: a request held while waiting here would be memory
        // that no budget counts.
        if !has_room {
            outbox.room(open_max).await;
        }
        let request = match receiving.next::<Request>().await {
            Ok(request) => request,
            Err(Ended::Left) => break,
            Err(ended) => return ended,
        };
        has_room = outbox.open(open_max);
        let is_report = request.kind.is_report();
        let checked = request.check();
        let Request { id, kind, .. } = request;
        if let Err(rejection) = checked {
            outbox.push(id, Reply::Rejected(rejection));
        } else if shared.is_draining() {
            outbox.push(id, Reply::Rejected(Rejection::ShuttingDown));
        } else {
            shared.handle(kind, id, principal, outbox);
        }
        // A thousand requests may be in the buffer, and other clients are served by this thread.
        if is_report {
            tokio::task::yield_now().await;
        } else {
            tokio::task::consume_budget().await;
        }
    }
    // The client sends no more requests; responses under way still reach it.
    outbox.emptied().await;
    Ended::Left
}

/// Sends responses until the outbox is closed. Returns true if the stream broke or the outbox was
/// closed, false if the client is too slow.
async fn write(outbox: &Outbox, writer: &mut (dyn AsyncWrite + Send + Unpin)) -> bool {
    let mut sending = Sending::new();
    let mut pace = RESPONSE_RATE;
    while outbox.take(&mut sending) {
        if sending.bytes.is_empty() {
            outbox.sent(&mut sending);
            // The client has taken everything, so it is no longer behind.
            pace.reset();
            outbox.filled.notified().await;
            continue;
        }
        let mut rest = &sending.bytes[..];
        while !rest.is_empty() {
            let since = Instant::now();
            match timeout(pace.patience(), writer.write(rest)).await {
                Ok(Ok(written)) if written > 0 => {
                    assert!(written <= rest.len(), "a stream takes no more than it was given");
                    pace.on_step(written, since.elapsed());
                    rest = &rest[written..];
                }
                Ok(Ok(_) | Err(_)) => return true,
                Err(_) => return false,
            }
        }
        outbox.sent(&mut sending);
    }
    true
}
