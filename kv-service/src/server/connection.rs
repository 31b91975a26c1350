//! Serves one client: reads its requests, hands them to the node, sends the answers as they come.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::Shared;
use super::outbox::{Outbox, Sending};
use crate::protocol::{FrameBuffer, FrameError, Greeting, Rejection, Reply, Request};
use crate::stream::Stream;

/// How long a client may take to say its first words, and how many they may be.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
const GREETING_BYTES_MAX: usize = 1 << 10;

/// A client that takes nothing of its answers for so long is given up.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Runs until the client leaves, misbehaves, or the server has shut down.
pub(super) async fn serve(shared: Arc<Shared>, stream: Stream) {
    let Stream { mut reader, mut writer, guard: _guard } = stream;
    let mut frames = FrameBuffer::with_limit(GREETING_BYTES_MAX);
    let greeting = timeout(GREETING_TIMEOUT, read_frame::<Greeting>(&mut *reader, &mut frames));
    let client = match greeting.await {
        Ok(Ok(Some(Greeting { client }))) => client,
        // A client that never spoke, or does not speak this protocol, is not worth more words.
        Ok(Ok(None) | Err(_)) | Err(_) => return,
    };
    frames.set_limit(shared.request_bytes_max());
    let outbox = Outbox::new(Arc::clone(&shared.load));
    outbox.push_unasked(&shared.hello());
    let reading = read(&shared, &outbox, &mut *reader, &mut frames);
    let writing = write(&outbox, &mut *writer);
    let result = tokio::select! {
        biased;
        result = reading => result,
        () = writing => Ok(()),
        () = shared.closed() => Ok(()),
    };
    outbox.close();
    if let Err(error) = result {
        tracing::warn!(client, %error, "closed a client's connection");
    }
}

async fn read_frame<T: serde::de::DeserializeOwned>(
    reader: &mut (dyn AsyncRead + Send + Unpin),
    frames: &mut FrameBuffer,
) -> Result<Option<T>, FrameError> {
    loop {
        if let Some(message) = frames.next_message()? {
            return Ok(Some(message));
        }
        frames.reserve();
        // A broken stream is a client that has left.
        match reader.read_buf(frames.input()).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) => {}
        }
    }
}

async fn read(
    shared: &Arc<Shared>,
    outbox: &Arc<Outbox>,
    reader: &mut (dyn AsyncRead + Send + Unpin),
    frames: &mut FrameBuffer,
) -> Result<(), FrameError> {
    let open_max = shared.config.limits.connection_requests_max;
    while let Some(Request { id, kind }) = read_frame::<Request>(reader, frames).await? {
        outbox.room(open_max).await;
        outbox.open();
        if shared.is_draining() {
            outbox.push(id, Reply::Rejected(Rejection::ShuttingDown));
        } else {
            shared.handle(kind, id, outbox);
        }
    }
    // The client has said all it wanted to; answers under way still reach it.
    outbox.emptied().await;
    Ok(())
}

async fn write(outbox: &Outbox, writer: &mut (dyn AsyncWrite + Send + Unpin)) {
    let mut sending = Sending::new();
    while outbox.take(&mut sending) {
        if sending.bytes.is_empty() {
            outbox.sent(&mut sending);
            outbox.filled.notified().await;
            continue;
        }
        let mut rest = &sending.bytes[..];
        while !rest.is_empty() {
            match timeout(WRITE_PATIENCE, writer.write(rest)).await {
                Ok(Ok(written)) if written > 0 => rest = &rest[written..],
                Ok(Ok(_) | Err(_)) | Err(_) => return,
            }
        }
        outbox.sent(&mut sending);
    }
}
